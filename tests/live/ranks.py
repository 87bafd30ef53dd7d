"""One rank of a group that holds live sessions with every kind of strategy, one after another.

Started by `test_ranks.py` with the environment that torchrun gives. Rank 0 leaves the latents of its sessions; the
others never come back from `liveavatar.load`, which a test may catch.
"""

from __future__ import annotations

import sys
from itertools import islice
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import liveavatar
from liveavatar.live.avatar import Avatar
from tests.live.scene import WORDS, pcm

COMMON = (*WORDS, "sampler.steps=2", "rollout.frames_per_clip=24")
CASES = {
    "fsdp_stream": ("+strategy=fsdp_stream",),
    "split": ("+strategy=replicated", "parallel.decode=split"),
    "steps": ("+strategy=timestep_pipeline",),
    "layers": ("+strategy=diagonal_pipeline",),
}
SECONDS = 2.2
"""Of voice: 5 blocks, so that the sink is renewed and a ring turns."""


def streams(avatar: Avatar, image: Path, changes: bool) -> dict[str, torch.Tensor]:
    """Two sessions in turns, one of which changes its prompt after two blocks, and one after them."""
    first = avatar.session(image)
    second = avatar.session(image, "Another.", seed=5, decode=False)
    for number, session in enumerate((first, second)):
        session.push(pcm(SECONDS, seed=number))
        session.finish()
    mine, theirs = list(islice(first, 2)), list(islice(second, 2))
    if changes:
        first.prompt = "It rains."
    for _ in range(5):
        mine += islice(first, 1)
        theirs += islice(second, 1)
    third = avatar.session(image, decode=False, start_block=7)
    third.push(pcm(SECONDS, seed=3))
    third.finish()
    found = {}
    for name, chunks in (("first", mine), ("second", theirs), ("third", list(third))):
        found |= {f"{name}-{chunk.index}": chunk.latents[chunk.index].contiguous() for chunk in chunks}
    found["frames"] = torch.cat([chunk.frames for chunk in mine]).contiguous()
    return found


def main() -> None:
    folder, image = Path(sys.argv[1]), Path(sys.argv[2])
    for name, words in CASES.items():
        try:
            with liveavatar.load("micro", [*COMMON, *words]) as avatar:
                changes = name != "layers"
                found = streams(avatar, image, changes)
                if not changes:
                    session = avatar.session(image, decode=False)
                    with pytest.raises(ValueError, match="layers are divided"):
                        session.prompt = "It rains."
                    session.close()
            save_file(found, folder / f"{name}.safetensors")
        except SystemExit as ended:
            if ended.code:
                raise


if __name__ == "__main__":
    main()
