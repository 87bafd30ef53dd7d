"""What a bare machine lacks, stood in for where nothing of it is used: a rented GPU often has PyTorch and little else.

Shapes written in annotations need jaxtyping, and the name of the codec needs diffusers; neither computes anything in a
measured row of the DiT. A training reads and writes no media files but its previews, and its own prompts need no
repair. Nothing is stood in for what is installed.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

SHAPES = ("Bool", "Complex64", "Float", "Int", "Int64", "UInt8")
CODEC = "liveavatar.models.vae.codec"
MEDIA = ("av", "soxr", "ftfy")


class _Shape:
    """Takes the place of a type of jaxtyping: any shape of it is any object."""

    def __class_getitem__(cls, wanted: object) -> type:
        return object


class _NoCodec:
    """The codec, where it cannot be made."""

    def __init__(self, *given: object, **named: object) -> None:
        raise ImportError("the codec needs diffusers: pip install diffusers")


class _Absent(ModuleType):
    """A package that is not there: it can be named, and tells so when it is used."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        package = self.__name__.split(".")[0]

        def use(*given: object, **named: object) -> object:
            raise ImportError(f"{package} is not installed, but {self.__name__}.{name} is needed: install it")

        return use


class _Finder:
    """Gives every module below some packages that are not there."""

    def __init__(self, packages: Sequence[str]) -> None:
        self.packages = set(packages)

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if name.split(".")[0] not in self.packages:
            return None
        return ModuleSpec(name, self, is_package=True)  # type: ignore[arg-type] - the two methods below are a loader

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Absent(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        if module.__name__ == "ftfy":
            module.fix_text = str  # type: ignore[attr-defined] - a text that needs no repair


def furnish(codec: bool = True, media: bool = False) -> list[str]:
    """Put stand-ins where packages are missing, those of `media` only if asked for; returns the packages' names.

    Without a use for the `codec`, it has a stand-in even where diffusers is there, which takes seconds to import.
    """
    missing = [name for name in ("jaxtyping", "diffusers", *(MEDIA if media else ())) if _lacks(name)]
    if "jaxtyping" in missing:
        shapes = _Absent("jaxtyping")
        for name in SHAPES:
            setattr(shapes, name, type(name, (_Shape,), {}))
        sys.modules["jaxtyping"] = shapes
    if ("diffusers" in missing or not codec) and CODEC not in sys.modules:
        stand_in = ModuleType(CODEC)
        stand_in.LATENTS_MEAN, stand_in.LATENTS_STD = (), ()  # type: ignore[attr-defined]
        stand_in.WanCodec = _NoCodec  # type: ignore[attr-defined]
        sys.modules[CODEC] = stand_in
    if absent := [name for name in MEDIA if name in missing]:
        sys.meta_path.insert(0, _Finder(absent))  # type: ignore[arg-type]
    return missing


def _lacks(name: str) -> bool:
    here = sys.modules.get(name)
    return find_spec(name) is None if here is None else isinstance(here, _Absent)
