"""Files that are whole or absent: everything is written beside its place, synced and moved there."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a draft, then put it in the place of `path`. On any failure the draft goes and `path` stays.

    Raises OSError where the disk is full or closed to us.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        write(draft)
        with draft.open("rb+") as file:
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def save_array(path: Path, values: np.ndarray) -> None:
    """A .npy file."""

    def write(draft: Path) -> None:
        with draft.open("wb") as file:  # by handle: by name numpy would append a suffix
            np.save(file, values)

    write_whole(path, write)


def save_torch(path: Path, content: dict[str, Any]) -> None:
    """Tensors and plain values, readable with `weights_only=True`."""
    import torch

    def write(draft: Path) -> None:
        try:
            torch.save(content, draft)
        except RuntimeError as error:  # torch's writer tells of a full disk in words of its own
            reason = f"{path} could not be written: {str(error).splitlines()[0]}"
            raise OSError(28, reason, str(path)) from error

    write_whole(path, write)
