"""Several machines: each node's processes started by itself, by torchrun or by Slurm, on loopback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from lightning.fabric.plugins.environments import SLURMEnvironment

from liveavatar.config import compose, first_rank, processes_here
from liveavatar.settings import node_count
from tests.strategies.launch import clean_environment, free_port
from tests.strategies.test_cli import ASKED, infer, run_directories, same_latents

INFER = ("-m", "liveavatar.infer", *ASKED, "output.latents=latents.safetensors", "output.dir=run")


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return infer(tmp_path_factory.mktemp("nodes") / "alone", "output.dir=run")


def _together(folder: Path, commands: list[list[str]], environments: list[dict[str, Any]]) -> list[str]:
    """Processes that belong together, each with some variables of its own; what each of them said."""
    started = []
    for command, own in zip(commands, environments, strict=True):
        environment = clean_environment() | {name: str(value) for name, value in own.items()}
        started.append(subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True))
    try:
        said = [process.communicate(timeout=300)[1] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0] * len(started), said
    return said


def _torchrun(folder: Path, processes: int, *options: str) -> Path:
    """Two nodes of that many processes each, both of them here."""
    where = [f"--nproc-per-node={processes}", "--nnodes=2", "--master-addr=127.0.0.1", f"--master-port={free_port()}"]
    run = [sys.executable, "-m", "torch.distributed.run", *where]
    commands = [[*run, f"--node-rank={node}", *INFER, *options] for node in range(2)]
    _together(folder, commands, [{}, {}])
    return folder / "latents.safetensors"


@pytest.mark.parametrize(
    ("processes", "options"),
    [
        (1, ("+strategy=fsdp_stream", "strategy.slots=3")),
        pytest.param(2, ("+strategy=fsdp_stream", "strategy.source=host"), marks=pytest.mark.slow),
        pytest.param(2, ("+strategy=hsdp_offload", "strategy.shard_size=2"), marks=pytest.mark.slow),
        pytest.param(2, ("+strategy=timestep_pipeline",), marks=pytest.mark.slow),
        pytest.param(1, ("+strategy=diagonal_pipeline", "fabric.num_nodes=2"), marks=pytest.mark.slow),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else f"2x{value}",
)
def test_two_nodes_of_torchrun(tmp_path: Path, alone: Path, processes: int, options: tuple[str, ...]) -> None:
    assert same_latents(_torchrun(tmp_path, processes, *options), alone)
    assert run_directories(tmp_path) == [tmp_path / "run"]


def _slurm(task: int, tasks: int, nodes: int) -> dict[str, Any]:
    """What srun tells a task."""
    per_node = tasks // nodes
    return {
        "SLURM_NTASKS": tasks, "SLURM_NTASKS_PER_NODE": per_node, "SLURM_NNODES": nodes, "SLURM_JOB_NAME": "avatar",
        "SLURM_PROCID": task, "SLURM_LOCALID": task % per_node, "SLURM_NODEID": task // per_node,
        "SLURM_NODELIST": "127.0.0.1", "SLURM_JOB_ID": 1,
    }  # fmt: skip


def test_two_tasks_of_slurm_on_two_nodes(tmp_path: Path, alone: Path) -> None:
    port = {"MASTER_PORT": free_port()}
    command = [sys.executable, *INFER, "+strategy=diagonal_pipeline"]
    said = _together(tmp_path, [command, command], [_slurm(task, 2, 2) | port for task in range(2)])
    assert same_latents(tmp_path / "latents.safetensors", alone)
    assert run_directories(tmp_path) == [tmp_path / "run"]
    assert "diagonal_pipeline on 2 × cpu" in said[0]
    assert "picture" not in said[1]  # one rank speaks for all


@pytest.mark.slow
def test_two_nodes_that_a_user_starts_by_hand(tmp_path: Path, alone: Path) -> None:
    options = ["+strategy=hsdp_offload", "fabric.devices=2", "fabric.num_nodes=2"]
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    command = [sys.executable, *INFER, *options]
    _together(tmp_path, [command, command], [where | {"NODE_RANK": node} for node in range(2)])
    assert same_latents(tmp_path / "latents.safetensors", alone)


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment in which nobody has started anything."""
    for name in [*os.environ]:
        if name.startswith(("SLURM_", "TORCHELASTIC")) or name in {*["RANK", "LOCAL_RANK", "GROUP_RANK", "NODE_RANK"]}:
            monkeypatch.delenv(name)
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_who_speaks_for_all(bare: pytest.MonkeyPatch) -> None:
    cases: list[tuple[dict[str, Any], bool]] = [
        ({}, True), ({"LOCAL_RANK": 1}, False), ({"NODE_RANK": 1, "LOCAL_RANK": 0}, False),
        ({"RANK": 2, "LOCAL_RANK": 0}, False), ({"RANK": 0, "LOCAL_RANK": 0}, True),
        (_slurm(0, 4, 2), True), (_slurm(2, 4, 2), False), (_slurm(2, 4, 2) | {"SLURM_JOB_NAME": "bash"}, True),
    ]  # fmt: skip
    for variables, first in cases:
        with bare.context() as patch:
            for name, value in variables.items():
                patch.setenv(name, str(value))
            assert first_rank() is first, variables


def test_machines_and_processes_are_counted_from_what_started_them(bare: pytest.MonkeyPatch) -> None:
    def count(variables: dict[str, Any], *overrides: str) -> tuple[int, int]:
        with bare.context() as patch:
            for name, value in variables.items():
                patch.setenv(name, str(value))
            cfg = compose("infer", list(overrides))
            return cfg.fabric.devices, node_count(cfg)

    torchrun = {"WORLD_SIZE": 6, "LOCAL_WORLD_SIZE": 3}
    assert count({}) == (1, 1)
    assert count({}, "fabric.devices=2", "fabric.num_nodes=3") == (2, 3)
    assert count(torchrun) == count(torchrun, "fabric.num_nodes=2") == (3, 2)
    assert count(_slurm(0, 8, 2)) == (4, 2)
    assert count(_slurm(0, 8, 2) | {"SLURM_JOB_NAME": "interactive"}) == (1, 1)  # a shell, not a task
    for variables, override, message in (
        ({}, "fabric.num_nodes=0", r"fabric\.num_nodes=0 must be"),
        (torchrun, "fabric.num_nodes=3", r"fabric\.num_nodes=3, but torchrun has started 6 processes, 3 to a machine"),
        (torchrun, "fabric.devices=2", r"fabric\.devices=2, but torchrun has started 3 processes on this machine"),
        (_slurm(0, 8, 2), "fabric.num_nodes=1", r"fabric\.num_nodes=1, but Slurm has started 8 processes"),
    ):
        with pytest.raises(ValueError, match=message):
            count(variables, override)
    assert SLURMEnvironment.detect() is False
    assert processes_here() == 1
