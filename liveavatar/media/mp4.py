"""MP4 files that play up to the last chunk written, whatever happens next.

One pair of encoders lives as long as the file. What they make of each chunk is packed into a fragment of its
own, in memory, and reaches the disk in one write: a killed process, a full disk or a power cut in the middle
of a day costs the chunk at hand and nothing before it.
"""

from __future__ import annotations

import contextlib
import io
import logging
import struct
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO

import av
import numpy as np
from av.container import OutputContainer
from av.video.frame import PictureType
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc, VideoReformatter
from jaxtyping import Float, UInt8

from liveavatar.media.boxes import MOVIE_TIMESCALE, boxes, with_duration
from liveavatar.types import BLOCK_FRAMES, StreamInfo, VideoChunk

log = logging.getLogger(__name__)

AAC_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)

_FLAGS = "frag_custom+default_base_moof+delay_moov+skip_trailer"


class Mp4Writer:
    """Writes H.264 pictures and AAC sound as a fragmented MP4, one fragment a chunk.

    Args:
        path: the file, replaced if it is there; its folder must exist.
        width, height: size of the frames, both even.
        fps: frames per second.
        audio_rate: samples per second of the sound, one of `AAC_RATES`; 0 for a file without sound.
        file: written to instead of `path`, if given: a raw binary file that can seek.

    Raises:
        OSError: naming `output.dir`, when the file cannot be made or written (no space, no permission). Of a
            file that fails half-way everything before the failing chunk still plays; later writes raise
            again.
        ValueError: for odd sizes or a rate that AAC does not have.
    """

    def __init__(
        self,
        path: str | Path,
        width: int,
        height: int,
        fps: int,
        audio_rate: int,
        file: BinaryIO | None = None,
    ) -> None:
        if width % 2 or height % 2:
            raise ValueError(f"A video of {width}x{height} cannot be stored: both sides must be even.")
        if audio_rate and audio_rate not in AAC_RATES:
            raise ValueError(f"Sound of {audio_rate} Hz cannot be stored: resample it to one of {AAC_RATES}.")
        self.path, self.fps, self.audio_rate = Path(path), fps, audio_rate
        self._frames = self._samples = self._fragments = 0
        self._pending: list[av.Packet] = []
        self._priming = 0
        self._duration_at = 0
        self._end = 0
        self._kept = 0.0
        self._failure: OSError | None = None
        self._closed = False
        # holds the encoders for the life of the file; nothing is muxed into it
        self._encoders = av.open(io.BytesIO(), "w", format="mp4")
        self._video = _video_encoder(self._encoders, width, height, fps)
        self._colours = VideoReformatter()  # one for all frames: making one takes longer than using it
        self._audio = self._encoders.add_stream("aac", rate=audio_rate, layout="mono") if audio_rate else None
        self._encoders.start_encoding()
        try:
            # unbuffered: what `write` returned from has left this process
            self._file = file if file is not None else self.path.open("wb", buffering=0)
        except OSError as error:
            raise _explained(error, self.path, 0.0) from error

    @property
    def seconds(self) -> float:
        """Length of what has been written."""
        return self._frames / self.fps

    def write(self, frames: UInt8[np.ndarray, "t H W 3"], audio: Float[np.ndarray, " samples"]) -> None:
        """Append one chunk; it is on disk when this returns.

        Sound is fitted to the frames above it, cut or followed by silence, so that it can never drift from
        them.
        """
        if self._failure is not None:
            raise self._failure
        if len(frames) == 0:
            return
        before = self._frames, self._samples
        packets: list[av.Packet] = []
        try:
            for number, pixels in enumerate(frames):
                packets += self._video.encode(self._picture(pixels, first=number == 0))
            if self._audio is not None:
                wanted = round(self._frames * self.audio_rate / self.fps) - self._samples
                packets += self._audio.encode(self._sound(audio, wanted))
        except BaseException:  # half a chunk, as when a user interrupts, is left out: pictures without their sound
            self._frames, self._samples = before
            raise
        self._pending += packets
        if self._started():
            self._flush()

    def close(self) -> None:
        """Write what the encoders still hold (at 48 kHz the last 65 ms of sound or less) and close the file.

        A second call does nothing.
        """
        if self._closed:
            return
        self._closed = True
        try:
            self._pending += self._video.encode(None)
            if self._audio is not None:
                self._pending += self._audio.encode(None)
            if self._failure is None and self._pending:
                self._flush()
        finally:
            self._encoders.close()
            with contextlib.suppress(OSError):
                self._file.close()

    def _picture(self, pixels: np.ndarray, first: bool) -> av.VideoFrame:
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
        frame = self._colours.reformat(
            frame, format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG
        )
        frame.pts, frame.time_base = self._frames, Fraction(1, self.fps)
        # a fragment begins with a picture that needs no other: it plays even if one before it is lost
        frame.pict_type = PictureType.I if first else PictureType.NONE
        self._frames += 1
        return frame

    def _sound(self, audio: np.ndarray, wanted: int) -> av.AudioFrame | None:
        samples = np.zeros((1, max(wanted, 0)), np.float32)
        given = np.asarray(audio, np.float32).reshape(-1)[: samples.shape[1]]
        samples[0, : len(given)] = given
        frame = av.AudioFrame.from_ndarray(samples.clip(-1, 1), format="fltp", layout="mono")
        frame.sample_rate = self.audio_rate
        frame.pts, frame.time_base = self._samples, Fraction(1, self.audio_rate)
        self._samples += samples.shape[1]
        return frame

    def _started(self) -> bool:
        """Whether the header can be made: it tells how far the first sound leads, so that has to be there."""
        if self._fragments:
            return True
        kinds = {packet.stream.type for packet in self._pending}
        return "video" in kinds and ("audio" in kinds or self._audio is None)

    def _flush(self) -> None:
        packets, self._pending = self._pending, []
        header, body = self._fragment(packets)
        try:
            # A file that ends in half a fragment cannot be opened, one that ends in half a `free` box can:
            # the fragment goes by that name until all of it is there.
            self._write_at(self._end, header + struct.pack(">I4s", len(body), b"free") + body[8:])
            self._write_at(self._end + len(header), body[:8])
            self._end += len(header) + len(body)
            self._write_at(self._duration_at, struct.pack(">I", round(self.seconds * MOVIE_TIMESCALE)))
            self._kept = self.seconds
        except OSError as error:
            self._failure = _explained(error, self.path, self._kept)
            with contextlib.suppress(OSError):  # half a fragment is worth nothing
                self._file.truncate(self._end)
            raise self._failure from error
        except BaseException:  # an interrupt: the same, but the file goes on
            with contextlib.suppress(OSError):
                self._file.truncate(self._end)
            raise

    def _fragment(self, packets: list[av.Packet]) -> tuple[bytes, bytes]:
        """What these packets add to the file: the header, before the first, and the fragment (moof and mdat).

        AAC begins with about 20 ms that are to be skipped; its packets start at a negative time. The muxer
        notes that in the header (an edit list) when it sees the first ones, and counts from 0. Later
        fragments come from muxers of their own which know nothing of it, so their sound is moved by the same
        amount here.
        """
        first = self._fragments == 0
        flags = _FLAGS if first else f"{_FLAGS}+frag_discont"
        options = {
            "movflags": flags,
            "fragment_index": str(self._fragments + 1),
            "avoid_negative_ts": "disabled",
        }
        memory = io.BytesIO()
        with av.open(memory, "w", format="mp4", options=options) as muxer:
            streams = {self._video: muxer.add_stream_from_template(self._video, opaque=True)}
            if self._audio is not None:
                streams[self._audio] = muxer.add_stream_from_template(self._audio, opaque=True)
            if first:
                starts = [packet.pts or 0 for packet in packets if packet.stream.type == "audio"]
                self._priming = -min(starts, default=0)
            for packet in packets:
                if packet.stream.type == "audio" and not first:
                    packet.pts = (packet.pts or 0) + self._priming
                    packet.dts = (packet.dts or 0) + self._priming
                packet.stream = streams[packet.stream]
                muxer.mux(packet)
        self._fragments += 1
        made = dict(boxes(memory.getvalue()))
        body = made[b"moof"] + made[b"mdat"]
        if not first:
            return b"", body
        header, self._duration_at = with_duration(made[b"moov"], offset=len(made[b"ftyp"]))
        return made[b"ftyp"] + header, body

    def _write_at(self, place: int, data: bytes) -> None:
        """Write all of it; a raw file may take less than it is given, as a full disk first does."""
        self._file.seek(place)
        view = memoryview(data)
        while view:
            view = view[self._file.write(view) :]


class Mp4Sink:
    """A `Sink` that keeps the stream as a playable MP4 file with its sound (see `Mp4Writer`)."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._writer: Mp4Writer | None = None

    def open(self, info: StreamInfo) -> None:
        self._writer = Mp4Writer(self.path, info.width, info.height, info.fps, info.audio_rate)

    def write(self, chunk: VideoChunk) -> None:
        if self._writer is None:
            raise RuntimeError("Mp4Sink.write was called before open.")
        self._writer.write(chunk.pixels().numpy(), chunk.audio)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


def _video_encoder(container: OutputContainer, width: int, height: int, fps: int) -> Any:
    """The best encoder there is, without B-frames: each picture leaves it at once and in order."""
    name, options = "libx264", {"crf": "18", "preset": "veryfast", "tune": "zerolatency", "forced-idr": "1"}
    if name not in av.codecs_available:
        log.warning("This FFmpeg has no libx264: the video is stored as MPEG-4 part 2, larger and less sharp.")
        name, options = "mpeg4", {}
    stream = container.add_stream(name, rate=fps, options=options)
    stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
    context = stream.codec_context
    context.gop_size = BLOCK_FRAMES
    if name == "mpeg4":  # it has no quality target of its own: half a bit for each pixel
        context.bit_rate = width * height * fps // 2
    context.time_base = Fraction(1, fps)
    context.colorspace, context.color_range = Colorspace.ITU709, ColorRange.MPEG
    context.color_primaries, context.color_trc = ColorPrimaries.BT709, ColorTrc.BT709
    return stream


def _explained(error: OSError, path: Path, seconds: float) -> OSError:
    kept = f"The {seconds:.1f} s written so far are in it and play." if seconds else "Nothing has been written."
    reason = error.strerror or str(error)
    advice = "Make room, or point output.dir at another disk or a folder that you may write to."
    return OSError(error.errno, f"output.dir: {path} cannot be written: {reason}. {kept} {advice}")
