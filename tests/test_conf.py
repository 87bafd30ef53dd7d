"""Every option of every file in conf/ is bound to the constructor that it is meant for."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf
from torch import nn

from liveavatar.config import compose, conf_dir, make
from liveavatar.types import FPS

CONF = Path(conf_dir())
OPTIONS = sorted((file.parent.name, file.stem) for file in CONF.glob("*/*.yaml") if file.parent.parent == CONF)
TRAINING = {"data", "experiment"}
"""Groups that belong to the page of the trainer."""

PAGES = {group: "train" if group in TRAINING else "infer" for group, _ in OPTIONS}
DIT_14B = 16_295_755_609


def _overrides(group: str, name: str) -> list[str]:
    """Strategies and experiments are laid over the default, topologies over nothing; everything else is swapped."""
    return [f"+{group}={name}" if group in ("strategy", "topology", "experiment") else f"{group}={name}"]


def _targets(node: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """All nodes with a `_target_`, with their place."""
    if isinstance(node, dict):
        if "_target_" in node:
            yield path, node
        for key, value in node.items():
            yield from _targets(value, f"{path}.{key}" if path else key)


def _plain(config: DictConfig) -> dict[str, Any]:
    """The configuration as plain values; what is only known later (weights.dir) stays a reference."""
    found = OmegaConf.to_container(config, resolve=False)
    assert isinstance(found, dict)
    return {str(key): value for key, value in found.items()}


@pytest.mark.parametrize(("group", "name"), OPTIONS)
def test_every_option_composes_and_binds(group: str, name: str) -> None:
    config = compose(PAGES[group], _overrides(group, name))
    assert group in config or group == "experiment"
    seen = 0
    for path, node in _targets(_plain(config)):
        takes = inspect.signature(get_object(node["_target_"]))
        given = {key: value for key, value in node.items() if key != "_target_"}
        names = set(takes.parameters)
        assert not any(p.kind is p.VAR_KEYWORD for p in takes.parameters.values()), f"{path} swallows any key"
        assert set(given) <= names, f"{path} has keys that {node['_target_']} does not take"
        takes.bind(**given)  # and none is missing
        seen += 1
    assert seen >= 9


def test_all_files_are_options_or_known_pages() -> None:
    pages = {str(file.relative_to(CONF)) for file in CONF.rglob("*.yaml")}
    known = ("infer", "bench", "plan", "train", "convert", "serve", "evaluate", "report")
    entries = {f"{folder}{page}.yaml" for page in known for folder in ("", "hydra/help/")}
    assert pages == {f"{group}/{name}.yaml" for group, name in OPTIONS} | entries


def test_the_default_strategy_leaks_nothing() -> None:
    default = OmegaConf.load(CONF / "strategy" / "single_device.yaml")
    assert list(default) == ["_target_"]
    page = OmegaConf.load(CONF / "infer.yaml")
    groups = [entry for entry in page.defaults if not isinstance(entry, str)]
    assert not any("strategy" in str(key) for entry in groups for key in entry)
    assert "strategy/single_device" in page.defaults


def test_strategies_are_laid_over_and_unknown_ones_are_told_the_known() -> None:
    assert compose("infer").strategy._target_.endswith("SingleDevice")
    streamed = compose("infer", ["+strategy=fsdp_stream", "strategy.slots=3"]).strategy
    assert streamed._target_.endswith("FsdpStream")
    assert streamed.slots == 3
    with pytest.raises(HydraException) as told:
        compose("infer", ["+strategy=nope"])
    assert "nope" in str(told.value)
    for name in (name for group, name in OPTIONS if group == "strategy"):
        assert name in str(told.value)
    with pytest.raises(HydraException, match=r"\+strategy=fsdp_stream"):
        compose("infer", ["strategy=fsdp_stream"])


def _built(model: str) -> dict[str, nn.Module]:
    config = compose("infer", [f"model={model}"])
    with torch.device("meta"):
        return {name: make(config.model[name], name) for name in ("dit", "text", "speech", "vae")}


def _count(module: nn.Module) -> int:
    assert all(parameter.is_meta for parameter in module.parameters())
    return sum(parameter.numel() for parameter in module.parameters())


def test_the_released_model_has_its_real_size() -> None:
    parts = _built("s2v_14b")
    assert _count(parts["dit"]) == DIT_14B
    assert _count(parts["text"]) == 5_680_910_336
    assert _count(parts["speech"]) > 3e8
    assert _count(parts["vae"]) == 126_892_531
    assert compose("infer", ["model=s2v_14b"]).model.size_multiple == 64


def test_the_embedded_model_is_small() -> None:
    assert compose("infer").model.name == "tiny"
    assert 5e6 <= sum(_count(part) for part in _built("tiny").values()) <= 8e6
    assert compose("infer").model.size_multiple == 16
    assert compose("infer").speech.context == "window"
    assert FPS == 25


@pytest.mark.parametrize("model", ["tiny", "micro", "s2v_14b"])
def test_the_parts_of_a_model_fit_one_another(model: str) -> None:
    node = compose("infer", [f"model={model}"]).model
    assert node.dit.text_dim == node.text.dim
    assert node.dit.text_len == node.text.text_len == node.tokenizer.text_len
    assert node.dit.audio_dim == node.speech.hidden_size
    assert node.dit.audio_layers == node.speech.num_layers + 1
    assert node.dit.dim % node.dit.num_heads == 0
    assert max(node.dit.audio_inject_layers) < node.dit.num_layers


def test_keys_that_others_rely_on() -> None:
    given = {
        "request.image": "a.png", "request.audio": "a.wav+b.wav", "request.prompt": "Hello", "request.pose": "p.mp4",
        "request.masks": "a.png+b.png", "request.size": "704*384", "request.max_seconds": 3, "decode.online": False,
        "rollout.frames_per_clip": 48, "seed": 7, "sampler.steps": 2, "fabric.devices": 1, "fabric.threads": 1,
        "output.dir": "out", "output.latents": "l.safetensors",
    }  # fmt: skip
    config = compose("infer", [f"{key}={value}" for key, value in given.items()])
    for key, value in given.items():
        assert OmegaConf.select(config, key) == value
    assert OverridesParser.create().parse_override("request.size=704*384").value() == "704*384"


def test_devices_follow_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert compose("infer").fabric.devices == 4
    monkeypatch.delenv("LOCAL_WORLD_SIZE")
    assert compose("infer").fabric.devices == 1
