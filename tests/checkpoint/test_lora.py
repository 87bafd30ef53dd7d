"""LoRA files on top of a checkpoint: all usual spellings of their names, and files that do not fit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from liveavatar.checkpoint.keymap_dit import DIT
from liveavatar.checkpoint.lora import LoraWeights
from liveavatar.checkpoint.read import RandomWeights, expect
from liveavatar.ops.lora import merge
from tests.scene import meta_dit

NAME = "blocks.0.self_attn.q"
SHAPE = torch.Size((6, 4))
BASE = RandomWeights(0)


def _pair(rank: int = 2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(rank, 4, generator=generator), torch.randn(6, rank, generator=generator)


def _saved(folder: Path, tensors: dict[str, Tensor]) -> Path:
    path = folder / "lora.safetensors"
    save_file(tensors, path)
    return path


@pytest.mark.parametrize("prefix", ["", "base_model.model.", "diffusion_model."])
@pytest.mark.parametrize("adapter", ["", ".default", ".mine"])
def test_every_usual_spelling_is_understood(tmp_path: Path, prefix: str, adapter: str) -> None:
    down, up = _pair()
    names = {f"{prefix}{NAME}.lora_A{adapter}.weight": down, f"{prefix}{NAME}.lora_B{adapter}.weight": up}
    source = LoraWeights(BASE, _saved(tmp_path, names), DIT, alpha=8.0, weight=0.5)
    ours = f"{NAME}.weight"
    expected = BASE.read(ours, SHAPE) + 0.5 * 8.0 / 2 * up @ down
    torch.testing.assert_close(source.read(ours, SHAPE), expected)
    assert source.targets == [ours]
    untouched = "blocks.1.self_attn.q.weight"
    assert torch.equal(source.read(untouched, SHAPE), BASE.read(untouched, SHAPE))
    assert source.origin == "random + lora.safetensors"


def test_whole_tensors_replace_those_of_the_base(tmp_path: Path) -> None:
    source = LoraWeights(BASE, _saved(tmp_path, {"patch_embedding.weight": torch.ones(SHAPE)}), DIT)
    assert torch.equal(source.read("embed.patch_embedding.weight", SHAPE), torch.ones(SHAPE))
    with pytest.raises(ValueError, match=r"'patch_embedding\.weight' has shape \[6, 4\]"):
        source.read("embed.patch_embedding.weight", torch.Size((4, 6)))


def test_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    down, up = _pair()
    with pytest.raises(ValueError, match=r"weights\.lora: .*does not exist"):
        LoraWeights(BASE, tmp_path / "absent.safetensors", DIT)
    (tmp_path / "garbage.safetensors").write_bytes(b"garbage")
    with pytest.raises(ValueError, match=r"weights\.lora: .*garbage.*neither a safetensors"):
        LoraWeights(BASE, tmp_path / "garbage.safetensors", DIT)
    with pytest.raises(ValueError, match="only one of lora_A and lora_B"):
        LoraWeights(BASE, _saved(tmp_path, {f"{NAME}.lora_A.weight": down}), DIT)
    with pytest.raises(ValueError, match=r"'nose\.lora_A\.weight' names no tensor of the DiT"):
        LoraWeights(BASE, _saved(tmp_path, {"nose.lora_A.weight": down}), DIT)
    for wrong in ({"lora_A": down[:, :3], "lora_B": up}, {"lora_A": down, "lora_B": up[:, :1]}):
        names = {f"{NAME}.{part}.weight": tensor.contiguous() for part, tensor in wrong.items()}
        source = LoraWeights(BASE, _saved(tmp_path, names), DIT)
        with pytest.raises(ValueError, match="is it a LoRA for this model"):
            source.read(f"{NAME}.weight", SHAPE)


def test_pairs_for_layers_that_the_model_lacks_are_refused(tmp_path: Path) -> None:
    down, up = _pair()
    for far in ("blocks.3.self_attn.q", "audio_injector.injector.2.q"):
        pairs = {name: dict(zip("AB", _pair(), strict=True)) for name in (NAME, far)}
        names = {f"{name}.lora_{part}.weight": tensor for name, pair in pairs.items() for part, tensor in pair.items()}
        source = LoraWeights(BASE, _saved(tmp_path, names), DIT)
        model = meta_dit()
        with pytest.raises(ValueError, match=rf"weights\.lora=.*lacks 1 of them.*'{far}\.lora_A\.weight'"):
            expect(source, {name: parameter.shape for name, parameter in model.named_parameters()})
    whole = LoraWeights(BASE, _saved(tmp_path, {"blocks.7.self_attn.q.bias": torch.ones(4)}), DIT)
    with pytest.raises(ValueError, match=r"lacks 1 .*'blocks\.7\.self_attn\.q\.bias'"):
        expect(whole, {f"{NAME}.weight": SHAPE})
    fitting = LoraWeights(BASE, _saved(tmp_path, {f"{NAME}.lora_A.weight": down, f"{NAME}.lora_B.weight": up}), DIT)
    expect(fitting, {f"{NAME}.weight": SHAPE})
    expect(BASE, {})  # a source without names of its own has nothing to say


def test_merging_is_pefts() -> None:
    peft = pytest.importorskip("peft", reason="peft comes with the extra `dev`")
    generator = torch.Generator().manual_seed(3)
    model = torch.nn.Sequential(torch.nn.Linear(4, 6, bias=False))
    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=2, lora_alpha=8, target_modules=["0"]))
    down, up = (torch.randn(shape, generator=generator) for shape in ((2, 4), (6, 2)))
    layer = wrapped.base_model.model[0]
    layer.lora_A.default.weight.data, layer.lora_B.default.weight.data = down, up
    before = layer.base_layer.weight.detach().clone()
    torch.testing.assert_close(merge(before, down, up, 8 / 2), wrapped.merge_and_unload()[0].weight.detach())
