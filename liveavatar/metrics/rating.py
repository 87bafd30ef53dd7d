"""Q-Align's question (Wu et al. 2023) to an image-text model that the user has: how would you rate this picture?

The published model, q-future/one-align, comes as code beside weights (mPLUG-Owl2), which transformers would run only
with `trust_remote_code`: such a folder is refused, and its values are skipped with that reason. Models that
transformers itself knows are asked in the same words and read in the same way.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image

from liveavatar.metrics.about import records, skipped
from liveavatar.metrics.learned import NO_FILE
from liveavatar.metrics.series import Mean
from liveavatar.metrics.suite import Piece

LEVELS = {"excellent": 5.0, "good": 4.0, "fair": 3.0, "poor": 2.0, "bad": 1.0}
ASPECTS = ("quality", "aesthetics")
KEY = "metrics.meters.rating.weights"
REMOTE = "{} holds a model whose code lies beside its weights ({}), and code of a folder is never run"


def rated(logits: Float[np.ndarray, " 5"]) -> float:
    """1 to 5: the mean of the levels' worth, by the softmax over the five levels alone, in the order of `LEVELS`."""
    likely = np.exp(logits - np.max(logits))
    return float(likely @ np.array(list(LEVELS.values())) / likely.sum())


class RatingMeter:
    """Quality and aesthetics of `per_s` frames a second, as a model puts them into words.

    weights: a folder of transformers with an image-text model, its processor and chat template. Raises ValueError for a
    folder that holds none.
    """

    abouts = records(
        ("rating/quality", "Q-Align's question for quality to the image-text model of the folder: mean of excellent 5 to bad 1 by their probabilities, mean over sampled frames. IQA only where that model is a Q-Align; other models do not compare", "1 to 5 (Q-ReAlign's 0 to 1 is x * 4 + 1)", "higher"),
        ("rating/aesthetics", "the same for aesthetics (ASE)", "1 to 5 (Q-ReAlign's 0 to 1 is x * 4 + 1)", "higher"),
        requires="a folder of an image-text model that transformers knows",
    )  # fmt: skip

    def __init__(self, weights: str | None = None, per_s: float = 0.5, device: str = "cpu") -> None:
        if per_s <= 0:
            raise ValueError(f"metrics.meters.rating.per_s={per_s} must be above 0: write 0.5")
        self.per_s, self.device, self._means = per_s, device, {aspect: Mean() for aspect in ASPECTS}
        self._model: Any = None
        self._asked: dict[str, tuple[str, list[int]]] = {}
        what = "a folder of an image-text model for transformers, as a Q-Align without code of its own"
        self._lacking = (
            NO_FILE.format(key="rating", what=what) if weights is None else _remote(Path(weights).expanduser())
        )
        if weights is not None and not self._lacking:
            self._processor, self._model = _loaded(Path(weights).expanduser(), device)
            self._asked = {aspect: self._question(aspect) for aspect in ASPECTS}

    def _question(self, aspect: str) -> tuple[str, list[int]]:
        """The words up to where the level would follow, and the token that each level would begin with."""
        asks = {"type": "text", "text": f"How would you rate the {aspect} of this image?"}
        told = [{"role": "user", "content": [{"type": "image"}, asks]}]
        text = self._processor.apply_chat_template(told, add_generation_prompt=True) + f"The {aspect} of the image is"
        read = self._processor.tokenizer
        ahead = len(read(text).input_ids)
        begins = [read(f"{text} {level}").input_ids[ahead] for level in LEVELS]
        if len(set(begins)) < len(LEVELS):
            raise ValueError(f"{KEY}: the model's tokens do not tell {', '.join(LEVELS)} apart: give another model")
        return text, begins

    @torch.inference_mode()
    def see(self, piece: Piece) -> None:
        if self._model is None:
            return
        apart = max(1, round(piece.fps / self.per_s))
        for frame in piece.frames[(-piece.start) % apart :: apart]:
            for aspect, (text, begins) in self._asked.items():
                given = self._processor(images=[Image.fromarray(frame)], text=[text], return_tensors="pt")
                logits = self._model(**given.to(self.device)).logits[0, -1, begins]
                self._means[aspect].add([rated(logits.double().cpu().numpy())])

    def values(self) -> dict[str, float | str]:
        if self._lacking:
            return skipped(self._lacking, self.abouts)
        return {f"rating/{aspect}": mean.value for aspect, mean in self._means.items()}


def _remote(folder: Path) -> str:
    """Why a folder is left alone; empty where transformers itself knows its model."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        kind, code = str(config.get("model_type")), config.get("auto_map")
    except (OSError, ValueError, AttributeError) as error:
        raise ValueError(f"{KEY}={folder} is no folder of transformers: its config.json cannot be read") from error
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    return "" if kind in CONFIG_MAPPING and not code else REMOTE.format(folder, kind)


def _loaded(folder: Path, device: str) -> tuple[Any, Any]:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    try:
        safe = {"local_files_only": True, "trust_remote_code": False}
        processor = AutoProcessor.from_pretrained(folder, **safe)
        model: Any = AutoModelForImageTextToText.from_pretrained(folder, use_safetensors=True, dtype="auto", **safe)
    except (OSError, ValueError, RuntimeError, ImportError, KeyError) as error:
        told = str(error).splitlines()[0][:200]
        raise ValueError(f"{KEY}={folder} cannot be read as an image-text model ({told})") from error
    return processor, model.to(device).eval()
