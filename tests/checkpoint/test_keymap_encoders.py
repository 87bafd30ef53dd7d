"""The name tables against the names and shapes of the published checkpoints, at the real sizes."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from liveavatar.checkpoint.keymap import KeyMap
from liveavatar.checkpoint.keymap_encoders import SPEECH, TEXT, VAE
from liveavatar.models.speech import SpeechEncoder
from liveavatar.models.text import TextEncoder
from liveavatar.models.vae import WanCodec

MANIFESTS = Path(__file__).parents[1] / "data" / "manifests"
PUBLISHED = {
    "text": (TEXT, TextEncoder, "t5_umt5_xxl_encoder", 5_680_910_336),
    "vae": (VAE, WanCodec, "vae_wan2_1", 126_892_531),
    "speech": (SPEECH, SpeechEncoder, "wav2vec2_large_xlsr_53_english", 315_472_545),
}


@pytest.fixture(params=PUBLISHED)
def published(request):
    keymap, build, file, total = PUBLISHED[request.param]
    with torch.device("meta"):
        ours = {name: list(tensor.shape) for name, tensor in build().state_dict().items()}
    return keymap, ours, json.loads((MANIFESTS / f"{file}.json").read_text()), total


def test_every_published_tensor_is_ours_or_left_out_with_a_reason(published):
    keymap, ours, manifest, total = published
    assert sum(math.prod(shape) for shape in manifest.values()) == total
    assert keymap.rename(manifest) == ours


def test_every_tensor_of_ours_has_its_published_name(published):
    keymap, ours, manifest, total = published
    back = {keymap.to_published(name): shape for name, shape in ours.items()}
    left_out = {name: shape for name, shape in manifest.items() if keymap.to_ours(name) is None}
    assert back | left_out == manifest
    assert not back.keys() & left_out.keys()
    assert sum(math.prod(shape) for shape in (back | left_out).values()) == total
    assert all(keymap.to_ours(keymap.to_published(name)) == name for name in ours)


def test_only_the_speech_file_holds_more_than_we_use():
    manifest = json.loads((MANIFESTS / "wav2vec2_large_xlsr_53_english.json").read_text())
    dropped = [name for name in manifest if SPEECH.to_ours(name) is None]
    assert dropped == ["wav2vec2.masked_spec_embed", "lm_head.weight", "lm_head.bias"]
    assert not TEXT.ignored
    assert not VAE.ignored


def test_the_newer_spelling_of_weight_norm_is_understood():
    stem = "wav2vec2.encoder.pos_conv_embed.conv"
    for number, letter in enumerate("gv"):
        newer, older = f"{stem}.parametrizations.weight.original{number}", f"{stem}.weight_{letter}"
        assert SPEECH.to_ours(newer) == SPEECH.to_ours(older)
        assert SPEECH.to_published(SPEECH.to_ours(newer)) == older
    with pytest.raises(ValueError, match="two spellings"):
        SPEECH.rename({newer: 0, older: 0})


@pytest.mark.parametrize("keymap", [TEXT, VAE, SPEECH])
def test_an_unknown_name_is_reported_with_its_map(keymap):
    for translate in (keymap.to_ours, keymap.to_published):
        with pytest.raises(KeyError, match=f"mystery.weight.*{keymap.name} map"):
            translate("mystery.weight")


def test_patterns():
    keymap = KeyMap(
        "toy",
        [("a.{i}.special", "z.{i}"), ("a.{i}.b.{j}.{*}", "b.{j}.a.{i}.{*}"), ("dot.x", "dot_x")],
        ignored={"gone.{*}": "not needed"},
    )
    assert keymap.to_ours("a.12.special") == "z.12"
    assert keymap.to_ours("a.1.b.2.deep.weight") == "b.2.a.1.deep.weight"
    assert keymap.to_published("b.2.a.1.deep.weight") == "a.1.b.2.deep.weight"
    assert keymap.to_ours("gone.anything") is None
    for wrong in ("a.x.special", "a.1.b.2.", "dotAx", "a.1.special.more", "gone."):
        with pytest.raises(KeyError):
            keymap.to_ours(wrong)


def test_a_rule_that_cannot_work_backwards_is_refused():
    with pytest.raises(ValueError, match="same placeholders"):
        KeyMap("toy", [("a.{i}", "b")])
