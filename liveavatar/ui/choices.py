"""What the page offers to choose from, with the words that explain it."""

from __future__ import annotations

from typing import Any

from liveavatar.ui.engine import Choice
from liveavatar.ui.protocol import Mistake

STRATEGIES: dict[str, tuple[str, str]] = {
    "single_device": ("Everything on one device", "Fastest when the weights fit. The truth that others are held to."),
    "fsdp_stream": ("Weights just in time", "Fewest bytes: a small ring holds what is being computed with."),
    "replicated": ("Everything on every rank", "For several processes that share each picture or sequence."),
    "diagonal_pipeline": ("A range of layers per rank", "Several small cards, each with a part of the model."),
    "timestep_pipeline": ("A step per rank", "Each rank makes one denoising step with all layers."),
    "fsdp_full": ("FSDP2", "The usual way to shard: a baseline to compare with."),
    "hsdp_offload": ("FSDP2, shards in host memory", "Baseline for hosts with much memory."),
}
"""Name of a strategy: its title and what to expect. All give the same picture, bit for bit."""

ALONE = ("single_device", "fsdp_stream")
"""Strategies of one process."""

STEPS = (1, 8)
SHIFT = (1.0, 12.0)

EXPLAINED = {
    "strategy": "How the work is divided and where the weights rest. It changes speed and memory, never the picture.",
    "steps": "Denoising steps for each block. The model was distilled for 4: fewer are faster and rougher.",
    "shift": "How much of the noise is removed late. The model was trained with its default.",
    "prompt": "What the picture shows, in a sentence. It may change while the avatar speaks.",
    "seed": "Another number gives another take of the same thing. The same number repeats it.",
}

EXAMPLES = {
    "toon": ("Cartoon", "A happy person speaks to the camera, in daylight. Head and shoulders."),
    "fashion_blogger": ("Blogger", "A young woman speaks to the camera, smiling, in soft daylight."),
    "music_producer": ("Producer", "A man speaks to the camera in his studio."),
}
"""Portraits and voices that come with the package: title and a prompt that suits."""

VOICES = {
    "en-us": "English (US)", "en-gb": "English (UK)", "de": "Deutsch", "fr-fr": "Français", "es": "Español",
    "it": "Italiano", "pt-br": "Português", "nl": "Nederlands", "pl": "Polski", "tr": "Türkçe",
    "ru": "Русский", "hi": "हिन्दी", "cmn": "中文",
}  # fmt: skip


def read_choice(given: Any, processes: int) -> Choice:
    """What a visitor asks for, out of what is offered and nothing else. Raises Mistake."""
    if not isinstance(given, dict) or set(given) != {"strategy", "steps", "shift"}:
        raise Mistake("bad_value", "Send strategy, steps and shift.")
    strategy, steps, shift = given["strategy"], given["steps"], given["shift"]
    if not isinstance(strategy, str) or strategy not in offered(processes):
        raise Mistake("bad_value", f"strategy must be one of {', '.join(offered(processes))}.")
    if isinstance(steps, bool) or not isinstance(steps, int) or not STEPS[0] <= steps <= STEPS[1]:
        raise Mistake("bad_value", f"steps must be a whole number from {STEPS[0]} to {STEPS[1]}.")
    if isinstance(shift, bool) or not isinstance(shift, int | float) or not SHIFT[0] <= shift <= SHIFT[1]:
        raise Mistake("bad_value", f"shift must be a number from {SHIFT[0]:g} to {SHIFT[1]:g}.")
    return Choice(strategy, steps, float(shift))


def offered(processes: int) -> tuple[str, ...]:
    """Strategies that this number of processes can run."""
    return ALONE if processes == 1 else tuple(name for name in STRATEGIES if name != "single_device")
