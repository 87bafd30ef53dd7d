"""liveavatar: streaming, audio-driven avatar video.

Importing this package costs nothing: torch, Hydra and Lightning are loaded by the first call that needs them.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from liveavatar.assemble import assemble as assemble
    from liveavatar.config import compose as compose
    from liveavatar.live.avatar import Avatar as Avatar
    from liveavatar.live.avatar import load as load
    from liveavatar.session import AvatarSession as AvatarSession

__version__ = "0.1.0"
__all__ = ["Avatar", "AvatarSession", "__version__", "assemble", "compose", "load"]

_HOME = {
    "assemble": "liveavatar.assemble",
    "compose": "liveavatar.config",
    "load": "liveavatar.live.avatar",
    "Avatar": "liveavatar.live.avatar",
    "AvatarSession": "liveavatar.session",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'liveavatar' has no attribute {name!r}; it offers {sorted(_HOME)}")
    from importlib import import_module

    return getattr(import_module(_HOME[name]), name)


class _Package(ModuleType):
    """This package, in which `liveavatar.assemble` is the function: its import would leave the module of that name."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _HOME and isinstance(value, ModuleType):
            value = getattr(value, name)
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
