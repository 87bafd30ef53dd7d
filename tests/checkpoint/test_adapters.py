"""LoRA files beside the weights: as merged within rounding, listed, weighed, swapped, and gone without a trace."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from liveavatar.assemble import assemble
from liveavatar.checkpoint.adapters import Adapters
from liveavatar.checkpoint.keymap_dit import DIT
from liveavatar.checkpoint.lora import LoraWeights
from liveavatar.checkpoint.read import RandomWeights
from liveavatar.config import compose
from liveavatar.strategies.single import SingleDevice
from tests.running import SMALL, latents_of
from tests.scene import draw, make_dit, meta_dit

TARGETS = ("blocks.0.self_attn.q", "blocks.1.cross_attn.v", "blocks.2.ffn.0", "audio_injector.injector.1.o")


def _lora(path: Path, seed: int, targets: tuple[str, ...] = TARGETS) -> Path:
    held: dict[str, Tensor] = {}
    for number, target in enumerate(targets):
        shape = (64, 32) if target.endswith("ffn.0") else (32, 32)
        held[f"{target}.lora_A.weight"] = draw(seed + number, 4, shape[1]) * 0.2
        held[f"{target}.lora_B.weight"] = draw(seed + number + 50, shape[0], 4) * 0.2
    save_file(held, path)
    return path


def _outputs(dit: Any) -> dict[str, Tensor]:
    """What each changed layer gives for one input."""
    names = {DIT.to_ours(f"{target}.weight"): target for target in TARGETS}
    layers = dict(dit.named_modules())
    return {name: layers[name.removesuffix(".weight")](draw(9, 3, 32)) for name in names if name}


def test_beside_the_weights_is_as_merged_into_them(tmp_path: Path) -> None:
    first, second = _lora(tmp_path / "a.safetensors", 1), _lora(tmp_path / "b.safetensors", 200, TARGETS[:2])
    plain = make_dit()
    before = _outputs(plain)
    adapters = Adapters(plain, torch.device("cpu"), torch.float32)
    assert adapters.add(first, 0.5, alpha=8) == "a"
    adapters.add(second, 1.0, name="style", alpha=8)
    assert adapters.weights() == {"a": 0.5, "style": 1.0}
    assert adapters.nbytes == sum(path.stat().st_size for path in (first, second)) - _headers(first, second)
    merged = meta_dit()
    base = LoraWeights(RandomWeights(0), first, DIT, alpha=8, weight=0.5)
    SingleDevice().place(merged, LoraWeights(base, second, DIT, alpha=8), torch.float32)
    for name, output in _outputs(merged).items():
        torch.testing.assert_close(_outputs(plain)[name], output, rtol=1e-5, atol=1e-5)
        assert (output - before[name]).abs().max() > 0.05
    adapters.weigh("a", 0.0)
    adapters.remove("style")
    assert adapters.weights() == {"a": 0.0}
    assert all(torch.equal(_outputs(plain)[name], value) for name, value in before.items())
    adapters.weigh("a", 1.0)
    adapters.remove("a")
    assert all(torch.equal(_outputs(plain)[name], value) for name, value in before.items())


def _headers(*paths: Path) -> int:
    return sum(8 + int.from_bytes(path.read_bytes()[:8], "little") for path in paths)


def test_what_cannot_be_attached_is_refused(tmp_path: Path) -> None:
    adapters = Adapters(make_dit(), torch.device("cpu"), torch.float32)
    save_file({"patch_embedding.bias": torch.zeros(32)}, tmp_path / "whole.safetensors")
    with pytest.raises(ValueError, match=r"whole\.safetensors changes 'patch_embedding\.bias'.*weights\.lora"):
        adapters.add(tmp_path / "whole.safetensors")
    with pytest.raises(ValueError, match=r"blocks\.7"):
        adapters.add(_lora(tmp_path / "deep.safetensors", 1, ("blocks.7.self_attn.q",)))
    with pytest.raises(ValueError, match="no LoRA file 'x' is attached; there are: none"):
        adapters.weigh("x", 1.0)
    assert not adapters.weights()


def test_a_run_attaches_and_swaps_them_between_chunks(tmp_path: Path) -> None:
    path = _lora(tmp_path / "a.safetensors", 1)
    words = [*SMALL, "weights=random", "sink=none", "request.max_seconds=1.9", "parallel.hoist=false"]

    def run(*more: str, swap: bool = False) -> Tensor:
        made = assemble(compose("infer", [*words, *more, f"output.dir={tmp_path}/{len(more)}{swap}"]))
        chunks = []
        with made:
            for chunk in made.chunks():
                chunks.append(chunk)
                if swap and len(chunks) == 2:
                    assert made.adapters is not None
                    made.adapters.remove("a")
        return latents_of(chunks)

    plain, changed = run(), run(f"adapters=[{{path: {path}, weight: 2}}]")
    assert "adapters: a × 2, " in (tmp_path / "1False" / "run.log").read_text()
    assert not torch.equal(plain[:1], changed[:1])
    swapped = run(f"adapters=[{{path: {path}, weight: 2}}]", swap=True)
    assert torch.equal(swapped[:2], changed[:2])
    assert not torch.equal(swapped[2:], changed[2:])
    with pytest.raises(ValueError, match=r"adapters: .* is neither a file nor"):
        run("adapters=[{file: x}]")


def test_streamed_units_take_them_too(tmp_path: Path) -> None:
    path = _lora(tmp_path / "a.safetensors", 1)
    words = [*SMALL, "weights=random", "sink=none", "request.max_seconds=1", f"adapters=[{path}]"]
    found = []
    for strategy in ([], ["+strategy=fsdp_stream", "strategy.source=host"]):
        made = assemble(compose("infer", [*words, *strategy, f"output.dir={tmp_path}/{len(strategy)}"]))
        with made:
            found.append(latents_of(list(made.chunks())))
    assert torch.equal(found[0], found[1])
