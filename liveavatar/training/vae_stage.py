"""Stage `vae`: single frames first, at a low and then the full size, then clips."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from liveavatar.models.vae.codec import WanCodec
from liveavatar.training.autoencoder import Autoencoder, Moments, fold_statistics, latent_size
from liveavatar.training.checkpoint import export_module
from liveavatar.training.contrasts import Contrasts, differences
from liveavatar.training.data import PictureBatch, Pictures, latent_means
from liveavatar.training.grid import save_grid
from liveavatar.training.loop import Draw
from liveavatar.training.losses import edges, kl, motion, psnr, reconstruction, tint_error

log = logging.getLogger(__name__)

TINT_SIDE = 8
"""Pixels along the side of a square whose mean colour `vae.tint` asks for: smaller than a cheek."""


@dataclass(frozen=True)
class Phase:
    """A part of the training: `steps` of `batch` videos of `frames` (1 or 1 + 4k) at `size` (height, width).

    With `crop` the videos are windows around the mouth in full resolution, else whole pictures scaled to that size.
    """

    steps: int
    size: tuple[int, int]
    frames: int
    batch: int
    crop: bool = False

    def __post_init__(self) -> None:
        if (self.frames - 1) % 4 or self.frames < 1:
            near = 1 + 4 * max(0, round((self.frames - 1) / 4))
            raise ValueError(
                f"vae.phases has frames={self.frames}, but the VAE takes 1 frame or 1 + 4k of them; write {near}"
            )
        if any(side % 8 for side in self.size):
            raise ValueError(f"vae.phases has size={list(self.size)}: both sides must be multiples of 8")
        if self.steps < 0 or self.batch < 1:
            raise ValueError(f"vae.phases has steps={self.steps}, batch={self.batch}: both must be above 0")


@dataclass(frozen=True)
class VaeSettings:
    """What the VAE learns from (the `vae` node).

    phases: in order, each with steps, size, frames, batch.
    picture_frames: frames kept of each person of the data.
    eps: below this error the loss is quadratic.
    edges: weight of the pictures' differences of neighbours. motion: that of a clip's differences of frames: four of
        them share a latent, which shows their mean for long where nothing asks for more.
    contrasts: weight of reading those differences from the latents by one matrix (`training.contrasts`).
    steady: weight of the latents' distance from those of the encoder that training starts from (with train.init), in
        its own deviations: a DiT that was trained on them then goes on instead of starting anew.
    noise: deviation of what is added to latents before they are drawn, as a share of theirs.
    tint: weight of the squared error of mean colours over squares of eight pixels, which distances of details outweigh.
    kl: weight of the divergence from a normal posterior, per latent value.
    mouth: by how much more than others the pixels around the mouth count.
    statistics: batches from which the latents' mean and deviation are measured at the end.
    learns: both halves, or the decoder alone behind an encoder that stays (with train.init): latents that a DiT was
        trained on keep their meaning, and it may be trained meanwhile.
    """

    phases: Sequence[Mapping[str, Any]]
    picture_frames: int = 25
    eps: float = 0.01
    edges: float = 0.5
    motion: float = 0.0
    contrasts: float = 0.0
    steady: float = 0.0
    noise: float = 0.0
    tint: float = 0.0
    kl: float = 1e-4
    mouth: float = 2.0
    statistics: int = 64
    learns: str = "both"

    def __post_init__(self) -> None:
        if not self.phases:
            raise ValueError("vae.phases is empty: give at least one phase, as [{steps: 100, size: [64, 64], …}]")
        if self.learns not in ("both", "decoder"):
            raise ValueError(f"vae.learns={self.learns!r} is unknown; write both or decoder")
        longest = max(phase.frames for phase in self.schedule())
        if longest > self.picture_frames:
            raise ValueError(
                f"vae.phases wants {longest} frames at once, but vae.picture_frames={self.picture_frames} are kept of "
                f"each person; write vae.picture_frames={longest}"
            )

    @property
    def keeps(self) -> str | None:
        """The setting by which latents stay those of the encoder to start from, if one does that."""
        if self.learns == "decoder":
            return "vae.learns=decoder"
        return f"vae.steady={self.steady}" if self.steady else None

    def check_start(self, start: str | None) -> None:
        """Refuses a VAE that is to keep its latents and has none: only an export has them as a DiT sees them."""
        if self.keeps is None:
            return
        if start is None:
            raise ValueError(
                f"{self.keeps} keeps latents as those of an encoder to start from, and there is none: name the folder "
                "of its weights, as in train.init=runs/vae/export"
            )
        if not (Path(start).expanduser() / "vae.safetensors").is_file():
            raise ValueError(
                f"{self.keeps} keeps latents as a DiT sees them, but train.init={start} has no vae.safetensors, in "
                "which their scale is settled: let the run end, or stop it, and name its export/ folder"
            )

    def schedule(self) -> list[Phase]:
        return [
            Phase(int(p["steps"]), tuple(p["size"]), int(p["frames"]), int(p["batch"]), bool(p.get("crop", False)))
            for p in self.phases
        ]


class VaeTask:
    """Reconstruction + edges + KL on whole pictures (a `Task`)."""

    def __init__(
        self,
        codec: WanCodec,
        settings: VaeSettings,
        pictures: Pictures,
        held_out: Pictures,
        device: torch.device,
        compiled: bool = False,
    ) -> None:
        self.codec, self.settings, self.device = codec, settings, device
        self.pictures, self.held_out = pictures, held_out
        self.model = Autoencoder(codec, settings.learns == "both", settings.noise).to(device)
        self.contrasts = Contrasts(codec.z_dim).to(device) if settings.contrasts else None
        self.modules: Mapping[str, nn.Module] = {"vae": codec} | (
            {"contrasts": self.contrasts} if self.contrasts else {}
        )
        self.before = Autoencoder(copy.deepcopy(codec)).requires_grad_(False) if settings.steady else None
        self.phases = settings.schedule()
        self.steps = sum(phase.steps for phase in self.phases)
        # sizes change from phase to phase, and each has a graph of its own: shapes are never guessed
        self.forward: Callable[..., Any] = torch.compile(self.model, dynamic=False) if compiled else self.model

    def phase(self, step: int) -> Phase:
        """The phase of a step; the last one goes on for ever."""
        for phase in self.phases:
            if step < phase.steps:
                return phase
            step -= phase.steps
        return self.phases[-1]

    def loss(self, draw: Draw) -> tuple[Tensor, dict[str, float]]:
        phase, given = self.phase(draw.step), self.settings
        rng = np.random.default_rng(draw.key)
        batch = self.pictures.batch(rng, phase.batch, phase.frames, phase.size, given.mouth, phase.crop)
        video = batch.video.to(self.device).contiguous(memory_format=torch.channels_last_3d)
        weight = batch.weight.to(self.device)
        noise = torch.randn(latent_size(batch.video.shape, self.codec.z_dim), generator=draw.generator())
        made, mean, log_variance = self.forward(video, noise.to(self.device))
        parts = {
            "pixels": reconstruction(made, video, weight, given.eps),
            "edges": given.edges * edges(made, video, weight, given.eps),
            "motion": given.motion * motion(made, video, weight, given.eps),
            "tint": given.tint * tint_error(made, video, TINT_SIDE),
            "kl": given.kl * kl(mean, log_variance),
        }
        latents = self.codec.normalise(mean)
        if self.contrasts is not None:
            parts["contrasts"] = given.contrasts * self.contrasts.loss(latents, made, video, weight)
        if self.before is not None:
            with torch.no_grad():
                wanted = self.codec.normalise(self.before.posterior(video)[0])
            parts["steady"] = given.steady * (latents - wanted).square().mean()
        return torch.stack(list(parts.values())).sum(), {
            **{name: float(part.detach()) for name, part in parts.items()},
            "psnr": float(psnr(made.detach(), video).mean()),
        }

    def validate(self, step: int, folder: Path | None) -> dict[str, float]:
        """Decibels on whole held-out pictures at full size, alone and as clips, the mouth for itself; its motion."""
        size = self.pictures.size if self.phases[-1].crop else self.phases[-1].size
        found: dict[str, list[float]] = {}
        rows = []
        longest = max(phase.frames for phase in self.phases)
        for name, frames in (("frame", 1), ("clip", longest)) if longest > 1 else (("frame", 1),):
            for number, batch in enumerate(self.held_out.fixed(frames, size, 1.0, limit=24)):
                video = batch.video.to(self.device)
                made = self.model.render(self.model.posterior(video)[0]).clamp(-1, 1)
                found.setdefault(f"psnr_{name}", []).append(float(psnr(made, video)))
                found.setdefault(f"psnr_{name}_mouth", []).append(_mouth_psnr(made, video, batch))
                if frames > 1:
                    found.setdefault("moves", []).append(_moves(made, video, batch))
                if name == "frame" and number < 12:
                    rows.append(torch.cat((video[0, :, 0], made[0, :, 0]), dim=1))
                if name == "clip" and number < 6:
                    rows.append(torch.cat((video[0, :, -1], made[0, :, -1]), dim=1))
        if folder is not None:
            save_grid(rows, folder / f"vae-{step:06d}.png", columns=6)
        return {name: float(np.mean(values)) for name, values in found.items()}

    @torch.no_grad()
    def export(self, folder: Path) -> list[Path]:
        """`vae.safetensors`, with the latents' statistics folded into the convolutions beside them."""
        to, about = folder / "vae.safetensors", {"stage": "vae"}
        if self.settings.keeps is not None:
            # the statistics were folded in when the encoder that stays, or that this one stays near to, was exported
            return [export_module(self.codec, to, torch.float32, about)]
        weights = {name: p.detach().clone() for name, p in self.codec.named_parameters()}
        mean, std = self.statistics()
        try:
            fold_statistics(self.codec, mean, std)
            about |= {"mean": str(mean.tolist()), "std": str(std.tolist())}
            return [export_module(self.codec, to, torch.float32, about)]
        finally:
            for name, p in self.codec.named_parameters():
                p.copy_(weights[name])

    @torch.no_grad()
    def statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and deviation per channel of the latents of the data."""
        moments, phase = Moments(), self.phases[-1]
        for index in range(self.settings.statistics):
            rng = np.random.default_rng([2**31, index])
            size = self.pictures.size if phase.crop else phase.size
            batch = self.pictures.batch(rng, 2, phase.frames, size, 0.0)
            moments.add(self.model.posterior(batch.video.to(self.device))[0].cpu())
        return moments.values()


def _moves(made: Tensor, video: Tensor, batch: PictureBatch) -> float:
    """How much of what the mouth does within the frames of a latent is drawn: 1 is all of it, 0 their mean alone."""
    inside = latent_means(batch.weight[:, :, 1:]).movedim(1, -1).to(video.device) - 1
    wanted = differences(video)
    error = (inside * (differences(made) - wanted).square()).sum()
    return float(1 - error / (inside * wanted.square()).sum().clamp_min(1e-8))


def _mouth_psnr(made: Tensor, video: Tensor, batch: PictureBatch) -> float:
    """Decibels of the pixels around the mouth alone (they weigh 2, others 1)."""
    inside = (batch.weight > 1.5).expand(*video.shape).to(video.device)
    if not inside.any():
        return float("nan")
    error = (made[inside] - video[inside]).square().mean() / 4
    return float(-10 * error.clamp_min(1e-10).log10())
