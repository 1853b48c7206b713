"""One of several processes that make the gradients of one global batch under DeepSpeed, without Ray.

`python zero_worker.py <task.json> <rank> <out.pt>`: rank 0 writes name -> full gradient, averaged as DeepSpeed does.
"""

import json
import os
import sys
from pathlib import Path


def main(task_file: str, rank: str, out: str) -> None:
    task = json.loads(Path(task_file).read_text())
    os.environ |= {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": str(task["world_size"]), "DS_ACCELERATOR": "cpu"}
    import numpy as np
    import torch.distributed as dist

    dist.init_process_group(
        "gloo", init_method=f"file://{task_file}.store", rank=int(rank), world_size=task["world_size"]
    )
    import torch
    from deepspeed.utils import safe_get_full_grad

    from fusion.train import passes, run_state, worker
    from fusion.train.task import TrainTask

    torch.set_num_threads(1)
    run = run_state.open_run(TrainTask(**task["train"]))
    model = worker.prepare(run)
    mass, sums = passes.accumulate(run, np.arange(len(run.data)), step=0)
    found = {name: safe_get_full_grad(parameter) for name, parameter in model.named_parameters()}
    metrics = passes.reduce(sums, num_rows=len(run.data), mass=mass)
    if rank == "0":
        torch.save({"gradients": found, "metrics": metrics, "passes": len(sums), "layout": str(run.layout)}, out)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
