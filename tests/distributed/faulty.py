"""Samplers whose real engine also takes notes, or really dies, for the tests of generate.

They live in a module of their own so that worker processes can import them. What they note goes into
`asked/` beside the model folder, one file per process.
"""

import json
import os
import signal
from pathlib import Path
from typing import Any

from fusion.stages.engine import Engine, EngineSettings
from fusion.stages.sampler import Sampler

POISON = "p3/poisoned/1"


class NotingEngine(Engine):
    """Notes its process, what Ray gave it, and the ids of every row that it is handed."""

    def __init__(self, settings: EngineSettings, **kwargs: Any) -> None:
        import ray

        folder = settings.folder.parent / "asked"
        folder.mkdir(exist_ok=True)
        self.notes = folder / f"{os.getpid()}.jsonl"
        self.note({"gpus": ray.get_runtime_context().get_assigned_resources().get("GPU", 0)})
        super().__init__(settings, **kwargs)

    def note(self, line: dict[str, Any]) -> None:
        with self.notes.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def submit(self, requests, results) -> None:
        for request in requests:
            self.note({"row": request.row_id, "ids": request.token_ids, "seed": request.seed})
        super().submit(requests, results)


class NotingSampler(Sampler):
    engine_class = NotingEngine


class PoisonedEngine(NotingEngine):
    """Fails in its own thread, like a kernel that meets a row it cannot bear."""

    def _add(self, request, results) -> None:
        if request.row_id == POISON:
            raise RuntimeError("illegal memory access")
        super()._add(request, results)


class PoisonedSampler(Sampler):
    engine_class = PoisonedEngine


class StillbornEngine(Engine):
    """Dies while it starts, like one that the kernel kills for its memory."""

    def __init__(self, settings: EngineSettings, **kwargs: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


class StillbornSampler(Sampler):
    engine_class = StillbornEngine


def read_notes(model: Path) -> list[dict[str, Any]]:
    """All notes of engines of `model`, each with the `pid` of its process."""
    return [
        {**json.loads(line), "pid": int(file.stem)}
        for file in sorted((model.parent / "asked").glob("*.jsonl"))
        for line in file.read_text().splitlines()
    ]
