"""Models of a case, built and filled by the library's own loading code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn

from liveavatar.checkpoint.keymap import KeyMap
from liveavatar.checkpoint.keymap_dit import DIT
from liveavatar.checkpoint.load import materialise
from liveavatar.checkpoint.shards import Shards
from liveavatar.models.dit.model import AvatarDiT
from liveavatar.strategies.single import SingleDevice

CPU = torch.device("cpu")

SAME = (
    "dim",
    "ffn_dim",
    "num_heads",
    "num_layers",
    "audio_inject_layers",
    "audio_dim",
    "text_dim",
    "text_len",
    "freq_dim",
    "in_dim",
    "out_dim",
    "cond_dim",
    "eps",
)


def dit(config: dict[str, Any], weights: Path) -> AvatarDiT:
    """The DiT of a case, placed by the default strategy."""
    model = meta_dit(config, weights)
    SingleDevice().place(model, Shards([weights], DIT), torch.float32)
    return model


def meta_dit(config: dict[str, Any], weights: Path) -> AvatarDiT:
    with safe_open(weights, framework="pt") as file:
        layers = file.get_slice("casual_audio_encoder.weights").get_shape()[1]
    with torch.device("meta"):
        return AvatarDiT(**{key: config[key] for key in SAME}, audio_layers=layers)


def filled(module: nn.Module, weights: Path, keymap: KeyMap) -> nn.Module:
    """A module built on meta, with the case's weights in it."""
    materialise(module, Shards([weights], keymap), CPU, torch.float32)
    return module
