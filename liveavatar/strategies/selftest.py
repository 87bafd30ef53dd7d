"""What the doctor asks of PyTorch, in processes of its own: devices, and whether ranks can talk to one another.

python -m liveavatar.strategies.selftest BACKEND: rank and world come from the environment, as torchrun sets them. Every
rank prints one line of JSON; whatever goes wrong is in it under `error` and the part that it stopped.
"""

from __future__ import annotations

import json
import os
import sys
import time
from datetime import timedelta
from typing import Any

FLOATS = 1 << 20


def facts() -> dict[str, Any]:
    """Versions, devices, memory and peer access, as PyTorch sees them."""
    import torch
    from torch.cuda import nccl

    found: dict[str, Any] = {"torch": torch.__version__, "cuda": torch.version.cuda, "gpus": []}
    try:
        import torchaudio

        found["torchaudio"] = torchaudio.__version__
    except Exception as error:  # noqa: BLE001  a library of another build fails in many ways
        found["torchaudio_error"] = f"{type(error).__name__}: {error}"
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    for number in range(count):
        about = torch.cuda.get_device_properties(number)
        free, total = torch.cuda.mem_get_info(number)
        reach = [
            other for other in range(count) if other != number and torch.cuda.can_device_access_peer(number, other)
        ]
        gpu = {"name": about.name, "capability": [about.major, about.minor], "free": free, "total": total}
        found["gpus"].append(gpu | {"peers": reach})
    if count:
        found["architectures"] = torch.cuda.get_arch_list()
        found["nccl"] = list(nccl.version())
    return found


def talk(backend: str, timeout_s: float) -> dict[str, Any]:
    """The transfers that strategies use, checked; seconds to meet, and bytes a second of a gather."""
    import torch
    import torch.distributed as dist

    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    device = torch.device("cuda", rank) if backend == "nccl" else torch.device("cpu")
    if backend == "nccl":
        torch.cuda.set_device(device)
    began = time.perf_counter()
    dist.init_process_group(backend, timeout=timedelta(seconds=timeout_s))
    mine = torch.full((FLOATS,), float(rank), device=device)
    whole = torch.empty(world * FLOATS, device=device)
    dist.all_gather_into_tensor(whole, mine)
    met = time.perf_counter() - began
    began = time.perf_counter()
    dist.all_gather_into_tensor(whole, mine)
    if whole[::FLOATS].tolist() != list(range(world)):
        raise RuntimeError(f"a gather brought {whole[::FLOATS].tolist()} instead of {list(range(world))}")
    seconds = time.perf_counter() - began
    received = torch.empty(1, device=device)
    sent = dist.isend(mine[:1].clone(), (rank + 1) % world)
    dist.recv(received, (rank - 1) % world)
    if sent is not None:
        sent.wait()
    if int(received) != (rank - 1) % world:
        raise RuntimeError(f"rank {rank} received {int(received)} from rank {(rank - 1) % world}")
    dist.barrier()
    dist.destroy_process_group()
    return {"met_s": met, "bytes_per_s": (world - 1) * mine.nbytes / max(seconds, 1e-9)}


def main() -> int:
    """Print this rank's line."""
    said: dict[str, Any] = {}
    part = "torch"
    try:
        if os.environ["RANK"] == "0":
            said["facts"] = facts()
            sys.stdout.write(json.dumps(said) + "\n")
            sys.stdout.flush()  # told even if what follows hangs
        part = "talk"
        said["talk"] = talk(sys.argv[1], float(sys.argv[2]))
    except Exception as error:  # noqa: BLE001  told, whatever it is
        said["error"] = {"part": part, "said": f"{type(error).__name__}: {error}".strip()}
    sys.stdout.write(json.dumps(said) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
