"""Attention behind one signature, token-major tensors in and out; which kernels compute it is a choice.

`auto` leaves the choice to PyTorch. `math`, `flash`, `efficient` and `cudnn` are PyTorch's own kernels, each alone;
`flash_attn2` and `flash_attn3` are those of the flash-attn packages (Dao 2023; Shah et al. 2024), where installed.
All compute the same function; their last bits differ.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
KERNELS = {
    "math": SDPBackend.MATH,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
}
PACKAGES = {"flash_attn2": "flash_attn", "flash_attn3": "flash_attn_interface"}
BACKENDS = ("auto", *KERNELS, *PACKAGES)


def attend(
    q: Float[Tensor, "b queries heads channels"],
    k: Float[Tensor, "b keys heads channels"],
    v: Float[Tensor, "b keys heads channels"],
) -> Float[Tensor, "b queries heads channels"]:
    """Softmax attention, scale 1/sqrt(channels), no mask: the order of the keys does not matter.

    The fused kernels take the transposed views as they are, so caches stay token-major and nothing is copied here.
    """
    out = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
    return out.transpose(1, 2)


def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The same in three operations, which hold all the scores. On a CPU their way back is the faster one."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    shares = torch.softmax((q * q.shape[-1] ** -0.5) @ k.mT, dim=-1)
    return (shares @ v).transpose(1, 2)


def attention(name: str, device: torch.device, dtype: torch.dtype, channels: int = 64) -> Attend:
    """The backend of that name, tried once on this device.

    Raises LookupError with the reason where the backend cannot work here, and KeyError for a name not in `BACKENDS`.
    """
    if name == "auto":
        return attend
    found = _packaged(name) if name in PACKAGES else partial(_with_kernel, KERNELS[name])
    trial = torch.zeros(1, 16, 2, channels, device=device, dtype=dtype)
    try:
        found(trial, trial, trial)
    except (RuntimeError, ValueError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise LookupError(f"{name} does not work on {device.type} with {str(dtype)[6:]} ({reason})") from error
    return found


def taken(device: torch.device, dtype: torch.dtype, channels: int = 64) -> str:
    """The kernel that PyTorch's own choice comes to on this device: one of `KERNELS`, or the number it gives."""
    trial = torch.zeros(1, 2, 16, channels, device=device, dtype=dtype)
    number = torch._fused_sdp_choice(trial, trial, trial)
    return next((name for name, kernel in KERNELS.items() if kernel.value == number), str(number))


def use(module: nn.Module, backend: Attend) -> int:
    """Let every attention of a model compute with this backend; returns how many there are."""
    parts: list[Any] = [part for part in module.modules() if callable(getattr(part, "attend", None))]
    for part in parts:
        part.attend = backend
    return len(parts)


def _with_kernel(kernel: SDPBackend, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    with sdpa_kernel(kernel):
        return attend(q, k, v)


def _packaged(name: str) -> Attend:
    """The function of an installed package; it takes token-major tensors as ours do."""
    try:
        package = importlib.import_module(PACKAGES[name])
    except (ImportError, OSError) as error:  # absent, or built for another torch
        raise LookupError(f"{name} needs the package {PACKAGES[name]}, which does not load ({error})") from error
    function = package.flash_attn_func

    def packaged(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = function(q, k, v)
        return out[0] if isinstance(out, tuple) else out

    return packaged
