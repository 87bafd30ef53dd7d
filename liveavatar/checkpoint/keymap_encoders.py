"""The names of the published umT5, Wan VAE and wav2vec2 checkpoints, as tables (see `KeyMap`)."""

from __future__ import annotations

from liveavatar.checkpoint.keymap import KeyMap, Rule

_ATTENTION = "stack.block.{i}.layer.0"
_FEED_FORWARD = "stack.block.{i}.layer.1"

TEXT = KeyMap(
    "text encoder",
    [
        ("token_embedding.weight", "stack.embed_tokens.weight"),
        ("norm.weight", "stack.final_layer_norm.weight"),
        ("blocks.{i}.norm1.weight", f"{_ATTENTION}.layer_norm.weight"),
        ("blocks.{i}.attn.q.weight", f"{_ATTENTION}.SelfAttention.q.weight"),
        ("blocks.{i}.attn.k.weight", f"{_ATTENTION}.SelfAttention.k.weight"),
        ("blocks.{i}.attn.v.weight", f"{_ATTENTION}.SelfAttention.v.weight"),
        ("blocks.{i}.attn.o.weight", f"{_ATTENTION}.SelfAttention.o.weight"),
        (
            "blocks.{i}.pos_embedding.embedding.weight",
            f"{_ATTENTION}.SelfAttention.relative_attention_bias.weight",
        ),
        ("blocks.{i}.norm2.weight", f"{_FEED_FORWARD}.layer_norm.weight"),
        ("blocks.{i}.ffn.gate.0.weight", f"{_FEED_FORWARD}.DenseReluDense.wi_0.weight"),
        ("blocks.{i}.ffn.fc1.weight", f"{_FEED_FORWARD}.DenseReluDense.wi_1.weight"),
        ("blocks.{i}.ffn.fc2.weight", f"{_FEED_FORWARD}.DenseReluDense.wo.weight"),
    ],
)
"""umT5 encoder as Wan publishes it <-> `models.text.TextEncoder`."""

_RESIDUAL: list[Rule] = [
    ("residual.0.gamma", "norm1.gamma"),
    ("residual.2.{*}", "conv1.{*}"),
    ("residual.3.gamma", "norm2.gamma"),
    ("residual.6.{*}", "conv2.{*}"),
    ("shortcut.{*}", "conv_shortcut.{*}"),
]
_RESAMPLE: list[Rule] = [("resample.{*}", "resample.{*}"), ("time_conv.{*}", "time_conv.{*}")]
_SPATIAL_ATTENTION: list[Rule] = [("{*}", "{*}")]
_LEVELS = range(4)  # of resolution
_DECODER_RESIDUALS = range(3)  # per level; the published list then holds the level's upsampler as a fourth


def _below(published: str, ours: str, rules: list[Rule]) -> list[Rule]:
    return [(f"{published}.{left}", f"{ours}.{right}") for left, right in rules]


def _both_halves() -> list[Rule]:
    """Head, tail and middle, which encoder and decoder name alike."""
    rules: list[Rule] = []
    for half in ("encoder", "decoder"):
        ours = f"vae.{half}"
        rules += [
            (f"{half}.conv1.{{*}}", f"{ours}.conv_in.{{*}}"),
            (f"{half}.head.0.gamma", f"{ours}.norm_out.gamma"),
            (f"{half}.head.2.{{*}}", f"{ours}.conv_out.{{*}}"),
            *_below(f"{half}.middle.0", f"{ours}.mid_block.resnets.0", _RESIDUAL),
            *_below(f"{half}.middle.1", f"{ours}.mid_block.attentions.0", _SPATIAL_ATTENTION),
            *_below(f"{half}.middle.2", f"{ours}.mid_block.resnets.1", _RESIDUAL),
        ]
    return rules


def _upsamples() -> list[Rule]:
    """The decoder's flat published list of 15 against our four levels."""
    rules: list[Rule] = []
    for level in _LEVELS:
        first = level * (len(_DECODER_RESIDUALS) + 1)
        ours = f"vae.decoder.up_blocks.{level}"
        for number in _DECODER_RESIDUALS:
            rules += _below(f"decoder.upsamples.{first + number}", f"{ours}.resnets.{number}", _RESIDUAL)
        upsampler = first + len(_DECODER_RESIDUALS)
        rules += _below(f"decoder.upsamples.{upsampler}", f"{ours}.upsamplers.0", _RESAMPLE)
    return rules


VAE = KeyMap(
    "VAE",
    [
        ("conv1.{*}", "vae.quant_conv.{*}"),
        ("conv2.{*}", "vae.post_quant_conv.{*}"),
        *_both_halves(),
        *_below("encoder.downsamples.{i}", "vae.encoder.down_blocks.{i}", _RESIDUAL + _RESAMPLE),
        *_upsamples(),
    ],
)
"""Wan 2.1 VAE as Wan publishes it <-> `models.vae.WanCodec`."""

_POSITIONS = "wav2vec2.encoder.pos_conv_embed.conv"

SPEECH = KeyMap(
    "speech encoder",
    [
        (f"{_POSITIONS}.weight_g", "model.encoder.pos_conv_embed.conv.parametrizations.weight.original0"),
        (f"{_POSITIONS}.weight_v", "model.encoder.pos_conv_embed.conv.parametrizations.weight.original1"),
        ("wav2vec2.encoder.{*}", "model.encoder.{*}"),
        ("wav2vec2.feature_extractor.{*}", "model.feature_extractor.{*}"),
        ("wav2vec2.feature_projection.{*}", "model.feature_projection.{*}"),
    ],
    ignored={
        "lm_head.{*}": "spells letters; only hidden states are used",
        "wav2vec2.masked_spec_embed": "stands in for masked stretches of sound in training only",
    },
    aliases=[
        (f"{_POSITIONS}.parametrizations.weight.original0", f"{_POSITIONS}.weight_g"),
        (f"{_POSITIONS}.parametrizations.weight.original1", f"{_POSITIONS}.weight_v"),
    ],
)
"""wav2vec2 with its letter head as published <-> `models.speech.SpeechEncoder`."""

TEXT_TRANSFORMERS = KeyMap(
    "text encoder",
    [("shared.weight", "stack.embed_tokens.weight"), ("encoder.{*}", "stack.{*}")],
    ignored={
        "encoder.embed_tokens.weight": "the same tensor as shared.weight",
        "decoder.{*}": "only prompts are read",
        "lm_head.{*}": "only prompts are read",
    },
)
"""umT5 as transformers keeps it <-> `models.text.TextEncoder`."""

VAE_DIFFUSERS = KeyMap("VAE", [("{*}", "vae.{*}")])
"""Wan 2.1 VAE as diffusers keeps it <-> `models.vae.WanCodec`."""
