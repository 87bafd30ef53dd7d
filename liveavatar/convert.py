"""python -m liveavatar.convert: published files to a streamable folder, and back; `fetch` gets the published files.

python -m liveavatar.convert fetch weights.dir=weights
python -m liveavatar.convert weights.dir=weights to=weights/s2v_14b-bf16
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from liveavatar.command import run_command
from liveavatar.config import make

if TYPE_CHECKING:
    import torch
    from omegaconf import DictConfig
    from torch import nn

    from liveavatar.checkpoint.read import TensorSource

STOPPED = "interrupted; the same command goes on from here"
FORMATS = ("streamable", "published")
COMPONENTS = ("dit", "text", "speech", "vae")


def convert(cfg: DictConfig) -> Path:
    """Write what `weights` names into the folder `to`, tensor by tensor; returns the folder.

    What an earlier call has finished is kept. Raises ValueError, naming the key, for weights that do not fit the
    model, for a folder that holds something else, and, before anything is written, for a disk that is too small.
    """
    from liveavatar.checkpoint.quantised import check_kind, quantised
    from liveavatar.checkpoint.read import expect
    from liveavatar.models.dit.quantised import quantise_linears
    from liveavatar.settings import storage_type

    if cfg.format not in FORMATS:
        raise ValueError(f"format={cfg.format!r} is unknown; write {' or '.join(FORMATS)}")
    chosen = [str(name) for name in cfg.components]
    if not chosen or set(chosen) - set(COMPONENTS):
        raise ValueError(f"components={chosen} must be some of {', '.join(COMPONENTS)}")
    to = Path(str(cfg.to)).expanduser()
    source: TensorSource = make(cfg.weights, "weights")
    modules = _modules(cfg, chosen)
    kind = check_kind(cfg.precision.weights)
    if kind is not None and cfg.format == "published":
        raise ValueError(f"format=published has no {kind}: write precision.weights=null")
    if kind is not None and "dit" in modules:
        source = quantised(source, kind, quantise_linears(modules["dit"], kind))
    expect(source, _shapes(modules))
    dtypes = storage_type(cfg, "dit"), storage_type(cfg, "encoders")
    if cfg.format == "published":
        _to_published(cfg, to, source, modules, dtypes)
    else:
        _to_streamable(cfg, to, source, modules, dtypes)
    return to


def _to_streamable(
    cfg: DictConfig, to: Path, source: TensorSource, modules: Mapping[str, nn.Module], dtypes: Sequence[torch.dtype]
) -> None:
    from liveavatar.checkpoint.streamable import StreamableFolder, slabs_of

    about = {
        "model": str(cfg.model.name),
        "dit": str(dtypes[0])[6:],
        "encoders": str(dtypes[1])[6:],
        "origin": source.origin,
    }
    folder = StreamableFolder(to, about)
    others = {name: module for name, module in modules.items() if name != "dit"}
    slabs = slabs_of(modules.get("dit"), others, *dtypes)
    left = folder.missing(slabs)
    folder.check_room(left)
    with _Progress(sum(slab.layout.nbytes for slab in left)) as progress:
        for slab in left:
            progress.at(slab.key)
            folder.write(slab, source, progress.add)
    _tokenizer(cfg, to)


def _to_published(
    cfg: DictConfig, to: Path, source: TensorSource, modules: Mapping[str, nn.Module], dtypes: Sequence[torch.dtype]
) -> None:
    from liveavatar.checkpoint.export import left_to_write, wanted, write_safetensors
    from liveavatar.checkpoint.keymap_dit import DIT
    from liveavatar.checkpoint.keymap_encoders import SPEECH, TEXT_TRANSFORMERS, VAE_DIFFUSERS
    from liveavatar.checkpoint.published import BASE, DIT_STEM, SPEECH_FOLDER

    base = to / BASE
    places = {
        "dit": (base, DIT_STEM, DIT, ""),
        "text": (base / "text_encoder", "model", TEXT_TRANSFORMERS, "text."),
        "speech": (base / SPEECH_FOLDER, "model", SPEECH, "speech."),
        "vae": (base / "vae", DIT_STEM, VAE_DIFFUSERS, "vae."),
    }
    lists = {name: wanted(_own_shapes(module), places[name][2], places[name][3]) for name, module in modules.items()}
    kinds = {name: dtypes[0] if name == "dit" else dtypes[1] for name in lists}
    total = sum(each.shape.numel() * kinds[name].itemsize for name, tensors in lists.items() for each in tensors)
    to.mkdir(parents=True, exist_ok=True)
    shard_bytes, free = int(cfg.shard_gb * 1e9), shutil.disk_usage(to).free
    left = sum(
        left_to_write(places[name][0], places[name][1], tensors, kinds[name], shard_bytes)
        for name, tensors in lists.items()
    )
    if left > free:
        raise ValueError(
            f"to={to} needs {left / 1e9:.2f} GB and its disk has {free / 1e9:.2f} GB free: make room, or name a "
            "folder on another disk"
        )
    with _Progress(total) as progress:
        for name, tensors in lists.items():
            progress.at(name)
            folder, stem, _, _ = places[name]
            write_safetensors(folder, stem, tensors, source, kinds[name], shard_bytes, progress.add)
    _tokenizer(cfg, base)


def _modules(cfg: DictConfig, chosen: Sequence[str]) -> dict[str, nn.Module]:
    """The models on meta: their names and shapes alone are needed."""
    import torch

    with torch.device("meta"):
        return {name: make(cfg.model[name], f"model.{name}") for name in chosen}


def _own_shapes(module: nn.Module) -> dict[str, torch.Size]:
    return {name: parameter.shape for name, parameter in module.named_parameters()}


def _shapes(modules: Mapping[str, nn.Module]) -> dict[str, torch.Size]:
    """All tensors by the names under which a source is asked for them."""
    return {
        name if component == "dit" else f"{component}.{name}": shape
        for component, module in modules.items()
        for name, shape in _own_shapes(module).items()
    }


def _tokenizer(cfg: DictConfig, to: Path) -> None:
    """The tokenizer goes along, where there is one: a converted folder is complete."""
    below = Path("google") / "umt5-xxl"
    outer = Path(str(cfg.weights.get("dir") or ".")).expanduser()
    found = next((path for path in (outer / below, *sorted(outer.glob(f"*/{below}"))) if path.is_dir()), None)
    if found is not None and not (to / below).exists():
        shutil.copytree(found, to / below)


class _Progress:
    """A bar in GB with the time that is left, on a terminal; nothing in pipes."""

    def __init__(self, total: int) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        console = Console(stderr=True)
        self.bar = Progress(
            TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(),
            TimeRemainingColumn(), console=console, disable=not console.is_terminal,
        )  # fmt: skip
        self.task = self.bar.add_task("convert", total=total)

    def __enter__(self) -> _Progress:
        self.bar.start()
        return self

    def __exit__(self, *ended: Any) -> None:
        self.bar.stop()

    def at(self, name: str) -> None:
        self.bar.update(self.task, description=name)

    def add(self, nbytes: int) -> None:
        self.bar.advance(self.task, nbytes)


def _run(cfg: DictConfig, fetch: bool) -> None:
    if fetch:
        from liveavatar.checkpoint.fetch import fetch_published

        folder = fetch_published(Path(str(cfg.weights.dir)).expanduser())
    else:
        folder = convert(cfg)
    sys.stderr.write(f"liveavatar: {folder} is {'complete' if fetch else 'written'} and checked\n")


def main() -> None:
    """Entry point of `python -m liveavatar.convert` and of the console script."""
    fetch = sys.argv[1:2] == ["fetch"]
    if fetch:
        del sys.argv[1]
    run_command("convert", partial(_run, fetch=fetch), ["to=null"] if fetch else [], interrupted=STOPPED)


if __name__ == "__main__":
    main()
