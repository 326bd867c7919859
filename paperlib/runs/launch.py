"""Start one process for each device of this machine; `distributed.py` has their collectives.

The processes find each other through a file in a folder that only this user can open. They communicate over the loopback
interface, which other machines cannot reach.
"""

import os
import re
import signal
import subprocess
import sys
import time

from paperlib.runs.distributed import MEETING, STARTED, expected
from paperlib.runs.files import temporary

# Error messages of a process whose peer has died.
LOST = re.compile(r"connection (was )?(closed|reset)|broken pipe|remote process|NCCL", re.IGNORECASE)
GRACE = 10.0  # seconds between SIGTERM and SIGKILL
LOOPBACK = "lo0" if sys.platform == "darwin" else "lo"


def rank() -> int:
    """Return this process's rank, even before it has joined the group."""
    return int(os.environ["LOCAL_RANK"]) if expected() > 1 else 0


def launch(command: list[str], devices: int) -> tuple[int, str]:
    """Run `command` once for each device. Return an exit code and a text that says which process failed.

    When one process fails, the others are ended. CPU cores are divided among the processes, unless OMP_NUM_THREADS is set.
    Raises KeyboardInterrupt on Ctrl-C and on SIGTERM.
    """
    threads = str(max(1, (os.cpu_count() or 1) // devices))
    only = {"GLOO_SOCKET_IFNAME": LOOPBACK, "NCCL_SOCKET_IFNAME": LOOPBACK}
    failed: int | None = None
    processes: list[subprocess.Popen[bytes]] = []
    with temporary() as folder:
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # the processes must not outlive this one
        shared = {"OMP_NUM_THREADS": threads, **os.environ, **only, STARTED: str(devices), MEETING: f"{folder}/meeting"}
        try:
            for number in range(devices):
                processes.append(subprocess.Popen(command, env={**shared, "LOCAL_RANK": str(number)}))
            while failed is None:
                codes = [process.poll() for process in processes]
                failed = next((number for number, code in enumerate(codes) if code), None)
                if None not in codes:
                    break
                time.sleep(0.1)
        finally:
            _end(processes)
            signal.signal(signal.SIGTERM, before)
    if failed is None:
        return 0, ""
    code = processes[failed].returncode
    how = f"was ended by {signal.Signals(-code).name}" if code < 0 else "failed"
    return code if code > 0 else 1, f"process {failed + 1} of {devices} {how}, so the others were ended"


def _end(processes: list[subprocess.Popen[bytes]]) -> None:
    """Terminate the processes, and kill those that still run after GRACE seconds."""
    for process in processes:
        if process.poll() is None:
            process.terminate()
    for process in processes:
        try:
            process.wait(GRACE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
