"""Peak memory, phase by phase."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import torch


def host_peak() -> int:
    """Largest resident set of this process so far, in bytes."""
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


class PeakMemory:
    """Peaks by phase: `memory/<phase>/host` is the process's largest resident set up to the end of the phase; on CUDA
    `allocated` (what tensors needed) and `reserved` (what the allocator took) are the peaks within the phase. Bytes.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.values: dict[str, int] = {}
        self._reset()

    def end(self, phase: str) -> None:
        """Close a phase: note its peaks, and start counting anew."""
        self.values[f"memory/{phase}/host"] = host_peak()
        if self.device.type == "cuda":
            self.values[f"memory/{phase}/allocated"] = torch.cuda.max_memory_allocated(self.device)
            self.values[f"memory/{phase}/reserved"] = torch.cuda.max_memory_reserved(self.device)
        self._reset()

    def _reset(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
