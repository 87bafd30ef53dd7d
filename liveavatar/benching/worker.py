"""The process of one row: a job as JSON in, what was measured as JSON out.

    python -m liveavatar.benching.worker JOB.json RESULT.json

A row that runs out of memory has an outcome like any other: `oom`, and where. The result is written whole or not at
all; a process that dies leaves none, and the one that started it says so.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import sys
import traceback
from pathlib import Path
from typing import Any

from liveavatar.bare import furnish


def measure(job: dict[str, Any]) -> dict[str, Any]:
    """Run a job; returns its outcome: status, reason, and the columns that were measured."""
    from liveavatar.memory.failure import shortage

    missing = furnish(codec=job["kind"] == "vae")
    import torch

    torch.set_num_threads(job["threads"])
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    course: Any = None
    try:
        if job["kind"] == "stream":
            from liveavatar.benching.stream import Course

            course = Course(job)
            found = course.run()
        else:
            found = _other(job["kind"])(job)
    except Exception as error:  # noqa: BLE001 - whatever a row dies of is its result, and must not stop the others
        most = resource.getrlimit(resource.RLIMIT_AS)[1]
        resource.setrlimit(resource.RLIMIT_AS, (most, most))  # the cap has done its work
        where = course.where if course is not None else "run"
        short = shortage(error)
        last = traceback.format_exc().strip()[-1500:]
        return {
            "status": "oom" if short is not None else "failed",
            "reason": f"{where}: {(str(short or error).strip() or type(error).__name__).splitlines()[0][:300]}",
            "trace": last,
            "found": course.found if course is not None else {},
        }
    return {"status": "ok", "reason": "", "found": found, "stood_in": missing}


def _other(kind: str) -> Any:
    if kind in ("cell", "profile"):
        from liveavatar.benching import cell

        return {"cell": cell.run_cell, "profile": cell.run_profile}[kind]
    from liveavatar.benching import whole

    return getattr(whole, f"run_{kind}")


def main() -> None:
    job_path, result_path = map(Path, sys.argv[1:])
    job = json.loads(job_path.read_text())
    rank = int(os.environ.get("RANK", "0"))
    outcome = measure(job)
    if rank == 0 or outcome["status"] != "ok":
        draft = result_path.with_suffix(f".{rank}.part")
        draft.write_text(json.dumps(outcome, indent=1) + "\n")
        draft.replace(result_path)
    if "torch.distributed" in sys.modules:
        group = sys.modules["torch.distributed"]
        if group.is_available() and group.is_initialized():
            group.destroy_process_group()
    sys.stdout.flush()


if __name__ == "__main__":
    main()
