"""The picture of a request: read, and cut to the size that the model works at (semantics, 1.1 and 1.2)."""

from __future__ import annotations

import io
import math
import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps, UnidentifiedImageError

if TYPE_CHECKING:
    from jaxtyping import Float, UInt8
    from torch import Tensor

KEY = "request.image"
MAX_AREA = 4096 * 4096
MAX_PIXELS = 80_000_000
MAX_ASPECT = 32
_HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"heim", b"mif1", b"msf1", b"avif", b"avis")


def parse_area(text: str | int, multiple: int = 64) -> int:
    """The area in pixels meant by "704*384", "704x384" or a plain number such as "270336".

    Raises:
        ValueError: naming `request.size`, for anything else, and for an area of less than one `multiple`
            squared or more than 4096*4096 pixels.
    """
    found = re.fullmatch(r"\s*(\d+)\s*(?:[*xX×]\s*(\d+)\s*)?", str(text))
    if found is None or isinstance(text, bool):
        raise ValueError(f"request.size={text!r} is not a size. Type height*width, for example 704*384.")
    area = int(found[1]) * int(found[2] or 1)
    if not multiple**2 <= area <= MAX_AREA:
        raise ValueError(
            f"request.size={text!r} is an area of {area} pixels; the model takes {multiple**2} "
            f"({multiple}*{multiple}) to {MAX_AREA} (4096*4096). Type height*width, for example 704*384."
        )
    return area


def fit_size(height: int, width: int, area: int, multiple: int = 64) -> tuple[int, int]:
    """Height and width of the video for a picture of that size, within `area` pixels (semantics, 1.1).

    Both are multiples of `multiple` (64 for the published model). The search walks 100 scales from the
    largest down and takes the first whose rounded-up sides fit; a small picture is not enlarged by it.

    Raises:
        ValueError: for sides below 1 or an area below `multiple` squared.
    """
    if min(height, width) < 1 or area < multiple**2:
        raise ValueError(
            f"A picture of {height}x{width} cannot fit an area of {area} pixels in steps of {multiple}. "
            f"Give a picture of at least 1x1 and a request.size of at least {multiple}*{multiple}."
        )
    largest, smallest = _scale_range(height, width, area, multiple - 1)
    for step in range(100):
        scale = largest - (largest - smallest) * step / 100
        # a side never falls to 0, which a very long picture would otherwise reach and "fit" with an area of 0
        rows, cols = (_round_up(max(1, int(side * scale)), multiple) for side in (height, width))
        if rows * cols <= area:
            return rows, cols
    return _floored_size(height, width, area, multiple)


def _scale_range(height: int, width: int, area: int, margin: int) -> tuple[float, float]:
    """Largest and smallest scale of the search; the reference's discriminant has 2 where 4 were right."""
    if height * width <= area:
        return 1.0, 0.1
    a, b, c = height * width, margin * (height + width), margin * margin - area
    return math.sqrt(area / a), (-b + math.sqrt(b * b - 2 * a * c)) / (2 * a)


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def _floored_size(height: int, width: int, area: int, multiple: int) -> tuple[int, int]:
    """The size when no scale of the search fits: the shape of the picture at that area, sides floored."""
    wanted = math.sqrt(area * height / width), math.sqrt(area * width / height)
    sides = wanted if wanted[0] < height and wanted[1] < width else (height, width)
    rows, cols = (max(multiple, int(side) // multiple * multiple) for side in sides)
    if rows * cols > area:  # a side was raised to one multiple: the other gives way
        longest = area // multiple // multiple * multiple
        rows, cols = min(rows, longest), min(cols, longest)
    return rows, cols


def load_image(path: str | Path, key: str = KEY) -> Image.Image:
    """Read a picture as 8-bit RGB, turned upright by its EXIF tag.

    Transparent pictures are laid over black, the colour that the crop pads with. (Dropping the alpha channel,
    as the reference does, would show whatever colour the editor left under the transparent parts.) 16-bit
    greys are scaled to 8 bit, CMYK, palette and grey pictures converted, and of an animation the first frame
    is taken.

    Raises:
        ValueError: naming `key`, when the file is missing, a folder, empty, a video or a sound, damaged, too
            large or too long and thin, or of a kind that Pillow cannot read.
    """
    path = _existing_file(Path(path), key)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as opened:
                _check_size(opened.size, path, key)
                opened.load()
                return _as_rgb(ImageOps.exif_transpose(opened))
    except Image.DecompressionBombError:
        raise ValueError(_too_large(path, key)) from None
    except UnidentifiedImageError:
        raise ValueError(f"{key}={path} {_what_it_is(path)}") from None
    except (OSError, SyntaxError, EOFError) as error:
        raise ValueError(
            f"{key}={path} is a damaged picture: {error}. Export or download it again, as PNG or JPEG."
        ) from error


def as_image(given: str | Path | bytes | Image.Image | np.ndarray, key: str = KEY) -> Image.Image:
    """A picture as 8-bit RGB from a file, the bytes of a file, a Pillow picture or uint8 [H, W, 3].

    Raises:
        ValueError: as `load_image`, and for arrays of another type or shape.
    """
    if isinstance(given, (str, Path)):
        return load_image(given, key)
    name = Path("the picture given")
    try:
        if isinstance(given, np.ndarray):
            if given.dtype != np.uint8 or given.ndim != 3 or given.shape[2] != 3:
                raise ValueError(f"{key}: an array of {given.dtype} {list(given.shape)} is none; give uint8 [H, W, 3]")
            given = Image.fromarray(given)
        opened = Image.open(io.BytesIO(given)) if isinstance(given, bytes) else given
        _check_size(opened.size, name, key)
        opened.load()
        return _as_rgb(ImageOps.exif_transpose(opened))
    except Image.DecompressionBombError:
        raise ValueError(_too_large(name, key)) from None
    except UnidentifiedImageError:
        raise ValueError(f"{key}: the bytes given are no PNG, JPEG or WebP picture") from None
    except (OSError, SyntaxError, EOFError) as error:
        raise ValueError(f"{key}: the picture given is damaged: {error}. Export it again, as PNG or JPEG.") from error


def _existing_file(path: Path, key: str) -> Path:
    if path.is_dir():
        raise ValueError(f"{key}={path} is a folder. Type the path of one picture in it.")
    if not path.is_file():
        raise ValueError(f"{key}={path} does not exist. Check the path; a relative one starts at {Path.cwd()}.")
    if path.stat().st_size == 0:
        raise ValueError(f"{key}={path} is an empty file. Copy or download the picture again.")
    return path


def _check_size(size: tuple[int, int], path: Path, key: str) -> None:
    if size[0] * size[1] > MAX_PIXELS:
        raise ValueError(_too_large(path, key))
    if max(size) > MAX_ASPECT * max(1, min(size)):
        raise ValueError(
            f"{key}={path} is {size[0]}x{size[1]}, too long and thin for a portrait. Crop it to the person."
        )


def _too_large(path: Path, key: str) -> str:
    return (
        f"{key}={path} has more than {MAX_PIXELS // 1_000_000} megapixels; the model sees less than one. "
        f"Scale it down first, to 2000 pixels a side or so."
    )


def _what_it_is(path: Path) -> str:
    """The second half of the message about a file that Pillow does not know."""
    with path.open("rb") as file:
        head = file.read(12)
    if head[4:8] == b"ftyp" and head[8:12] in _HEIF_BRANDS:
        return "is a HEIF picture, which Pillow cannot read here. Convert it to PNG or JPEG first."
    # heavy, and only ever needed for this message
    import av

    try:
        with av.open(str(path)) as container:
            still = container.format.name.endswith("_pipe") or container.format.name in ("tty", "image2")
            if container.streams.video and not still:
                return "is a video; request.image wants a picture. Take a frame of it first, as PNG or JPEG."
            if container.streams.audio:
                return "is a sound file; request.image wants a picture. Did you mean it for request.audio?"
    except (av.FFmpegError, OSError):
        pass
    return "is not a picture that Pillow can read. Give a PNG, JPEG or WebP file."


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_eight_bit(np.asarray(image, dtype=np.float64), image.mode)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, (0, 0, 0, 255)), layer).convert("RGB")
    return image.convert("RGB")


def _eight_bit(levels: np.ndarray, mode: str) -> np.ndarray:
    """Grey levels of more than 8 bits as uint8: the range ends at 65535, 255 or 1, whichever holds them."""
    peak = levels.max(initial=0)
    top = 65535 if mode.startswith("I;16") or peak > 255 else 255 if mode == "I" or peak > 1 else 1
    return np.rint(np.clip(levels / top, 0, 1) * 255).astype(np.uint8)


def resized_shape(height: int, width: int, shorter: int) -> tuple[int, int]:
    """Height and width once the shorter edge is `shorter`; the longer is truncated (semantics, 1.2)."""
    if height <= width:
        return shorter, int(shorter * width / height)
    return int(shorter * height / width), shorter


def centre_crop(x: Tensor, height: int, width: int, fill: float) -> Tensor:
    """Cut the middle out of [..., h, w]; what is too small is first padded with `fill` (semantics, 1.2)."""
    missing_rows, missing_cols = max(0, height - x.shape[-2]), max(0, width - x.shape[-1])
    left, top = missing_cols // 2, missing_rows // 2
    x = F.pad(x, (left, missing_cols - left, top, missing_rows - top), value=fill)
    top, left = round((x.shape[-2] - height) / 2), round((x.shape[-1] - width) / 2)
    return x[..., top : top + height, left : left + width]


def fit_pixels(image: Image.Image, height: int, width: int) -> UInt8[Tensor, "3 H W"]:
    """The picture as uint8: shorter edge to min(H, W) (bilinear, antialiased), centre cut, padded black."""
    rows, cols = resized_shape(image.height, image.width, min(height, width))
    resized = image.convert("RGB").resize((cols, rows), Image.Resampling.BILINEAR)
    pixels = torch.from_numpy(np.array(resized)).permute(2, 0, 1)
    return centre_crop(pixels, height, width, 0).contiguous()


def fit_image(image: Image.Image, height: int, width: int) -> Float[Tensor, "3 H W"]:
    """The picture as the model takes it: `fit_pixels` as float32 in [-1, 1] (semantics, 1.2)."""
    return fit_pixels(image, height, width).float() / 255 * 2 - 1
