"""Procedures of the whole-pipeline kinds: a picture, a voice and a prompt through `AvatarSession`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from liveavatar.checkpoint.keymap_encoders import SPEECH
from liveavatar.intake import Parts, SpeechSettings
from liveavatar.models.dit.state import CellState
from liveavatar.models.speech import SpeechEncoder
from liveavatar.sampling.conditioning import RolloutSettings
from liveavatar.sampling.noise import TableDistance, TableNoise
from liveavatar.sampling.scheduler import EulerSampler
from liveavatar.session import AvatarSession
from liveavatar.types import AvatarRequest
from tests.goldens import build
from tests.goldens.case import Case
from tests.goldens.parts import codec, text_encoder


class StubTokenizer:
    """The case's stand-in for umT5's tokenizer: one id per character."""

    def __init__(self, vocab: int, text_len: int) -> None:
        self.vocab, self.text_len = vocab, text_len

    def __call__(self, text: str) -> list[int]:
        return [*[3 + ord(letter) % (self.vocab - 3) for letter in text][: self.text_len - 1], 1]


class RecordingSampler(EulerSampler):
    """Keeps the latents after each of the first steps."""

    def __init__(self, steps: int) -> None:
        super().__init__(steps)
        self.after: list[Tensor] = []

    def step(self, x: Tensor, velocity: Tensor, index: int) -> Tensor:
        stepped = super().step(x, velocity, index)
        if len(self.after) < self.steps:
            self.after.append(stepped[0])
        return stepped


class Run:
    """One generation, with everything that a case may store of it."""

    def __init__(self, case: Case, source: Case, settings: RolloutSettings, online: bool) -> None:
        info, arguments = source.info, source.info["generate_args"]
        folder = source.folder
        with torch.device("meta"):
            speech = SpeechEncoder.from_config(info["wav2vec2_config"])
        t5 = info["t5_config"]
        parts = Parts(
            dit=build.dit(info["dit_config"], folder / "weights_dit.safetensors"),
            text=text_encoder(t5, source, "weights_t5.safetensors"),
            tokenizer=StubTokenizer(t5["vocab_size"], t5["text_len"]),
            speech=build.filled(speech, folder / "weights_wav2vec2.safetensors", SPEECH),
            codec=codec(info["vae_config"], source, "weights_vae.safetensors"),
        )
        self.sampler = RecordingSampler(case.info.get("sampling_steps", arguments["sampling_steps"]))
        session = AvatarSession(parts, self.sampler, settings, SpeechSettings("full"), build.CPU, decode_online=online)
        request = AvatarRequest(
            image=folder / arguments["ref_image"],
            audio=(folder / arguments["audio"],),
            prompt=arguments["input_prompt"],
            size=arguments["max_area"],
            seed=arguments["seed"],
        )
        stream = session.prepare(
            request,
            TableNoise(source.inputs["noise"]),
            TableDistance(case.info.get("relative_dist", info["relative_dist"])),
        )
        self.given = stream.gathered.conditioning
        self.prefills: list[tuple[Tensor, Tensor]] = []
        watch = parts.dit.register_forward_hook(self._note)
        chunks = list(session.chunks(stream))
        watch.remove()
        self.frames = torch.cat([chunk.frames for chunk in chunks])
        self.levels = torch.cat([chunk.pixels() for chunk in chunks]).permute(0, 3, 1, 2)
        blocks = {number: latents for chunk in chunks for number, latents in chunk.latents.items()}
        per_clip = settings.blocks_per_clip
        stacked = torch.stack([blocks[number] for number in sorted(blocks)])
        self.clips = stacked.unflatten(0, (-1, per_clip)).transpose(1, 2).flatten(2, 3)

    def _note(self, module: Any, args: Any, states: list[CellState]) -> None:
        self.prefills += [(s.inputs.reference, s.inputs.motion) for s in states if s.is_sink]

    def tensor(self, what: str, stored_frames: list[int]) -> Tensor:
        """The tensor that a case calls `what`."""
        if found := re.fullmatch(r"video_pooled16(?:_from(\d+))?", what):
            return F.avg_pool2d(self.frames, 16)[int(found.group(1) or 0) :]
        if found := re.fullmatch(r"latents_clip(\d+)", what):
            return self.clips[int(found.group(1))]
        if found := re.fullmatch(r"(ref|motion)_latents_r(\d+)_?(?:last(\d+))?", what):
            reference, motion = self.prefills[int(found.group(2))]
            return reference if found.group(1) == "ref" else motion[0, :, -int(found.group(3)) :]
        if found := re.fullmatch(r"motion_latents(?:_last(\d+))?", what):
            return self.given.motion[0, :, -int(found.group(1) or 10**6) :]
        known = {
            "latents": lambda: self.clips,
            "context": lambda: self.given.text[0],
            "audio_emb": lambda: self.given.audio.features,
            "ref_latents": lambda: self.given.reference,
            "clip0_block0_steps": lambda: torch.stack(self.sampler.after),
            "video_u8_frames": lambda: self.levels[stored_frames],
        }
        return known[what]()


def reference_settings(mode: str) -> RolloutSettings:
    """The reference's own behaviour, by named options: sound not aligned, whole clips."""
    return RolloutSettings(mode=mode, align_sound=False, whole_clips=True, masks_follow_block=False)


def clipwise(case: Case) -> None:
    """The single-GPU program, decoding online and offline."""
    stored = case.info["video_frames_stored"]
    for online in (True, False):
        word = "online" if online else "offline"
        run = Run(case, case, reference_settings("clipwise"), online)
        for name in case.names():
            mode, dot, what = name.partition(".")
            if dot and mode != word:
                continue
            case.check(name, run.tensor(what if dot else name, stored[word]))


def streaming(case: Case) -> None:
    """The pipelined program: the same job, other conditioning, other decoding."""
    source = Case((case.folder / _same_as(case)).resolve())
    run = Run(case, source, reference_settings("streaming"), online=True)
    for name in case.names():
        case.check(name, run.tensor(name, case.info["video_frames_stored"]))


def _same_as(case: Case) -> Path:
    """`same_as` is a path relative to the case, at the end of a phrase that says what is shared."""
    return Path(re.findall(r"\.\.?/[\w./-]+", case.info["same_as"])[-1])
