"""Finding `conf/`, composing configurations, and the words that may stand in them."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from omegaconf import DictConfig

FREE_TEXT = ("request.prompt", "request.image", "request.audio", "request.pose", "request.masks")
FREE_TEXT += ("output.dir", "output.latents", "weights.dir", "weights.lora", "sink.path", "requests")
FREE_TEXT += ("video", "reference", "audio", "json", "runs", "out", "title")
"""Keys whose values are words or paths: whatever a user types for them is meant as it stands."""

_IN_QUOTES = re.compile(r'(["\'])(?:(?:(?!\1)[^\\])|\\.)*\1', re.DOTALL)
_INTERPOLATION = re.compile(r"\$\{(?:[\w.]+|(?:asset|oc\.\w+):.*)\}")


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


def started_by_slurm() -> bool:
    """Whether srun has started this process as one of several (a shell in an allocation does not count)."""
    if "SLURM_NTASKS" not in os.environ:
        return False
    from lightning.fabric.plugins.environments import SLURMEnvironment

    return SLURMEnvironment.detect()


def tasks_per_node() -> int:
    """Processes that srun has started on each machine."""
    given = os.environ.get("SLURM_NTASKS_PER_NODE")
    return int(given) if given else int(os.environ["SLURM_NTASKS"]) // int(os.environ.get("SLURM_NNODES", "1"))


def processes_here() -> int:
    """Processes that torchrun or Slurm has started on this machine; 1 where nobody has (`${processes_here:}`)."""
    if "LOCAL_WORLD_SIZE" in os.environ:
        return int(os.environ["LOCAL_WORLD_SIZE"])
    return tasks_per_node() if started_by_slurm() else 1


def first_rank() -> bool:
    """Whether this process speaks for all: known before they meet, from what Fabric, torchrun or Slurm has set."""
    if "RANK" in os.environ:
        return os.environ["RANK"] == "0"
    if started_by_slurm():
        return os.environ["SLURM_PROCID"] == "0"
    node = os.environ.get("NODE_RANK", os.environ.get("GROUP_RANK", "0"))
    return (node, os.environ.get("LOCAL_RANK", "0")) == ("0", "0")


def register_resolvers() -> None:
    """Make `${asset:…}` and `${processes_here:}` known to OmegaConf; may be called any number of times."""
    from omegaconf import OmegaConf

    for resolver in (asset, processes_here):
        if not OmegaConf.has_resolver(resolver.__name__):
            OmegaConf.register_new_resolver(resolver.__name__, resolver)


def compose(name: str = "infer", overrides: Sequence[str] = ()) -> DictConfig:
    """A configuration as the command line would compose it, for notebooks and tests; leaves no global state.

    `compose("infer", ["model=tiny", "+strategy=fsdp_stream"])`.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir

    register_resolvers()
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        return hydra_compose(name, overrides=quoted(overrides))


def literal(text: str) -> str:
    """Text as a value of a configuration that means itself: `${` in it is no reference."""
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", text)


def kept(cfg: DictConfig) -> str:
    """A configuration as YAML, resolved, so that reading it again gives the same values (`config.yaml` of a run)."""
    from omegaconf import OmegaConf

    return OmegaConf.to_yaml(OmegaConf.create(_literal(OmegaConf.to_container(cfg, resolve=True))))


def _literal(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _literal(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_literal(inner) for inner in value]
    return literal(value) if isinstance(value, str) else value


def make(node: Any, key: str) -> Any:
    """Instantiate the node `key` of a configuration, with plain lists and numbers for its constructor.

    Raises ValueError: the constructor's own, or one that names the node whose values it does not take.
    """
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate

    try:
        return instantiate(node, _convert_="all")
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, ValueError):
            raise ValueError(str(cause)) from cause
        if isinstance(cause, TypeError):
            raise ValueError(
                f"{key}: {node.get('_target_')} does not take these values ({cause}); --cfg job prints the node"
            ) from cause
        raise


def quoted(arguments: Sequence[str]) -> list[str]:
    """Arguments in which free text stands in quotes, so that a prompt may hold commas, colons, brackets and `$`.

    Hydra would read `request.prompt=A man, smiling` as a choice of two. What stands in quotes of its own already, and
    null, stay as they are, so quoting twice is quoting once. A path may be an interpolation as a whole
    (`${asset:…}`); in a prompt `${` means itself.
    """
    return [_quoted(argument) for argument in arguments]


def _quoted(argument: str) -> str:
    key, sign, value = argument.partition("=")
    name = key.lstrip("+")
    if not sign or name not in FREE_TEXT or value in ("", "null") or _IN_QUOTES.fullmatch(value):
        return argument
    if name == "weights.lora" and value[0] in "[{":  # several, or one with its weight
        return argument
    if name != "request.prompt" and _INTERPOLATION.fullmatch(value):
        return argument
    # OmegaConf reads `${`, Hydra reads quotes; before either, each takes two backslashes for one
    value = re.sub(r"(\\*)\$\{", r"\1\1\\${", value)
    value = re.sub(r'(\\*)"', r'\1\1\\"', value)
    value = re.sub(r"(\\+)\Z", r"\1\1", value)
    return f'{key}="{value}"'
