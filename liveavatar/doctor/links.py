"""Devices and the talk between ranks, tried in processes of their own: a hang or a crash there is a finding here."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from liveavatar.doctor.finding import FAIL, NOTE, OK, WARN, Finding
from liveavatar.memory.ledger import in_words

GROUP_VARIABLES = ("RANK", "LOCAL_RANK", "GROUP_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
IMPORT_S = 30.0
"""Seconds that a start of PyTorch may take on a slow disk, on top of the time allowed for talking."""


@dataclass
class Trial:
    """A self-test under way: started first, read last, so that it costs no time of its own."""

    backend: str
    world: int
    timeout_s: float
    processes: list[subprocess.Popen[str]] = field(default_factory=list)
    facts: dict[str, Any] | None = None
    talks: list[dict[str, Any]] = field(default_factory=list)
    trouble: str = ""

    @classmethod
    def start(cls, backend: str, world: int, timeout_s: float) -> Trial:
        trial = cls(backend, world, timeout_s)
        port = free_port()
        clean = {name: value for name, value in os.environ.items() if name not in GROUP_VARIABLES}
        clean |= {
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).resolve().parents[2]), clean.get("PYTHONPATH", "")])
        }
        for rank in range(world):
            mine = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1"}
            mine |= {"MASTER_PORT": port, "OMP_NUM_THREADS": 1}
            command = [sys.executable, "-m", "liveavatar.strategies.selftest", backend, str(timeout_s)]
            trial.processes.append(
                subprocess.Popen(
                    command,
                    env=clean | {name: str(value) for name, value in mine.items()},
                    text=True,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                )
            )
        return trial

    def finish(self) -> Trial:
        """Wait, no longer than allowed, and read what was printed."""
        until = time.monotonic() + self.timeout_s + IMPORT_S
        for rank, process in enumerate(self.processes):
            late = False
            try:
                out, err = process.communicate(timeout=max(0.1, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                late = True
                process.kill()
                out, err = process.communicate()
            lines = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
            for said in lines:
                self.facts = said.get("facts", self.facts)
            last = lines[-1] if lines else {}
            if "talk" in last:
                self.talks.append(last["talk"])
            elif not self.trouble:
                told = (
                    last.get("error", {}).get("said") or _last_line(err) or f"it ended with code {process.returncode}"
                )
                self.trouble = f"rank {rank}: " + ("no answer in time" if late else told)
        return self


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else ""


def check_torch(trial: Trial) -> list[Finding]:
    """Does PyTorch start at all, and torchaudio beside it?"""
    facts = trial.facts
    if facts is None:
        return [
            Finding(
                "torch", "start", FAIL, f"PyTorch does not start: {trial.trouble}", "pip install 'torch>=2.11,<2.13'"
            )
        ]
    kind = f"built for CUDA {facts['cuda']}" if facts["cuda"] else "built for the CPU"
    found = [Finding("torch", "start", OK, f"{facts['torch']}, {kind}")]
    if "torchaudio_error" in facts:
        found.append(
            Finding(
                "torch",
                "torchaudio",
                FAIL,
                f"does not load beside this torch: {facts['torchaudio_error']}",
                "pip install --force-reinstall torch torchaudio",
            )
        )
    return found


def check_devices(trial: Trial, accelerator: str, devices: int, needed: int | None) -> list[Finding]:
    """The cards, their memory against the weights at rest, and which reach one another. `needed`: bytes a card."""
    gpus = trial.facts["gpus"] if trial.facts else []
    found = []
    if not gpus:
        driver = Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi")
        if accelerator == "cuda":
            found.append(
                Finding(
                    "devices",
                    "GPU",
                    FAIL,
                    "fabric.accelerator=cuda, and PyTorch finds none",
                    "fabric.accelerator=cpu" if not driver else CUDA_BUILD,
                )
            )
        elif driver and accelerator == "auto":
            found.append(Finding("devices", "GPU", WARN, "a driver is here, but this PyTorch finds no GPU", CUDA_BUILD))
        else:
            found.append(Finding("devices", "GPU", OK, "none: runs take the CPU, which suits model=tiny"))
        return found
    for number, gpu in enumerate(gpus):
        found.append(_card(number, gpu, trial.facts or {}, needed))
    if accelerator != "cpu" and devices > len(gpus):
        found.append(
            Finding(
                "devices",
                "count",
                FAIL,
                f"fabric.devices={devices}, and there are {len(gpus)}",
                f"fabric.devices={len(gpus)}",
            )
        )
    if len(gpus) > 1:
        lacking = [n for n, gpu in enumerate(gpus) if len(gpu["peers"]) < len(gpus) - 1]
        found.append(
            Finding(
                "devices",
                "peer access",
                NOTE,
                f"cards {lacking} do not reach all others: transfers pass through host memory",
                "nvidia-smi topo -m; prefer +strategy=diagonal_pipeline, which moves least",
            )
            if lacking
            else Finding("devices", "peer access", OK, "every card reaches every other")
        )
        found += _topology()
    return found


CUDA_BUILD = "pip install --force-reinstall torch --index-url https://download.pytorch.org/whl/cu128"


def _card(number: int, gpu: dict[str, Any], facts: dict[str, Any], needed: int | None) -> Finding:
    name, said = f"cuda:{number}", f"{gpu['name']}, {in_words(gpu['free'])} free of {in_words(gpu['total'])}"
    major, minor = gpu["capability"]
    built = facts.get("architectures", [])
    if built and not any(arch.removeprefix("sm_").removeprefix("compute_")[:-1] == str(major) for arch in built):
        return Finding(
            "devices", name, FAIL, f"{said}; this PyTorch has no code for capability {major}.{minor}", CUDA_BUILD
        )
    if needed is not None and needed > gpu["total"]:
        return Finding(
            "devices",
            name,
            FAIL,
            f"{said}; the weights at rest take {in_words(needed)}",
            "+strategy=fsdp_stream strategy.source=host, or +strategy=diagonal_pipeline on more cards",
        )
    if needed is not None and needed > gpu["free"]:
        return Finding(
            "devices",
            name,
            WARN,
            f"{said}; the weights at rest take {in_words(needed)}, other processes hold the rest",
            "nvidia-smi, and end what is not needed",
        )
    return Finding("devices", name, OK, said)


def _topology() -> list[Finding]:
    """The links between cards, as the driver tells them."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(["nvidia-smi", "topo", "-m"], capture_output=True, text=True, timeout=5, check=True)
        rows = [line.split() for line in done.stdout.splitlines() if line.startswith("GPU")]
        links = {word for row in rows for word in row[1 : 1 + len(rows)] if word not in ("X",)}
        return [Finding("devices", "links", NOTE, f"nvidia-smi topo -m: {', '.join(sorted(links))}")]
    return []


def check_talk(trial: Trial, devices: int) -> list[Finding]:
    """Could the ranks meet and exchange tensors?"""
    what = f"{trial.backend}, {trial.world} ranks"
    if trial.facts is None:
        return []
    if trial.trouble:
        state = FAIL if devices > 1 else WARN
        mend = (
            "export GLOO_SOCKET_IFNAME=lo"
            if trial.backend == "gloo"
            else "NCCL_DEBUG=INFO tells more; NCCL_P2P_DISABLE=1"
        )
        return [Finding("ranks", "self-test", state, f"{what}: {trial.trouble}", mend)]
    met = max(talk["met_s"] for talk in trial.talks)
    rate = min(talk["bytes_per_s"] for talk in trial.talks)
    return [Finding("ranks", "self-test", OK, f"{what}: met in {met:.2f} s, a gather of 4 MB at {in_words(rate)}/s")]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def check_ports() -> list[Finding]:
    """Can ranks find one another: a port, a name, and no leftovers of another group in the environment."""
    found = []
    port = os.environ.get("MASTER_PORT")
    if port is not None and not os.environ.get("TORCHELASTIC_RUN_ID"):
        try:
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(("", int(port)))
            found.append(Finding("ranks", "port", OK, f"MASTER_PORT={port} is free"))
        except (OSError, ValueError, OverflowError) as error:
            found.append(
                Finding("ranks", "port", FAIL, f"MASTER_PORT={port} cannot be used: {error}", "unset MASTER_PORT")
            )
    else:
        found.append(Finding("ranks", "port", OK, f"a free one can be had ({free_port()} just now)"))
    left = [name for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK") if name in os.environ]
    if left and not os.environ.get("TORCHELASTIC_RUN_ID") and "SLURM_JOB_ID" not in os.environ:
        found.append(
            Finding(
                "ranks",
                "environment",
                WARN,
                f"{', '.join(left)} set, and no launcher: a run would wait for ranks that never come",
                f"unset {' '.join(left)}",
            )
        )
    try:
        socket.getaddrinfo(socket.gethostname(), None)
    except OSError:
        found.append(
            Finding(
                "ranks",
                "host name",
                WARN,
                f"{socket.gethostname()!r} leads to no address: ranks may not meet",
                "export GLOO_SOCKET_IFNAME=lo, or add the name to /etc/hosts",
            )
        )
    return found
