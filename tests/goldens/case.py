"""A golden case: its files, what was read of them, and the judgement of each tensor by the case's own tolerance."""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

GIVEN = ("inputs", "weights", "lora")
"""Files that hold what a procedure is fed; all other tensor files hold what it must reproduce."""

DEFAULT = {"abs": 1e-3, "rel": 1e-3}
_LIMITS = {"abs", "rel", "exact", "uint8", "note"}


class Case:
    """One folder in the published format."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.info: dict[str, Any] = json.loads((folder / "case.json").read_text())
        self.errors: dict[str, float] = {}
        self.failures: list[str] = []
        self._read: set[tuple[str, str]] = set()

    @property
    def kind(self) -> str:
        return self.info["kind"]

    def file(self, name: str) -> dict[str, Tensor]:
        """Tensors of one file; floating ones as float32, since bfloat16 there is only a way to save space."""
        return {k: v.float() if v.is_floating_point() else v for k, v in load_file(self.folder / name).items()}

    @cached_property
    def inputs(self) -> dict[str, Tensor]:
        return self.file("inputs.safetensors")

    @cached_property
    def expected(self) -> dict[str, dict[str, Tensor]]:
        """Per file (by stem) the tensors to reproduce, in the type in which they are stored."""
        files = sorted(self.folder.glob("*.safetensors"))
        return {f.stem: load_file(f) for f in files if not f.stem.startswith(GIVEN)}

    def names(self, stem: str = "outputs") -> list[str]:
        return list(self.expected.get(stem, ()))

    def take(self, name: str, stem: str = "outputs") -> Tensor:
        """A tensor of a file of expectations that serves as an input; it counts as read."""
        self._read.add((stem, name))
        return self.expected[stem][name].float()

    def check(self, name: str, value: Tensor, stem: str = "outputs") -> None:
        """Compare a computed tensor with the stored one."""
        self._read.add((stem, name))
        reference = self.expected[stem][name]
        label = name if stem == "outputs" else f"{stem}:{name}"
        if value.shape != reference.shape:
            self.failures.append(f"{label}: shape {list(value.shape)} instead of {list(reference.shape)}")
            return
        limits = self._limits(name)
        error = (value.double() - reference.double()).abs()
        self.errors[label] = float(error.max()) if error.numel() else 0.0
        if not self._within(error, reference.double(), limits):
            self.failures.append(f"{label}: largest error {self.errors[label]:.3e}, allowed {limits}")

    def finish(self) -> None:
        """Fail for anything that differs, and for anything that was not compared."""
        stored = {(stem, name) for stem, tensors in self.expected.items() for name in tensors}
        self.failures += [f"{stem}:{name} was never compared" for stem, name in sorted(stored - self._read)]
        if not stored:
            self.failures.append("the case holds nothing to reproduce")
        assert not self.failures, f"{self.folder.name}: " + "; ".join(self.failures)

    def _limits(self, name: str) -> Any:
        given = self.info.get("suggested_tolerance", DEFAULT)
        if set(given) <= _LIMITS:
            return given
        return next((limit for group, limit in given.items() if group in name), DEFAULT)

    @staticmethod
    def _within(error: Tensor, reference: Tensor, limits: Any) -> bool:
        if isinstance(limits, str):  # video_u8: equal on at least 99.9 % of the values and at most 1 level elsewhere
            return bool(error.max() <= 1) and float((error == 0).double().mean()) >= 0.999
        if "exact" in limits:
            return bool((error == 0).all())
        if "uint8" in limits:
            levels = limits["uint8"]
            # values of images are 0..255, or a float copy in [-1, 1]
            return bool(error.max() <= (levels if reference.max() > 1 else levels / 127.5 + 1e-6))
        allowed = limits.get("abs", 0.0) + limits.get("rel", 0.0) * reference.abs()
        return bool((error <= allowed).all()) and not bool(torch.isnan(error).any())
