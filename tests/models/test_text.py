"""The prompt: cleaning, tokenizers, and the umT5 encoder at a tiny size."""

from __future__ import annotations

import pytest
import torch
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from liveavatar.models.text import ByteTokenizer, TextEncoder, Tokenizer, UmT5Tokenizer, clean_text

TINY = {
    "vocab_size": 259,
    "dim": 24,
    "dim_attn": 16,
    "dim_ffn": 40,
    "num_heads": 2,
    "num_layers": 2,
    "text_len": 40,
}


@pytest.fixture
def encoder() -> TextEncoder:
    torch.manual_seed(5)
    model = TextEncoder(**TINY)
    for parameter in model.parameters():  # the library's own start is too small for any mistake to show
        parameter.data.normal_(std=0.5)
    return model


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("  one\ttwo \r\n\n three ", "one two three"),
        ("a &amp;lt; b", "a < b"),
        ("schÃ¶n", "schön"),
        ("&nbsp;x\u00a0&#32; y", "x y"),
        ("", ""),
    ],
)
def test_cleaning(raw, clean):
    assert clean_text(raw) == clean


def test_bytes_become_ids_with_an_end_mark():
    tokenizer = ByteTokenizer(text_len=8)
    assert isinstance(tokenizer, Tokenizer)
    assert tokenizer("aé") == [97 + 3, 0xC3 + 3, 0xA9 + 3, 1]
    assert tokenizer("") == [1]
    assert max(ByteTokenizer()("\U0010ffff")) < ByteTokenizer.vocab_size == 259


def test_a_long_prompt_is_cut_but_keeps_its_end_mark():
    assert ByteTokenizer(text_len=4)("abcdef") == [100, 101, 102, 1]
    with pytest.raises(ValueError, match="text_len is 0"):
        ByteTokenizer(text_len=0)


@pytest.fixture
def folder(tmp_path):
    words = {"<pad>": 0, "</s>": 1, "<unk>": 2, "a": 3, "man": 4, "sings": 5}
    fast = FastTokenizer(models.WordLevel(words, unk_token="<unk>"))
    fast.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=fast, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(tmp_path)
    return tmp_path


def test_a_tokenizer_is_read_from_a_local_folder(folder):
    tokenizer = UmT5Tokenizer(folder, text_len=5)
    assert isinstance(tokenizer, Tokenizer)
    assert tokenizer("a man sings") == [3, 4, 5, 1]
    assert tokenizer("a man sings a man sings") == [3, 4, 5, 3, 1]


def test_a_missing_tokenizer_names_the_setting(tmp_path):
    with pytest.raises(ValueError, match=r"weights\.dir"):
        UmT5Tokenizer(tmp_path / "absent")
    with pytest.raises(ValueError, match=r"weights\.dir"):
        UmT5Tokenizer(tmp_path)


@pytest.mark.parametrize("length", [1, 7, 40])
def test_padding_and_trimming_equals_no_padding(encoder, length):
    ids = torch.randint(3, 259, (length,), generator=torch.Generator().manual_seed(length))
    padded = torch.zeros(1, 40, dtype=torch.long)
    padded[0, :length] = ids
    mask = (torch.arange(40) < length)[None]
    whole = encoder.encode(ids)
    assert whole.shape == (length, 24)
    torch.testing.assert_close(encoder(padded, mask)[0, :length], whole, atol=4e-6, rtol=0)
    torch.testing.assert_close(encoder(padded, mask.long())[0, :length], whole, atol=4e-6, rtol=0)
    if length < 40:  # and the mask is what makes it so
        seen = encoder(padded, torch.ones_like(mask))[0, :length]
        assert (seen - whole).abs().max() > 1e-2


def test_order_matters_and_each_layer_has_its_own_positions(encoder):
    ids = torch.arange(10, 20)
    before = encoder.encode(ids)
    assert (encoder.encode(ids.flip(0)).flip(0) - before).abs().max() > 1e-2
    for layer in range(2):
        table = encoder.stack.block[layer].layer[0].SelfAttention.relative_attention_bias.weight
        kept = table.data.clone()
        table.data.mul_(-1)
        assert (encoder.encode(ids) - before).abs().max() > 1e-3
        table.data.copy_(kept)
    assert torch.equal(encoder.encode(ids), before)


def test_relative_buckets_are_the_models_own(encoder):
    buckets = encoder.relative_buckets(torch.tensor([200]), torch.arange(401))[0]
    assert buckets[200] == 0
    assert buckets[199] == 1  # one to the left
    assert buckets[201] == 17  # one to the right: the upper half of 32
    assert buckets[:72].unique().tolist() == [15]  # 128 and more to the left share the last one
    assert buckets[329:].unique().tolist() == [31]
    narrow = TextEncoder(**TINY, num_buckets=8, max_distance=16)
    assert narrow.relative_buckets(torch.tensor([0]), torch.arange(99)).max() == 7


def test_prompts_out_of_range_are_refused(encoder):
    with pytest.raises(ValueError, match="41 tokens"):
        encoder.encode(torch.ones(41, dtype=torch.long))
    with pytest.raises(ValueError, match="text_len"):
        encoder.encode(torch.ones(0, dtype=torch.long))
    with pytest.raises(ValueError, match="num_heads"):
        TextEncoder(**{**TINY, "num_heads": 3})


def test_built_on_meta_and_filled_later_gives_the_same(encoder):
    with torch.device("meta"):
        later = TextEncoder(**TINY)
    assert all(parameter.is_meta for parameter in later.parameters())
    later.load_state_dict(encoder.state_dict(), strict=True, assign=True)
    ids = torch.arange(3, 12)
    assert torch.equal(later.train().encode(ids), encoder.eval().encode(ids))
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
