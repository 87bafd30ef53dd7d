"""What the DiT and its strategies import and a bare machine lacks, stood in for: nothing of it is used in a cell.

A rented GPU often has PyTorch and little else. Shapes written in annotations need jaxtyping, and the name of the codec
needs diffusers; neither computes anything in a row of the DiT.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from types import ModuleType

SHAPES = ("Bool", "Complex64", "Float", "Int", "Int64", "UInt8")
CODEC = "liveavatar.models.vae.codec"


class _Shape:
    """Takes the place of a type of jaxtyping: any shape of it is any object."""

    def __class_getitem__(cls, wanted: object) -> type:
        return object


class _NoCodec:
    """The codec, where it cannot be made."""

    def __init__(self, *given: object, **named: object) -> None:
        raise ImportError("the codec needs diffusers: pip install diffusers")


def furnish(codec: bool = True) -> list[str]:
    """Put stand-ins where packages are missing; returns the names of those packages.

    Without a use for the `codec`, it has a stand-in even where diffusers is there, which takes seconds to import.
    """
    missing = [name for name in ("jaxtyping", "diffusers") if find_spec(name) is None]
    if "jaxtyping" in missing:
        shapes = ModuleType("jaxtyping")
        for name in SHAPES:
            setattr(shapes, name, type(name, (_Shape,), {}))
        sys.modules["jaxtyping"] = shapes
    if ("diffusers" in missing or not codec) and CODEC not in sys.modules:
        stand_in = ModuleType(CODEC)
        stand_in.LATENTS_MEAN, stand_in.LATENTS_STD = (), ()  # type: ignore[attr-defined]
        stand_in.WanCodec = _NoCodec  # type: ignore[attr-defined]
        sys.modules[CODEC] = stand_in
    return missing
