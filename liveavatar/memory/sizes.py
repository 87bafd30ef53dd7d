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

Config = Mapping[str, Any]

VAE_BASE, VAE_PARAMETERS = 96, 126_892_531
"""Wan 2.1's own; other widths go by the square."""

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
AREA = 1_000_000


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
        "dit": sum(dit_units(model["dit"]).values()),
        "text": _text(model["text"]),
        "speech": _speech(model["speech"]),
        "vae": VAE_PARAMETERS * int(model["vae"]["base_dim"]) ** 2 // VAE_BASE**2,
    }


def dit_units(dit: Config) -> dict[str, int]:
    """Parameters of each unit of the DiT, in the order of a pass."""
    d, f = int(dit["dim"]), int(dit["ffn_dim"])
    injected = [int(layer) for layer in dit["audio_inject_layers"]]
    attention = 4 * (d * d + d) + 2 * d
    block = 2 * attention + 2 * d + 6 * d + 2 * d * f + f + d
    units = {"embed": _embed(dit)}
    for layer in range(int(dit["num_layers"])):
        units[f"blocks.{layer}"] = block
        if layer in injected:
            number = injected.index(layer)
            units |= {f"adain.{number}": 2 * d * d + 2 * d, f"injectors.{number}": attention}
    return units | {"head": 2 * d + _linear(d, 4 * int(dit.get("out_dim", 16)))}


def rest_bytes(config: Config, ranks: int) -> Rest:
    """Where all weights lie once they are loaded, by the strategy's own arithmetic; `ranks` on one machine."""
    model, precision, strategy = config["model"], config["precision"], config["strategy"]
    counts = parameters(model)
    others = sum(counts[name] for name in ("text", "speech", "vae")) * BYTES.get(precision["encoders"], 2)
    wide = BYTES.get(precision["dit"], 2)
    units = {name: count * wide for name, count in dit_units(model["dit"]).items()}
    whole = sum(units.values())
    name = str(strategy.get("_target_", "")).rpartition(".")[2]
    if name == "FsdpStream":
        return _streamed(strategy, units, others, ranks)
    if name in ("FsdpFull", "DiagonalPipeline"):
        return Rest(others + whole // ranks)
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


def _streamed(strategy: Config, units: Mapping[str, int], others: int, ranks: int) -> Rest:
    source = strategy.get("source", "auto")
    source = ("peers" if ranks > 1 else "host") if source == "auto" else source
    block = units["blocks.0"]
    resident = int(strategy.get("resident") or 0) * block
    moving, ring = sum(units.values()) - resident, int(strategy.get("slots") or 2) * max(units.values())
    held = others + resident + ring
    if source == "peers":
        return Rest(held + moving // ranks)
    if source == "disk":
        return Rest(held, disk=moving)
    return Rest(held, moving, shared=moving if ranks > 1 else 0)


def _linear(given: int, made: int) -> int:
    return given * made + made


def _embed(dit: Config) -> int:
    d, inner = int(dit["dim"]), int(dit.get("in_dim", 16))
    frequencies, audio, layers = int(dit.get("freq_dim", 256)), int(dit["audio_dim"]), int(dit["audio_layers"])
    patches = (4 * inner + 1) * d + (4 * int(dit.get("cond_dim", 16)) + 1) * d + 3 * d
    packer = sum((inner * kernel + 1) * d for kernel in (1 * 2 * 2, 2 * 4 * 4, 4 * 8 * 8))
    text = _linear(int(dit["text_dim"]), d) + _linear(d, d)
    time = _linear(frequencies, d) + _linear(d, d) + _linear(d, 6 * d)
    voice = layers + d + (3 * audio + 1) * d + (3 * audio + 1) * (d // 4)
    voice += (3 * (d // 4) + 1) * (d // 2) + (3 * (d // 2) + 1) * d + _linear(d, d)
    return patches + packer + text + time + voice


def _text(text: Config) -> int:
    d, inner, f = int(text["dim"]), int(text["dim_attn"]), int(text["dim_ffn"])
    layer = 4 * d * inner + 3 * d * f + 2 * d + int(text.get("num_buckets", 32)) * int(text["num_heads"])
    return int(text["vocab_size"]) * d + int(text["num_layers"]) * layer + d


def _speech(speech: Config) -> int:
    d, f = int(speech["hidden_size"]), int(speech["intermediate_size"])
    sizes = [1, *(int(size) for size in speech["conv_dim"])]
    kernels = [10, 3, 3, 3, 3, 2, 2]
    convolutions = sum(a * b * k + 3 * b for a, b, k in zip(sizes[:-1], sizes[1:], kernels, strict=True))
    groups = int(speech["num_conv_pos_embedding_groups"])
    kernel = int(speech["num_conv_pos_embeddings"])
    place = d * (d // groups) * kernel + kernel + d
    layer = 4 * _linear(d, d) + _linear(d, f) + _linear(f, d) + 4 * d
    return convolutions + 2 * sizes[-1] + _linear(sizes[-1], d) + place + int(speech["num_layers"]) * layer + 2 * d
