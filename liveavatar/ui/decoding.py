"""Decodes one upload in a process of its own: run by file name, it imports nothing of this package.

Pictures and sounds come from strangers, and decoders are large. What goes wrong in one takes this process with it and
nothing else: it may use a bounded amount of memory and time, is given bytes and no path, and knows few formats, so that
no playlist or script can make a decoder open anything else.

    python -I decoding.py picture '{"pixels": 40000000}' < bytes > one line of JSON, then PNG
    python -I decoding.py voice '{"seconds": 120}' < bytes > one line of JSON, then float32 mono at 16 kHz
"""

from __future__ import annotations

import io
import json
import sys
import warnings
from typing import Any

MEMORY = 4 << 30  # address space: decoders and numpy map much more than they use
SECONDS = 30
LONGEST_SIDE = 1600  # pixels that are kept: the model sees less than a thousand
THINNEST = 32
RATE = 16_000
RATES = (4_000, 384_000)
CHANNELS = 16


class Refused(Exception):
    """Why an upload is not taken, in words for the person who sent it."""


def picture(data: bytes, pixels: int) -> tuple[dict[str, Any], bytes]:
    """The picture upright, as PNG; its size is looked at before anything is decoded."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit here is ours
        opened = Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "WEBP"))
        width, height = opened.size
        if width * height > pixels:
            raise Refused(
                f"This picture has {width * height / 1e6:.0f} megapixels, and at most {pixels / 1e6:.0f} are taken. "
                "Scale it down, to 2000 pixels a side or so."
            )
        if max(width, height) > THINNEST * min(width, height):
            raise Refused(f"This picture is {width}×{height}: too long and thin for a portrait. Crop it to the person.")
        opened.draft("RGB", (LONGEST_SIDE, LONGEST_SIDE))  # a JPEG decodes to a fraction of its size right away
        upright = ImageOps.exif_transpose(opened).convert("RGBA")
    except UnidentifiedImageError:
        raise Refused(f"{_is(data)} Give a PNG, JPEG or WebP picture.") from None
    except Image.DecompressionBombError:
        raise Refused("This picture has far too many pixels. Scale it down, to 2000 a side or so.") from None
    except (OSError, SyntaxError, EOFError, ValueError) as error:
        raise Refused(f"This picture is damaged ({error}). Export or download it again.") from None
    upright.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    made, black = io.BytesIO(), Image.new("RGBA", upright.size, (0, 0, 0, 255))
    Image.alpha_composite(black, upright).convert("RGB").save(made, "PNG", compress_level=1)
    return {"width": upright.width, "height": upright.height}, made.getvalue()


def _kind(data: bytes) -> str | None:
    """The demuxer for a sound that starts like this; None for all that is not taken."""
    head = data[:12]
    starts = {b"RIFF": "wav", b"fLaC": "flac", b"OggS": "ogg", b"ID3": "mp3", b"\x1a\x45\xdf\xa3": "matroska"}
    if head[:4] == b"RIFF" and head[8:12] != b"WAVE":
        return None
    if head[4:8] == b"ftyp":
        return "mov"
    if head[:4] == b"FORM" and head[8:12] in (b"AIFF", b"AIFC"):
        return "aiff"
    if head[:1] == b"\xff" and head[1:2] and head[1] & 0xE0 == 0xE0:
        return "aac" if head[1] & 0x06 == 0 else "mp3"
    return next((name for start, name in starts.items() if head.startswith(start)), None)


def _is(data: bytes) -> str:
    if not data:
        return "The file is empty."
    if data[4:8] == b"ftyp" and data[8:12] in (b"heic", b"heix", b"mif1", b"avif"):
        return "This is a HEIF picture, which cannot be read here."
    return "This is a sound or a video, not a picture." if _kind(data) else "This is not a picture that is known here."


def voice(data: bytes, seconds: float) -> tuple[dict[str, Any], bytes]:
    """The first sound track, mono at 16 kHz; decoding stops where it becomes too long."""
    import av
    import numpy as np
    import soxr

    kind = _kind(data)
    if kind is None:
        what = "The file is empty." if not data else "This is not a sound file that is known here."
        raise Refused(f"{what} Give a WAV, MP3, M4A, FLAC, OGG or WebM file.")
    parts, rate, length = [], 0, 0
    too_long = f"This recording is longer than the {seconds:.0f} seconds that are taken. Cut it, or send it in parts."
    try:
        with av.open(
            io.BytesIO(data), "r", format=kind, options={"protocol_whitelist": "", "enable_drefs": "0"}
        ) as file:
            if not file.streams.audio:
                raise Refused("There is no sound in this file.")
            track = file.streams.audio[0]
            rate, channels = track.codec_context.sample_rate, track.codec_context.channels
            if not (RATES[0] <= rate <= RATES[1] and 1 <= channels <= CHANNELS):
                raise Refused(f"Sound of {rate} Hz with {channels} channels is not taken. Export it as WAV at 48 kHz.")
            if track.duration and track.time_base and track.duration * track.time_base > seconds + 1:
                raise Refused(too_long)
            resampler = av.AudioResampler(format="fltp", layout="mono", rate=rate)
            for frame in file.decode(track):
                for made in resampler.resample(frame):
                    parts.append(made.to_ndarray()[0])
                    length += len(parts[-1])
                if length > seconds * rate:
                    raise Refused(too_long)
    except (av.FFmpegError, OSError, ValueError) as error:
        if not parts:  # of a recording that breaks off, what there is will do
            raise Refused(f"This sound file is damaged ({error}). Export or record it again.") from None
    pcm = np.concatenate(parts) if parts else np.zeros(0, np.float32)
    if len(pcm) < rate / 20 or not np.isfinite(pcm).all():
        raise Refused("There is no sound in this file that can be decoded. Export or record it again.")
    heard = soxr.resample(pcm.astype(np.float32), rate, RATE).clip(-1, 1).astype("<f4")
    return {"seconds": len(heard) / RATE, "rate": RATE}, heard.tobytes()


def confine() -> None:
    """Bound what this process may take, where the system can."""
    try:
        import resource
    except ImportError:
        return
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))  # it writes no file
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def main() -> None:
    """One upload from stdin, what it holds to stdout."""
    confine()
    try:
        head, body = {"picture": picture, "voice": voice}[sys.argv[1]](
            sys.stdin.buffer.read(), **json.loads(sys.argv[2])
        )
    except Refused as refused:
        head, body = {"refused": str(refused)}, b""
    except MemoryError:
        head, body = {"refused": "Decoding this file takes more memory than is allowed. Export it again, smaller."}, b""
    sys.stdout.buffer.write(json.dumps(head).encode() + b"\n" + body)
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
