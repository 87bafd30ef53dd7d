"""torch.compile for the stretches of a model: one compiled function for all modules of a kind.

A stretch takes a module and tensors, so that the module's parameters enter the compiled function as what they are at
that moment: views of a slab, of another slab, or what FSDP2 has gathered. Attention, caches and everything that moves
between ranks lies between stretches and stays as it is.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

log = logging.getLogger(__name__)

BACKENDS = ("inductor", "aot_eager", "eager")
"""Of torch.compile: inductor writes code; the others trace and compute as before, for looking at what is traced."""

SHAPES = 64
"""Shapes for which a stretch is compiled anew, before it computes uncompiled: a few for each size of picture."""


class Compiled:
    """A stretch, compiled when it is first called. Where that fails it computes as before, and `refused` is told why.

    A module whose parts carry hooks of others, as LoRA files beside the weights hang on its linear layers, computes
    uncompiled: what a hook does may change from call to call.
    """

    def __init__(self, plain: Callable[..., Any], backend: str, refused: Callable[[str], None]) -> None:
        self.plain, self.refused = plain, refused
        options: dict[str, Any] = {"backend": backend, "dynamic": False, "recompile_limit": SHAPES}
        self.working: Callable[..., Any] | None = torch.compile(plain, **options)

    def __call__(self, module: nn.Module, *given: Any) -> Any:
        if self.working is None or _hooked(module):
            return self.plain(module, *given)
        from torch._dynamo.exc import TorchDynamoException

        try:
            return self.working(module, *given)
        except TorchDynamoException as error:
            self.working = None
            self.refused(" ".join(str(error).split("\n")[:2]).strip() or type(error).__name__)
            return self.plain(module, *given)


def compile_stretches(model: nn.Module, backend: str, device: torch.device) -> int:
    """Let every module of a model compute its stretches compiled; returns how many functions that makes.

    Raises LookupError with the reason where the backend cannot work on that device.
    """
    if backend == "inductor":
        _needs(device)
    said: list[str] = []

    def refused(reason: str) -> None:
        if not said:
            log.warning("compile: %s. What could not be compiled computes as without it.", reason)
        said.append(reason)

    made: dict[Callable[..., Any], Compiled] = {}
    for part in model.modules():
        for plain in getattr(type(part), "stretches", ()):
            made.setdefault(plain, Compiled(plain, backend, refused))
        if hasattr(type(part), "stretches"):
            holder: Any = part
            holder.stretches = tuple(made[plain] for plain in type(part).stretches)  # type: ignore[attr-defined]
    return len(made)


def _hooked(module: nn.Module) -> bool:
    return any(part._forward_hooks or part._forward_pre_hooks for part in module.modules() if part is not module)


def _needs(device: torch.device) -> None:
    """Raises LookupError where inductor lacks what it writes code for: a C++ compiler, or Triton beside a GPU."""
    if device.type == "cuda":
        from torch.utils._triton import has_triton

        if not has_triton():
            raise LookupError("inductor needs Triton for this GPU, which is not there")
        return
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        raise LookupError("inductor needs a C++ compiler, as g++, and finds none") from error
