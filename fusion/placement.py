"""Where and how fast stages run. None of this enters a key: change it and nothing is made again."""

import dataclasses
from typing import Literal

from pydantic import Field

from fusion.config import Placement

Accelerator = Literal["auto", "cpu", "gpu"]
"""`auto` asks the Ray cluster: `gpu` where it has any, else `cpu`."""


class GeneratePlacement(Placement):
    """vLLM actors of one generate stage."""

    replicas: int = Field(default=1, ge=1)
    """Engines side by side, each in its own actor."""
    tensor_parallel: int = Field(default=1, ge=1)
    """GPUs (or CPU processes) that one engine spreads over, on one node."""
    accelerator: Accelerator = "auto"
    """Which resource an engine asks Ray for."""
    gpu_memory_share: float = Field(default=0.9, gt=0, le=1)
    """Share of each GPU's memory that the engine takes; below 0.5 two engines fit on one GPU."""
    cpus: float = Field(default=1.0, gt=0)
    """Logical CPUs that one engine asks Ray for."""
    max_num_seqs: int = Field(default=256, ge=1)
    """Sequences in one engine batch."""
    kv_cache_gib: float = Field(default=1.0, gt=0)
    """KV cache of a CPU engine in GiB; on GPUs `gpu_memory_share` decides."""
    chunk_rows: int = Field(default=512, ge=1)
    """Rows in one part: the work that a kill can cost."""
    concurrent_chunks: int = Field(default=4, ge=1)
    """Chunks that feed one engine at once. With lengths that vary, the longest answers of a chunk outlast all others of
    the next one: two chunks leave the engine half empty, four keep it full."""

    @property
    def gpus_per_engine(self) -> float:
        """GPUs that one engine asks Ray for where it runs on GPUs; a share of at most half a GPU is asked for as that
        share, so that two engines can have one GPU."""
        whole = self.tensor_parallel > 1 or self.gpu_memory_share > 0.5
        return float(self.tensor_parallel) if whole else self.gpu_memory_share


class ScorePlacement(Placement):
    """Scoring actors."""

    replicas: int = Field(default=1, ge=1)
    """Actors side by side."""
    accelerator: Accelerator = "auto"
    """Which resource a reward-model actor asks Ray for; python scorers always use CPUs."""
    cpus: float = Field(default=1.0, gt=0)
    """Logical CPUs of one actor."""
    chunk_rows: int = Field(default=2048, ge=1)
    """Rows in one part."""


@dataclasses.dataclass(frozen=True)
class Demand:
    """What a stage asks of a cluster at once: `count` actors with `cpus` or `gpus` each.

    One actor must fit on one node. `gpus` is 0 for work that never uses one.
    """

    count: int = 0
    cpus: float = 0.0
    gpus: float = 0.0
    accelerator: Accelerator = "cpu"

    def per_actor(self, *, cluster_has_gpus: bool) -> dict[str, float]:
        """Return the Ray resources of one actor on a cluster with or without GPUs."""
        use_gpu = self.gpus > 0 and (self.accelerator == "gpu" or (self.accelerator == "auto" and cluster_has_gpus))
        wanted = {"CPU": self.cpus, "GPU": self.gpus if use_gpu else 0.0}
        return {name: amount for name, amount in wanted.items() if amount}

    def __str__(self) -> str:
        if not self.count:
            return "-"
        gpu = {"cpu": "", "gpu": f" + {self.gpus:g} GPU", "auto": f" (+ {self.gpus:g} GPU)"}[self.accelerator]
        return f"{self.count} x {self.cpus:g} CPU{gpu if self.gpus else ''}"
