"""The contenders by name. A module is imported only when one of its contenders is wanted."""

from __future__ import annotations

import dataclasses
import importlib

from benchmarks.training.contender import Contender, Learner
from benchmarks.training.shapes import Task

OURS = "ours"
TRL_HINT = "pip install 'trl==1.16.0' accelerate datasets"


@dataclasses.dataclass(frozen=True)
class Entry:
    """Where a contender is and what it is."""

    task: Task
    module: str
    class_name: str
    about: str
    checkpointing: bool = False
    optional: bool = False
    """Only run when asked for by name, or for a shape that is for GPUs only."""


CONTENDERS: dict[str, Entry] = {
    "official": Entry("wrpo", "official", "Official", "the released layout, checkpointing off"),
    "official-ckpt": Entry("wrpo", "official", "Official", "the released layout as shipped: checkpointing on", True),
    "trl-3way": Entry("wrpo", "trl_peers", "TrlThreeWay", "TRL's DPOTrainer with three responses"),
    "trl-best": Entry("wrpo", "trl_peers", "TrlRows", "TRL, precomputed reference, head on response rows"),
    "trl-best-chunked": Entry("wrpo", "trl_peers", "TrlRowsChunked", "trl-best with TRL's chunked head"),
    "ours": Entry("wrpo", "ours", "OursWrpo", "fusion.train"),
    "ours-ckpt": Entry("wrpo", "ours", "OursWrpo", "fusion.train, checkpointing on", True, optional=True),
    "sft-official": Entry("sft", "official", "PackedSft", "the released packing: one stream, all tokens"),
    "sft-official-ckpt": Entry(
        "sft", "official", "PackedSft", "the released packing, checkpointing on as shipped", True, optional=True
    ),
    "sft-padded8": Entry("sft", "official", "PaddedSft", "padded batches of 8, transformers' own loss"),
    "sft-ours": Entry("sft", "ours", "OursSft", "fusion.train"),
    "sft-ours-ckpt": Entry("sft", "ours", "OursSft", "fusion.train, checkpointing on", True, optional=True),
}


class Unavailable(Exception):
    """A contender cannot run here; the message says what to do."""


def baseline(task: Task) -> str:
    """Return the name that ratios refer to."""
    return OURS if task == "wrpo" else f"sft-{OURS}"


def build(name: str, learner: Learner) -> Contender:
    """Return the contender of that name.

    Raises:
        Unavailable: a package is missing.
    """
    entry = CONTENDERS[name]
    return load(name)(learner, checkpointing=entry.checkpointing)


def load(name: str) -> type[Contender]:
    """Import and return the class of a contender, see `build`."""
    entry = CONTENDERS[name]
    try:
        module = importlib.import_module(f"benchmarks.training.{entry.module}")
    except ImportError as error:
        hint = f"; {TRL_HINT}" if entry.module == "trl_peers" else ""
        raise Unavailable(f"{error}{hint}") from error
    return getattr(module, entry.class_name)
