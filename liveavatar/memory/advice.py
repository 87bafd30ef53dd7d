"""Which settings would need less memory, and by how much: from what is held and what was chosen. Needs no torch.

Settings that change no bit of the result come first, then those that round differently, then a smaller picture.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from liveavatar.memory.failure import Saving
from liveavatar.memory.ledger import Holdings

ACTIVE = ("activations", "caches", "sink", "scratch", "decoder")
"""What grows with the picture."""

FULL_ENCODE_S = 60
Config = Mapping[str, Any]


def savings(
    config: Config, held: Holdings, phase: str, on_cpu: bool, short: int | None, unit_bytes: int = 0
) -> tuple[Saving, ...]:
    """Settings that would help, at most four, those that save at least `short` bytes before the others.

    `config` is the run's configuration in plain values, `unit_bytes` the size of its largest unit. On a CPU, what a
    strategy parks in host memory is not saved.
    """
    found = [*_exact(config, held, phase, on_cpu, unit_bytes), *_rounded(config, held), *_smaller(config, held, phase)]
    enough = [saving for saving in found if short is None or (saving.saves or 0) >= short]
    return tuple([*enough, *(saving for saving in found if saving not in enough)][:4])


def _size(held: Holdings, *names: str) -> int:
    return sum(sum(held.get(name, (0, 0))) for name in names)


def _exact(config: Config, held: Holdings, phase: str, on_cpu: bool, unit: int) -> Iterator[Saving]:
    strategy: Mapping[str, Any] = config.get("strategy") or {}
    name = str(strategy.get("_target_", "")).rpartition(".")[2]
    weights = _size(held, "weights")
    ranks = int(config.get("fabric", {}).get("devices") or 1)
    streamed = weights - 2 * unit
    if name == "FsdpStream":
        resident, slots = int(strategy.get("resident") or 0), int(strategy.get("slots") or 2)
        if resident:
            yield Saving("strategy.resident=0", resident * unit)
        if slots > 2:
            yield Saving("strategy.slots=2", (slots - 2) * unit)
        if on_cpu and strategy.get("source") != "disk":
            yield Saving("strategy.source=disk", weights)
        if not on_cpu and strategy.get("source") in ("auto", "peers") and weights:
            yield Saving("strategy.source=host", weights)
        if not on_cpu and strategy.get("caches") == "device":
            yield Saving("strategy.caches=host", _size(held, "caches"))
    elif weights == 0 or streamed > 0:  # nothing is known yet, or it pays
        source = " strategy.source=disk" if on_cpu else " strategy.source=host"
        yield Saving(f"+strategy=fsdp_stream{source}", max(0, streamed) or None)
    if ranks == 1 and not on_cpu and name != "DiagonalPipeline":
        half = (weights + _size(held, "caches")) // 2
        yield Saving("+strategy=diagonal_pipeline fabric.devices=2 (with a second card)", half or None)
    if config.get("parallel", {}).get("schedule") == "wavefront" and phase in ("prefill", "steady"):
        yield Saving("parallel.schedule=sequential", _size(held, "activations") * 3 // 4 or None)
    if phase == "encode" and config.get("speech", {}).get("context") == "full":
        yield Saving("speech.context=window request.max_seconds=30")


def _rounded(config: Config, held: Holdings) -> Iterator[Saving]:
    """Half the bytes a number: not the same bits, the same picture."""
    precision: Mapping[str, Any] = config.get("precision") or {}
    if "float32" in (precision.get("dit"), precision.get("encoders")):
        yield Saving("precision=bf16", _size(held, *held) // 2 or None)


def _smaller(config: Config, held: Holdings, phase: str) -> Iterator[Saving]:
    """Half the picture, in the form in which it was given."""
    size = str(config.get("request", {}).get("size") or "")
    sides = [int(part) for part in size.replace("x", "*").split("*") if part.strip().isdigit()]
    if phase == "load" or len(sides) != 2:
        return
    step = int(config.get("model", {}).get("size_multiple") or 16)
    shrunk = [max(step, int(side * 0.5**0.5) // step * step) for side in sides]
    if shrunk == sides:
        return
    left = shrunk[0] * shrunk[1] / (sides[0] * sides[1])
    yield Saving(f"request.size={shrunk[0]}*{shrunk[1]}", int(_size(held, *ACTIVE) * (1 - left)) or None)
