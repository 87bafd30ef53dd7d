"""LoRA files beside the weights of a running model: several with weights, listed, weighed anew and taken off.

Nothing is merged, so nothing has to be loaded again and it does not matter where the weights rest: each linear layer
adds scale * up(down(x)) to what it gives. Merging (`weights.lora`) costs nothing in a run; this costs two narrow
products a layer, and differs from it by rounding. What a stream has prepared from its prompt stays as it was made.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from liveavatar.checkpoint.keymap_dit import DIT
from liveavatar.checkpoint.lora import LoraWeights
from liveavatar.checkpoint.read import TensorSource
from liveavatar.models.dit.quantised import QuantLinear

log = logging.getLogger(__name__)

LAYERS = ("q", "k", "v", "o", "0", "2")
"""Linear layers that compute by being called: projections of attention, and the two of a feed-forward."""


@dataclass
class Adapter:
    """One file that is attached. `weight` scales it as a whole."""

    path: Path
    weight: float
    pairs: dict[str, tuple[Tensor, Tensor, float]] = field(repr=False, default_factory=dict)

    @property
    def nbytes(self) -> int:
        return sum(down.nbytes + up.nbytes for down, up, _ in self.pairs.values())


class _Nothing:
    """The base of a file that is only asked for its pairs."""

    origin = "nothing"

    def read(self, name: str, shape: torch.Size) -> Tensor:
        raise AssertionError(f"{name} was asked for")


class Adapters:
    """The LoRA files attached to one DiT, by name, in the order in which they came.

    Raises ValueError, naming the file, for one that cannot be read or was made for another model.
    """

    def __init__(self, dit: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
        self.dit, self.device, self.dtype = dit, device, dtype
        self.attached: dict[str, Adapter] = {}
        self._layers = {name: part for name, part in dit.named_modules() if _computes(name, part)}
        self._shapes = {f"{name}.weight": _shape(part) for name, part in self._layers.items()}
        self._hooks: dict[str, RemovableHandle] = {}

    def add(self, path: str | Path, weight: float = 1.0, name: str | None = None, alpha: float = 64.0) -> str:
        """Attach a file; its name is the file's own unless one is given. Replaces what had that name."""
        path = Path(path).expanduser()
        source: TensorSource = _Nothing()
        file = LoraWeights(source, path, DIT, alpha=alpha)
        found = file.pairs(self._shapes)
        pairs = {
            key.removesuffix(".weight"): (down.to(self.device, self.dtype), up.to(self.device, self.dtype), scale)
            for key, (down, up, scale) in found.items()
        }
        name = name or path.stem
        self.attached[name] = Adapter(path, float(weight), pairs)
        self._hook()
        return name

    def weigh(self, name: str, weight: float) -> None:
        """Give an attached file another weight, from the next cell on."""
        self._known(name).weight = float(weight)

    def remove(self, name: str) -> None:
        """Take a file off: from the next cell on the model is as if it had never been there."""
        self._known(name)
        del self.attached[name]
        self._hook()

    def weights(self) -> Mapping[str, float]:
        """What is attached, with its weight."""
        return {name: adapter.weight for name, adapter in self.attached.items()}

    @property
    def nbytes(self) -> int:
        return sum(adapter.nbytes for adapter in self.attached.values())

    def _known(self, name: str) -> Adapter:
        if name not in self.attached:
            held = ", ".join(self.attached) or "none"
            raise ValueError(f"no LoRA file {name!r} is attached; there are: {held}")
        return self.attached[name]

    def _hook(self) -> None:
        """A hook on each layer that some file changes, and on no other."""
        wanted = {layer for adapter in self.attached.values() for layer in adapter.pairs}
        for layer in self._hooks.keys() - wanted:
            self._hooks.pop(layer).remove()
        for layer in wanted - self._hooks.keys():
            self._hooks[layer] = self._layers[layer].register_forward_hook(self._adding(layer))

    def _adding(self, layer: str) -> Any:
        def add(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            total = output
            for adapter in self.attached.values():
                pair = adapter.pairs.get(layer)
                if pair is not None and adapter.weight != 0:
                    down, up, scale = pair
                    total = total + (adapter.weight * scale) * ((args[0] @ down.mT) @ up.mT)
            return total.to(output.dtype)

        return add


def attach(adapters: Adapters, given: Any) -> None:
    """Attach what a configuration lists: files, or `{path, weight, name, alpha}`; what is attached then is logged.

    Raises ValueError, naming `adapters`, for an entry that is neither.
    """
    for entry in [given] if isinstance(given, (str, Mapping)) else given or []:
        told: dict[str, Any] = dict(entry) if isinstance(entry, Mapping) else {"path": entry}
        strange = set(told) - {"path", "weight", "name", "alpha"}
        if strange or not isinstance(told.get("path"), (str, Path)):
            raise ValueError(
                f"adapters: {entry!r} is neither a file nor {{path: …, weight: …, name: …}}. Type, for example, "
                "adapters=[{path: a.safetensors, weight: 0.8}]"
            )
        adapters.add(**told)
    if adapters.attached:
        held = ", ".join(f"{name} × {weight:g}" for name, weight in adapters.weights().items())
        log.info("adapters: %s, %.1f MB beside the weights", held, adapters.nbytes / 1e6)


def _computes(name: str, part: nn.Module) -> bool:
    inner = name.startswith(("blocks.", "injectors."))
    return isinstance(part, (nn.Linear, QuantLinear)) and inner and name.rsplit(".", 1)[-1] in LAYERS


def _shape(part: nn.Module) -> torch.Size:
    assert isinstance(part, (nn.Linear, QuantLinear))
    return torch.Size((part.out_features, part.in_features))
