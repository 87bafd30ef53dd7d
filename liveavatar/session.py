"""AvatarSession: a request in, an iterator of `VideoChunk` out.

The session owns what belongs to a stream (caches, decoder state, voice); the models are shared. Data flows one way:
request, conditioning, cells, latents, frames, chunks. Memory does not grow with the length of the stream.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from liveavatar.intake import Gathered, Intake, Parts, SpeechSettings
from liveavatar.models.vae.codec import WanCodec
from liveavatar.sampling.conditioning import RolloutSettings, SinkPlan
from liveavatar.sampling.decoding import ClipDecoding, Decoded, Decoding, SharedCodec, StreamDecoding
from liveavatar.sampling.noise import CounterDistance, CounterNoise, DistanceSource, NoiseSource
from liveavatar.sampling.relay import LocalRelay, Relay
from liveavatar.sampling.rollout import CacheMaker, Rollout
from liveavatar.sampling.scheduler import EulerSampler
from liveavatar.types import FPS, AvatarRequest, StreamInfo, VideoChunk


@dataclass
class Stream:
    """A request made ready: everything is read and encoded, nothing denoised yet. `decoding` None shows nothing."""

    gathered: Gathered
    rollout: Rollout
    sink: SinkPlan
    decoding: Decoding | None

    @property
    def info(self) -> StreamInfo:
        return self.gathered.info


@dataclass
class Piece:
    """Frames that became ready with block `index`, and the seconds that they took."""

    decoded: Decoded
    index: int
    denoise_s: float
    decode_s: float


class AvatarSession:
    """Turns requests into video, block by block.

    `shows` is False on ranks that only compute: they run the same rollout, decode nothing and yield no chunk.
    `relay` makes the connection of a stream to other ranks; without one, all cells are computed here in sequence.
    `caches` makes the caches of a stream, where they do not simply rest on the device. `split` makes a codec of which
    this rank decodes a part of each picture (or None); ranks that do not show then decode too, and yield no chunk.
    `decode_online` belongs to clipwise rollout: the sink then takes over the re-encoded first clip.
    Raises ValueError for a request that cannot be met, before any block is denoised.
    """

    def __init__(
        self,
        parts: Parts,
        sampler: EulerSampler,
        rollout: RolloutSettings,
        speech: SpeechSettings,
        device: torch.device,
        decode_online: bool = True,
        shows: bool = True,
        relay: Callable[[], Relay] | None = None,
        caches: CacheMaker | None = None,
        split: Callable[[WanCodec], SharedCodec | None] | None = None,
    ) -> None:
        if rollout.mode == "clipwise" and not shows:
            raise ValueError(
                "rollout=clipwise needs the decoded first clip on every rank, so it runs on one device only: "
                "use rollout=streaming, or fabric.devices=1"
            )
        self.parts, self.sampler, self.rollout = parts, sampler, rollout
        self.device, self.decode_online, self.shows = device, decode_online, shows
        self.caches, self.split = caches, split
        self.relay = relay or (lambda: LocalRelay(sampler.steps))
        self.intake = Intake(parts, rollout, speech, device)

    def run(self, request: AvatarRequest) -> Iterator[VideoChunk]:
        """The video of a request, in pieces, each as soon as it is decoded."""
        yield from self.chunks(self.prepare(request))

    @torch.no_grad()
    def prepare(
        self, request: AvatarRequest, noise: NoiseSource | None = None, distance: DistanceSource | None = None
    ) -> Stream:
        """Read and encode all that a request names. `noise` and `distance` come from the seed unless they are given."""
        return self.begin(self.intake(request), request.seed, 0, noise, distance)

    @torch.no_grad()
    def begin(
        self,
        gathered: Gathered,
        seed: int,
        first_block: int = 0,
        noise: NoiseSource | None = None,
        distance: DistanceSource | None = None,
    ) -> Stream:
        """A stream of what was gathered, with caches of its own; it counts its blocks from `first_block`."""
        given, settings = gathered.conditioning, self.rollout
        rollout = Rollout(
            self.parts.dit,
            given,
            self.sampler,
            settings,
            noise or CounterNoise(seed),
            distance or CounterDistance(seed, *settings.sink_distance),
            first_block,
            relay=self.relay(),
            caches=self.caches,
        )
        refresh = first_block + settings.blocks_per_clip
        if settings.mode == "clipwise":
            clips = ClipDecoding(self.parts.codec, given.motion, gathered.window, settings.blocks_per_clip)
            renewed = refresh if self.decode_online else None
            sink = SinkPlan(given.reference, lambda: clips.motion, first_block, renewed)
            return Stream(gathered, rollout, sink, clips)
        sink = SinkPlan(given.reference, lambda: given.motion, first_block, refresh)
        return Stream(gathered, rollout, sink, self._decoding(given.motion))

    def _decoding(self, motion: torch.Tensor) -> StreamDecoding | None:
        shared = self.split(self.parts.codec) if self.split is not None else None
        if shared is not None:
            return StreamDecoding(shared, motion, shared.collect)
        return StreamDecoding(self.parts.codec, motion) if self.shows else None

    def chunks(self, stream: Stream) -> Iterator[VideoChunk]:
        """Denoise, decode and hand out a prepared stream."""
        shown, total = 0, stream.info.total_frames
        sound = stream.gathered.voice.at(stream.info.audio_rate)
        began = time.perf_counter()
        for piece in self.pieces(stream, stream.gathered.blocks):
            frames = piece.decoded.frames[0].transpose(0, 1)
            frames = (frames if total is None else frames[: total - shown]).float().cpu()
            chunk = VideoChunk(
                index=piece.index,
                start=shown,
                frames=frames,
                audio=_slice(sound, shown, len(frames), stream.info.audio_rate),
                audio_rate=stream.info.audio_rate,
                latents={number: latents.float().cpu() for number, latents in piece.decoded.latents.items()},
                timings={
                    "denoise": piece.denoise_s,
                    "decode": piece.decode_s,
                    "wall": time.perf_counter() - began,
                },
            )
            shown += len(frames)
            yield chunk
            began = time.perf_counter()

    @torch.no_grad()
    def pieces(self, stream: Stream, count: int, first: int | None = None) -> Iterator[Piece]:
        """Decoded pieces of `count` blocks, with the seconds that denoising and decoding took since the piece before.

        `first` as in `Rollout.blocks`: a stream may be taken stretch by stretch, except in clipwise decoding.
        """
        clock = _Clock(self.device)
        denoise, index = 0.0, 0
        for block in stream.rollout.blocks(count, stream.sink, first):
            denoise, index = denoise + clock.lap(), block.index
            if stream.decoding is None:
                continue
            for decoded in stream.decoding.push(block.index, block.latents):
                yield Piece(decoded, index, denoise, clock.lap())
                denoise = 0.0
            clock.lap()
        if stream.decoding is not None:
            for decoded in stream.decoding.flush():
                yield Piece(decoded, index, denoise, clock.lap())


class _Clock:
    """Seconds since the last lap. The host waits for the device, so that time belongs to the part that spent it."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.mark = time.perf_counter()

    def lap(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        before, self.mark = self.mark, time.perf_counter()
        return self.mark - before


def _slice(sound: np.ndarray, start: int, frames: int, rate: int) -> np.ndarray:
    """The sound under some video frames, filled with silence where the voice is over."""
    low, high = start * rate // FPS, (start + frames) * rate // FPS
    piece = sound[low:high]
    return np.pad(piece, (0, high - low - len(piece)))
