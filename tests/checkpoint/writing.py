"""Checkpoints of exactly the published format, written from a source of random tensors: small ones, for tests."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from liveavatar.checkpoint.keymap import KeyMap
from liveavatar.checkpoint.keymap_dit import DIT
from liveavatar.checkpoint.keymap_encoders import SPEECH, TEXT, VAE
from liveavatar.checkpoint.published import DIT_STEM, SPEECH_FOLDER, TEXT_FILE, VAE_FILE
from liveavatar.checkpoint.read import RandomWeights, TensorSource
from liveavatar.config import compose, make

Tensors = dict[str, Tensor]
MAPS: dict[str, KeyMap] = {"dit": DIT, "text": TEXT, "speech": SPEECH, "vae": VAE}


def modules(model: str = "micro") -> dict[str, nn.Module]:
    """All models of a configuration, on meta."""
    cfg = compose("infer", [f"model={model}"])
    with torch.device("meta"):
        return {name: make(cfg.model[name], name) for name in MAPS}


def tensors(component: str, module: nn.Module, source: TensorSource, dtype: torch.dtype = torch.float32) -> Tensors:
    """What a source gives a model, under published names."""
    prefix = "" if component == "dit" else f"{component}."
    return {
        MAPS[component].to_published(name): source.read(prefix + name, parameter.shape).to(dtype).contiguous()
        for name, parameter in module.named_parameters()
    }


def write_shards(folder: Path, stem: str, held: Tensors, count: int) -> list[Path]:
    """safetensors shards with an index, as the published DiT has them; one file alone without an index for 1."""
    folder.mkdir(parents=True, exist_ok=True)
    if count == 1:
        save_file(held, folder / f"{stem}.safetensors")
        return [folder / f"{stem}.safetensors"]
    names = sorted(held)
    groups = [names[i::count] for i in range(count)]
    files = [f"{stem}-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]
    for file, group in zip(files, groups, strict=True):
        save_file({name: held[name] for name in group}, folder / file)
    size = sum(tensor.nbytes for tensor in held.values())
    where = {name: file for file, group in zip(files, groups, strict=True) for name in group}
    index = {"metadata": {"total_size": size}, "weight_map": where}
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index))
    return [folder / file for file in files]


def write_published(
    folder: Path, source: TensorSource | None = None, shards: int = 3, only: Iterable[str] = tuple(MAPS)
) -> Path:
    """Wan2.2-S2V-14B/ as published, with the shapes of `model=micro`."""
    source, made = source or RandomWeights(0), modules()
    base = folder / "Wan2.2-S2V-14B"
    base.mkdir(parents=True, exist_ok=True)
    held = {name: tensors(name, made[name], source) for name in only}
    if "dit" in held:
        write_shards(base, DIT_STEM, held["dit"], shards)
    if "text" in held:
        torch.save(held["text"], base / TEXT_FILE)
    if "vae" in held:
        torch.save(held["vae"], base / VAE_FILE)
    if "speech" in held:
        letters = {"lm_head.weight": torch.zeros(33, 8), "lm_head.bias": torch.zeros(33)}
        write_shards(base / SPEECH_FOLDER, "model", held["speech"] | letters, 1)
    return base
