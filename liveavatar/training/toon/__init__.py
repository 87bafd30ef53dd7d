"""Talking faces by procedure: parametric 2-D faces whose lips follow speech, deterministic by seed.

Synthetic people for training and measuring a small avatar model: `Identity` says who is drawn, `Motion` what moves,
`render` makes the pictures, `landmarks` the ground truth.
"""

from liveavatar.training.toon.identity import Identity
from liveavatar.training.toon.motion import Motion, idle, random_motion
from liveavatar.training.toon.render import landmarks, render, render_still

__all__ = ["Identity", "Motion", "idle", "landmarks", "random_motion", "render", "render_still"]
