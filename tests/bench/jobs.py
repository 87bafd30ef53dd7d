"""Jobs of rows at the smallest shape, and a process that runs several of them, for it takes seconds to load."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

JOB: dict[str, Any] = {
    "kind": "stream",
    "way": "resident",
    "workload": "full",
    "shape": "tiny",
    "size": "64*64",
    "device": "cpu",
    "dtype": "float32",
    "ranks": 1,
    "kv": "device",
    "resident": 0,
    "stage": 0,
    "stages": 4,
    "cap_gib": None,
    "warm": 1,
    "blocks": 1,
    "limit_s": None,
    "trace": True,
    "threads": 1,
    "latents": None,
}


def blocked(*names: str) -> None:
    """Let imports of these packages fail, as where they are not installed."""

    class Missing:
        def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
            if name.split(".")[0] in names:
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    import importlib.metadata
    import importlib.util

    kept = importlib.metadata.distribution

    def distribution(name: str) -> importlib.metadata.Distribution:
        if name.replace("pillow", "PIL") in names:
            raise importlib.metadata.PackageNotFoundError(name)
        return kept(name)

    importlib.metadata.distribution = distribution
    found = importlib.util.find_spec
    importlib.util.find_spec = lambda name, *more: None if name.split(".")[0] in names else found(name, *more)
    sys.meta_path.insert(0, Missing())  # type: ignore[arg-type]


def run_worker(job: Path, result: Path) -> subprocess.CompletedProcess[str]:
    """The process of one row."""
    command = [sys.executable, "-m", "liveavatar.benching.worker", str(job), str(result)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def main() -> None:
    jobs_path, out_path, *names = sys.argv[1:]
    blocked(*names)
    if names:  # the command itself needs no more than its rows
        from liveavatar.bench import bench
        from liveavatar.config import compose

        words = [
            "suite=gpu",
            "only=[*.diffusers*]",
            "compare.previous=null",
            f"output.dir={Path(out_path).parent}/bare",
        ]
        bench(compose("bench", words))
    place = {"RANK": 0, "LOCAL_RANK": 0, "GROUP_RANK": 0, "WORLD_SIZE": 1, "LOCAL_WORLD_SIZE": 1}
    place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 0, "TORCHELASTIC_RUN_ID": "bench"}
    os.environ.update({name: str(value) for name, value in place.items()})
    from liveavatar.benching.conduct import free_port
    from liveavatar.benching.worker import measure

    os.environ["MASTER_PORT"] = str(free_port())
    outcomes = [measure(job) for job in json.loads(Path(jobs_path).read_text())]
    loaded = sorted({module.partition(".")[0] for module in sys.modules})
    from liveavatar.benching.ways import kinds

    Path(out_path).write_text(json.dumps({"outcomes": outcomes, "loaded": loaded, "kinds": list(kinds())}))


if __name__ == "__main__":
    main()
