"""Numbers of a training run: one JSON line per logged step, and the same to TensorBoard.

Only rank 0 writes. On resume, lines of steps that will be trained again are removed, so a step occurs once.
Names are those of TRL (`loss`, `learning_rate`, `grad_norm`, `epoch`, `num_tokens`, `rewards/...`, `logps/...`).
"""

import json
import math
import os
from pathlib import Path
from typing import Self

from fusion.artifact import read_json_lines, write_atomic

FILE = "metrics.jsonl"


def read_metrics(directory: Path) -> list[dict[str, float]]:
    """Return the lines of a training directory; a half-written last line is left out."""
    return read_json_lines(directory / FILE)


class MetricsWriter:
    """Appends metrics of a run that begins or resumes after `steps_done` steps."""

    def __init__(self, directory: Path, *, steps_done: int) -> None:
        # Here, in the writing process: TensorBoard takes a second to import.
        from torch.utils.tensorboard.writer import SummaryWriter

        kept = [line for line in read_metrics(directory) if line["step"] <= steps_done]
        write_atomic(directory / FILE, "".join(json.dumps(line) + "\n" for line in kept))
        self._file = (directory / FILE).open("a", encoding="utf-8")
        self._board = SummaryWriter(str(directory / "tensorboard"), purge_step=steps_done + 1)

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """Add the metrics of `step`, counted from 1. Non-finite numbers become null: JSON has none."""
        finite = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        self._file.write(json.dumps({"step": step, **finite}) + "\n")
        self._file.flush()
        for name, value in metrics.items():
            self._board.add_scalar(name, value, step)

    def sync(self) -> None:
        """Bring the lines to the disk."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()
        self._board.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
