"""Dense optical flow without weights: Lucas and Kanade (1981) over square windows, coarse to fine."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

LONGEST = 64
"""Pictures are made this small before their flow is sought (longer side, pixels); the flow counts in their own."""


def _smaller(x: Tensor, longest: int) -> Tensor:
    height, width = x.shape[2:]
    scale = min(1.0, longest / max(height, width))
    if scale == 1.0:
        return x
    size = (max(16, round(height * scale)), max(16, round(width * scale)))
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False, antialias=True)


def optical_flow(
    before: Float[Tensor, "t H W"], after: Float[Tensor, "t H W"], window: int = 9, rounds: int = 2
) -> Float[Tensor, "t 2 h w"]:
    """Where each place of `before` has gone in `after`, right and down, in pixels of the pictures as given.

    The field is that of a smaller picture (`LONGEST`). Where nothing is textured the flow is 0; moves of more than
    about an eighth of the picture are not found. Pictures under 16 pixels have no flow: zeros.
    """
    if min(before.shape[1:]) < 16:
        return torch.zeros(len(before), 2, *before.shape[1:])
    a, b = _smaller(before[:, None].float(), LONGEST), _smaller(after[:, None].float(), LONGEST)
    levels = [(a, b)]
    while min(levels[-1][0].shape[2:]) >= 32 and len(levels) < 4:
        levels.append((F.avg_pool2d(levels[-1][0], 2), F.avg_pool2d(levels[-1][1], 2)))
    flow = torch.zeros(len(a), 2, *levels[-1][0].shape[2:])
    for first, second in reversed(levels):
        size = first.shape[2:]
        if flow.shape[2:] != size:
            scale = torch.tensor([size[1] / flow.shape[3], size[0] / flow.shape[2]])[None, :, None, None]
            flow = F.interpolate(flow, size=size, mode="bilinear", align_corners=False) * scale
        flow = _refined(first, second, flow, window, rounds)
    whole = torch.tensor([before.shape[2] / a.shape[3], before.shape[1] / a.shape[2]])
    return flow * whole[None, :, None, None]


def _refined(a: Tensor, b: Tensor, flow: Tensor, window: int, rounds: int) -> Tensor:
    padded = F.pad(a, (1, 1, 1, 1), mode="replicate")
    gx = (padded[:, :, 1:-1, 2:] - padded[:, :, 1:-1, :-2]) / 2
    gy = (padded[:, :, 2:, 1:-1] - padded[:, :, :-2, 1:-1]) / 2

    def gathered(x: Tensor) -> Tensor:
        return F.avg_pool2d(x, window, 1, window // 2, count_include_pad=False)

    xx, xy, yy = gathered(gx * gx) + 4.0, gathered(gx * gy), gathered(gy * gy) + 4.0  # 4: grey levels of noise, squared
    over = xx * yy - xy * xy
    for _ in range(rounds):
        wrong = _moved(b, flow) - a
        ex, ey = gathered(gx * wrong), gathered(gy * wrong)
        step = torch.cat([xy * ey - yy * ex, xy * ex - xx * ey], 1) / over
        flow = flow + step.clamp(-2, 2)
    return flow


def _moved(x: Tensor, flow: Tensor) -> Tensor:
    """`x` looked at from where the flow leads."""
    height, width = x.shape[2:]
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    at = torch.stack([(columns + flow[:, 0] + 0.5) * 2 / width - 1, (rows + flow[:, 1] + 0.5) * 2 / height - 1], -1)
    return F.grid_sample(x, at, mode="bilinear", padding_mode="border", align_corners=False)


def strongest(flow: Float[Tensor, "t 2 h w"], share: float = 0.05) -> Float[Tensor, " t"]:
    """Mean length of the longest 5 % of the flow of each picture, in pixels (as in VBench's dynamic degree)."""
    lengths = flow.norm(dim=1).flatten(1)
    return lengths.topk(max(1, int(lengths.shape[1] * share)), dim=1).values.mean(1)
