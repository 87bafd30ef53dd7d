"""Stage `text`: the small text encoder learns to read what a prompt asks of a face, from words alone (a `Task`).

At 14B the text encoder comes trained on much of the web. The embedded one starts from nothing, and read through the
DiT alone it hardly learns: a clip has one prompt, and a passage shows little of it. Here every token of a sentence
must tell what the whole sentence asks for, so that whatever the DiT attends to, it finds it there; what is then read
stays (`dit.text`).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from liveavatar.models.text import PAD_ID, TextEncoder, Tokenizer, clean_text
from liveavatar.training.checkpoint import export_module
from liveavatar.training.loop import Draw
from liveavatar.training.sources import Wish, WishingSource

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ReadSettings:
    """What the text encoder learns from (the `read` node).

    prompts: sentences of a batch. held_out: sentences to validate with.
    Raises ValueError, naming the key, for values that cannot work.
    """

    prompts: int = 32
    held_out: int = 400

    def __post_init__(self) -> None:
        for key, least in (("prompts", 1), ("held_out", 1)):
            if getattr(self, key) < least:
                raise ValueError(f"read.{key}={getattr(self, key)} must be {least} or more")


class TextTask:
    """A linear reading of every token's embedding against what the sentence asks for."""

    def __init__(
        self,
        encoder: TextEncoder,
        tokenizer: Tokenizer,
        settings: ReadSettings,
        source: WishingSource,
        device: torch.device,
        steps: int,
    ) -> None:
        self.encoder, self.tokenizer, self.settings = encoder.requires_grad_(True), tokenizer, settings
        self.source, self.device, self.steps = source, device, steps
        self.sizes = [len(options) for options in source.choices.values()]
        self.reader = nn.Linear(encoder.stack.config.d_model, sum(self.sizes), device=device)
        self.modules: Mapping[str, nn.Module] = {"text": encoder, "reader": self.reader}

    def loss(self, draw: Draw) -> tuple[Tensor, dict[str, float]]:
        rng = np.random.default_rng(draw.key)
        told, mask, options = self._read([self.source.wish(rng) for _ in range(self.settings.prompts)])
        errors = [
            nn.functional.cross_entropy(part[mask], options[:, [k]].expand_as(mask)[mask])
            for k, part in enumerate(told.split(self.sizes, dim=-1))
        ]
        error = torch.stack(errors).mean()
        return error, {"words": float(error.detach())}

    @torch.no_grad()
    def validate(self, step: int, folder: Path | None) -> dict[str, float]:
        """Share of new sentences whose mean token tells each choice right."""
        rng = np.random.default_rng([2**31, 7])
        told, mask, options = self._read([self.source.wish(rng) for _ in range(self.settings.held_out)])
        mean = (told * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        parts = mean.split(self.sizes, dim=-1)
        shares = [float((part.argmax(-1) == options[:, k]).float().mean()) for k, part in enumerate(parts)]
        return {f"read_{name}": share for name, share in zip(self.source.choices, shares, strict=True)}

    def export(self, folder: Path) -> list[Path]:
        """`text.safetensors`; the reader was only for learning."""
        return [export_module(self.encoder, folder / "text.safetensors", torch.float32, {"stage": "text"})]

    def _read(
        self, wishes: Sequence[Wish]
    ) -> tuple[Float[Tensor, "b s options"], Bool[Tensor, "b s"], Int[Tensor, "b k"]]:
        """What each token tells, which tokens are words, and what was asked for."""
        ids = [torch.tensor(self.tokenizer(clean_text(wish.prompt))) for wish in wishes]
        padded = nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=PAD_ID).to(self.device)
        mask = padded != PAD_ID
        options = torch.tensor([wish.options for wish in wishes], device=self.device)
        return self.reader(self.encoder(padded, mask)), mask, options


def checked_wishes(source: object) -> WishingSource:
    """The source of a stage that needs prompts with a known meaning. Raises ValueError where it is not known."""
    if not isinstance(source, WishingSource):
        raise ValueError(
            f"stage=text learns from prompts whose meaning is known, which data={type(source).__name__} does not "
            "tell; write data=toon"
        )
    return source
