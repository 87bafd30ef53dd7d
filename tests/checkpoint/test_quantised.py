"""Weights in one byte a number: a converted folder gives the same bits, in the memory foreseen."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from liveavatar.assemble import assemble
from liveavatar.checkpoint.quantised import Quantised, check_kind, quantised
from liveavatar.checkpoint.read import RandomWeights, expect, read_rows
from liveavatar.checkpoint.streamable import Streamable
from liveavatar.config import compose
from liveavatar.convert import convert
from liveavatar.models.dit.quantised import quantise_linears
from liveavatar.ops.quantise import KINDS, quantise
from tests.checkpoint.writing import write_published
from tests.running import SMALL, latents_of, picture, speech, write_wav
from tests.scene import meta_dit

MATRIX = "blocks.1.ffn.0.weight"


def test_a_source_gives_payload_scales_and_the_rest() -> None:
    dit = meta_dit()
    shapes = quantise_linears(dit, "fp8")
    assert len(shapes) == 10 * 3 + 4 * 2 + 2  # of three blocks, two injectors and their tones
    source, base = Quantised(RandomWeights(0), "fp8", shapes), RandomWeights(0)
    payload, scale = quantise(base.read(MATRIX, shapes[MATRIX]), "fp8")
    for name, parameter in dit.named_parameters():
        found = source.read(name, parameter.shape)
        assert found.shape == parameter.shape
        if name.removesuffix(".scale") + ".weight" not in shapes and name not in shapes:
            assert torch.equal(found, base.read(name, parameter.shape))
    assert torch.equal(source.read(MATRIX, shapes[MATRIX]).view(torch.uint8), payload.view(torch.uint8))
    assert torch.equal(source.read("blocks.1.ffn.0.scale", torch.Size((64, 1))), scale)
    rows = read_rows(source, MATRIX, shapes[MATRIX], 10, 20)
    assert torch.equal(rows.view(torch.uint8), payload[10:20].view(torch.uint8))
    assert torch.equal(read_rows(source, "blocks.1.ffn.0.scale", torch.Size((64, 1)), 10, 20), scale[10:20])
    expect(source, {name: parameter.shape for name, parameter in dit.named_parameters()})


def test_unknown_kinds_are_refused() -> None:
    assert check_kind(None) is None
    with pytest.raises(ValueError, match=r"precision\.weights='fp4' is unknown; write fp8, int8, or null"):
        check_kind("fp4")


@pytest.mark.parametrize("kind", KINDS)
def test_a_converted_folder_gives_the_same_bits(kind: str, tmp_path: Path) -> None:
    """Streamed from disk, as one device; what two ranks share is held to that in `tests.strategies.test_compiled`."""
    write_published(tmp_path / "w")
    words = ["model=micro", f"precision.weights={kind}", f"weights.dir={tmp_path}/w", f"to={tmp_path}/fast"]
    folder = convert(compose("convert", ["precision=fp32", *words]))
    shapes = quantise_linears(meta_dit(), kind)
    made = Streamable(folder)
    assert made.place(MATRIX).dtype == KINDS[kind]
    assert quantised(made, kind, shapes) is made
    with pytest.raises(ValueError, match=f"holds weights in {kind}"):
        quantised(made, next(other for other in KINDS if other != kind), shapes)
    plain = {name: parameter.shape for name, parameter in meta_dit().named_parameters()}
    with pytest.raises(ValueError, match=rf"holds its matrices in {kind}, .* precision\.weights={kind} and no weights"):
        expect(made, plain)
    picture(tmp_path / "a.png")
    write_wav(tmp_path / "a.wav", speech(0.6))
    given = [*SMALL, f"request.image={tmp_path}/a.png", f"request.audio={tmp_path}/a.wav", "sink=none"]
    given += [f"precision.weights={kind}"]
    ways = {
        "alone": ["weights=random"],
        "folder": ["weights=streamable", f"weights.dir={folder}", "+strategy=fsdp_stream", "strategy.source=disk"],
    }
    found, errors = {}, {}
    for name, way in ways.items():
        run = assemble(compose("infer", [*given, *way, f"output.dir={tmp_path}/{name}"]))
        with run:
            found[name] = latents_of(list(run.chunks()))
        errors[name] = run.memory.errors()["all"]
    for name, latents in found.items():
        assert torch.equal(latents, found["alone"]), name
    assert errors["alone"] == pytest.approx(0, abs=0.05)
