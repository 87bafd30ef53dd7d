"""I3D, the Inception of videos (Carreira and Zisserman 2017), by the names of its widespread file for PyTorch.

`rgb_imagenet.pt` or `i3d_pretrained_400.pt`: a state dict of Kinetics-400. The file that some FVD programs fetch,
`i3d_torchscript.pt`, is code and not read.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

CLASSES = 400
Size = tuple[int, int, int]


def _same(x: Tensor, kernel: Size, stride: Size) -> Tensor:
    """Zeros around, as TensorFlow's SAME has them: an odd one comes after."""
    pads: list[int] = []
    for side, k, s in zip(reversed(x.shape[2:]), reversed(kernel), reversed(stride), strict=True):
        lacks = max(0, (-(-side // s) - 1) * s + k - side)
        pads += [lacks // 2, lacks - lacks // 2]
    return F.pad(x, pads)


def _pool(x: Tensor, kernel: Size, stride: Size) -> Tensor:
    return F.max_pool3d(_same(x, kernel, stride), kernel, stride)


class Unit(nn.Module):
    """Convolution, normalisation, ReLU; the last one is a convolution alone."""

    def __init__(self, given: int, gives: int, kernel: int = 1, stride: int = 1, last: bool = False) -> None:
        super().__init__()
        self.kernel: Size = (kernel, kernel, kernel)
        self.conv3d = nn.Conv3d(given, gives, self.kernel, stride, bias=last)
        self.stride: Size = (stride, stride, stride)
        if not last:
            self.bn = nn.BatchNorm3d(gives, eps=0.001)
        self.last = last

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv3d(_same(x, self.kernel, self.stride))
        return x if self.last else F.relu(self.bn(x))


class Mixed(nn.Module):
    """Four branches beside one another."""

    def __init__(self, given: int, widths: tuple[int, int, int, int, int, int]) -> None:
        super().__init__()
        one, small, middle, less, little, pooled = widths
        self.b0 = Unit(given, one)
        self.b1a, self.b1b = Unit(given, small), Unit(small, middle, 3)
        self.b2a, self.b2b = Unit(given, less), Unit(less, little, 3)
        self.b3b = Unit(given, pooled)

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.b3b(_pool(x, (3, 3, 3), (1, 1, 1)))
        return torch.cat([self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), pooled], 1)


class I3d(nn.Module):
    """Logits of clips, as FVD compares them (Unterthiner et al. 2018)."""

    width = CLASSES

    def __init__(self) -> None:
        super().__init__()
        self.Conv3d_1a_7x7 = Unit(3, 64, 7, 2)
        self.Conv3d_2b_1x1, self.Conv3d_2c_3x3 = Unit(64, 64), Unit(64, 192, 3)
        self.Mixed_3b = Mixed(192, (64, 96, 128, 16, 32, 32))
        self.Mixed_3c = Mixed(256, (128, 128, 192, 32, 96, 64))
        self.Mixed_4b = Mixed(480, (192, 96, 208, 16, 48, 64))
        self.Mixed_4c = Mixed(512, (160, 112, 224, 24, 64, 64))
        self.Mixed_4d = Mixed(512, (128, 128, 256, 24, 64, 64))
        self.Mixed_4e = Mixed(512, (112, 144, 288, 32, 64, 64))
        self.Mixed_4f = Mixed(528, (256, 160, 320, 32, 128, 128))
        self.Mixed_5b = Mixed(832, (256, 160, 320, 32, 128, 128))
        self.Mixed_5c = Mixed(832, (384, 192, 384, 48, 128, 128))
        self.logits = Unit(1024, CLASSES, last=True)

    def forward(self, x: Float[Tensor, "n 3 t H W"]) -> Float[Tensor, "n 400"]:
        """Mean logits of RGB clips from 0 to 1; 9 frames at least."""
        n, _, t = x.shape[:3]
        flat = x.transpose(1, 2).flatten(0, 1)
        flat = F.interpolate(flat, size=(224, 224), mode="bilinear", align_corners=False)
        x = 2 * flat.unflatten(0, (n, t)).transpose(1, 2) - 1
        x = _pool(self.Conv3d_1a_7x7(x), (1, 3, 3), (1, 2, 2))
        x = _pool(self.Conv3d_2c_3x3(self.Conv3d_2b_1x1(x)), (1, 3, 3), (1, 2, 2))
        x = _pool(self.Mixed_3c(self.Mixed_3b(x)), (3, 3, 3), (2, 2, 2))
        for block in (self.Mixed_4b, self.Mixed_4c, self.Mixed_4d, self.Mixed_4e, self.Mixed_4f):
            x = block(x)
        x = self.Mixed_5c(self.Mixed_5b(_pool(x, (2, 2, 2), (2, 2, 2))))
        return self.logits(F.avg_pool3d(x, (2, 7, 7), 1)).mean((2, 3, 4))
