"""A video at an even rate: what was stored with uneven times is put where it is seen."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from jaxtyping import UInt8

LONGEST_GAP_S = 10.0
"""A longer hole in the times is taken for a mistake of the file."""


class SteadyVideo:
    """The frames of a file one after another, at `fps`, from its start; decoded as they are asked for.

    `uneven` counts the places where a frame was repeated or left out because its time is off the even grid;
    `broken` says why the file ended early, if it did. Both are final when the frames are.

    Raises:
        ValueError: naming `key`, when the file is missing, a folder, or no video.
    """

    def __init__(self, path: str | Path, key: str) -> None:
        self.path, self.uneven, self.broken = Path(path), 0, ""
        if not self.path.is_file():
            raise ValueError(f"{key}={path} is no file. Check the path; a relative one starts at {Path.cwd()}.")
        try:
            self._container = av.open(str(path))
        except (av.FFmpegError, OSError) as error:
            raise ValueError(f"{key}={path} is not a video ({error.strerror}). Give an MP4 or WebM file.") from error
        if not self._container.streams.video:
            self._container.close()
            raise ValueError(f"{key}={path} holds no pictures. Give an MP4 or WebM file.")
        stream = self._container.streams.video[0]
        self.fps = float(stream.average_rate or stream.guessed_rate or Fraction(25))

    def __iter__(self) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
        origin, shown, last, shape = None, 0, None, None
        with self._container:
            try:
                for frame in self._container.decode(video=0):
                    origin = frame.time if origin is None else origin
                    place = shown
                    if frame.time is not None and origin is not None:
                        place = round((frame.time - origin) * self.fps)
                    if abs(place - shown) > LONGEST_GAP_S * self.fps:
                        place, origin = shown, (frame.time or 0) - shown / self.fps
                    self.uneven += place != shown
                    if place < shown:
                        continue
                    while last is not None and shown < place:
                        yield last
                        shown += 1
                    last = frame.to_ndarray(format="rgb24")
                    shape = shape or last.shape
                    if last.shape != shape:
                        self.broken = "the pictures change their size"
                        return
                    yield last
                    shown += 1
            except (av.FFmpegError, OSError) as error:
                self.broken = str(error.strerror or error)
