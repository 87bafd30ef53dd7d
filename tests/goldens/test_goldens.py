"""Every case of the published format in a folder: `pytest tests/goldens --goldens DIR`, one test a case.

Nothing is skipped: an unknown kind, a tensor that no procedure compares, or an empty folder fails.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from liveavatar.models.dit.model import AvatarDiT
from tests.goldens import build
from tests.goldens.case import Case
from tests.goldens.dit import dit_case
from tests.goldens.parts import (
    actor_mask,
    audio_features,
    lora_merge,
    preprocess,
    sampler,
    t5_encoder,
    vae,
)
from tests.goldens.pipeline import clipwise, streaming

PROCEDURES: dict[str, Callable[[Case], None]] = {
    "actor_mask": actor_mask,
    "audio_features": audio_features,
    "dit_local_attn": dit_case,
    "dit_multi_actor": dit_case,
    "dit_stream": dit_case,
    "lora_merge": lora_merge,
    "pipeline_e2e": clipwise,
    "pipeline_tpp_e2e": streaming,
    "preprocess": preprocess,
    "sampler": sampler,
    "t5_encoder": t5_encoder,
    "vae": vae,
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "folder" not in metafunc.fixturenames:
        return
    root: Path = metafunc.config.getoption("--goldens")
    folders = sorted(path.parent for path in root.rglob("case.json"))
    if not folders:
        raise pytest.UsageError(f"--goldens {root}: no case.json in any folder below it")
    metafunc.parametrize("folder", folders, ids=[str(f.relative_to(root)) for f in folders])


def test_case(folder: Path, record_property: Callable[[str, object], None], capsys: pytest.CaptureFixture[str]) -> None:
    case = Case(folder)
    if case.kind not in PROCEDURES:
        pytest.fail(
            f"{folder.name} is of kind {case.kind!r}, for which there is no procedure; known: {list(PROCEDURES)}"
        )
    PROCEDURES[case.kind](case)
    worst = max(case.errors, key=lambda name: case.errors[name], default="nothing compared")
    record_property("largest_error", case.errors.get(worst))
    with capsys.disabled():
        print(f"\n{folder.name}: largest error {case.errors.get(worst, float('nan')):.3e} ({worst})", end=" ")
    case.finish()


@pytest.mark.parametrize("name", ["dit_stream", "dit_multi_actor", "dit_local_attn"])
def test_streams_are_met_without_hoisting_too(name: str) -> None:
    """The default prepares conditioning ahead; here every cell makes its own, as in the reference."""
    case = Case(Path(__file__).resolve().parents[1] / "data" / "goldens" / name)

    def unhoisted(config: dict[str, Any]) -> AvatarDiT:
        model = build.dit(config, case.folder / "weights.safetensors")
        model.hoist = False
        return model

    dit_case(case, make=unhoisted)
    case.finish()


def test_a_stray_output_fails(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    (tmp_path / "case.json").write_text('{"kind": "sampler"}')
    save_file({"left_over": torch.zeros(1)}, tmp_path / "outputs.safetensors")
    with pytest.raises(AssertionError, match="left_over was never compared"):
        Case(tmp_path).finish()
