"""How large a configured model is, and where a strategy lets its weights rest: from the configuration alone.

Closed forms, checked against the modules by a test; nothing is loaded and no torch is needed. This is the coarse
picture that tells before a start what can never work; activations, caches and moments are a planner's business.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from liveavatar.memory.ledger import in_words
from liveavatar.memory.readings import Room
from liveavatar.memory.sizes import DitSizes, speech_params, text_params, vae_params

Config = Mapping[str, Any]

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Rest:
    """Bytes of weights at rest, for one process and for its machine.

    device: on each process's device (main memory on a CPU). host: in main memory, once for the machine. shared: the
    part of it that ranks share through /dev/shm. disk: in a file under `strategy.spill_dir`.
    """

    device: int
    host: int = 0
    shared: int = 0
    disk: int = 0


def parameters(model: Config) -> dict[str, int]:
    """Parameters by component of a `model` node: dit, text, speech, vae."""
    return {
        "dit": DitSizes.of(model["dit"]).params,
        "text": text_params(model["text"]),
        "speech": speech_params(model["speech"]),
        "vae": vae_params(model["vae"]),
    }


def dit_units(dit: Config) -> dict[str, int]:
    """Parameters of each unit of the DiT, in the order of a pass."""
    return {name: sum(sizes) for name, sizes in DitSizes.of(dit).units.items()}


def rest_bytes(config: Config, ranks: int) -> Rest:
    """Where all weights lie once they are loaded, by the strategy's own arithmetic; `ranks` on one machine."""
    model, precision, strategy = config["model"], config["precision"], config["strategy"]
    counts = parameters(model)
    others = sum(counts[name] for name in ("text", "speech", "vae")) * BYTES.get(precision["encoders"], 2)
    sizes, wide = DitSizes.of(model["dit"]), BYTES.get(precision["dit"], 2)
    small = precision.get("weights") is not None
    held = {unit: sum(sizes.stored(unit, n, wide, small)) for unit, n in sizes.units.items()}
    whole = sum(held.values())
    name = str(strategy.get("_target_", "")).rpartition(".")[2]
    if name == "FsdpStream":
        ahead = (config.get("parallel") or {}).get("hoist", "auto") is not False
        share = {unit: held[unit] / sum(n) for unit, n in sizes.units.items()}
        cold = {unit: int(sizes.cold(unit) * share[unit]) if ahead else 0 for unit in sizes.units}
        return _streamed(strategy, held, cold, others, ranks)
    if name in ("DiagonalPipeline", "TimestepPipeline") and strategy.get("source", "device") != "device":
        return _staged(strategy["source"], others, whole, ranks)
    if name in ("FsdpFull", "DiagonalPipeline"):
        groups = int(strategy.get("step_groups") or 1)
        return Rest(others + (whole // max(1, ranks // groups) if not strategy.get("table") else 0))
    if name == "HsdpOffload":
        copies = ranks // int(strategy.get("shard_size") or ranks) or 1
        return Rest(others, whole * copies)
    return Rest(others + whole)


def impossible(rest: Rest, ranks: int, main: Room, card: int | None) -> str | None:
    """Why these weights can never lie here, in a sentence; None where they may. `card`: bytes of a GPU, None on a CPU.

    A lower bound against an upper one: what is refused cannot work, whatever else is done.
    """

    if card is not None and rest.device > card:
        return f"the weights alone take {in_words(rest.device)} of each card, which has {in_words(card)}"
    needed = rest.host + (rest.device * ranks if card is None else 0)
    if needed > main.total:
        return f"the weights alone take {in_words(needed)} of main memory, and {main.bound} is {in_words(main.total)}"
    return None


def _streamed(strategy: Config, units: Mapping[str, int], cold: Mapping[str, int], others: int, ranks: int) -> Rest:
    source = strategy.get("source", "auto")
    source = ("peers" if ranks > 1 else "host") if source == "auto" else source
    hot = {name: units[name] - cold[name] for name in units}
    given = strategy.get("resident") or 0
    resident = (0 if given == "auto" else int(given)) * hot["blocks.0"]
    moving, ring = sum(units.values()) - resident, int(strategy.get("slots") or 2) * max(hot.values())
    held = others + resident + ring
    if source == "peers":
        return Rest(held + moving // ranks)
    if source == "disk":
        return Rest(held, disk=moving)
    return Rest(held, moving, shared=moving if ranks > 1 else 0)


def _staged(source: str, others: int, whole: int, ranks: int) -> Rest:
    """Pipelines whose stages stream: rooms and resident blocks are left out, for this is a lower bound."""
    if source == "peers":
        return Rest(others + whole // ranks)
    return Rest(others, disk=whole) if source == "disk" else Rest(others, whole, shared=whole if ranks > 1 else 0)
