"""Starting the other processes of this machine, and ending them all when one of them is lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from lightning.fabric.strategies.launchers.subprocess_script import _SubprocessScriptLauncher

GRACE_S = 10.0
"""Seconds in which this process may notice by itself that another has ended, and close its files."""


class Launcher(_SubprocessScriptLauncher):
    """Fabric's own way of starting processes. Where Fabric then kills this process within five seconds of the end of
    another, it is given time here to say what happened and to close the video."""

    def launch(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self.cluster_environment.validate_settings(num_devices=self.num_processes, num_nodes=self.num_nodes)
        if not self.cluster_environment.creates_processes_externally:
            self._call_children_scripts()
            threading.Thread(target=watch, args=(self.procs, self.num_nodes), daemon=True, name="watch").start()
        return function(*args, **kwargs)


def watch(children: Sequence[subprocess.Popen[Any]], nodes: int = 1, every_s: float = 0.2) -> None:
    """Wait for the processes that were started here; when one fails, end all once GRACE_S is over."""
    while True:
        codes = [child.poll() for child in children]
        if all(code == 0 for code in codes):
            return
        failed = next((place for place, code in enumerate(codes) if code), None)
        if failed is not None:
            break
        time.sleep(every_s)
    time.sleep(GRACE_S)  # nothing of what follows happens where this process ends in the meantime
    code, which = codes[failed] or 0, failed + 1
    how = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
    where = f"rank {which}" if nodes == 1 else f"process {which} of this machine"
    sys.stderr.write(f"liveavatar: {where} {how}, and the others did not notice: they are ended too\n")
    sys.stderr.flush()
    for child in children:
        if child.poll() is None:
            child.kill()
    os.kill(os.getpid(), signal.SIGKILL)
