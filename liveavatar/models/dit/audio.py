"""Voice into picture: the causal audio encoder, and its injection after chosen blocks (semantics, 6)."""

from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from liveavatar.models.dit.block import CrossAttention
from liveavatar.models.dit.prepared import Prepared
from liveavatar.models.dit.spread import Segment
from liveavatar.models.dit.state import CellState, Stretches, Unit
from liveavatar.ops.embed import linear_float32, plain_norm

STREAMS = 4
"""Parallel token streams of the local branch; the learned padding token makes the fifth."""


class CausalConv(nn.Module):
    """Convolution over time that sees the past only: two copies of the first entry stand before the start."""

    def __init__(self, channels_in: int, channels_out: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv1d(channels_in, channels_out, kernel_size=3, stride=stride)

    def forward(self, x: Float[Tensor, "b c t"]) -> Float[Tensor, "b k s"]:
        padded = F.pad(x, (2, 0), mode="replicate")
        bias = None if self.conv.bias is None else self.conv.bias.float()
        return F.conv1d(padded, self.conv.weight.float(), bias, stride=self.conv.stride)


class AudioEncoder(nn.Module):
    """Speech features of a block's 12 video frames to 5 voice tokens and one tone per latent frame, in float32.

    The features are extended to the left by `left_frames` copies of their first frame, for the encoder was trained
    behind 73 motion frames; the latent frames that stem from the extension are dropped.
    """

    def __init__(self, layers: int, audio_dim: int, dim: int, left_frames: int, eps: float) -> None:
        super().__init__()
        self.left_frames, self.eps = left_frames, eps
        self.weights = nn.Parameter(torch.ones(1, layers, 1, 1))
        self.padding_tokens = nn.Parameter(torch.zeros(1, 1, 1, dim))
        self.conv1_local = CausalConv(audio_dim, dim)
        self.conv1_global = CausalConv(audio_dim, dim // 4)
        self.conv2 = CausalConv(dim // 4, dim // 2, stride=2)
        self.conv3 = CausalConv(dim // 2, dim, stride=2)
        self.final_linear = nn.Linear(dim, dim)

    def mix(self, features: Float[Tensor, "a L c t"]) -> Float[Tensor, "a c t"]:
        """The learned, SiLU-weighted mean of the speech encoder's layers."""
        weights = F.silu(self.weights.float())
        return (features.float() * weights).sum(1) / weights.sum(1)

    def _refine(self, x: Float[Tensor, "b c t"]) -> Float[Tensor, "b s d"]:
        """Norm, SiLU and two halvings of time; channels come last at the end."""
        for conv in (self.conv2, self.conv3):
            x = conv(self._norm(x.transpose(1, 2)).transpose(1, 2))
        return self._norm(x.transpose(1, 2))

    def _norm(self, x: Float[Tensor, "b t c"]) -> Float[Tensor, "b t c"]:
        return F.silu(plain_norm(x, self.eps))

    def encode(self, features: Float[Tensor, "a L c t"]) -> tuple[Tensor, Tensor]:
        """Voice tokens [a, s, 5, d] and tone [a, s, d] of an already extended run of features, s = t/4 rounded up."""
        mixed = self.mix(features)
        local = self.conv1_local(mixed)
        local = self._refine(local.unflatten(1, (STREAMS, -1)).flatten(0, 1))
        local = local.unflatten(0, (-1, STREAMS)).transpose(1, 2)
        padding = self.padding_tokens.float().expand(local.shape[0], local.shape[1], 1, -1)
        tone = linear_float32(self._refine(self.conv1_global(mixed)), self.final_linear)
        return torch.cat((local, padding), dim=2), tone

    def forward(self, features: Float[Tensor, "a L c t"], frames: int) -> tuple[Tensor, Tensor]:
        """Voice [a, f, 5, d] and tone [a, f, d] of the last `frames` latent frames."""
        before = features[..., :1].expand(*features.shape[:-1], self.left_frames)
        voice, tone = self.encode(torch.cat((before, features), dim=-1))
        return voice[:, -frames:], tone[:, -frames:]


class AdaLayerNorm(nn.Module):
    """LayerNorm (eps 1e-5) whose shift and scale, in this order, come from the tone of the frame."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, 2 * dim)

    def modulation(self, tone: Float[Tensor, "frames d"]) -> Float[Tensor, "frames twice_d"]:
        return self.linear(F.silu(tone.to(self.linear.bias.dtype)))

    def adapted(
        self, x: Float[Tensor, "frames n d"], modulation: Float[Tensor, "frames twice_d"]
    ) -> Float[Tensor, "frames n d"]:
        shift, scale = modulation.unsqueeze(1).chunk(2, dim=-1)
        return torch.addcmul(shift, plain_norm(x, 1e-5), 1 + scale)

    stretches: ClassVar[Stretches] = (adapted,)

    def forward(
        self, x: Float[Tensor, "frames n d"], modulation: Float[Tensor, "frames twice_d"]
    ) -> Float[Tensor, "frames n d"]:
        (adapted,) = self.stretches
        return adapted(self, x, modulation)


class VoiceUnit(Unit):
    """A unit that acts on noisy tokens only: a sink prefill passes it by."""

    def serves(self, state: CellState) -> bool:
        return not state.is_sink


class AdaIn(VoiceUnit):
    """Prepares the queries of injector `number`, which follows: the tokens of each latent frame, once per actor."""

    cold: ClassVar = {"voice": ["norm.linear"]}

    def __init__(self, number: int, dim: int) -> None:
        super().__init__()
        self.number = number
        self.norm = AdaLayerNorm(dim)

    def forward(self, state: CellState) -> CellState:
        assert state.tone is not None
        voices, made = len(state.tone), state.sound
        modulation = self._modulation(state.tone) if made is None else made.take("modulation", self.number)
        state.query = []
        for part in state.segments:
            x = part.by_frame(state.hidden).flatten(0, 1).repeat(voices // len(state.hidden), 1, 1)
            state.query.append(self.norm(x, part.rows(modulation, voices)))
        return state

    def prepare(self, made: Prepared) -> None:
        made.keep("modulation", self._modulation(made.take("tone")), self.number)

    def _modulation(self, tone: Float[Tensor, "a f d"]) -> Float[Tensor, "frames twice_d"]:
        return self.norm.modulation(tone.flatten(0, 1))


class Injector(VoiceUnit):
    """Adds to each latent frame what its tokens hear; actors act where their mask lets them, and are summed."""

    cold: ClassVar = {"voice": [f"attention.{module}" for module in CrossAttention.cold]}

    def __init__(self, number: int, dim: int, heads: int, eps: float) -> None:
        super().__init__()
        self.number = number
        self.attention = CrossAttention(dim, heads, eps)

    def forward(self, state: CellState) -> CellState:
        assert state.voice is not None
        assert state.query is not None
        pair = self._pair(state.voice) if state.sound is None else state.sound.pair(self.number)
        x, masks, actors = state.hidden, state.cell.masks, len(state.voice)
        if masks is not None:
            masks = masks.flatten(1)[:, state.share.own]
        parts = zip(state.segments, state.query, strict=True)
        heard = [self._heard(part, query, pair, actors, masks, len(x)) for part, query in parts]
        state.x = x + (heard[0] if len(heard) == 1 else torch.cat(heard, dim=1))
        state.query = None
        return state

    def _heard(
        self, part: Segment, query: Tensor, pair: tuple[Tensor, Tensor], voices: int, masks: Tensor | None, batch: int
    ) -> Float[Tensor, "b tokens d"]:
        """What the tokens of a segment hear: of one picture all actors together, of a batch each its own voice."""
        keys, values = (part.rows(each, voices) for each in pair)
        heard = self.attention(query, (keys, values)).unflatten(0, (voices, -1))
        if masks is not None:
            heard = heard * part.by_frame(masks).unsqueeze(-1).to(heard.dtype)
        if batch == 1 and (voices > 1 or masks is not None):
            heard = heard.sum(0, keepdim=True)
        return heard.flatten(1, 2)

    def prepare(self, made: Prepared) -> None:
        made.keep_pair(self.number, self._pair(made.take("voice")))

    def _pair(self, voice: Float[Tensor, "a f five d"]) -> tuple[Tensor, Tensor]:
        """Keys and values of the voices, one row a latent frame of an actor."""
        return self.attention.pair(voice.flatten(0, 1).to(self.attention.norm_k.weight.dtype))
