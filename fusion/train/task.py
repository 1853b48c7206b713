"""What driver and workers of a training agree on: names of files, and what a worker is told. Without torch and Ray."""

import dataclasses
from typing import Any

REFERENCE = "reference.npz"
CHECKPOINTS = "checkpoints"
MODEL = "model"
ATTEMPT = "attempt"
OUTCOME = "outcome.json"
"""What rank 0 writes at the end of a training, or the reason of a refusal."""


@dataclasses.dataclass(frozen=True)
class TrainTask:
    """What a training worker is told; it travels as keyword arguments through Ray Train."""

    directory: str
    model_folder: str
    pad_id: int
    identity: dict[str, Any]
    """A `RunIdentity`."""
    attempt: str
    """Token of the driver's attempt: whoever wrote it last into the directory may write there."""
    config: dict[str, Any]
    placement: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class ReferenceTask:
    """What a worker of a reference pass is told. `chunks` are (index, start, stop) over the rows as they came in."""

    directory: str
    model_folder: str
    pad_id: int
    precision: str
    tokens_per_micro_batch: int
    chunks: list[tuple[int, int, int]]
    """This worker's share."""
    row_ids: list[str]
