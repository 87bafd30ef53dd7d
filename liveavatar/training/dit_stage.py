"""Stage `dit`: flow matching under diffusion forcing, conditioned as inference conditions (a `Task`)."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from liveavatar.intake import Parts, SpeechSettings
from liveavatar.models.dit.model import AvatarDiT
from liveavatar.models.speech import WindowAudio
from liveavatar.models.text import clean_text
from liveavatar.sampling.conditioning import RolloutSettings
from liveavatar.sampling.scheduler import EulerSampler
from liveavatar.training.checkpoint import export_module
from liveavatar.training.clip import ClipSink, serve_clips
from liveavatar.training.draws import DitSettings, Passage, draw_passage, draw_walk
from liveavatar.training.latents import Encoded, LatentStore
from liveavatar.training.loop import Draw
from liveavatar.training.losses import face_weight, tint_error, velocity_error
from liveavatar.training.preview import preview
from liveavatar.training.scene import Scene
from liveavatar.training.sources import RewordingSource
from liveavatar.training.speech_stage import CURVES, window_audio
from liveavatar.types import BLOCK_FRAMES, BLOCK_LATENTS

log = logging.getLogger(__name__)

TINT_SIDE = 4
"""Latent pixels along the side of a square whose mean `dit.tint` asks for."""


class DitTask:
    """The DiT with its text and speech encoders; `trains` names those that learn.

    `stores` are prepared: clips to train on, clips held out. What a speech encoder says that does not learn is kept.
    Raises ValueError where `dit.reword` asks for other words of data that have none.
    """

    def __init__(
        self,
        parts: Parts,
        settings: DitSettings,
        sampler: EulerSampler,
        rollout: RolloutSettings,
        speech: SpeechSettings,
        stores: tuple[LatentStore, LatentStore],
        device: torch.device,
        steps: int,
        trains: Sequence[str] = ("dit", "text", "speech"),
        checkpointing: bool = False,
    ) -> None:
        self.parts, self.settings, self.sampler, self.rollout, self.speech = parts, settings, sampler, rollout, speech
        (self.kept, self.held_out), self.device, self.steps, self.trains = stores, device, steps, set(trains)
        self.source = rewording(self.kept.source, settings.reword) if settings.reword else None
        encoders: dict[str, nn.Module] = {"text": parts.text, "speech": parts.speech}
        self.modules: Mapping[str, nn.Module] = {
            **({"dit": parts.dit} if "dit" in self.trains else {}),
            **{name: module for name, module in encoders.items() if name in self.trains},
        }
        for module in self.modules.values():
            module.requires_grad_(True)
        if "speech" in self.trains:
            heard = parts.speech.model.config
            self.listener = nn.Linear((heard.num_hidden_layers + 1) * heard.hidden_size, CURVES, device=device)
            self.modules = {**self.modules, "listener": self.listener}
        serve_clips(parts.dit, checkpointing)
        self._features: dict[int, Tensor] = {}
        self._clip = lru_cache(maxsize=1024)(self.kept.load)
        self._frozen_words = lru_cache(maxsize=256)(self._read)

    def loss(self, draw: Draw) -> tuple[Tensor, dict[str, float]]:
        rng = np.random.default_rng(draw.key)
        clips = [self._clip(int(i)) for i in rng.integers(len(self.kept.numbers), size=self.settings.clips)]
        passage = self._passage(draw, rng, clips)
        return self.passage_loss(clips, passage, rng, draw.generator())

    def passage_loss(
        self, clips: Sequence[Encoded], passage: Passage, rng: np.random.Generator, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        """Flow matching on one passage of some clips, and, where the speech encoder learns, what it heard."""
        given, n = self.settings, len(passage.sigmas)
        cuts = [slice(start * BLOCK_LATENTS, (start + n) * BLOCK_LATENTS) for start in passage.starts]
        clean = self._stack([clip.latents[:, cut] for clip, cut in zip(clips, cuts, strict=True)])
        places = (
            self._stack([getattr(clip, name)[cut] for clip, cut in zip(clips, cuts, strict=True)])
            for name in ("mouth", "eyes", "lids")
        )
        weight = face_weight(*places, by=(given.mouth, given.eyes, given.lids))
        seen = clean + passage.corruption * self._noise(clean, generator)
        noise = self._noise(clean, generator)
        text = self._words([self._asked(clip.prompt, rng) if rng.random() >= given.drop_text else "" for clip in clips])
        deaf = torch.from_numpy(rng.random(len(clips)) < given.drop_audio).to(self.device)
        heard = [self._hear(clips, [start + j for start in passage.starts]) for j in range(n)]
        sinks = self._sinks(clips, passage, generator)
        audible = [features.masked_fill(deaf[:, None, None, None], 0) for features in heard]
        scene = Scene(self.parts.dit, passage, sinks, audible, text, self.rollout.cache_frames)
        level, lead = self._levels(passage.sigmas), self._lead(passage)
        if passage.walked is not None:
            x = scene.walked(noise, self.sampler, passage.walked, past=seen[:, :, :lead])
            wanted = (x - clean) / level
        else:
            x, wanted = (1 - level) * seen + level * noise, noise - clean
        whole = scene.velocity(x, passage.sigmas)
        whole, wanted, weight = whole[:, :, lead:], wanted[:, :, lead:], weight[:, :, lead:]
        error = velocity_error(whole, wanted, weight)
        figures = {"velocity": float(error.detach()), "sigma": float(np.mean(passage.sigmas))}
        if given.walked:
            figures["walked"] = float(passage.walked is not None)
        if given.tint:
            tint = tint_error(whole, wanted, TINT_SIDE)
            error, figures["tint"] = error + given.tint * tint, float(tint.detach())
        told = self._listening(clips, passage, heard) if given.listen else None
        if told is None:
            return error, figures
        return error + given.listen * told, {**figures, "listen": float(told.detach())}

    def validate(self, step: int, folder: Path | None) -> dict[str, float]:
        """The loss on fixed passages of held-out clips, and whole clips generated as inference does."""
        clips = [self.held_out.load(i) for i in range(min(len(self.held_out.numbers), self.settings.clips))]
        losses = []
        for number in range(8):
            draw = Draw(2**31, number)
            rng = np.random.default_rng(draw.key)
            passage = self._passage(draw, rng, clips)
            _, figures = self.passage_loss(clips, passage, rng, draw.generator())
            losses.append(figures["velocity"])
        found = {"velocity": float(np.mean(losses))}
        shown = [self.held_out.load(i) for i in range(min(len(self.held_out.numbers), self.settings.held_out_clips))]
        figures = preview(self.parts, self.sampler, self.rollout, self.speech, shown, self.settings, step, folder)
        return found | figures

    def export(self, folder: Path) -> list[Path]:
        """What the DiT was trained with, each component as safetensors under our own names."""
        parts: dict[str, nn.Module] = {"dit": self.parts.dit, "text": self.parts.text, "speech": self.parts.speech}
        return [
            export_module(module, folder / f"{name}.safetensors", torch.float32, {"stage": "dit"})
            for name, module in parts.items()
        ]

    def _stack(self, tensors: Sequence[Tensor]) -> Tensor:
        return torch.stack(list(tensors)).to(self.device)

    def _passage(self, draw: Draw, rng: np.random.Generator, clips: Sequence[Encoded]) -> Passage:
        """A random passage of these clips, walked into on all ranks or on none."""
        given, sampler, rollout = self.settings, self.sampler, self.rollout
        walked = draw_walk(np.random.default_rng(draw.common), given, sampler)
        lengths = [clip.blocks for clip in clips]
        return draw_passage(rng, given, sampler, lengths, rollout.blocks_per_clip, rollout.sink_distance, walked)

    @staticmethod
    def _lead(passage: Passage) -> int:
        """Latents at the front of a passage that count for nothing.

        A block from the middle of a stream has a past at inference, but the first of a passage has none: what it
        learnt would be the mean of all that might have been, a head in mid-swing among it. It is a past for the others,
        with the truth in it even where they are walked into: else none of them could know what came before.
        """
        return BLOCK_LATENTS if passage.first and len(passage.sigmas) > 1 else 0

    def _levels(self, sigmas: Sequence[float]) -> Tensor:
        """Noise levels [1, 1, t, 1, 1] of the latents of blocks at these levels."""
        levels = torch.tensor(sigmas, device=self.device).repeat_interleave(BLOCK_LATENTS)
        return levels[None, None, :, None, None]

    def _noise(self, like: Tensor, generator: torch.Generator) -> Tensor:
        return torch.randn(like.shape, generator=generator).to(self.device)

    def _asked(self, prompt: str, rng: np.random.Generator) -> str:
        """The prompt, or what it asks for in other words."""
        if self.source is None or rng.random() >= self.settings.reword:
            return prompt
        return self.source.reword(prompt, rng)

    def _words(self, prompts: Sequence[str]) -> Tensor:
        """Embeddings of prompts, filled with zeros to the longest: the DiT fills on to its own length."""
        read = [self._read(p) if "text" in self.trains else self._frozen_words(p) for p in prompts]
        longest = max(words.shape[0] for words in read)
        return torch.stack([nn.functional.pad(words, (0, 0, 0, longest - words.shape[0])) for words in read])

    def _read(self, prompt: str) -> Tensor:
        ids = torch.tensor(self.parts.tokenizer(clean_text(prompt)), device=self.device)
        with torch.set_grad_enabled("text" in self.trains and torch.is_grad_enabled()):
            return self.parts.text.encode(ids)

    def _hear(self, clips: Sequence[Encoded], numbers: Sequence[int]) -> Tensor:
        """Speech features of one block of each clip, through the window that inference has."""
        if "speech" not in self.trains:
            return torch.stack([self._said(clip)[n] for clip, n in zip(clips, numbers, strict=True)]).to(self.device)
        heard = [self._window(clip).block(n) for clip, n in zip(clips, numbers, strict=True)]
        return torch.cat(heard)

    def _said(self, clip: Encoded) -> Tensor:
        """Features [blocks, L, c, t] of a whole clip from an encoder that does not learn, made once."""
        held = self._features.get(clip.number)
        if held is None:
            with torch.no_grad():
                window = self._window(clip)
                held = torch.cat([window.block(n) for n in range(clip.blocks)]).half().cpu()
            self._features[clip.number] = held
        return held.float()

    def _window(self, clip: Encoded) -> WindowAudio:
        return window_audio(self.parts.speech, clip.sound.to(self.device), self.speech, self.rollout.lead_frames)

    def _sinks(self, clips: Sequence[Encoded], passage: Passage, generator: torch.Generator) -> list[ClipSink]:
        """The portrait, then the first latent of the stream, as the refresh makes it; a late passage has the second."""
        dtype = self.parts.dit.dtype
        motion = self._stack([clip.motion for clip in clips]).to(dtype)
        portrait = self._stack([clip.reference for clip in clips]).to(dtype)
        first = self._stack([clip.latents[:, :1] for clip in clips])
        first = (first + passage.corruption * self._noise(first, generator)).to(dtype)
        sinks = [ClipSink(portrait, motion), ClipSink(first, motion)]
        last = passage.first + len(passage.sigmas) - 1
        if passage.first >= passage.refresh:
            return sinks[1:]
        return sinks if last >= passage.refresh else sinks[:1]

    def _listening(self, clips: Sequence[Encoded], passage: Passage, heard: Sequence[Tensor]) -> Tensor | None:
        """How well a linear reading of the speech features tells the mouth's curves; None where nobody knows them."""
        if "speech" not in self.trains or any(clip.curves is None for clip in clips):
            return None
        errors = []
        for j, features in enumerate(heard):
            rows = [
                clip.curves[(start + j) * BLOCK_FRAMES : (start + j + 1) * BLOCK_FRAMES]
                for clip, start in zip(clips, passage.starts, strict=True)
                if clip.curves is not None
            ]
            told = self.listener(features.permute(0, 3, 1, 2).flatten(2))
            errors.append((told - self._stack(rows)).square().mean())
        return torch.stack(errors).mean()


def rewording(source: object, share: float) -> RewordingSource:
    """The source of a training that asks for other words. Raises ValueError where it has none."""
    if not isinstance(source, RewordingSource):
        raise ValueError(f"dit.reword={share}: this data cannot say its prompts in other words; write 0")
    return source


@torch.no_grad()
def initialise_dit(dit: AvatarDiT, seed: int) -> None:
    """Start values: residual branches open but small, no velocity at first."""
    generator = torch.Generator().manual_seed(seed)

    def normal(values: Tensor, deviation: float) -> None:
        values.copy_(torch.randn(values.shape, generator=generator) * deviation)

    for name, parameter in dit.named_parameters():
        leaf = name.rsplit(".", 1)[-1]
        if leaf == "modulation":
            normal(parameter, 0.02)
            if name.startswith("blocks."):
                parameter[:, 2::3] += 1.0  # the gates
        elif leaf == "bias" and name.startswith("embed.audio_encoder"):
            normal(parameter, 0.2)  # a voice left out is all zeros: its norms would blow gradients up a thousandfold
        elif leaf == "bias" or name == "head.head.weight" or leaf == "padding_tokens":
            parameter.zero_()
        elif parameter.dim() == 1 or leaf == "weights":
            parameter.fill_(1.0)
        elif name.startswith(("embed.time_", "adain.", "embed.trainable_cond_mask")):
            normal(parameter, 0.02)
        else:
            narrow = 1 / math.sqrt(2 * dit.num_layers) if name.endswith((".o.weight", "ffn.2.weight")) else 1.0
            normal(parameter, narrow / math.sqrt(math.prod(parameter.shape[1:])))
