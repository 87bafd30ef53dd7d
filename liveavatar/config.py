"""Finding `conf/`, composing configurations, and the words that may stand in them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from omegaconf import DictConfig

FREE_TEXT = ("request.prompt", "request.image", "request.audio", "request.pose", "request.masks")
FREE_TEXT += ("output.dir", "output.latents", "weights.dir")


def conf_dir() -> str:
    """The folder of configurations: inside an installed package, beside the package in a checkout."""
    here = Path(__file__).resolve().parent
    packaged, checkout = here / "conf", here.parent / "conf"
    return str(packaged if packaged.is_dir() else checkout)


def asset(name: str) -> str:
    """Path of a file that ships with the package (`${asset:…}` in a configuration)."""
    path = Path(__file__).resolve().parent / "assets" / name
    if not path.is_file():
        known = sorted(p.name for p in path.parent.iterdir() if p.suffix)
        raise ValueError(f"${{asset:{name}}}: the package ships no such file; it has {', '.join(known)}")
    return str(path)


def register_resolvers() -> None:
    """Make `${asset:…}` known to OmegaConf; may be called any number of times."""
    from omegaconf import OmegaConf

    if not OmegaConf.has_resolver("asset"):
        OmegaConf.register_new_resolver("asset", asset)


def compose(name: str = "infer", overrides: Sequence[str] = ()) -> DictConfig:
    """A configuration as the command line would compose it, for notebooks and tests; leaves no global state.

    `compose("infer", ["model=tiny", "+strategy=fsdp_stream"])`.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir

    register_resolvers()
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        return hydra_compose(name, overrides=quoted(overrides))


def quoted(arguments: Sequence[str]) -> list[str]:
    """Arguments in which free text stands in quotes, so that a prompt may hold commas, colons and brackets.

    Hydra would read `request.prompt=A man, smiling` as a choice of two. Values that are already quoted, or that are
    interpolations or null, stay as they are.
    """
    return [_quoted(argument) for argument in arguments]


def _quoted(argument: str) -> str:
    key, sign, value = argument.partition("=")
    if not sign or key.lstrip("+") not in FREE_TEXT:
        return argument
    done = len(value) > 1 and value[0] == value[-1] and value[0] in "\"'"
    if done or value in ("", "null") or value.startswith("${"):
        return argument
    escaped = (
        value.replace("\\", "\\\\").replace('"', '\\"') if '"' in value or value.endswith("\\") else value
    )
    return f'{key}="{escaped}"'
