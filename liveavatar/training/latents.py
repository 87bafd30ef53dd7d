"""Clips as the DiT sees them: latents of picture, portrait and motion beside sound and prompt, made once and kept.

A clip becomes the stream that inference would make of it: its pictures follow seven latents of the still portrait, as
a streaming decoder is warmed with, and lag three frames behind the sound's own count, since that many pictures are
dropped at the start (semantics, 7 and 8).
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from liveavatar.models.vae.codec import WanCodec
from liveavatar.sampling.conditioning import DROPPED_FRAMES
from liveavatar.sampling.decoding import MOTION_FRAMES, WARM_LATENTS
from liveavatar.training.autoencoder import encoder_half
from liveavatar.training.data import box_mask, latent_means
from liveavatar.training.progress import progress
from liveavatar.training.saving import write_whole
from liveavatar.training.sources import Source, Talk
from liveavatar.types import BLOCK_FRAMES, BLOCK_LATENTS, LATENT_STRIDE

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Encoded:
    """A clip of `blocks` blocks. `curves` says how the mouth moves, frame by frame, where the source knows.

    `mouth` and `eyes` are the share of a latent pixel that they fill; `lids` how far they shut within a latent, 0 to 1.
    """

    latents: Float[Tensor, "16 f h w"]
    reference: Float[Tensor, "16 1 h w"]
    motion: Float[Tensor, "16 m h w"]
    mouth: Float[Tensor, "f h w"]
    eyes: Float[Tensor, "f h w"]
    lids: Float[Tensor, " f"]
    sound: Float[Tensor, " samples"]
    curves: Float[Tensor, "t k"] | None
    prompt: str
    number: int = 0

    @property
    def blocks(self) -> int:
        return self.latents.shape[1] // BLOCK_LATENTS


class LatentStore:
    """Encoded clips of a source, a safetensors file each, in a folder that only this codec and size use.

    Raises ValueError when there is no clip.
    """

    def __init__(
        self,
        source: Source,
        numbers: Sequence[int],
        size: tuple[int, int],
        codec: WanCodec,
        folder: Path,
        device: torch.device,
    ) -> None:
        if not numbers:
            raise ValueError("data holds no clip: give at least one to train on and one to validate with")
        self.source, self.numbers, self.size, self.codec, self.device = source, list(numbers), size, codec, device
        key = hashlib.sha256(f"3 {source.token} {size} {fingerprint(codec)}".encode()).hexdigest()[:12]  # 3: with lids
        self.folder = folder / f"latents-{key}"

    def prepare(self) -> int:
        """Encode what is missing; returns how many clips that were. An interruption loses one clip at most."""
        self.folder.mkdir(parents=True, exist_ok=True)
        missing = [number for number in self.numbers if not self._path(number).is_file()]
        for number in progress(missing, "encoding clips"):
            talk = self.source.talk(number, self.size)
            tensors = encode_talk(talk, self.codec, self.size, self.device)
            write_whole(
                self._path(number),
                lambda draft, kept=tensors, said=talk.prompt: save_file(kept, draft, {"prompt": said}),
            )
        return len(missing)

    def load(self, index: int) -> Encoded:
        """Clip number `numbers[index]`. Raises ValueError for a file that is broken, naming it."""
        path = self._path(self.numbers[index])
        try:
            with safe_open(path, framework="pt") as file:
                held = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
                prompt = (file.metadata() or {}).get("prompt", "")
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path} cannot be read ({error}): delete it, it will be made again") from error
        return Encoded(
            held["latents"].float(),
            held["reference"].float(),
            held["motion"].float(),
            held["mouth"].float(),
            held["eyes"].float(),
            held["lids"].float(),
            held["sound"].float() / 32767,
            held.get("curves"),
            prompt,
            self.numbers[index],
        )

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:08d}.safetensors"


def fingerprint(codec: WanCodec) -> str:
    """A short word for the encoder's weights: latents of another one are not ours, while any decoder may read them."""
    digest = hashlib.sha256()
    named = [pair for half in encoder_half(codec) for pair in half.named_parameters()]
    for name, parameter in named:
        digest.update(name.encode())
        digest.update(parameter.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()[:12]


@torch.no_grad()
def encode_talk(talk: Talk, codec: WanCodec, size: tuple[int, int], device: torch.device) -> dict[str, Tensor]:
    """A clip as tensors to keep: latents in half precision, sound in 16 bits; whole blocks only.

    Raises ValueError for a clip shorter than a block.
    """
    blocks = (len(talk.frames) + DROPPED_FRAMES) // BLOCK_FRAMES
    if blocks < 1:
        least = BLOCK_FRAMES - DROPPED_FRAMES
        raise ValueError(f"data: a clip of {len(talk.frames)} frames is too short; it needs {least} or more")
    frames = lagged(len(talk.frames), blocks * BLOCK_FRAMES)
    kept = codec.encode(_video(talk.frames[frames], talk.portrait, 1 + LATENT_STRIDE * (WARM_LATENTS - 1), device))
    tensors = {
        "latents": kept[0, :, WARM_LATENTS:].half(),
        "reference": kept[0, :, :1].half(),
        "motion": still_motion(kept[0, :, :WARM_LATENTS]).half(),
        "mouth": box_share(talk.mouth, frames, size).half(),
        "eyes": box_share(talk.eyes, frames, size).half(),
        "lids": furthest(talk.lids, frames).half(),
        "sound": torch.from_numpy((np.clip(talk.sound, -1, 1) * 32767).round().astype(np.int16)),
    }
    if talk.curves is not None:
        tensors["curves"] = torch.from_numpy(talk.curves[frames].astype(np.float32))
    return {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}


def still_motion(start: Float[Tensor, "16 7 h w"]) -> Float[Tensor, "16 m h w"]:
    """Latents of a picture that stands still for all motion frames, from the first seven of them.

    The encoder's causal convolutions have seen nothing but that picture by then: the rest repeat the last one.
    """
    rest = 1 + (MOTION_FRAMES - 1) // LATENT_STRIDE - start.shape[1]
    return torch.cat((start, start[:, -1:].expand(-1, rest, -1, -1)), dim=1)


def lagged(frames: int, wanted: int) -> np.ndarray:
    """The frame of the clip that each frame of the stream shows: three behind, held at both ends."""
    return (np.arange(wanted) - DROPPED_FRAMES).clip(0, frames - 1)


def box_share(boxes: np.ndarray | None, frames: np.ndarray, size: tuple[int, int]) -> Float[Tensor, "f h w"]:
    """How much of each latent pixel lies in the boxes of its frames; zeros where they are not known."""
    height, width = size[0] // 8, size[1] // 8
    if boxes is None:
        return torch.zeros(len(frames) // LATENT_STRIDE, height, width)
    mask = box_mask(torch.from_numpy(boxes[frames]).float()[None], size)
    return latent_means(mask)[0]


def furthest(lids: np.ndarray | None, frames: np.ndarray) -> Float[Tensor, " f"]:
    """How far lids shut within the four frames of each latent; zeros where nobody knows."""
    if lids is None:
        return torch.zeros(len(frames) // LATENT_STRIDE)
    return torch.from_numpy(lids[frames].reshape(-1, LATENT_STRIDE).max(1)).float()


def _video(frames: np.ndarray, still: np.ndarray, before: int, device: torch.device) -> Float[Tensor, "1 3 t H W"]:
    """Frames behind `before` copies of a still picture, in [-1, 1]."""
    whole = np.concatenate((np.repeat(still[None], before, axis=0), frames))
    return (torch.from_numpy(whole).to(device).float() / 127.5 - 1).permute(3, 0, 1, 2)[None]
