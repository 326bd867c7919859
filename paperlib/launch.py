"""One process a device, by torchrun: what is started here meets in `distributed.py`."""

import logging
import os
import re
import signal
import uuid

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from paperlib.distributed import STARTED, expected

# How the processes of a run are told that one of them is gone.
LOST = re.compile(r"connection (was )?(closed|reset)|broken pipe|remote process|NCCL", re.IGNORECASE)


def rank() -> int:
    """Which of the processes that `launch` started this one is, before it has joined them; 0 for one that is alone."""
    return int(os.environ["LOCAL_RANK"]) if expected() > 1 else 0


def launch(command: list[str], devices: int) -> tuple[int, str]:
    """Run `command` once for each device; when one ends badly, so do the others. Its exit code, and what happened in words.

    Code 0 and no words where all ended well. Processors are shared out among the processes, unless OMP_NUM_THREADS says
    how many threads each should have. Raises KeyboardInterrupt where the user ends it.
    """
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // devices)))
    os.environ[STARTED] = str(devices)
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # what it has to say is said below
    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=devices, run_id=uuid.uuid4().hex, rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0", local_addr="127.0.0.1", max_restarts=0, monitor_interval=0.1,
    )  # fmt: skip
    try:
        elastic_launch(config, command[0])(*command[1:])
    except ChildFailedError as error:
        number, failure = error.get_first_failure()
        code = failure.exitcode
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else "failed"
        return code if code > 0 else 1, f"process {number + 1} of {devices} {how}, so the others were ended"
    except SignalException as error:
        if error.sigval == signal.SIGINT:
            raise KeyboardInterrupt from None
        return 1, f"ended by {error.sigval.name}"
    finally:
        del os.environ[STARTED]
    return 0, ""
