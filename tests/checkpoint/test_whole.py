"""The whole 14B DiT through `python -m liveavatar.convert`: published shards in, one slab per unit out, 33 GB.

The shards are holes with some numbers at both ends of every tensor, so only what is written takes room on the disk.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor

from liveavatar.checkpoint.keymap_encoders import SPEECH, TEXT_TRANSFORMERS, VAE_DIFFUSERS
from liveavatar.checkpoint.places import Place
from liveavatar.checkpoint.published import DIT_STEM, SPEECH_FOLDER, Published
from liveavatar.checkpoint.read import RandomWeights
from liveavatar.checkpoint.streamable import Streamable
from tests.checkpoint.loading_worker import write_hole, write_holes
from tests.checkpoint.writing import modules
from tests.running import command

NUMBERS = 16_295_755_609
NEEDED = 40e9
MOST = 2e9
"""Bytes of memory that the process may hold, torch included."""
EDGE = 512
"""Numbers written at each end of a tensor."""


def _edges(place: Place) -> list[Place]:
    """The first and the last numbers of a tensor."""
    count = max(1, min(EDGE, place.shape.numel() // 2))
    last = place.offset + (place.shape.numel() - count) * 2
    return [Place(offset, torch.Size((count,)), torch.bfloat16) for offset in (place.offset, last)]


def _numbers(name: str, place: Place) -> Tensor:
    return RandomWeights(0).read(f"{name}.bias", place.shape).to(torch.bfloat16)


def _write(folder: Path) -> None:
    """The published folder at its real size."""
    models, base = modules("s2v_14b"), folder / "Wan2.2-S2V-14B"
    for place, name, keymap in (
        (base / "text_encoder" / "model.safetensors", "text", TEXT_TRANSFORMERS),
        (base / SPEECH_FOLDER / "model.safetensors", "speech", SPEECH),
        (base / "vae" / f"{DIT_STEM}.safetensors", "vae", VAE_DIFFUSERS),
    ):
        place.parent.mkdir(parents=True)
        write_hole(place, {keymap.to_published(own): p.shape for own, p in models[name].named_parameters()})
    write_holes(base, models["dit"])  # type: ignore[arg-type]
    dit = Published(folder).components["dit"]
    for file in dit.files:
        with file.path.open("r+b") as written:
            for name, place in file.places.items():
                for edge in _edges(place):
                    written.seek(edge.offset)
                    written.write(_numbers(str(dit.keymap.to_ours(name)), edge).view(torch.uint8).numpy().data)


def _run(words: list[str], cwd: Path) -> tuple[float, int]:
    """A conversion in a process of its own: its seconds, and at most so many bytes held (the figure starts at ours)."""
    began = time.perf_counter()
    with (cwd / "said").open("w") as said:
        child = subprocess.Popen(command(*words, module="liveavatar.convert"), cwd=cwd, stderr=said)
        _, status, used = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    assert child.returncode == 0, (cwd / "said").read_text()
    assert "is written and checked" in (cwd / "said").read_text()
    return time.perf_counter() - began, used.ru_maxrss * 1024


@pytest.mark.slow
@pytest.mark.timeout(5400)
def test_the_whole_dit_is_converted_in_little_memory(tmp_path: Path) -> None:
    if shutil.disk_usage(tmp_path).free < NEEDED:
        pytest.skip("needs 40 GB of disk")
    to = tmp_path / "fast"
    try:
        _write(tmp_path)
        words = ["model=s2v_14b", f"weights.dir={tmp_path}", "components=[dit]", f"to={to}"]
        seconds, peak = _run(words, tmp_path)
        size = sum(path.stat().st_size for path in to.rglob("*.slab"))
        again, _ = _run(words, tmp_path)
        told = {"seconds": seconds, "gb": size / 1e9, "peak_gb": peak / 1e9, "again_s": again}
        (Path(os.environ.get("CONVERSION_TABLE", tmp_path)) / "conversion.json").write_text(json.dumps(told) + "\n")
        assert 0 <= size - 2 * NUMBERS < 1e6
        assert peak < MOST
        assert again < seconds
        found, shapes = Streamable(to), {n: p.shape for n, p in modules("s2v_14b")["dit"].named_parameters()}
        assert set(found.names()) == set(shapes)
        for name, shape in shapes.items():
            file, place = found.located(name, shape)
            for edge in _edges(place):
                assert torch.equal(file.at(edge), _numbers(name, edge)), name
    finally:
        shutil.rmtree(to, ignore_errors=True)
