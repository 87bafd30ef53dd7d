"""LPIPS on AlexNet (Zhang et al. 2018, version 0.1): distance of two pictures by the features of a network."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from liveavatar.metrics.nets.files import filled

WIDTHS = (64, 192, 384, 256, 256)


class AlexNet(nn.Module):
    """The convolutions of torchvision's AlexNet, by its names."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 64, 11, 4, 2), nn.ReLU(), nn.MaxPool2d(3, 2),
            nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2),
            nn.Conv2d(192, 384, 3, padding=1), nn.ReLU(),
            nn.Conv2d(384, 256, 3, padding=1), nn.ReLU(),
            nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(),
        )  # fmt: skip

    def forward(self, x: Float[Tensor, "t 3 H W"]) -> list[Tensor]:
        """What follows each of the five convolutions."""
        found = []
        for layer in self.features:
            x = layer(x)
            if isinstance(layer, nn.ReLU):
                found.append(x)
        return found


class Heads(nn.Module):
    """How much each channel counts: the `lin*.model.1` of the published file."""

    def __init__(self) -> None:
        super().__init__()
        for number, width in enumerate(WIDTHS):
            self.add_module(
                f"lin{number}", nn.ModuleDict({"model": nn.ModuleDict({"1": nn.Conv2d(width, 1, 1, bias=False)})})
            )

    def weights(self) -> list[Tensor]:
        return [value.view(1, -1, 1, 1) for value in self.state_dict().values()]


class Lpips(nn.Module):
    """Perceptual distance; `heads` are the published ones, which ship with torchmetrics.

    Pictures are RGB from -1 to 1, sides of 35 pixels at least.
    """

    def __init__(self, trunk: AlexNet, heads: Heads) -> None:
        super().__init__()
        self.trunk, self.heads = trunk, heads
        self.shift: Tensor
        self.scale: Tensor
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1))

    @classmethod
    def load(cls, trunk: str | Path, key: str) -> Lpips:
        return cls(filled(AlexNet(), trunk, key), filled(Heads(), shipped_heads(), key))

    def forward(self, a: Float[Tensor, "t 3 H W"], b: Float[Tensor, "t 3 H W"]) -> Float[Tensor, " t"]:
        pairs = zip(self.trunk((a - self.shift) / self.scale), self.trunk((b - self.shift) / self.scale), strict=True)
        found = torch.zeros(len(a), device=a.device)
        for (x, y), weight in zip(pairs, self.heads.weights(), strict=True):
            found = found + (weight * (_unit(x) - _unit(y)) ** 2).sum(1).mean((1, 2))
        return found


def _unit(x: Tensor) -> Tensor:
    return x / (x.pow(2).sum(1, keepdim=True).sqrt() + 1e-10)


def shipped_heads() -> Path:
    """The published weights of LPIPS' last layer on AlexNet (6 kB), in the package of torchmetrics."""
    spec = find_spec("torchmetrics")
    assert spec is not None  # lightning brings it
    assert spec.origin is not None
    return Path(spec.origin).parent / "functional" / "image" / "lpips_models" / "alex.pth"
