"""python -m tests.memory.starved HOW ARGUMENTS: the real command line, with a shortage of memory at a chosen place.

HOW: `load`, `encode`, `steady` and `decode` ask PyTorch's own allocator for 64 TiB there; `limit` shuts the process's
address space in a block of the transformer, so that the next ordinary request of its own fails.
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable
from typing import Any

import torch
from transformers.models.umt5.modeling_umt5 import UMT5Stack

from liveavatar.checkpoint.read import RandomWeights
from liveavatar.infer import main
from liveavatar.memory.readings import status
from liveavatar.models.dit.block import Block
from liveavatar.models.vae.codec import WanCodec

CALLS_BEFORE = {"load": 40, "encode": 0, "steady": 4, "decode": 8 + 7, "limit": 4}
"""Calls of the place that go well: the decoder sees 7 latents of the still picture before the first block."""


def _ask() -> None:
    torch.empty(1 << 46, dtype=torch.uint8)


def _shut() -> None:
    """No more address space: what is mapped already may be used, nothing new may be."""
    size = status("VmSize")
    assert size is not None
    resource.setrlimit(resource.RLIMIT_AS, (size, resource.RLIM_INFINITY))
    try:
        held = [torch.empty(8 << 20) for _ in range(1 << 20)]
        del held
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (size + (1 << 28), resource.RLIM_INFINITY))


def _starved(real: Any, calls: int, act: Callable[[], None], only: Callable[..., bool]) -> Any:
    count = [0]

    def called(self: Any, *args: Any, **kwargs: Any) -> Any:
        if only(self, *args):
            count[0] += 1
            if count[0] > calls:
                act()
        return real(self, *args, **kwargs)

    return called


def starve(how: str, patch: Callable[[type, str, Any], None] = setattr) -> None:
    """Let memory run out in this process at that place."""
    places: dict[str, tuple[type, str, Callable[..., bool]]] = {
        "load": (RandomWeights, "read", lambda *_: True),
        "encode": (UMT5Stack, "forward", lambda *_: True),
        "decode": (WanCodec, "decode_latent", lambda *_: True),
    }
    place = places.get(how, (Block, "forward", lambda block, *_: block.layer == 1))
    owner, name, only = place
    act = _shut if how == "limit" else _ask
    patch(owner, name, _starved(getattr(owner, name), CALLS_BEFORE[how], act, only))


if __name__ == "__main__":
    starve(sys.argv.pop(1))
    main()
