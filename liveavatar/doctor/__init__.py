"""python -m liveavatar.doctor: can a run start here, and what would mend it if not?

Takes the words that `liveavatar.infer` takes (`model=s2v_14b +strategy=fsdp_stream output.dir=…`), and:

    output.json=FILE     the findings for programs
    doctor.timeout_s=10  how long ranks may take to talk to one another; 0 leaves the self-test out

Exit code 0 when a run can start, 1 when not, 2 for words that make no sense. Nothing heavy is imported here: PyTorch is
tried in processes of its own, so the doctor also runs where it is missing or broken.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from liveavatar.doctor import host, links, versions, weights
from liveavatar.doctor.finding import FAIL, OK, Finding, can_start, document, show
from liveavatar.memory.readings import host_room, host_total
from liveavatar.memory.rest import Rest, rest_bytes

MISTAKEN, SICK = 2, 1
TIMEOUT_S = 10.0
GROUPS = ("versions", "torch", "devices", "ranks", "config", "request", "weights", "host", "disks")
MOST_RANKS = 4
"""Ranks of the self-test: more prove nothing more on one machine."""


def examine(overrides: Sequence[str], timeout_s: float = TIMEOUT_S) -> list[Finding]:
    """All findings for the run that these words describe."""
    config, composed = _composed(overrides)
    fabric: Mapping[str, Any] = config.get("fabric") or {}
    accelerator, devices = str(fabric.get("accelerator", "auto")), fabric.get("devices", 1)
    devices = devices if isinstance(devices, int) and devices > 0 else 1
    trial = _trial(accelerator, devices, timeout_s)
    found = [*versions.check_versions(), *versions.check_pairing(), *composed]
    found += [*_request(config), *weights.check_weights(config), *links.check_ports(), *host.check_threads(devices)]
    trial.finish()
    gpus = trial.facts["gpus"] if trial.facts else []
    on_cpu = accelerator == "cpu" or not gpus
    rest = _rest(config, devices)
    found += [
        *links.check_torch(trial),
        *links.check_devices(trial, accelerator, devices, None if on_cpu else rest.device),
    ]
    found += links.check_talk(trial, devices) if trial.world and timeout_s else []
    found += host.check_memory(rest, devices, host_room(), host_total(), on_cpu)
    found += [*host.check_pinned(rest, on_cpu), *host.check_shared(rest, on_cpu), *host.check_disks(config, rest)]
    return sorted(found, key=lambda finding: GROUPS.index(finding.group))


def _composed(overrides: Sequence[str]) -> tuple[dict[str, Any], list[Finding]]:
    """The configuration in plain values, and whether it composes."""
    name = " ".join(overrides) or "the defaults"
    try:
        from omegaconf import OmegaConf

        from liveavatar.config import compose
    except ImportError as error:
        mend = "pip install 'hydra-core>=1.3.2,<1.4'"
        return {}, [Finding("config", "compose", FAIL, f"nothing can be composed: {error}", mend)]
    try:
        found = OmegaConf.to_container(compose("infer", overrides), resolve=True)
    except Exception as error:  # noqa: BLE001  Hydra's, OmegaConf's and the parser's errors share no class
        said = " ".join(str(error).split())[:400]
        return {}, [Finding("config", "compose", FAIL, f"{name}: {said}", "python -m liveavatar.infer --help")]
    assert isinstance(found, dict)
    return {str(key): value for key, value in found.items()}, [Finding("config", "compose", OK, name)]


def _rest(config: Mapping[str, Any], ranks: int) -> Rest:
    try:
        return rest_bytes(config, ranks)
    except (KeyError, TypeError, ValueError):  # a model of other parts: its size is unknown
        return Rest(0)


def _request(config: Mapping[str, Any]) -> list[Finding]:
    """The files that the request names."""
    request: Mapping[str, Any] = config.get("request") or {}
    found = []
    for key in ("image", "audio", "pose", "masks"):
        value = request.get(key)
        if not value:
            continue
        whole = Path(str(value)).expanduser()
        paths = [whole] if whole.exists() else [Path(part).expanduser() for part in str(value).split("+")]
        missing = [str(path) for path in paths if not path.exists()]
        said = f"{', '.join(missing)} does not exist" if missing else str(value)
        found.append(
            Finding(
                "request",
                f"request.{key}",
                FAIL if missing else OK,
                said,
                f"request.{key}=a file of yours" if missing else "",
            )
        )
    return found


def _trial(accelerator: str, devices: int, timeout_s: float) -> links.Trial:
    """NCCL where a run would take several cards, gloo everywhere else."""
    cuda = accelerator != "cpu" and devices > 1 and Path("/proc/driver/nvidia/version").exists()
    world = min(MOST_RANKS, max(2, devices)) if timeout_s else 1
    return links.Trial.start("nccl" if cuda else "gloo", world, timeout_s or TIMEOUT_S)


def _own_words(arguments: Sequence[str]) -> tuple[list[str], Path | None, float]:
    """The words that are the doctor's, apart from those of a run. Raises ValueError for values that make no sense."""
    rest, target, timeout_s = [], None, TIMEOUT_S
    for argument in arguments:
        key, _, value = argument.lstrip("+").partition("=")
        if key == "output.json":
            target = Path(value).expanduser() if value and value != "null" else None
        elif key == "doctor.timeout_s":
            try:
                timeout_s = float(value)
            except ValueError:
                timeout_s = -1.0
            if not 0 <= timeout_s <= 600:
                raise ValueError(f"doctor.timeout_s={value} must be seconds from 0 (no self-test) to 600")
        elif argument.startswith("-"):
            raise ValueError(f"{argument} is no word of the doctor's: it takes key=value, as liveavatar.infer does")
        else:
            rest.append(argument)
    return rest, target, timeout_s


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of `python -m liveavatar.doctor` and of the console script."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if {"-h", "--help"} & set(given):
        sys.stdout.write(f"{__doc__}")
        return 0
    try:
        overrides, target, timeout_s = _own_words(given)
    except ValueError as error:
        sys.stderr.write(f"liveavatar: {error}\n")
        return MISTAKEN
    found = examine(overrides, timeout_s)
    show(found)
    if target is not None:
        try:
            target.write_text(json.dumps(document(found), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        except OSError as error:
            sys.stderr.write(f"liveavatar: output.json={target} cannot be written ({error.strerror})\n")
            return MISTAKEN
    return 0 if can_start(found) else SICK
