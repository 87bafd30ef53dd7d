"""Inception-v3 as FID has it: the 2015 TensorFlow network, by the names of its file for PyTorch.

The published weights are `pt_inception-2015-12-05-6726825d.pth`. Against torchvision's network its mean pooling leaves
the border out of the mean, and its last block pools by the maximum (Heusel et al. 2017; Szegedy et al. 2016).
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

Size = tuple[int, int]


class Conv(nn.Module):
    """Convolution, normalisation, ReLU."""

    def __init__(self, given: int, gives: int, kernel: int | Size, stride: int = 1, padding: int | Size = 0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(given, gives, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(gives, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


Across, Down = partial(Conv, kernel=(1, 7), padding=(0, 3)), partial(Conv, kernel=(7, 1), padding=(3, 0))
_mean = partial(F.avg_pool2d, kernel_size=3, stride=1, padding=1, count_include_pad=False)
_most = partial(F.max_pool2d, kernel_size=3, stride=1, padding=1)


class BlockA(nn.Module):
    def __init__(self, given: int, pool: int) -> None:
        super().__init__()
        self.branch1x1 = Conv(given, 64, 1)
        self.branch5x5_1, self.branch5x5_2 = Conv(given, 48, 1), Conv(48, 64, 5, padding=2)
        self.branch3x3dbl_1, self.branch3x3dbl_2 = Conv(given, 64, 1), Conv(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = Conv(96, 96, 3, padding=1)
        self.branch_pool = Conv(given, pool, 1)

    def forward(self, x: Tensor) -> Tensor:
        twice = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat(
            [self.branch1x1(x), self.branch5x5_2(self.branch5x5_1(x)), twice, self.branch_pool(_mean(x))], 1
        )


class BlockB(nn.Module):
    def __init__(self, given: int) -> None:
        super().__init__()
        self.branch3x3 = Conv(given, 384, 3, stride=2)
        self.branch3x3dbl_1, self.branch3x3dbl_2 = Conv(given, 64, 1), Conv(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = Conv(96, 96, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        twice = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), twice, F.max_pool2d(x, 3, 2)], 1)


class BlockC(nn.Module):
    def __init__(self, given: int, inner: int) -> None:
        super().__init__()
        self.branch1x1 = Conv(given, 192, 1)
        self.branch7x7_1, self.branch7x7_2, self.branch7x7_3 = (
            Conv(given, inner, 1),
            Across(inner, inner),
            Down(inner, 192),
        )
        self.branch7x7dbl_1, self.branch7x7dbl_2 = Conv(given, inner, 1), Down(inner, inner)
        self.branch7x7dbl_3, self.branch7x7dbl_4 = Across(inner, inner), Down(inner, inner)
        self.branch7x7dbl_5 = Across(inner, 192)
        self.branch_pool = Conv(given, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        once = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        twice = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        twice = self.branch7x7dbl_5(self.branch7x7dbl_4(twice))
        return torch.cat([self.branch1x1(x), once, twice, self.branch_pool(_mean(x))], 1)


class BlockD(nn.Module):
    def __init__(self, given: int) -> None:
        super().__init__()
        self.branch3x3_1, self.branch3x3_2 = Conv(given, 192, 1), Conv(192, 320, 3, stride=2)
        self.branch7x7x3_1, self.branch7x7x3_2, self.branch7x7x3_3 = (
            Conv(given, 192, 1),
            Across(192, 192),
            Down(192, 192),
        )
        self.branch7x7x3_4 = Conv(192, 192, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        seven = self.branch7x7x3_4(self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x))))
        return torch.cat([self.branch3x3_2(self.branch3x3_1(x)), seven, F.max_pool2d(x, 3, 2)], 1)


class BlockE(nn.Module):
    def __init__(self, given: int, last: bool) -> None:
        super().__init__()
        self.pool = _most if last else _mean
        wide, high = partial(Conv, kernel=(1, 3), padding=(0, 1)), partial(Conv, kernel=(3, 1), padding=(1, 0))
        self.branch1x1 = Conv(given, 320, 1)
        self.branch3x3_1 = Conv(given, 384, 1)
        self.branch3x3_2a, self.branch3x3_2b = wide(384, 384), high(384, 384)
        self.branch3x3dbl_1, self.branch3x3dbl_2 = Conv(given, 448, 1), Conv(448, 384, 3, padding=1)
        self.branch3x3dbl_3a, self.branch3x3dbl_3b = wide(384, 384), high(384, 384)
        self.branch_pool = Conv(given, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        once, twice = self.branch3x3_1(x), self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        parts = [self.branch1x1(x), self.branch3x3_2a(once), self.branch3x3_2b(once)]
        parts += [self.branch3x3dbl_3a(twice), self.branch3x3dbl_3b(twice), self.branch_pool(self.pool(x))]
        return torch.cat(parts, 1)


class Inception(nn.Module):
    """Up to the 2048 values after its last pooling; the classifier of the file is left out."""

    width = 2048

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3, self.Conv2d_2a_3x3 = Conv(3, 32, 3, stride=2), Conv(32, 32, 3)
        self.Conv2d_2b_3x3 = Conv(32, 64, 3, padding=1)
        self.Conv2d_3b_1x1, self.Conv2d_4a_3x3 = Conv(64, 80, 1), Conv(80, 192, 3)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = BlockA(192, 32), BlockA(256, 64), BlockA(288, 64)
        self.Mixed_6a = BlockB(288)
        self.Mixed_6b, self.Mixed_6c = BlockC(768, 128), BlockC(768, 160)
        self.Mixed_6d, self.Mixed_6e = BlockC(768, 160), BlockC(768, 192)
        self.Mixed_7a = BlockD(768)
        self.Mixed_7b, self.Mixed_7c = BlockE(1280, last=False), BlockE(2048, last=True)

    def forward(self, x: Float[Tensor, "t 3 H W"]) -> Float[Tensor, "t 2048"]:
        """Features of RGB pictures from 0 to 1 of any size."""
        x = 2 * F.interpolate(x, size=(299, 299), mode="bilinear", align_corners=False) - 1
        x = F.max_pool2d(self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x))), 3, 2)
        x = F.max_pool2d(self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x)), 3, 2)
        for name, block in self.named_children():
            if name.startswith("Mixed"):
                x = block(x)
        return x.mean((2, 3))
