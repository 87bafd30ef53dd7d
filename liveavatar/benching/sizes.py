"""The models and pictures that rows are measured at. Loads no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

SMALL: dict[str, Any] = {
    "dim": 160,
    "ffn_dim": 432,  # 2.7 × dim, as in the 14B model
    "num_heads": 4,
    "num_layers": 12,
    "audio_inject_layers": [0, 3, 6, 9],
    "audio_dim": 48,
    "audio_layers": 13,
    "text_dim": 128,
    "text_len": 32,
    "freq_dim": 64,
}
TINY: dict[str, Any] = SMALL | {"dim": 80, "ffn_dim": 216, "num_layers": 4, "audio_inject_layers": [0, 2]}

SIZES = {"14b": ("704*384", "384*256"), "small": ("64*64", "96*64"), "tiny": ("64*64",)}
"""The pictures, height*width, that a shape is measured at; the first is the main one."""


def keywords(shape: str) -> dict[str, Any]:
    """The keywords of a shape's DiT. Raises ValueError for a shape that there is not."""
    if shape in ("small", "tiny"):
        return SMALL if shape == "small" else TINY
    if shape != "14b":
        raise ValueError(f"shape={shape} is unknown: write {', '.join(SIZES)}")
    from omegaconf import OmegaConf

    from liveavatar.config import conf_dir

    found = OmegaConf.to_container(OmegaConf.load(Path(conf_dir()) / "model" / "s2v_14b.yaml").dit)
    assert isinstance(found, dict)
    return {str(key): value for key, value in found.items() if key != "_target_"}
