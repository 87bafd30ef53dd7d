"""Talking faces by procedure: parametric 2-D faces whose lips follow speech, deterministic by seed.

Synthetic people for training and measuring a small avatar model: `Identity` says who is drawn, `Motion` what moves,
`render` makes the pictures, `landmarks` the ground truth; `make_clip` and `corpus` add voices and prompts.
"""

from liveavatar.training.toon.clips import Clip, corpus, make_clip
from liveavatar.training.toon.identity import Identity
from liveavatar.training.toon.motion import Motion, idle, random_motion
from liveavatar.training.toon.prompts import Attributes, read_prompt
from liveavatar.training.toon.render import landmarks, render, render_still

__all__ = [
    "Attributes",
    "Clip",
    "Identity",
    "Motion",
    "corpus",
    "idle",
    "landmarks",
    "make_clip",
    "random_motion",
    "read_prompt",
    "render",
    "render_still",
]
