"""Rows around the DiT: the embedded model from sound to video, how long commands take to start, the decoder, the
machine itself."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from liveavatar.benching.gauges import cap, memory, settle


def run_embedded(job: dict[str, Any]) -> dict[str, Any]:
    """A whole run of the embedded model, in a process of its own: real-time factor and first frame."""
    with tempfile.TemporaryDirectory() as folder:
        words = ["model=tiny", f"request.max_seconds={job['seconds']}", f"fabric.threads={job['threads']}"]
        words += [f"fabric.accelerator={job['device']}", f"output.dir={folder}/run", *job["words"]]
        command = [sys.executable, "-m", "liveavatar.infer", *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"liveavatar.infer ended with {done.returncode}: {done.stderr.strip()[-600:]}")
        told = json.loads(Path(folder, "run", "metrics.json").read_text())
    names = {
        "rtf": "speed/rtf",
        "first_frame_s": "speed/ttff_s",
        "load_s": "speed/load_s",
        "piece_s_warm": "speed/piece_s_warm",
        "denoise_s": "speed/denoise_s",
        "decode_s": "speed/decode_s",
    }
    found = {column: told[name] for column, name in names.items() if name in told}
    peaks = {"host_peak_bytes": told.get("memory/host_peak_bytes", told.get("memory/peak_host_bytes"))}
    return found | {name: value for name, value in peaks.items() if value is not None}


def _times(commands: Sequence[Sequence[str]], repeats: int) -> list[float]:
    """The fewest seconds of each command, taken in turn: what disturbs a process only ever adds."""
    best = [float("inf")] * len(commands)
    for _ in range(repeats):
        for place, words in enumerate(commands):
            began = time.perf_counter()
            subprocess.run([sys.executable, *words], capture_output=True, check=True)
            best[place] = min(best[place], time.perf_counter() - began)
    return best


def run_start(job: dict[str, Any]) -> dict[str, Any]:
    """Seconds of a bare interpreter, of `import liveavatar`, of --help, and what heavy modules they load."""
    commands = [["-c", "pass"], ["-c", "import liveavatar"], ["-m", "liveavatar.infer", "--help"]]
    bare, imported, helped = _times(commands, job["times"])
    count = "import sys, liveavatar; print(len([m for m in sys.modules if m.split('.')[0] in "
    count += "('torch', 'lightning', 'transformers', 'diffusers', 'av', 'numpy', 'hydra')]))"
    heavy = subprocess.run([sys.executable, "-c", count], capture_output=True, text=True, check=True).stdout
    return {
        "interpreter_s": bare,
        "import_s": max(0.0, imported - bare),
        "import_ratio": imported / bare,
        "help_s": helped,
        "help_ratio": helped / bare,
        "heavy_modules": int(heavy),
    }


def run_plan(job: dict[str, Any]) -> dict[str, Any]:
    """Seconds of a plan of the 14B model, as a command and inside a process, and how many ways it weighs."""
    from liveavatar.benching.planned import ways_weighed

    command = ["-m", "liveavatar.plan", "model=s2v_14b", "topology=4x24gb", "request.size=704*384"]
    bare, whole = _times([["-c", "pass"], command], job["times"])
    began = time.perf_counter()
    ways, fitting = ways_weighed()
    inside = time.perf_counter() - began
    found = {"command_s": whole, "command_ratio": whole / bare, "inside_s": inside}
    return found | {"ways": ways, "ways_that_fit": fitting}


def run_vae(job: dict[str, Any]) -> dict[str, Any]:
    """Seconds of decoding 12 frames of a stream that is under way, on random weights."""
    from liveavatar.checkpoint.load import materialise
    from liveavatar.checkpoint.read import RandomWeights
    from liveavatar.models.vae.codec import WanCodec
    from liveavatar.models.vae.streaming import stream_decode

    device, dtype = torch.device(job["device"]), getattr(torch, job["dtype"])
    found: dict[str, Any] = dict(cap(device, job["cap_gib"]))
    with torch.device("meta"):
        codec = WanCodec(base_dim=96 if job["shape"] == "14b" else 8).eval()
    materialise(codec, RandomWeights(0), device, dtype)
    with torch.no_grad():
        height, width = (int(side) // 8 for side in job["size"].split("*"))
        latents = torch.randn(1, 16, 3, height, width, generator=torch.Generator().manual_seed(0)).to(device, dtype)
        _, state = stream_decode(codec, latents)
        seconds, frames = [], 0
        for number in range(1 + job["times"]):
            settle(device)
            began = time.perf_counter()
            shown, state = stream_decode(codec, latents, state)
            settle(device)
            frames = shown.shape[2]
            if number:
                seconds.append(time.perf_counter() - began)
    found |= {"decode_s": statistics.median(seconds), "frames": frames, "state_bytes": state.nbytes()}
    return found | {"weights_device_bytes": sum(p.nbytes for p in codec.parameters())} | memory(device)


def run_machine(job: dict[str, Any]) -> dict[str, Any]:
    """What the machine gives: page-locked copies each way and both at once, matrix products."""
    device, size = torch.device(job["device"]), job["link_bytes"]
    found: dict[str, Any] = {}
    if device.type == "cuda":
        near = [torch.empty(size, dtype=torch.uint8, device=device) for _ in range(2)]
        far = [torch.empty(size, dtype=torch.uint8, pin_memory=True) for _ in range(2)]
        streams = [torch.cuda.Stream(device) for _ in range(2)]

        def into() -> None:
            with torch.cuda.stream(streams[0]):
                near[0].copy_(far[0], non_blocking=True)

        def back() -> None:
            with torch.cuda.stream(streams[1]):
                far[1].copy_(near[1], non_blocking=True)

        found["h2d_gbs"] = size / _best(into, device) / 1e9
        found["d2h_gbs"] = size / _best(back, device) / 1e9
        found["both_gbs"] = 2 * size / _best(lambda: (into(), back()), device) / 1e9
        found["device_name"] = torch.cuda.get_device_name(device)
    else:
        a, b = torch.empty(size, dtype=torch.uint8), torch.zeros(size, dtype=torch.uint8)
        found["host_copy_gbs"] = size / _best(lambda: a.copy_(b), device) / 1e9
    tokens, dim, ffn = job["product"]
    for kind in job["products"]:
        dtype = getattr(torch, kind)
        x, w = torch.randn(tokens, dim).to(device, dtype), torch.randn(ffn, dim).to(device, dtype)
        seconds = _best(lambda x=x, w=w: torch.nn.functional.linear(x, w), device)
        found[f"{kind}_tflops"] = 2 * tokens * dim * ffn / seconds / 1e12
    return found


def _best(work: Callable[[], object], device: torch.device, times: int = 5) -> float:
    """The fewest seconds of a piece of work, after one that does not count."""
    best = float("inf")
    for number in range(times + 1):
        settle(device)
        began = time.perf_counter()
        work()
        settle(device)
        if number:
            best = min(best, time.perf_counter() - began)
    return best
