"""What training sees: the procedural corpus, and pictures of clips rendered once and kept on disk."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from liveavatar.training.progress import progress
from liveavatar.training.saving import save_array
from liveavatar.training.sources import Look, Source, Talk, Told, Wish
from liveavatar.types import LATENT_STRIDE

if TYPE_CHECKING:
    from liveavatar.training.toon import Clip, Identity, Motion

HELD_OUT = 1_000_000
"""Seeds of the procedural corpus from here on are never trained on."""


PATCH = 8
"""Pixels along a latent's side."""


@dataclass(frozen=True)
class PictureBatch:
    """Videos in [-1, 1] and how much each pixel counts (1 on average outside the mouth)."""

    video: Float[Tensor, "b 3 t H W"]
    weight: Float[Tensor, "b 1 t H W"]


class Pictures:
    """Looks of a source at one size, rendered once: shards of `SHARD` clips, each a .npy file that is mapped, not read.

    Raises ValueError when there is no clip.
    """

    SHARD = 16

    def __init__(
        self, source: Source, numbers: Sequence[int], frames: int, size: tuple[int, int], folder: Path
    ) -> None:
        if not numbers:
            raise ValueError("data: there is no clip to look at; give at least one to train on and one to validate")
        self.source, self.numbers, self.frames, self.size = source, list(numbers), frames, size
        key = hashlib.sha256(f"{source.token} {frames} {size} {numbers[0]}".encode()).hexdigest()[:12]
        self.folder = folder / f"pictures-{key}"
        self._shards: list[tuple[np.ndarray, np.ndarray]] = []

    def prepare(self) -> None:
        """Render what is missing; an interruption loses one shard at most."""
        self.folder.mkdir(parents=True, exist_ok=True)
        starts = range(0, len(self.numbers), self.SHARD)
        self._shards = [self._shard(start) for start in progress(starts, "rendering pictures")]

    def batch(
        self, rng: np.random.Generator, count: int, frames: int, size: tuple[int, int], mouth: float, crop: bool = False
    ) -> PictureBatch:
        """`count` random runs of `frames` frames, half of them mirrored.

        Where `size` is smaller they are scaled down, or with `crop` a window is cut out that holds the mouth.
        The mouth's pixels count 1 + `mouth` times.
        """
        looks = [self._run(rng, frames) for _ in range(count)]
        return assemble([cut_out(rng, look, size) for look in looks] if crop else looks, size, mouth)

    def fixed(self, frames: int, size: tuple[int, int], mouth: float, limit: int = 64) -> Iterator[PictureBatch]:
        """The middle run of each clip, one by one."""
        for index in range(min(limit, len(self.numbers))):
            look = self._look(index)
            start = (len(look.frames) - frames) // 2
            yield assemble([Look(look.frames[start : start + frames], look.mouth[start : start + frames])], size, mouth)

    def _run(self, rng: np.random.Generator, frames: int) -> Look:
        look = self._look(int(rng.integers(len(self.numbers))))
        start = int(rng.integers(len(look.frames) - frames + 1))
        part, mouth = look.frames[start : start + frames], look.mouth[start : start + frames]
        if rng.random() < 0.5:
            return Look(part, mouth)
        return Look(part[:, :, ::-1], np.stack((1 - mouth[:, 2], mouth[:, 1], 1 - mouth[:, 0], mouth[:, 3]), axis=1))

    def _look(self, index: int) -> Look:
        frames, mouth = self._shards[index // self.SHARD]
        return Look(frames[index % self.SHARD], mouth[index % self.SHARD])

    def _shard(self, start: int) -> tuple[np.ndarray, np.ndarray]:
        numbers = self.numbers[start : start + self.SHARD]
        paths = [self.folder / f"{name}-{start:05d}-{len(numbers)}.npy" for name in ("mouth", "frames")]
        if not all(path.is_file() for path in paths):
            looks = [self.source.look(number, self.frames, self.size) for number in numbers]
            save_array(paths[0], np.stack([look.mouth for look in looks]).astype(np.float32))
            save_array(paths[1], np.stack([look.frames for look in looks]))
        return np.load(paths[1], mmap_mode="r"), np.load(paths[0])


def assemble(looks: Sequence[Look], size: tuple[int, int], mouth: float) -> PictureBatch:
    """Looks of equal length as one batch."""
    frames = torch.from_numpy(np.stack([look.frames for look in looks]).copy())
    video = frames.permute(0, 4, 1, 2, 3).float() / 127.5 - 1
    b, _, t, height, width = video.shape
    if (height, width) != tuple(size):
        flat = F.interpolate(video.transpose(1, 2).flatten(0, 1), size=size, mode="area")
        video = flat.unflatten(0, (b, t)).transpose(1, 2)
    boxes = torch.from_numpy(np.stack([look.mouth for look in looks]).copy()).float()
    return PictureBatch(video.contiguous(), 1 + mouth * box_mask(boxes, size).unsqueeze(1))


def cut_out(rng: np.random.Generator, look: Look, size: tuple[int, int]) -> Look:
    """A window of `size` (height, width) somewhere around the mouth of the middle frame; it stays for the whole run."""
    left, top, right, bottom = look.mouth[len(look.mouth) // 2]
    starts = []
    for whole, part, near, far in zip(look.frames.shape[1:3], size, (top, left), (bottom, right), strict=True):
        middle = (near + far) / 2 * whole + rng.uniform(-0.25, 0.25) * part
        starts.append(int(np.clip(round(middle - part / 2), 0, whole - part)))
    (row, column), (height, width) = starts, look.frames.shape[1:3]
    moved = look.mouth * [width, height, width, height] - [column, row, column, row]
    frames = look.frames[:, row : row + size[0], column : column + size[1]]
    return Look(frames, moved / [size[1], size[0], size[1], size[0]])


def box_mask(boxes: Float[Tensor, "b t 4"], size: tuple[int, int]) -> Float[Tensor, "b t H W"]:
    """1 inside each box, 0 outside; boxes are in shares of the picture."""
    rows = (torch.arange(size[0]) + 0.5)[None, None, :, None] / size[0]
    columns = (torch.arange(size[1]) + 0.5)[None, None, None, :] / size[1]
    left, top, right, bottom = boxes[..., None, None].unbind(2)
    return ((rows >= top) & (rows <= bottom) & (columns >= left) & (columns <= right)).float()


def latent_means(pixels: Float[Tensor, "*b t H W"]) -> Float[Tensor, "*b f h w"]:
    """The mean of the pixels of each latent: 8x8 of them in four frames."""
    return F.avg_pool3d(pixels, (LATENT_STRIDE, PATCH, PATCH))


class ToonSource:
    """The procedural corpus: person and motion of a number are those of the seed of that number.

    Args:
        identities: people to train on; they are seeds `first`, `first` + 1, ….
        seconds: length of a talking clip.
        held_out: people to validate with, from seed 1,000,000 on.
        sounds: folder of what they say, kept beforehand (`python -m liveavatar.training.toon --sounds`); null asks
            espeak-ng.
        first: seed of the first person: a training that goes on may meet others than the one before.
        gestures: share of the talking clips whose prompt is drawn anew, with a head that nods or is shaken; 0 leaves
            them at the three in ten that prompts ask for by themselves. Of pictures without sound, where no prompt
            asks, it is the share of such heads.
        beards: share of the people to train on who are another man, with a full beard; 0 leaves them at one in nine.
    """

    def __init__(
        self,
        identities: int = 512,
        seconds: float = 8.0,
        held_out: int = 32,
        sounds: str | None = None,
        first: int = 0,
        gestures: float = 0.0,
        beards: float = 0.0,
    ) -> None:
        for key, value in (("identities", identities), ("held_out", held_out), ("seconds", seconds)):
            if value <= 0:
                raise ValueError(f"data.{key}={value} must be above 0")
        if not 0 <= first <= HELD_OUT - identities:
            raise ValueError(f"data.first={first}: people to train on are seeds from 0 to {HELD_OUT - identities}")
        for key, value in (("gestures", gestures), ("beards", beards)):
            if not 0 <= value <= 1:
                raise ValueError(f"data.{key}={value} is a share of the clips: write a number from 0 to 1")
        self.kept, self.seconds = range(first, first + identities), seconds
        self.gestures, self.beards = gestures, beards
        self.held_out = range(HELD_OUT, HELD_OUT + held_out)
        self.sounds = Path(sounds).expanduser() if sounds else None

    SPLIT = "validation"
    """Faces, voices and languages of the clips held out."""

    @property
    def token(self) -> str:
        # 2: heads and lids follow the voice; 3: nods begin with the clip; 4: of a voice, pauses alone shut lids.
        shares = f" {self.gestures}" if self.gestures or self.beards else ""
        return f"toon 4 {self.seconds}{shares}" + (f" {self.beards}" if self.beards else "")

    def look(self, number: int, frames: int, size: tuple[int, int]) -> Look:
        from liveavatar.training.toon import Identity, random_motion, render
        from liveavatar.training.toon.prompts import SWING_HZ, SWINGS, swung

        who, motion = Identity.sample(number), random_motion(number, frames)
        rng = np.random.default_rng([number, 7023])
        if rng.random() < self.gestures:
            motion = swung(motion, str(rng.choice(list(SWINGS))), rng.uniform(0, 1 / SWING_HZ))
        return Look(render(who, motion, size), mouth_boxes(who, motion, size))

    def tell(self, number: int) -> Told:
        clip = self._clip(number)
        return Told(clip.audio, mouth_curves(clip.motion))

    @property
    def choices(self) -> dict[str, tuple[str, ...]]:
        """What a prompt may ask for (`text_stage.WishingSource`)."""
        from liveavatar.metrics.toon_prompt import EMOTIONS, GESTURES, LIGHTS

        return {"emotion": EMOTIONS, "light": tuple(LIGHTS), "gesture": GESTURES}

    def wish(self, rng: np.random.Generator) -> Wish:
        """A prompt of its own kind, with the place of each of its wishes among the `choices`."""
        from liveavatar.training.toon.prompts import Attributes, write_prompt

        asked = Attributes.sample(rng)
        places = tuple(options.index(getattr(asked, name)) for name, options in self.choices.items())
        return Wish(write_prompt(asked, rng), places)

    def reword(self, prompt: str, rng: np.random.Generator) -> str:
        """Another prompt that asks for the same (`sources.RewordingSource`)."""
        from liveavatar.training.toon.prompts import read_prompt, write_prompt

        return write_prompt(read_prompt(prompt), rng)

    def _clip(self, number: int) -> Clip:
        from liveavatar.training.toon import make_clip
        from liveavatar.training.toon.kept import kept_sound

        split = "train" if number < HELD_OUT else self.SPLIT
        spoken = kept_sound(self.sounds, number, self.seconds, split) if self.sounds else None
        given = {"prompt": self._prompt(number), "identity": self._face(number)}
        return make_clip(number, self.seconds, split=split, spoken=spoken, **given)

    def _face(self, number: int) -> Identity | None:
        """Who has a full beard in the place of the person of that number; None leaves them as they are."""
        from liveavatar.training.toon import Identity
        from liveavatar.training.toon.clips import FACES

        rng = np.random.default_rng([number, 7022])
        if number >= HELD_OUT or rng.random() >= self.beards:
            return None
        who = Identity.sample(int(rng.integers(FACES)))
        while who.grown <= 0.5:
            who = Identity.sample(int(rng.integers(FACES)))
        return replace(who, beard="full")

    def _prompt(self, number: int) -> str | None:
        """What is asked of a clip that is to have a gesture; None leaves it to the clip's seed."""
        from liveavatar.training.toon.prompts import SWINGS, Attributes, write_prompt

        rng = np.random.default_rng([number, 7021])
        if rng.random() >= self.gestures:
            return None
        return write_prompt(replace(Attributes.sample(rng), gesture=str(rng.choice(list(SWINGS)))), rng)

    def talk(self, number: int, size: tuple[int, int]) -> Talk:
        from liveavatar.training.toon import render, render_still

        clip = self._clip(number)
        motion, curves = clip.motion, mouth_curves(clip.motion)
        boxes, eyes = mouth_boxes(clip.identity, motion, size), eye_boxes(clip.identity, motion, size)
        portrait = render_still(clip.identity, size)
        frames = render(clip.identity, motion, size)
        return Talk(frames, clip.audio, clip.prompt, portrait, boxes, curves, eyes, motion.blink)


def mouth_curves(motion: Motion) -> Float[np.ndarray, "t 3"]:
    """Opening, width and rounding of the mouth, frame by frame."""
    return np.stack([motion.opening, motion.width, motion.rounding], axis=1).astype(np.float32)


def mouth_boxes(who: Identity, motion: Motion, size: tuple[int, int]) -> Float[np.ndarray, "t 4"]:
    """Left, top, right and bottom of the mouth with some room around it, in shares of the picture."""
    return _boxes(who, motion, size, ("mouth_left", "mouth_right", "mouth_top", "mouth_bottom"), 0.12)


def eye_boxes(who: Identity, motion: Motion, size: tuple[int, int]) -> Float[np.ndarray, "t 4"]:
    """The same around both eyes and their brows."""
    return _boxes(who, motion, size, ("eye_left", "eye_right", "brow_left", "brow_right"), 0.2)


def _boxes(
    who: Identity, motion: Motion, size: tuple[int, int], names: Sequence[str], margin: float
) -> Float[np.ndarray, "t 4"]:
    from liveavatar.training.toon import landmarks

    places = landmarks(who, motion, size)
    corners = np.stack([places[name] for name in names])
    room = margin * places["unit_px"][:, None]
    boxes = np.concatenate((corners.min(0) - room, corners.max(0) + room), axis=1)
    return (boxes / [size[1], size[0], size[1], size[0]]).clip(0, 1).astype(np.float32)
