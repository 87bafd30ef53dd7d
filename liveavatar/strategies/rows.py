"""parallel.decode=split: each rank decodes some lines of the picture, exactly as the whole decoder would."""

from __future__ import annotations

from torch import Tensor

from liveavatar.models.dit.spread import chunks
from liveavatar.models.vae.codec import WanCodec
from liveavatar.models.vae.streaming import FeatureCache
from liveavatar.strategies.exchange import Exchange

ROWS, COLUMNS = -2, -1


class PictureSeams:
    """The model's `Seams`: `lines` latent lines over the ranks of an exchange, `across` latent pixels in each."""

    def __init__(self, exchange: Exchange, axis: int, lines: int, across: int) -> None:
        self.exchange, self.axis, self.across = exchange, axis, across
        runs = chunks(lines, exchange.size)
        self.own = runs[exchange.rank]
        self.sizes = [run.stop - run.start for run in runs]
        self.beside = [int(abs(rank - exchange.rank) == 1) for rank in range(exchange.size)]

    def mend(self, x: Tensor, width: int) -> None:
        end = x.shape[self.axis]
        inner = {-1: x.narrow(self.axis, width, width), 1: x.narrow(self.axis, end - 2 * width, width)}
        outer = {-1: x.narrow(self.axis, 0, width), 1: x.narrow(self.axis, end - width, width)}
        rank, last = self.exchange.rank, self.exchange.size - 1
        sides = [side for side in (-1, 1) if 0 <= rank + side <= last]
        leaving = self.exchange.leaving((len(sides), *inner[1].shape), x)
        for room, side in zip(leaving, sides, strict=True):
            room.copy_(inner[side])
        for came, side in zip(self.exchange.swap(leaving, self.beside, self.beside), sides, strict=True):
            outer[side].copy_(came)

    def gather(self, x: Tensor) -> Tensor:
        size, (frames, own, channels) = self.exchange.size, x.shape
        leaving = self.exchange.leaving((size, own, frames, channels), x).copy_(x.transpose(0, 1))
        counts = [lines * self.across for lines in self.sizes]
        return self.exchange.swap(leaving.flatten(0, 1), [own] * size, counts).transpose(0, 1)

    def collect(self, frames: Tensor) -> Tensor | None:
        """The whole frames of all ranks' lines, on the first rank; None on the others."""
        rank, size = self.exchange.rank, self.exchange.size
        scale = frames.shape[self.axis] // self.sizes[rank]
        lines = frames.movedim(self.axis, 0)
        leaving = self.exchange.leaving(lines.shape, frames).copy_(lines)
        sent = [len(lines) if other == 0 else 0 for other in range(size)]
        received = [scale * lines if rank == 0 else 0 for lines in self.sizes]
        came = self.exchange.swap(leaving, sent, received)
        return came.movedim(0, self.axis).clone() if rank == 0 else None


class SplitCodec:
    """A codec of which each rank decodes its lines: rows, or columns where the picture has more of them.

    What it decodes and keeps is this rank's part; `collect` makes whole frames of the parts, on the first rank of the
    exchange. Raises ValueError for a picture with fewer latent lines than ranks.
    """

    def __init__(self, codec: WanCodec, exchange: Exchange) -> None:
        self.codec, self.exchange = codec, exchange
        self.encoder_slots, self.decoder_slots = codec.encoder_slots, codec.decoder_slots
        self._seams: PictureSeams | None = None

    def encode_chunk(self, frames: Tensor, cache: FeatureCache) -> Tensor:
        return self.codec.encode_chunk(frames, cache)

    def decode_latent(self, latent: Tensor, cache: FeatureCache, first: bool) -> Tensor:
        seams = self._seams = self._seams or self._divided(latent)
        part = latent.narrow(seams.axis, seams.own.start, seams.own.stop - seams.own.start)
        return self.codec.decode_latent(part, cache, first, seams)

    def collect(self, frames: Tensor) -> Tensor | None:
        assert self._seams is not None, "nothing was decoded yet"
        return self._seams.collect(frames)

    def _divided(self, latent: Tensor) -> PictureSeams:
        h, w = latent.shape[-2:]
        axis, lines = (ROWS, h) if h >= w else (COLUMNS, w)
        if lines < self.exchange.size:
            raise ValueError(
                f"parallel.decode=split: a picture of {w}×{h} latent pixels has {lines} lines to divide, fewer than "
                f"{self.exchange.size} ranks: write parallel.decode=inline, or a larger request.size"
            )
        return PictureSeams(self.exchange, axis, lines, min(h, w))
