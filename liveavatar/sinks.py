"""Consumers of finished video that need no media library: several at once, none, a latents file, a bar."""

from __future__ import annotations

import contextlib
import json
import logging
import struct
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from liveavatar.types import Sink, StreamInfo, VideoChunk

if TYPE_CHECKING:
    from rich.console import Console
    from torch import Tensor

log = logging.getLogger(__name__)


class Fanout:
    """Hands each chunk to several sinks, and keeps going while one of them fails.

    A sink that raises is logged once by its name, closed and left alone from then on. `failures` says which,
    and why. When every sink named in `essential` has failed there is nobody left to work for: the call raises
    what the last of them raised. The sinks are served one after another in the caller's thread, so a slow one
    delays the others; it never makes them lose a chunk.

    Args:
        sinks: by name, served in this order.
        essential: names of the sinks without which the run has no purpose; none means that it never stops.
    """

    def __init__(self, sinks: Mapping[str, Sink], essential: tuple[str, ...] = ()) -> None:
        if unknown := sorted(set(essential) - set(sinks)):
            raise ValueError(f"There is no sink named {', '.join(unknown)}; there are: {', '.join(sinks) or 'none'}.")
        self.failures: dict[str, Exception] = {}
        self._working = dict(sinks)
        self._essential = essential

    def open(self, info: StreamInfo) -> None:
        self._each("open", info)

    def write(self, chunk: VideoChunk) -> None:
        self._each("write", chunk)

    def close(self) -> None:
        """Close every sink that still works, each once, also when one raises. A second call does nothing."""
        working, self._working = self._working, {}
        last = None
        for name, sink in working.items():
            try:
                sink.close()
            except Exception as error:  # noqa: BLE001  whatever a sink raises is its own affair
                last = self._note(name, error) or last
        self._stop_if_useless(last)

    def _each(self, action: str, argument: Any) -> None:
        last = None
        for name, sink in list(self._working.items()):
            try:
                getattr(sink, action)(argument)
            except Exception as error:  # noqa: BLE001  whatever a sink raises is its own affair
                last = self._note(name, error) or last
                self._drop(name)
        self._stop_if_useless(last)

    def _note(self, name: str, error: Exception) -> Exception | None:
        """Log and remember a failure; returns it when the sink is essential."""
        log.error("The sink '%s' failed and is left out from here on: %s", name, error, exc_info=error)
        self.failures[name] = error
        return error if name in self._essential else None

    def _drop(self, name: str) -> None:
        try:
            self._working.pop(name).close()
        except Exception:
            # its real failure has been told; what else breaks while it goes away is for the curious
            log.debug("The sink '%s' could not be closed either.", name, exc_info=True)

    def _stop_if_useless(self, last: Exception | None) -> None:
        if last is not None and all(name in self.failures for name in self._essential):
            raise last


class NullSink:
    """Takes everything and keeps nothing: for measuring, and for runs whose chunks the caller consumes."""

    def open(self, info: StreamInfo) -> None:
        """Nothing to prepare."""

    def write(self, chunk: VideoChunk) -> None:
        """Nothing to keep."""

    def close(self) -> None:
        """Nothing to finish."""


class LatentSink:
    """Keeps the final latents of a stream in one safetensors file, as `block_00000`, `block_00001`, ...

    The numbers are spooled to `<name>.part` beside the file as they come, and the file appears complete, by a
    rename, on `close`. Memory stays flat but for about 100 bytes a block; the disk needs the space twice for
    a moment. What a killed process leaves is the `.part`, without a header.

    Args:
        path: the file, replaced if it is there.
        metadata: stored in the header: whatever is needed to make these latents again (config, threads, ...).

    Raises:
        OSError: naming `output.dir`, when the file cannot be made or written.
        ValueError: for a block that comes twice, or numbers that are not float32, bfloat16 or float16.
    """

    def __init__(self, path: str | Path, metadata: Mapping[str, str]) -> None:
        self.path = Path(path)
        self.metadata = dict(metadata)
        self._spool = self.path.with_name(self.path.name + ".part")
        self._file: BinaryIO | None = None
        self._index: dict[str, dict[str, Any]] = {}
        self._end = 0

    def open(self, info: StreamInfo) -> None:
        try:
            self._file = self._spool.open("wb")
        except OSError as error:
            raise _explained(error, self._spool) from error

    def write(self, chunk: VideoChunk) -> None:
        if self._file is None:
            raise RuntimeError("LatentSink.write was called before open.")
        try:
            for block, latents in sorted(chunk.latents.items()):
                self._append(f"block_{block:05d}", latents, self._file)
        except OSError as error:
            raise _explained(error, self._spool) from error

    def close(self) -> None:
        if self._file is None:
            return
        file, self._file = self._file, None
        whole = self.path.with_name(self.path.name + ".tmp")
        with contextlib.suppress(OSError):  # of a full disk, which `write` has told
            file.close()
        try:
            with self._spool.open("rb") as numbers, whole.open("wb") as target:
                target.write(self._header())
                _copy(numbers, target, self._end)
            whole.replace(self.path)
            self._spool.unlink()
        except OSError as error:
            whole.unlink(missing_ok=True)
            raise _explained(error, self.path) from error

    def _append(self, name: str, latents: Tensor, file: BinaryIO) -> None:
        import torch

        kinds = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
        if name in self._index:
            raise ValueError(f"{name} came twice: each block has one final set of latents.")
        if latents.dtype not in kinds:
            raise ValueError(f"{name} is {latents.dtype}; latents are stored as float32, bfloat16 or float16.")
        data = latents.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()
        file.write(data)
        file.flush()  # what is in the index is in the spool
        offsets = [self._end, self._end + len(data)]
        self._index[name] = {
            "dtype": kinds[latents.dtype],
            "shape": list(latents.shape),
            "data_offsets": offsets,
        }
        self._end += len(data)

    def _header(self) -> bytes:
        """Length and JSON of a safetensors header, padded to 8 bytes as the format recommends."""
        text = json.dumps({"__metadata__": self.metadata, **self._index}).encode()
        text += b" " * (-len(text) % 8)
        return struct.pack("<Q", len(text)) + text


def _copy(source: BinaryIO, target: BinaryIO, length: int) -> None:
    """Copy `length` bytes: a failed last write may have left a piece behind the last whole block."""
    while length > 0 and (piece := source.read(min(length, 1 << 20))):
        target.write(piece)
        length -= len(piece)


def _explained(error: OSError, path: Path) -> OSError:
    reason = error.strerror or str(error)
    advice = "Make room, or point output.dir at another disk or a folder that you may write to."
    return OSError(error.errno, f"output.dir: {path} cannot be written: {reason}. {advice}")


class ProgressSink:
    """A progress bar on stderr: blocks done, seconds of video, frames per second, time left.

    It draws nothing at all where the console is not a terminal (a log file, a batch job, a pipe).

    Args:
        console: where to draw; None for stderr.
        note: asked for a few words to show beside the rest, such as the memory in use.
    """

    def __init__(self, console: Console | None = None, note: Callable[[], str] | None = None) -> None:
        self._console, self._note = console, note
        self._bar: Any = None
        self._task: Any = None
        self._frames = self._fps = 0
        self._started = 0.0

    def open(self, info: StreamInfo) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        console = self._console or Console(stderr=True)
        if not console.is_terminal:
            return
        self._bar = Progress(
            TextColumn("blocks"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[made]}"),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
        )
        self._task = self._bar.add_task("blocks", total=info.total_blocks, made="")
        self._fps, self._started = info.fps, time.perf_counter()
        self._bar.start()

    def write(self, chunk: VideoChunk) -> None:
        if self._bar is None:
            return
        self._frames += len(chunk.frames)
        rate = self._frames / max(time.perf_counter() - self._started, 1e-9)
        made = f"{self._frames / self._fps:.1f} s of video, {rate:.2f} frames/s"
        made += f", {self._note()}" if self._note is not None else ""
        # `index` is the block that ended the piece: a piece may hold several
        self._bar.update(self._task, completed=chunk.index + 1, made=made)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
