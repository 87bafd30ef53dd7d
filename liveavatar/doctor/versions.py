"""Python and the libraries: are they there, and do they match what the package asks for? From metadata alone."""

from __future__ import annotations

import platform
import re
import sys
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from liveavatar.doctor.finding import FAIL, NOTE, OK, WARN, Finding

GROUP = "versions"
EXTRAS = {
    "figures": "memory.png is not drawn",
    "ui": "no web page",
    "metrics": "fewer quality metrics",
    "train": "no W&B logging",
    "dev": "no tests or linters",
}
ROOT = Path(__file__).resolve().parents[2]


def declared() -> tuple[str, list[str]]:
    """Python's range and the requirements: of the checkout that this file lies in, else of what is installed."""
    project = ROOT / "pyproject.toml"
    if project.is_file():
        import tomllib

        about = tomllib.loads(project.read_text(encoding="utf-8"))["project"]
        if about.get("name") == "liveavatar":
            extras = about.get("optional-dependencies", {})
            more = [f'{line}; extra == "{name}"' for name, lines in extras.items() for line in lines]
            return about["requires-python"], [*about["dependencies"], *more]
    try:
        from importlib.metadata import metadata

        return metadata("liveavatar")["Requires-Python"] or "", requires("liveavatar") or []
    except PackageNotFoundError:
        return "", []


def check_versions() -> list[Finding]:
    """Python, every required library, and extras of which something is missing."""
    python, lines = declared()
    if not lines:
        return [
            Finding(
                GROUP,
                "liveavatar",
                WARN,
                "neither installed nor a checkout: nothing to compare with",
                "pip install liveavatar",
            )
        ]
    try:
        from packaging.requirements import Requirement
        from packaging.specifiers import SpecifierSet
    except ImportError:
        return [Finding(GROUP, "packaging", WARN, "missing, so no ranges were compared", "pip install packaging")]
    fits = platform.python_version() in SpecifierSet(python)
    found = [
        Finding(
            GROUP,
            "python",
            OK if fits else FAIL,
            f"{platform.python_version()} (wants {python}), {sys.executable}",
            "" if fits else "make an environment with a newer Python: uv venv --python 3.12",
        )
    ]
    missing: dict[str, list[str]] = {}
    for line in lines:
        wanted = Requirement(line)
        extra = _extra(line)
        if extra is None:
            found.append(_library(wanted.name, str(wanted.specifier), required=True))
        elif (state := _library(wanted.name, str(wanted.specifier), required=False)).state != OK:
            missing.setdefault(extra, []).append(state.name)
    for extra, names in missing.items():
        why = EXTRAS.get(extra, "optional")
        found.append(
            Finding(
                GROUP,
                f"extra {extra}",
                NOTE,
                f"{why}: {', '.join(names)} missing or out of range",
                f"pip install 'liveavatar[{extra}]'",
            )
        )
    return found


def _extra(line: str) -> str | None:
    found = re.search(r"extra\s*==\s*['\"]([\w-]+)['\"]", line)
    return found[1] if found else None


def _library(name: str, wanted: str, required: bool) -> Finding:
    from packaging.specifiers import SpecifierSet

    bad = FAIL if required else NOTE
    mend = f"pip install '{name}{wanted}'"
    try:
        here = version(name)
    except PackageNotFoundError:
        return Finding(GROUP, name, bad, f"missing (wants {wanted})", mend)
    if SpecifierSet(wanted).contains(here, prereleases=True):
        return Finding(GROUP, name, OK, f"{here} (wants {wanted})")
    return Finding(GROUP, name, bad, f"{here}, but {wanted} is wanted", mend)


def check_pairing() -> list[Finding]:
    """torch and torchaudio must come from the same kind of build; whether they load together is tried elsewhere."""
    builds = {}
    for name in ("torch", "torchaudio"):
        try:
            builds[name] = version(name)
        except PackageNotFoundError:
            return []
    kinds = {name: text.partition("+")[2] for name, text in builds.items()}
    pair = " and ".join(f"{name} {text}" for name, text in builds.items())
    if all(kinds.values()) and len(set(kinds.values())) > 1:
        index = f"https://download.pytorch.org/whl/{kinds['torch']}"
        return [
            Finding(
                GROUP,
                "torch and torchaudio",
                FAIL,
                f"{pair} are builds for different platforms",
                f"pip install --force-reinstall torchaudio --index-url {index}",
            )
        ]
    return [Finding(GROUP, "torch and torchaudio", OK, pair)]
