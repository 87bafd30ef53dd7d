"""Checkpoints of a training: written whole or not at all, and read back only into the run that wrote them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from liveavatar.training.optimisers import Optimiser
from liveavatar.training.saving import save_torch, write_whole

log = logging.getLogger(__name__)

FREE = ("output", "fabric", "logger", "hydra")
"""Nodes that a resumed run may change: where things go and how fast."""

VAE_ALONE = ("stage", "seed", "size", "data", "train", "vae", "model.vae")
"""Nodes that stage vae reads; the other stages read all but `vae`."""

FREE_TRAIN = ("save_every", "save_minutes", "stop_minutes", "validate_every", "log_every", "resume", "init", "compile")


@dataclass
class State:
    """What a checkpoint holds beside the configuration."""

    step: int
    modules: Mapping[str, nn.Module]
    optimiser: Optimiser
    average: list[Tensor] | None


class Checkpoints:
    """`checkpoints/last.pt` and the one before it, in a run directory; with `directory` None nothing is written.

    A save that fails leaves the files as they were: while training goes on that is a warning, at the end an OSError.
    """

    def __init__(self, directory: Path | None, config: Mapping[str, Any]) -> None:
        self.folder = directory / "checkpoints" if directory is not None else None
        self.config = fixed_part(config)

    @property
    def last(self) -> Path | None:
        """The newest whole checkpoint."""
        if self.folder is None:
            return None
        found = [path for path in (self.folder / "last.pt", self.folder / "previous.pt") if path.is_file()]
        return found[0] if found else None

    def save(self, state: State, final: bool = False) -> None:
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        content = {
            "step": state.step,
            "config": self.config,
            "weights": {name: trained(module) for name, module in state.modules.items()},
            "optimiser": state.optimiser.state_dict(),
            "average": state.average,
        }
        last = self.folder / "last.pt"
        draft = self.folder / "next.pt"
        try:
            save_torch(draft, content)
            if last.is_file():
                last.replace(self.folder / "previous.pt")
            draft.replace(last)
        except OSError as error:
            draft.unlink(missing_ok=True)
            kept = f"{self.last} stays" if self.last else "there is no earlier one"
            message = f"the checkpoint of step {state.step} could not be saved ({error.strerror}); {kept}"
            if final:
                raise OSError(error.errno, message, str(last)) from error
            log.warning(message)

    def load(
        self,
        modules: Mapping[str, nn.Module],
        optimiser: Optimiser,
        average: list[Tensor] | None,
        device: torch.device,
    ) -> int:
        """Fill everything from the newest checkpoint; returns its step.

        Raises ValueError when it belongs to a run of another configuration, listing the differences.
        """
        assert self.last is not None
        content = torch.load(self.last, map_location=device, weights_only=True)
        differences = compare(fixed_part(content["config"]), self.config)
        if differences:
            listed = "\n".join(f"  {line}" for line in differences)
            raise ValueError(
                f"{self.last} was written by a run of another configuration:\n{listed}\nRepeat that configuration, "
                "name another output.dir, or write train.resume=false to begin anew in this one"
            )
        for name, module in modules.items():
            missing, unexpected = module.load_state_dict(content["weights"][name], strict=False)
            frozen = {key for key, p in module.named_parameters() if not p.requires_grad}
            lost = [key for key in missing if key not in frozen and key in dict(module.named_parameters())]
            if lost or unexpected:
                raise ValueError(f"{self.last} does not hold the weights of {name}: {(lost + unexpected)[:3]} …")
        optimiser.load_state_dict(content["optimiser"])
        if average is not None:
            for mine, theirs in zip(average, content["average"], strict=True):
                mine.copy_(theirs)
        return int(content["step"])


def trained(module: nn.Module) -> dict[str, Tensor]:
    """The trainable tensors of a module by name."""
    return {name: p.detach() for name, p in module.named_parameters() if p.requires_grad}


def fixed_part(config: Mapping[str, Any]) -> dict[str, Any]:
    """What of a configuration decides the numbers of a run, as dotted keys."""
    flat: dict[str, Any] = {}

    def walk(node: Any, path: str) -> None:
        if isinstance(node, Mapping):
            for key, value in node.items():
                walk(value, f"{path}.{key}" if path else str(key))
        else:
            flat[path] = list(node) if isinstance(node, (list, tuple)) else node

    walk(config, "")
    free = (*FREE, *(f"train.{key}" for key in FREE_TRAIN), *(() if flat.get("stage") == "vae" else ("vae",)))
    kept = {key: value for key, value in flat.items() if not _below(key, free)}
    return {key: value for key, value in kept.items() if flat.get("stage") != "vae" or _below(key, VAE_ALONE)}


def _below(key: str, nodes: tuple[str, ...]) -> bool:
    return any(key == node or key.startswith(f"{node}.") for node in nodes)


def compare(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """The differences of two flat configurations, a line each."""
    lines = []
    for key in sorted(old.keys() | new.keys()):
        was, now = old.get(key, "(absent)"), new.get(key, "(absent)")
        if was != now:
            lines.append(f"{key}: {was} in the checkpoint, {now} now")
    return lines


def export_module(module: nn.Module, path: Path, dtype: torch.dtype, about: Mapping[str, str]) -> Path:
    """All tensors of a module under our own names as safetensors, floating ones rounded once to `dtype`."""
    tensors = {name: p.detach().to("cpu", dtype).contiguous() for name, p in module.named_parameters()}
    write_whole(path, lambda draft: save_file(tensors, draft, dict(about)))
    return path
