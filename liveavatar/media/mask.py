"""Where each speaker is: masks read from pictures, and their form for the DiT (semantics, 1.7)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, UInt8
from PIL import Image
from torch import Tensor

KEY = "request.masks"
_PICTURES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif"}


def load_masks(paths: Sequence[str | Path], key: str = KEY) -> list[UInt8[np.ndarray, "T h w"]]:
    """One mask track per speaker: a picture, or a folder of them in the order of their names (2 before 10).

    Returns:
        For each path a uint8 array of [T, h, w], 1 where the picture is not black; T is 1 for a single
        picture.

    Raises:
        ValueError: naming `key`, for a missing path, a folder without pictures, a file that is no picture, or
            pictures that differ in size.
    """
    tracks = [_track(Path(path), key) for path in paths]
    sizes = {track.shape[1:] for track in tracks}
    if len(sizes) > 1:
        listed = ", ".join(
            f"{path}: {track.shape[2]}x{track.shape[1]}" for path, track in zip(paths, tracks, strict=True)
        )
        raise ValueError(f"{key}: the masks of all speakers must have one size, but there are {listed}. Resize them.")
    return tracks


def _track(path: Path, key: str) -> np.ndarray:
    if not path.exists():
        raise ValueError(f"{key}={path} does not exist. Check the path; a relative one starts at {Path.cwd()}.")
    files = sorted(_pictures_in(path), key=_natural) if path.is_dir() else [path]
    if not files:
        raise ValueError(f"{key}={path} is a folder without pictures. Put the masks there, as PNG, one per frame.")
    masks = [_mask(file, key) for file in files]
    for file, mask in zip(files, masks, strict=True):
        if mask.shape != masks[0].shape:
            raise ValueError(
                f"{key}: {file} is {mask.shape[1]}x{mask.shape[0]} and {files[0].name} "
                f"{masks[0].shape[1]}x{masks[0].shape[0]}. All masks of a speaker must have one size."
            )
    return np.stack(masks)


def _pictures_in(folder: Path) -> list[Path]:
    return [file for file in folder.iterdir() if file.suffix.lower() in _PICTURES and not file.name.startswith(".")]


def _natural(file: Path) -> list[tuple[int, str]]:
    """Sort key that reads numbers as numbers."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", file.name)]


def _mask(file: Path, key: str) -> np.ndarray:
    try:
        with Image.open(file) as image:
            # the strongest channel, not the grey value: a dark blue speaker is a speaker
            return (np.asarray(image.convert("RGB")).max(axis=2) > 0).astype(np.uint8)
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{key}: {file} is not a picture that Pillow can read. Save the masks as PNG.") from error


def actor_masks(
    masks: Sequence[np.ndarray | Tensor], frames: int, rows: int, cols: int
) -> Float[Tensor, "a f rows cols"]:
    """What each speaker's voice may move: 1 where no other speaker is near (semantics, 1.7).

    Masks [T, h, w] (over zero where the speaker is) are resized in time and space to `frames` x `rows` x
    `cols` tokens. Where speakers overlap the later one wins. Each is then widened by a tenth of its own
    extent. The background belongs to everyone, a place near two speakers to nobody.
    """
    present = torch.stack([_resized(torch.as_tensor(mask), frames, rows, cols) for mask in masks])
    later = torch.zeros_like(present[0])
    for actor in reversed(range(len(present))):
        here = present[actor].clone()
        present[actor] &= ~later
        later |= here
    widened = torch.stack([torch.stack([_widened(frame) for frame in actor]) for actor in present])
    nearby = widened.sum(dim=0)
    return ((nearby - widened.long()) == 0).float()


def _resized(mask: Tensor, frames: int, rows: int, cols: int) -> Bool[Tensor, "f rows cols"]:
    volume = (mask > 0).float()[None, None]
    return F.interpolate(volume, size=(frames, rows, cols), mode="trilinear", align_corners=False)[0, 0] > 0.5


def _widened(mask: Bool[Tensor, "rows cols"]) -> Bool[Tensor, "rows cols"]:
    """Square dilation by a tenth of the longer side of the mask's box, at least by one; empty stays empty."""
    where = mask.nonzero()
    if len(where) == 0:
        return mask
    extent = int((where.amax(dim=0) - where.amin(dim=0) + 1).max())
    radius = max(1, int(0.1 * extent + 0.9999))
    return F.max_pool2d(mask.float()[None], 2 * radius + 1, stride=1, padding=radius)[0] > 0
