"""Sizes of everything that takes memory, from the configuration alone: no model is built, no torch is loaded.

Parameters are listed unit by unit as the model makes them, so that slabs come out to the byte; what activations need is
read off the code of the units and held to runs of fake tensors by a test.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

ALIGN = 256
"""Bytes: parameters in a slab start at multiples of it (`checkpoint.slab.ALIGN`)."""

BLOCK_LATENTS, STRIDE, PATCH = 3, 8, 2
DECODE_BYTES, DECODE_STATE, ENCODE_BYTES = 7476.25, 2364.5, 3720.5
"""The VAE per pixel of the picture and byte of a number: peak of decoding, its feature cache, peak of encoding."""

Sizes = dict[str, list[int]]


def _up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def linear(inputs: int, outputs: int) -> list[int]:
    return [inputs * outputs, outputs]


@dataclass(frozen=True)
class DitSizes:
    """The DiT of a `model.dit` node: parameters of each unit, in the order of a pass."""

    dim: int
    ffn: int
    heads: int
    layers: int
    inject: tuple[int, ...]
    units: Mapping[str, Sequence[int]]
    text_len: int
    audio: tuple[int, int]  # layers, channels

    @classmethod
    def of(cls, node: Mapping[str, Any]) -> DitSizes:
        d, f, layers = node["dim"], node["ffn_dim"], node["num_layers"]
        inject = tuple(node["audio_inject_layers"])
        attention = linear(d, d) * 4 + [d, d]
        block = [6 * d, *attention, d, d, *attention, *linear(d, f), *linear(f, d)]
        units: Sizes = {"embed": _embed(node)}
        for layer in range(layers):
            units[f"blocks.{layer}"] = block
            if layer in inject:
                j = inject.index(layer)
                units |= {f"adain.{j}": linear(d, 2 * d), f"injectors.{j}": attention}
        units["head"] = [2 * d, *linear(d, 4 * node.get("out_dim", 16))]
        audio = node["audio_layers"], node["audio_dim"]
        return cls(d, f, node["num_heads"], layers, inject, units, node["text_len"], audio)

    @cached_property
    def params(self) -> int:
        return sum(sum(sizes) for sizes in self.units.values())

    def slab(self, unit: str, item: int, parts: int = 1, small: bool = False) -> int:
        """Bytes of a unit's slab: each parameter aligned, the whole divisible among `parts` ranks.

        small: the matrices between `embed` and `head` in one byte a number, with a float32 scale for each row.
        """
        key = unit, item, parts, small
        if key not in self._slabs:
            sizes = self.stored(unit, self.units[unit], item, small)
            self._slabs[key] = _up(sum(_up(size, ALIGN) for size in sizes), ALIGN * parts)
        return self._slabs[key]

    @cached_property
    def _slabs(self) -> dict[tuple[str, int, int, bool], int]:
        return {}

    def stored(self, unit: str, sizes: Sequence[int], item: int, small: bool) -> list[int]:
        """Bytes of each parameter of a unit; behind a matrix comes its bias, which is as long as it has rows."""
        if not small or not unit.startswith(("blocks.", "injectors.", "adain.")):
            return [size * item for size in sizes]
        found: list[int] = []
        for size, following in zip(sizes, [*sizes[1:], 0], strict=True):
            found += [size, following * 4] if size >= self.dim * self.dim else [size * item]
        return found

    def stage(self, layers: range) -> list[str]:
        """The units of a stage: `embed` goes with the first layer, `head` with the last."""
        if len(layers) == self.layers:
            return list(self.units)
        names = ["embed"] if 0 in layers else []
        for layer in layers:
            names.append(f"blocks.{layer}")
            if layer in self.inject:
                j = self.inject.index(layer)
                names += [f"adain.{j}", f"injectors.{j}"]
        return names + (["head"] if self.layers - 1 in layers else [])

    def layer_costs(self) -> list[float]:
        """Parameters that each layer brings along (as `strategies.pipeline.layer_costs`)."""
        costs, layer = [0.0] * self.layers, 0
        for name, sizes in self.units.items():
            layer = int(name.split(".")[1]) if name.startswith("blocks.") else layer
            costs[layer] += sum(sizes)
        return costs

    def cold(self, unit: str) -> int:
        """Parameters of a unit that never multiply a video token: once hoisted, they leave the hot loop."""
        return sum(self._cold(unit))

    def hot_slab(self, unit: str, item: int, small: bool = False) -> int:
        """Bytes of the slab of a unit's hot part."""
        whole, away = (self.stored(unit, sizes, item, small) for sizes in (self.units[unit], self._cold(unit)))
        return sum(_up(size, ALIGN) for size in whole) - sum(_up(size, ALIGN) for size in away)

    def _cold(self, unit: str) -> Sequence[int]:
        d = self.dim
        if unit.startswith(("blocks.", "injectors.")):
            return [*linear(d, d) * 2, d]
        if unit.startswith("adain."):
            return self.units[unit]
        return self.units[unit][11:] if unit == "embed" else []


def _embed(node: Mapping[str, Any]) -> list[int]:
    d, inputs, cond = node["dim"], node.get("in_dim", 16), node.get("cond_dim", 16)
    freq, audio = node.get("freq_dim", 256), node["audio_dim"]
    sizes = [4 * inputs * d, d, 4 * cond * d, d, 3 * d]
    sizes += [4 * inputs * d, d, 32 * inputs * d, d, 256 * inputs * d, d]
    sizes += [*linear(node["text_dim"], d), *linear(d, d), *linear(freq, d), *linear(d, d), *linear(d, 6 * d)]
    sizes += [node["audio_layers"], d, *linear(3 * audio, d), *linear(3 * audio, d // 4)]
    return [*sizes, *linear(3 * d // 4, d // 2), *linear(3 * (d // 2), d), *linear(d, d)]


def text_params(node: Mapping[str, Any]) -> int:
    """Parameters of the umT5 encoder of a `model.text` node."""
    d, inner, ffn = node["dim"], node["dim_attn"], node["dim_ffn"]
    layer = 4 * d * inner + node.get("num_buckets", 32) * node["num_heads"] + 3 * d * ffn + 2 * d
    return node["vocab_size"] * d + node["num_layers"] * layer + d


def speech_params(node: Mapping[str, Any]) -> int:
    """Parameters of the wav2vec2 of a `model.speech` node."""
    d, inner, conv = node["hidden_size"], node["intermediate_size"], list(node["conv_dim"])
    kernels = (10, 3, 3, 3, 3, 2, 2)
    convs = sum(a * b * k + 3 * b for a, b, k in zip([1, *conv], conv, kernels, strict=False))
    width, groups = node["num_conv_pos_embeddings"], node["num_conv_pos_embedding_groups"]
    positions = d * (d // groups) * width + width + d
    project = 2 * conv[-1] + sum(linear(conv[-1], d))
    layer = 4 * sum(linear(d, d)) + sum(linear(d, inner)) + sum(linear(inner, d)) + 4 * d
    return convs + project + positions + node["num_layers"] * layer + 2 * d


def vae_params(node: Mapping[str, Any]) -> int:
    """Parameters of the Wan VAE of a `model.vae` node with that `base_dim`."""
    widths = [node["base_dim"] * m for m in (1, 2, 4, 4)]
    encoder, inner = 27 * 3 * widths[0] + widths[0], widths[0]
    for number, width in enumerate(widths):
        for _ in range(2):
            encoder, inner = encoder + _residual(inner, width), width
        if number < 3:
            encoder += 9 * width * width + width + (3 * width * width + width if number else 0)
    encoder += _middle(inner) + inner + 27 * inner * 32 + 32
    top = widths[3]
    decoder, inner = 27 * 16 * top + top + _middle(top), top
    for number, width in enumerate(reversed(widths)):
        inner //= 2 if number else 1
        for _ in range(3):
            decoder, inner = decoder + _residual(inner, width), width
        if number < 3:
            decoder += 9 * width * (width // 2) + width // 2
            decoder += 3 * width * 2 * width + 2 * width if number < 2 else 0
    decoder += widths[0] + 27 * widths[0] * 3 + 3
    return encoder + decoder + 32 * 32 + 32 + 16 * 16 + 16


def _residual(inputs: int, outputs: int) -> int:
    size = inputs + 27 * inputs * outputs + outputs + outputs + 27 * outputs * outputs + outputs
    return size + (inputs * outputs + outputs if inputs != outputs else 0)


def _middle(width: int) -> int:
    return 2 * _residual(width, width) + width + 3 * width * width + 3 * width + width * width + width


@dataclass(frozen=True)
class Picture:
    """The pixels of the video, and the token counts that follow from them (as `models.dit.context.Grid`)."""

    height: int
    width: int
    window: int = 12

    @property
    def latent(self) -> tuple[int, int]:
        return self.height // STRIDE, self.width // STRIDE

    @property
    def frame_tokens(self) -> int:
        h, w = self.latent
        return (h // PATCH) * (w // PATCH)

    @property
    def tokens(self) -> int:
        return BLOCK_LATENTS * self.frame_tokens

    @property
    def ring_tokens(self) -> int:
        return self.window * self.frame_tokens

    @property
    def sink_tokens(self) -> int:
        h, w = self.latent
        return 2 * self.frame_tokens + (h // 4) * (w // 4) + 4 * (h // 8) * (w // 8)

    @property
    def context(self) -> int:
        return self.ring_tokens + self.sink_tokens

    @property
    def pixels(self) -> int:
        return self.height * self.width

    def __str__(self) -> str:
        return f"{self.height}*{self.width}"


def picture(size: Any, multiple: int, window: int) -> Picture:
    """The picture that a `request.size` stands for; a plain area is taken as a square one.

    Raises ValueError, naming `request.size` and the nearest that can be, for anything else.
    """
    text = str(size).lower().replace("×", "*").replace("x", "*").replace(" ", "")
    sides = text.split("*")
    if len(sides) > 2 or not all(side.isdecimal() and int(side) for side in sides):
        raise ValueError(f"request.size={size!r} is not a size. Type height*width, for example 704*384.")
    height, width = (int(sides[0]), int(sides[-1])) if len(sides) == 2 else (math.isqrt(int(text)),) * 2
    rows, columns = (side // multiple * multiple for side in (height, width))
    if min(rows, columns) < max(multiple, 64) or height * width > 4096 * 4096:
        near = [min(4096, max(64, multiple, side // multiple * multiple)) for side in (height, width)]
        raise ValueError(
            f"request.size={size} cannot be: sides are multiples of {multiple}, at least 64, and the area at most "
            f"4096*4096. The nearest is request.size={near[0]}*{near[1]}"
        )
    return Picture(rows, columns, window)
