"""Meters that look with networks whose weights the user has: LPIPS, FID, FVD and likeness by DINOv2.

Each takes a file or folder by its key; without it its values are `skipped: <reason>`. Nothing is fetched, and code of
a file is never run.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from liveavatar.metrics.about import About, records, skipped
from liveavatar.metrics.frechet import Moments, frechet
from liveavatar.metrics.nets.alexnet import Lpips
from liveavatar.metrics.nets.files import filled
from liveavatar.metrics.nets.i3d import I3d
from liveavatar.metrics.nets.inception import Inception
from liveavatar.metrics.reference import LACKING
from liveavatar.metrics.series import Mean
from liveavatar.metrics.suite import Piece

NO_FILE = "metrics.meters.{key}.weights is not set: name there {what}"


def pictures(frames: np.ndarray, device: str) -> Tensor:
    """RGB from 0 to 1, [t, 3, H, W], of frames uint8 [t, H, W, 3]."""
    return torch.tensor(frames, device=device).permute(0, 3, 1, 2).float() / 255


def _checked(key: str, per_s: float) -> float:
    if per_s <= 0:
        raise ValueError(f"metrics.meters.{key}.per_s={per_s} must be above 0: write 1")
    return per_s


class LpipsMeter:
    """How different frames look from those of the reference, by a network: `per_s` of them a second.

    weights: torchvision's AlexNet, `alexnet-owt-7be5be79.pth`. Raises ValueError for a file of another network.
    """

    abouts = records(
        ("reference/lpips", "LPIPS 0.1 on AlexNet (Zhang et al. 2018) against the reference, in the video's size, mean over sampled frames", "from 0; about 0 to 1", "lower"),
        requires="weights of AlexNet; reference=…",
    )  # fmt: skip

    def __init__(self, weights: str | None = None, per_s: float = 5.0, device: str = "cpu") -> None:
        self.per_s, self.device, self._mean = _checked("lpips", per_s), device, Mean()
        self._net: nn.Module | None = None
        if weights is not None:
            self._net = Lpips.load(weights, "metrics.meters.lpips.weights").to(device).eval()

    @torch.inference_mode()
    def see(self, piece: Piece) -> None:
        if self._net is None or piece.reference is None:
            return
        apart = max(1, round(piece.fps / self.per_s))
        theirs = piece.reference[(-piece.start) % apart :: apart]
        mine = piece.frames[(-piece.start) % apart :: apart][: len(theirs)]
        if len(mine):
            a, b = (2 * _at_least(pictures(frames, self.device), 64) - 1 for frames in (mine, theirs))
            self._mean.add(self._net(a, b).double().cpu().numpy())

    def values(self) -> dict[str, float | str]:
        if self._net is None:
            what = "torchvision's AlexNet, alexnet-owt-7be5be79.pth"
            return skipped(NO_FILE.format(key="lpips", what=what), self.abouts)
        return {"reference/lpips": self._mean.value} if self._mean.count else skipped(LACKING, self.abouts)


def _at_least(x: Tensor, side: int) -> Tensor:
    """Pictures made larger until the shorter side is `side` pixels, below which AlexNet runs out of picture."""
    if min(x.shape[2:]) >= side:
        return x
    scale = side / min(x.shape[2:])
    size = [max(side, round(length * scale)) for length in x.shape[2:]]
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


class FrechetMeter:
    """Distance of the cloud of features from that of the reference: the common part of FID and FVD."""

    abouts: tuple[About, ...] = ()
    key, what, value, number = "", "", "", ""

    def __init__(self, net: nn.Module | None, width: int, device: str) -> None:
        self.device = device
        self._net = None if net is None else net.to(device).eval()
        self._mine, self._theirs = (Moments(0 if net is None else width) for _ in range(2))

    def _add(self, mine: Tensor, theirs: Tensor) -> None:
        assert self._net is not None
        self._mine.add(self._net(mine).double().cpu().numpy())
        self._theirs.add(self._net(theirs).double().cpu().numpy())

    def values(self) -> dict[str, float | str]:
        if self._net is None:
            return skipped(NO_FILE.format(key=self.key, what=self.what), self.abouts)
        count = self._mine.count
        if not count:
            return skipped(
                f"{LACKING}, of {FvdMeter.FRAMES} frames at least" if self.key == "fvd" else LACKING, self.abouts
            )
        found: dict[str, float | str] = {self.number: float(count)}
        few = "skipped: a covariance needs two samples at least"
        return found | {self.value: few if count < 2 else frechet(self._mine, self._theirs)}


class FidMeter(FrechetMeter):
    """FID of the frames against those of the reference, `per_s` of them a second.

    weights: `pt_inception-2015-12-05-6726825d.pth`. Raises ValueError for a file of another network.
    """

    abouts = records(
        ("reference/fid", "Fréchet distance of Inception-v3 features (2015 TensorFlow weights, 2048-d, bilinear 299) of frames of this video and of the reference; few frames make it larger, so compare at equal counts only", "from 0", "lower"),
        ("reference/fid_frames", "frames of each that were compared", "count", "none"),
        requires="weights of Inception-v3; reference=…",
    )  # fmt: skip
    key, value, number = "fid", "reference/fid", "reference/fid_frames"
    what = "the Inception of FID, pt_inception-2015-12-05-6726825d.pth"

    def __init__(self, weights: str | None = None, per_s: float = 5.0, device: str = "cpu") -> None:
        self.per_s = _checked("fid", per_s)
        net = None if weights is None else filled(Inception(), weights, "metrics.meters.fid.weights")
        super().__init__(net, Inception.width, device)

    @torch.inference_mode()
    def see(self, piece: Piece) -> None:
        if self._net is None or piece.reference is None:
            return
        apart = max(1, round(piece.fps / self.per_s))
        theirs = piece.reference[(-piece.start) % apart :: apart]
        mine = piece.frames[(-piece.start) % apart :: apart][: len(theirs)]
        if len(mine):
            self._add(pictures(mine, self.device), pictures(theirs, self.device))


class FvdMeter(FrechetMeter):
    """FVD of clips of 16 frames, one after another, against those of the reference.

    weights: a state dict of I3D, as `rgb_imagenet.pt`. Raises ValueError for a file of another network, or TorchScript.
    """

    FRAMES = 16
    abouts = records(
        ("reference/fvd", "Fréchet distance of I3D logits (Kinetics-400, 224) of clips of 16 frames of this video and of the reference; few clips make it larger, so compare at equal counts only", "from 0", "lower"),
        ("reference/fvd_clips", "clips of each that were compared", "count", "none"),
        requires="weights of I3D; reference=…",
    )  # fmt: skip
    key, value, number = "fvd", "reference/fvd", "reference/fvd_clips"
    what = "a state dict of I3D on Kinetics-400, as rgb_imagenet.pt"

    def __init__(self, weights: str | None = None, device: str = "cpu") -> None:
        net = None if weights is None else filled(I3d(), weights, "metrics.meters.fvd.weights")
        super().__init__(net, I3d.width, device)
        self._held: list[np.ndarray] = []

    @torch.inference_mode()
    def see(self, piece: Piece) -> None:
        if self._net is None or piece.reference is None:
            return
        self._held += list(np.stack([piece.frames[: len(piece.reference)], piece.reference], axis=1))
        while len(self._held) >= self.FRAMES:
            both, self._held = np.stack(self._held[: self.FRAMES], axis=1), self._held[self.FRAMES :]
            mine, theirs = (pictures(frames, self.device).transpose(0, 1)[None] for frames in both)
            self._add(mine, theirs)


class DinoMeter:
    """Likeness to a portrait, or to the first frame, by DINOv2: `per_s` frames a second.

    weights: a folder of transformers (config.json, model.safetensors), as of facebook/dinov2-large. portrait: a picture.
    Raises ValueError for a folder that holds no DINOv2.
    """

    abouts = records(
        ("identity/dino_s", "Dino-S: cosine of DINOv2's class embeddings (shorter side 256, middle 224) with the portrait's, or the first frame's where none is given, mean over sampled frames; layer, size and rate are ours, the paper names none", "-1 to 1", "higher"),
        requires="a folder of DINOv2 for transformers",
    )  # fmt: skip

    def __init__(
        self, weights: str | None = None, portrait: str | None = None, per_s: float = 1.0, device: str = "cpu"
    ) -> None:
        self.per_s, self.device, self._likeness = _checked("dino", per_s), device, Mean()
        self._net: Any = None if weights is None else _dino(weights).to(device)
        self._first: Tensor | None = None
        if portrait is not None and self._net is not None:
            self._first = self._looked(_portrait(portrait)[None])[0]

    def _looked(self, frames: np.ndarray) -> Tensor:
        with torch.inference_mode():
            x = pictures(frames, self.device)
            scale = 256 / min(x.shape[2:])
            size = [round(length * scale) for length in x.shape[2:]]
            x = F.interpolate(x, size=size, mode="bicubic", align_corners=False, antialias=True).clamp(0, 1)
            top, left = ((length - 224) // 2 for length in size)
            x = x[:, :, top : top + 224, left : left + 224]
            mean, spread = (x.new_tensor(v).view(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
            return F.normalize(self._net((x - mean) / spread).last_hidden_state[:, 0].double(), dim=1)

    def see(self, piece: Piece) -> None:
        if self._net is None:
            return
        chosen = piece.frames[(-piece.start) % (apart := max(1, round(piece.fps / self.per_s))) :: apart]
        if len(chosen):
            found = self._looked(chosen)
            self._first = found[0] if self._first is None else self._first
            self._likeness.add((found @ self._first).cpu().numpy())

    def values(self) -> dict[str, float | str]:
        if self._net is None:
            what = "a folder of DINOv2 for transformers, as facebook/dinov2-large"
            return skipped(NO_FILE.format(key="dino", what=what), self.abouts)
        return {"identity/dino_s": self._likeness.value}


def _portrait(path: str) -> np.ndarray:
    try:
        with Image.open(Path(path).expanduser()) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, Image.DecompressionBombError) as error:
        raise ValueError(f"metrics.meters.dino.portrait={path} cannot be read as a picture ({error})") from error


def _dino(folder: str) -> nn.Module:
    from transformers import Dinov2Model

    key, place = "metrics.meters.dino.weights", Path(folder).expanduser()
    if not (place / "config.json").is_file():
        raise ValueError(f"{key}={folder} is no folder of transformers: it has no config.json")
    try:
        loaded: Any = Dinov2Model.from_pretrained(
            place, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise ValueError(f"{key}={folder} cannot be read as DINOv2 ({str(error).splitlines()[0]})") from error
    net, told = loaded
    if told["missing_keys"]:
        raise ValueError(f"{key}={folder} lacks {len(told['missing_keys'])} tensors of DINOv2: is it another model?")
    return net.eval().requires_grad_(False)
