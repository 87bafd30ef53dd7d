"""liveavatar: streaming, audio-driven avatar video.

Importing this package costs nothing: torch, Hydra and Lightning are loaded by the first call that needs them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from liveavatar.assemble import assemble as assemble
    from liveavatar.config import compose as compose
    from liveavatar.session import AvatarSession as AvatarSession

__version__ = "0.1.0"
__all__ = ["AvatarSession", "__version__", "assemble", "compose"]

_HOME = {
    "assemble": "liveavatar.assemble",
    "compose": "liveavatar.config",
    "AvatarSession": "liveavatar.session",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'liveavatar' has no attribute {name!r}; it offers {sorted(_HOME)}")
    from importlib import import_module

    return getattr(import_module(_HOME[name]), name)
