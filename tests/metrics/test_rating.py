"""Ratings in words: the arithmetic, a tiny model that transformers knows, and a folder that would run its own code."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from liveavatar.metrics.rating import LEVELS, RatingMeter, rated
from liveavatar.metrics.suite import Piece

WORDS = (
    "<unk> <s> </s> <pad> <image> How would you rate the quality aesthetics of this image? The image is USER: ANSWER:"
)
TEMPLATE = (
    "{% for m in messages %}USER: {% for c in m['content'] %}{% if c['type'] == 'image' %}<image> "
    "{% else %}{{ c['text'] }} {% endif %}{% endfor %}{% endfor %}ANSWER: "
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LLaVA of a few thousand random numbers, with its processor."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
        PreTrainedTokenizerFast,
    )
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    place, words = tmp_path_factory.mktemp("llava"), [*WORDS.split(), *LEVELS]
    plain = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    read = PreTrainedTokenizerFast(tokenizer_object=plain, additional_special_tokens=["<image>"], **special)
    look = CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    told = {"patch_size": 14, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    LlavaProcessor(image_processor=look, tokenizer=read, chat_template=TEMPLATE, **told).save_pretrained(place)
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**small, image_size=28, patch_size=14, projection_dim=16),
        text_config=LlamaConfig(**small, num_key_value_heads=2, vocab_size=len(words), initializer_range=0.5),
        image_token_index=words.index("<image>"),
    )
    torch.manual_seed(0)
    LlavaForConditionalGeneration(config).save_pretrained(place)
    return place


def test_levels_are_weighed_by_their_probabilities() -> None:
    assert rated(np.zeros(5)) == 3
    assert rated(np.array([50.0, 0, 0, 0, 0])) == pytest.approx(5)
    assert rated(np.array([0, 0, 0, 0, 900.0])) == pytest.approx(1)
    assert rated(np.log([0.1, 0.2, 0.4, 0.2, 0.1])) == pytest.approx(3)
    assert rated(np.log([0.5, 0.5, 1e-30, 1e-30, 1e-30])) == pytest.approx(4.5)


def test_a_model_is_asked_for_both_aspects_of_what_it_sees(folder: Path) -> None:
    def seen(frames: np.ndarray) -> dict[str, float | str]:
        meter = RatingMeter(str(folder), per_s=25)
        meter.see(Piece(frames, np.zeros(0), 0, 0, 25))
        return meter.values()

    noise = np.random.default_rng(0).integers(0, 256, (1, 40, 40, 3), dtype=np.uint8)
    first, again, other = seen(noise), seen(noise.repeat(2, 0)), seen(noise // 4)
    assert set(first) == {"rating/quality", "rating/aesthetics"}
    for name, value in first.items():
        assert 1 <= float(value) <= 5
        assert again[name] == pytest.approx(value)
        assert other[name] != value
    assert first["rating/quality"] != first["rating/aesthetics"]


def test_code_beside_weights_is_not_run(folder: Path, tmp_path: Path) -> None:
    config = {"model_type": "mplug_owl2", "auto_map": {"AutoModel": "modeling_mplug_owl2.MPLUGOwl2LlamaForCausalLM"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "modeling_mplug_owl2.py").write_text("raise SystemExit('run')")
    value = RatingMeter(str(tmp_path)).values()["rating/quality"]
    assert isinstance(value, str)
    assert value.startswith("skipped: ")
    assert "mplug_owl2" in value
    assert "never run" in value
    assert str(RatingMeter().values()["rating/aesthetics"]).startswith(
        "skipped: metrics.meters.rating.weights is not set"
    )
    (tmp_path / "config.json").unlink()
    with pytest.raises(ValueError, match=r"metrics.meters.rating.weights=.*config.json"):
        RatingMeter(str(tmp_path))
