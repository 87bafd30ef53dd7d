"""Which settings would need less memory, and by how much: from what is held and what was chosen. Needs no torch.

Settings that change no bit of the result come first, then those that round differently, then a smaller picture.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from liveavatar.memory.failure import Saving
from liveavatar.memory.ledger import COMPONENTS, Holdings
from liveavatar.memory.readings import Room
from liveavatar.memory.rest import impossible, rest_bytes

OURS = (*COMPONENTS, "activations")
ACTIVE = ("activations", "caches", "sink", "scratch", "decoder")
"""What grows with the picture."""

Config = Mapping[str, Any]


def savings(
    config: Config, held: Holdings, phase: str, on_cpu: bool, short: int | None, unit_bytes: int = 0
) -> tuple[Saving, ...]:
    """Settings that would help, at most four, those that save at least `short` bytes before the others.

    A saving of unknown size is taken to be enough. `config` is the run's configuration in plain values, `unit_bytes`
    the size of its largest unit. On a CPU, what a strategy parks in host memory is not saved.
    """
    found = [*_exact(config, held, phase, on_cpu, unit_bytes), *_rounded(config, held), *_smaller(config, held, phase)]
    enough = [saving for saving in found if short is None or saving.saves is None or saving.saves >= short]
    rest = sorted((saving for saving in found if saving not in enough), key=lambda saving: -(saving.saves or 0))
    return tuple([*enough, *rest][:4])


PIPELINES = ("DiagonalPipeline", "TimestepPipeline")
STREAMED = {"_target_": ".FsdpStream", "slots": 2, "resident": 0}
HALVED = {"dit": "bfloat16", "encoders": "bfloat16"}


def fitting(config: Config, ranks: int, main: Room, card: int | None) -> tuple[Saving, ...]:
    """Settings under which the weights would lie here, found by trying; at most two, those that change least first."""
    plus = "" if _name(config) == "FsdpStream" else "+strategy=fsdp_stream "
    full = "float32" in (config["precision"]["dit"], config["precision"]["encoders"])
    streams = [
        (f"{plus}strategy.source={source} strategy.resident=0".removesuffix(" strategy.resident=0" if plus else ""),
         {"strategy": STREAMED | {"source": source}})
        for source in ("host", "disk")
    ]  # fmt: skip
    halves = [("precision=bf16", {"precision": HALVED})] if full else []
    both = [(f"{words} precision=bf16", change | {"precision": HALVED}) for words, change in streams] if full else []
    before = rest_bytes(config, ranks)
    found = []
    for words, change in (*streams, *halves, *both):
        after = rest_bytes({**config, **change}, ranks)
        if impossible(after, ranks, main, card) is None:
            found.append(Saving(words, before.device + before.host - after.device - after.host))
    return tuple(found[:2])


def _name(config: Config) -> str:
    return str((config.get("strategy") or {}).get("_target_", "")).rpartition(".")[2]


def _size(held: Holdings, *names: str) -> int:
    return sum(sum(held.get(name, (0, 0))) for name in names)


def _exact(config: Config, held: Holdings, phase: str, on_cpu: bool, unit: int) -> Iterator[Saving]:
    strategy: Mapping[str, Any] = config.get("strategy") or {}
    name = _name(config)
    weights = _size(held, "weights")
    ranks = int(config.get("fabric", {}).get("devices") or 1)
    streamed = weights - 2 * unit
    if name == "FsdpStream":
        yield from _streamed(strategy, held, on_cpu, unit)
    elif name in PIPELINES and not on_cpu:
        yield from _staged(strategy, held, unit)
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


def _streamed(strategy: Mapping[str, Any], held: Holdings, on_cpu: bool, unit: int) -> Iterator[Saving]:
    """Settings of fsdp_stream that hold less."""
    weights = _size(held, "weights")
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


def _staged(strategy: Mapping[str, Any], held: Holdings, unit: int) -> Iterator[Saving]:
    """Settings of a pipeline that keep its cut, and rest less on the card."""
    weights = _size(held, "weights")
    if strategy.get("caches") != "host":
        yield Saving("strategy.caches=host", _size(held, "caches") or None)
    if strategy.get("source") != "host" and (weights == 0 or weights > 2 * unit):
        yield Saving("strategy.source=host", max(0, weights - 2 * unit) or None)


def _rounded(config: Config, held: Holdings) -> Iterator[Saving]:
    """Half the bytes a number: not the same bits, the same picture."""
    precision: Mapping[str, Any] = config.get("precision") or {}
    if "float32" in (precision.get("dit"), precision.get("encoders")):
        yield Saving("precision=bf16", _size(held, *OURS) // 2 or None)


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
