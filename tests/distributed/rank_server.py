"""Starts groups of training ranks without Ray, within milliseconds: a process that has imported all, and forks.

It reads one JSON command per line: {"task": {...} or null, "world": 2, "log": path}, forks the ranks, and answers with
their pids, then, when all have ended, with their exit codes (negative: the signal).
"""

import importlib
import json
import os
import sys
import tempfile
import traceback
from pathlib import Path

os.environ["DS_ACCELERATOR"] = "cpu"

import torch
import torch.distributed as dist

from fusion.train.worker import train_worker

WARM = (
    "deepspeed.runtime.zero.stage3",
    "deepspeed.runtime.zero.stage_1_and_2",
    "deepspeed.runtime.zero.muon.muon_optimizer",  # compiles a function at import: 3 s
    "pyarrow.dataset",
    "safetensors.torch",
    "torch.utils.tensorboard.writer",
    "transformers.models.qwen2.modeling_qwen2",
)
"""What a rank would import while it trains."""
for module in WARM:
    importlib.import_module(module)


def rank_main(command: dict, rank: int, store: str) -> None:
    log = os.open(command["log"], os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(command["world"])}
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=command["world"])
    train_worker(command["task"])


def main() -> None:
    threads = {path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")}
    # Forking is safe from one thread; that of Arrow's allocator knows about forks.
    assert threads - {"jemalloc_bg_thd"} == {Path("/proc/self/comm").read_text().strip()}, threads
    print("ready", flush=True)
    for line in sys.stdin:
        command = json.loads(line)
        store = tempfile.mktemp(prefix="ranks-")
        pids = []
        for rank in range(command["world"]):
            pid = os.fork()
            if pid == 0:
                try:
                    rank_main(command, rank, store)
                except BaseException:
                    traceback.print_exc()
                    os._exit(1)
                os._exit(0)
            pids.append(pid)
        print(json.dumps(pids), flush=True)
        print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]), flush=True)
        Path(store).unlink(missing_ok=True)


if __name__ == "__main__":
    main()
