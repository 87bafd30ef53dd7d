"""The prompt, from characters to embeddings: cleaning, two tokenizers behind one seam, and the umT5 encoder.

Reference: sections 1.5 and 11. The encoder itself is transformers' own; this module gives it the names of the
published configuration and the trimming that the DiT expects.
"""

import html
import re
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import AutoTokenizer, UMT5Config, UMT5EncoderModel
from transformers.models.umt5.modeling_umt5 import UMT5Attention

PAD_ID = 0
EOS_ID = 1
UNKNOWN_ID = 2


def clean_text(text: str) -> str:
    """Repair what editors and web pages do to a prompt: broken encodings, HTML entities, stray white space.

    Entities are undone twice because prompts that went through a web form twice are common (`&amp;amp;`).
    """
    import ftfy  # seconds of tables that only a first prompt needs

    repaired = html.unescape(html.unescape(ftfy.fix_text(text)))
    return re.sub(r"\s+", " ", repaired).strip()


@runtime_checkable
class Tokenizer(Protocol):
    """Cleaned text in; token ids out, at most `text_len` of them, the last one always the end mark (1)."""

    def __call__(self, text: str) -> list[int]: ...


class ByteTokenizer:
    """One token per UTF-8 byte, needing no file: what tiny models and tests use.

    Ids 0, 1 and 2 are padding, end and unknown as in umT5; byte `n` is id `n + 3`, so 259 ids in all.
    """

    vocab_size = 259

    def __init__(self, text_len: int = 512) -> None:
        self.text_len = _checked_length(text_len)

    def __call__(self, text: str) -> list[int]:
        return [*(byte + 3 for byte in text.encode("utf-8")[: self.text_len - 1]), EOS_ID]


class UmT5Tokenizer:
    """The published tokenizer of umT5-XXL, read from a local folder; the network is never asked.

    folder: the tokenizer's own, or one that holds `google/umt5-xxl`, itself or in the folder of the checkpoint.

    Raises:
        ValueError: the folder does not exist or holds no tokenizer.
    """

    def __init__(self, folder: Path | str, text_len: int = 512) -> None:
        self.text_len = _checked_length(text_len)
        below = "google/umt5-xxl"
        found = (Path(folder) / below, *sorted(Path(folder).glob(f"*/{below}")))
        folder = next((path for path in found if path.is_dir()), Path(folder))
        if not folder.is_dir():
            raise ValueError(
                f"the tokenizer was looked for in {folder}, which is not a folder: set weights.dir to the "
                "folder that the weights were fetched into (it holds google/umt5-xxl)"
            )
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"{folder} holds no tokenizer that can be read ({error}): fetch google/umt5-xxl again below weights.dir"
            ) from error

    def __call__(self, text: str) -> list[int]:
        # The tokenizer's own end mark is taken off and put back, so that a cut prompt ends like a whole one.
        ids = list(self._tokenizer(text, add_special_tokens=False)["input_ids"])
        return [*ids[: self.text_len - 1], EOS_ID]


class TextEncoder(nn.Module):
    """umT5 encoder: token ids to embeddings. Frozen; may be built under `torch.device("meta")`.

    The keywords carry the names of the published configuration. The defaults are umT5-XXL.

    Args:
        vocab_size: rows of the token table.
        dim: width of the embeddings.
        dim_attn: width of all heads together; need not equal `dim`.
        dim_ffn: inner width of the gated feed-forward.
        num_heads: attention heads; must divide `dim_attn`.
        num_layers: blocks, each with its own table of relative positions.
        num_buckets: buckets of relative distance, half of them for each direction.
        max_distance: distance in tokens from which on all share the last bucket.
        text_len: longest prompt in tokens, the end mark included.
    """

    def __init__(
        self,
        *,
        vocab_size: int = 256384,
        dim: int = 4096,
        dim_attn: int = 4096,
        dim_ffn: int = 10240,
        num_heads: int = 64,
        num_layers: int = 24,
        num_buckets: int = 32,
        max_distance: int = 128,
        text_len: int = 512,
    ) -> None:
        super().__init__()
        if dim_attn % num_heads:
            raise ValueError(
                f"dim_attn is {dim_attn}, which {num_heads} heads cannot share: use a multiple of num_heads"
            )
        self.text_len = _checked_length(text_len)
        config = UMT5Config(
            vocab_size=vocab_size,
            d_model=dim,
            d_kv=dim_attn // num_heads,
            d_ff=dim_ffn,
            num_heads=num_heads,
            num_layers=num_layers,
            relative_attention_num_buckets=num_buckets,
            relative_attention_max_distance=max_distance,
            feed_forward_proj="gated-gelu",
            dropout_rate=0.0,
            layer_norm_epsilon=1e-6,
            pad_token_id=PAD_ID,
            eos_token_id=EOS_ID,
        )
        # The outer model ties a second token table to the stack's; only the stack is kept, so that a module
        # built on "meta" and filled later has each tensor once.
        self.stack = UMT5EncoderModel(config).encoder
        self.stack.set_attn_implementation("eager")  # the bias of positions rules out the fused kernels
        self.requires_grad_(False)

    def forward(
        self, ids: Int[Tensor, "b s"], mask: Int[Tensor, "b s"] | Bool[Tensor, "b s"]
    ) -> Float[Tensor, "b s d"]:
        """Embeddings of padded prompts; `mask` is 1 (True) for real tokens; rows of padding mean nothing."""
        return self.stack(input_ids=ids, attention_mask=mask.to(torch.long)).last_hidden_state

    def encode(self, ids: Int[Tensor, " s"]) -> Float[Tensor, "s d"]:
        """Embeddings of one prompt without padding.

        Positions are relative and padding is masked, so padding to `text_len` and trimming again gives the
        same numbers at many times the work; the reference does that, this does not.

        Raises:
            ValueError: the prompt is empty or longer than `text_len`.
        """
        if not 1 <= ids.shape[0] <= self.text_len:
            raise ValueError(
                f"a prompt of {ids.shape[0]} tokens was given; the encoder takes 1 to {self.text_len} "
                "(text_len): let the tokenizer cut it, it keeps the end mark"
            )
        return self.stack(input_ids=ids[None]).last_hidden_state[0]

    def relative_buckets(self, queries: Int[Tensor, " q"], keys: Int[Tensor, " k"]) -> Int[Tensor, "q k"]:
        """The bucket that the model's own attention gives each pair of positions (one rule in all layers)."""
        attention = next(part for part in self.stack.modules() if isinstance(part, UMT5Attention))
        return attention._relative_position_bucket(keys[None, :] - queries[:, None])


def _checked_length(text_len: int) -> int:
    if text_len < 1:
        raise ValueError(f"text_len is {text_len}, but a prompt needs room for its end mark: use at least 1")
    return text_len
