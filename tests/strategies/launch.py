"""Starting processes of a group, and waiting for them with a limit."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

GROUP = (
    "RANK",
    "LOCAL_RANK",
    "GROUP_RANK",
    "NODE_RANK",
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
)
"""Variables that say to which group a process belongs: never inherited from the test's own process."""


def clean_environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in GROUP and "TORCHELASTIC" not in name}
    return kept | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start_group(module: str, world: int, *arguments: str) -> list[subprocess.Popen[str]]:
    """`world` processes of a module, with the environment that torchrun gives."""
    port, started = free_port(), []
    for rank in range(world):
        mine = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
        mine |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "tests"}
        environment = clean_environment() | {name: str(value) for name, value in mine.items()}
        command = [sys.executable, "-m", module, *arguments]
        started.append(
            subprocess.Popen(
                command, env=environment, cwd=ROOT, text=True, stderr=subprocess.PIPE, stdout=subprocess.PIPE
            )
        )
    return started


def wait_for(group: list[subprocess.Popen[str]], timeout_s: float) -> list[str]:
    """What each process wrote to its error stream; raises RuntimeError with it when one failed or took too long."""
    try:
        said = [process.communicate(timeout=timeout_s)[1] for process in group]
    finally:
        for process in group:
            process.kill()
    failed = [f"rank {rank}: {text[-3000:]}" for rank, text in enumerate(said) if group[rank].returncode]
    if failed:
        raise RuntimeError("\n".join(failed))
    return said
