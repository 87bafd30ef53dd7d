"""The few boxes of an MP4 file that the writer must know by name (ISO/IEC 14496-12)."""

from __future__ import annotations

import struct
from collections.abc import Iterator

MOVIE_TIMESCALE = 1000
"""Units per second in which a header counts the length of the whole: what FFmpeg's muxer writes."""


def boxes(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Kind and bytes (with their header) of each box in a run of boxes."""
    start = 0
    while start < len(data):
        length, kind = struct.unpack_from(">I4s", data, start)
        yield kind, data[start : start + length]
        start += length


def with_duration(moov: bytes, offset: int) -> tuple[bytes, int]:
    """Make room in a `moov` box for the length of all fragments, without which players show none.

    Args:
        moov: the box, with its header.
        offset: where in the file it begins.

    Returns:
        The box with an `mehd` box in its `mvex`, and where in the file the length goes: 4 bytes, big-endian.
    """
    mehd = struct.pack(">I4sII", 16, b"mehd", 0, 0)
    body, place = b"", 0
    for kind, box in boxes(moov[8:]):
        if kind == b"mvex":
            place = offset + 8 + len(body) + 8 + len(mehd) - 4
            box = struct.pack(">I4s", len(box) + len(mehd), kind) + mehd + box[8:]
        body += box
    return struct.pack(">I4s", len(body) + 8, b"moov") + body, place
