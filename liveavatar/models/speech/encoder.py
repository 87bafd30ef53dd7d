"""wav2vec2, and the way of its states to one feature per video frame (reference: section 1.6).

Three clocks meet here: 50 states per second of the encoder, 30 per second that the model was trained to see,
and 25 video frames per second. Video frame `j` takes 30 Hz feature `round(1.2 j)`, which lies at 50 Hz state
`round(1.2 j) * 5/3`; state `i` has heard samples `[320 i, 320 i + 400)` directly and, through attention, all
of the sound that was encoded with it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import Wav2Vec2Config, Wav2Vec2Model

from liveavatar.types import FPS

STATE_STRIDE = 320
"""Samples between two states of the encoder: 50 states per second."""

STATE_FIELD = 400
"""Samples that one state of the convolutions sees, and so the shortest sound that has a state."""

VARIANCE_FLOOR = 1e-7
"""Added to the variance of sound before it is normalised, so that silence stays silent."""

_CONV_KERNEL = (10, 3, 3, 3, 3, 2, 2)
_CONV_STRIDE = (5, 2, 2, 2, 2, 2, 2)


class SpeechEncoder(nn.Module):
    """wav2vec2 with stable layer norm: all hidden states of 16 kHz sound. Frozen; may be built on "meta".

    The keywords default to wav2vec2-large-xlsr-53.

    Args:
        hidden_size: width of the states.
        num_layers: transformer layers; `num_layers + 1` states come out.
        num_heads: attention heads.
        intermediate_size: inner width of the feed-forward.
        conv_dim: widths of the seven convolutions that hear the samples.
        num_conv_pos_embeddings: states that the positional convolution spans.
        num_conv_pos_embedding_groups: its groups.
        layer_norm_eps: epsilon of every layer norm.
    """

    def __init__(
        self,
        *,
        hidden_size: int = 1024,
        num_layers: int = 24,
        num_heads: int = 16,
        intermediate_size: int = 4096,
        conv_dim: Sequence[int] = (512,) * 7,
        num_conv_pos_embeddings: int = 128,
        num_conv_pos_embedding_groups: int = 16,
        layer_norm_eps: float = 1e-5,
    ) -> None:
        super().__init__()
        none = dict.fromkeys(
            ("hidden_dropout", "activation_dropout", "attention_dropout", "feat_proj_dropout", "layerdrop"),
            0.0,
        )
        config = Wav2Vec2Config(
            hidden_size=hidden_size,
            num_hidden_layers=num_layers,
            num_attention_heads=num_heads,
            intermediate_size=intermediate_size,
            conv_dim=tuple(conv_dim),
            conv_kernel=_CONV_KERNEL,
            conv_stride=_CONV_STRIDE,
            conv_bias=True,
            num_conv_pos_embeddings=num_conv_pos_embeddings,
            num_conv_pos_embedding_groups=num_conv_pos_embedding_groups,
            layer_norm_eps=layer_norm_eps,
            feat_extract_norm="layer",
            do_stable_layer_norm=True,
            apply_spec_augment=False,
            mask_time_prob=0.0,
            mask_feature_prob=0.0,
            **none,
        )
        self.model = Wav2Vec2Model(config)
        self.model.set_attn_implementation("sdpa")
        self.model.freeze_feature_encoder()
        self.requires_grad_(False)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "SpeechEncoder":
        """An encoder for the `config.json` of a published wav2vec2.

        Raises:
            ValueError: the config describes another kind of wav2vec2 than the model was trained with.
        """
        fixed = {
            "do_stable_layer_norm": True,
            "feat_extract_norm": "layer",
            "conv_bias": True,
            "conv_kernel": list(_CONV_KERNEL),
            "conv_stride": list(_CONV_STRIDE),
        }
        for key, wanted in fixed.items():
            given = config.get(key)
            if (list(given) if isinstance(wanted, list) and given else given) != wanted:
                raise ValueError(
                    f"the speech config has {key}={given!r}, but this encoder is built with {wanted!r}: "
                    "use the config of wav2vec2-large-xlsr-53 or one of its family"
                )
        return cls(
            hidden_size=config["hidden_size"],
            num_layers=config["num_hidden_layers"],
            num_heads=config["num_attention_heads"],
            intermediate_size=config["intermediate_size"],
            conv_dim=config["conv_dim"],
            num_conv_pos_embeddings=config["num_conv_pos_embeddings"],
            num_conv_pos_embedding_groups=config["num_conv_pos_embedding_groups"],
            layer_norm_eps=config["layer_norm_eps"],
        )

    def hidden_states(self, sound: Float[Tensor, " samples"]) -> Float[Tensor, "L T c"]:
        """All states at 50 Hz of sound that has been normalised; less than 400 samples are padded with zeros.

        State 0 is the input of the first layer, state L-1 the output of the last one after the final norm.
        The result has the encoder's device and dtype.
        """
        weight = self.model.feature_projection.projection.weight
        sound = sound.to(weight.device, weight.dtype)
        sound = F.pad(sound, (0, max(0, STATE_FIELD - sound.shape[0])))
        out = self.model(sound[None], output_hidden_states=True)
        # Versions of the library differ in whether their last hidden state has been through the final norm;
        # the model's output always has.
        return torch.cat([*out.hidden_states[:-1], out.last_hidden_state])


def normalise(pcm: Float[Tensor, " samples"]) -> Float[Tensor, " samples"]:
    """Sound with mean 0 and (population) variance 1, as wav2vec2 was trained to hear it."""
    return (pcm - pcm.mean()) / (pcm.var(correction=0) + VARIANCE_FLOOR).sqrt()


def to_30hz(states: Float[Tensor, "L T c"]) -> Float[Tensor, "L t c"]:
    """States at 50 Hz, linearly interpolated to 30 Hz with both ends kept."""
    length = max(1, int(states.shape[1] / 50 * 30))
    return F.interpolate(states.mT, size=length, mode="linear", align_corners=True).mT


def feature_index(frames: Int[Tensor, " t"]) -> Int[Tensor, " t"]:
    """The 30 Hz feature of each 25 Hz video frame: round(1.2 j), in whole numbers; it never meets a half."""
    return (12 * frames + 5).div(10, rounding_mode="floor")


def bucket(features: Float[Tensor, "L T c"], clip_frames: int = 48) -> Float[Tensor, "L c t"]:
    """Features at 30 Hz to one per video frame, filled with zeros to whole clips.

    There are `int(T / (1.2 clip_frames)) + 1` clips, so the last is always at least partly silent.
    """
    length = features.shape[1]
    clips = int(length / (clip_frames * 30 / FPS)) + 1
    index = feature_index(torch.arange(clips * clip_frames, device=features.device))
    taken = features[:, index.clamp(max=length - 1)].masked_fill((index >= length)[None, :, None], 0)
    return taken.mT.contiguous()
