"""Runs the worker function of training in real processes without Ray, and kills them when a condition holds."""

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from fusion.chat import ChatConfig
from fusion.train.run import prepare_training
from fusion.training import TrainConfig, TrainPlacement

ROOT = Path(__file__).parents[2]
SERVER = Path(__file__).with_name("rank_server.py")


class Ranks:
    """A server process that forks groups of ranks; see rank_server.py."""

    def __init__(self, server: subprocess.Popen) -> None:
        self._server = server
        assert self._read() == "ready"

    def _read(self) -> str:
        assert self._server.stdout is not None
        return self._server.stdout.readline().strip()

    def run(
        self, directory: Path, task: dict, *, world: int, kill_when: Callable[[], bool] | None = None
    ) -> tuple[int, ...]:
        """Run a group of ranks to its end and return the exit codes; kill all of them once `kill_when` holds."""
        assert self._server.stdin is not None
        command = {"task": task, "world": world, "log": str(directory / "ranks.log")}
        self._server.stdin.write(json.dumps(command) + "\n")
        self._server.stdin.flush()
        pids = json.loads(self._read())
        if kill_when is not None:
            end = time.monotonic() + 120
            while not kill_when():
                assert time.monotonic() < end, (directory / "ranks.log").read_text()[-2000:]
            for pid in pids:  # children of the server that it has not waited for: the pids are still theirs
                os.kill(pid, signal.SIGKILL)
        return tuple(json.loads(self._read()))

    def train(
        self,
        directory: Path,
        model_folder: Path,
        rows: list,
        reference: dict | None,
        config: TrainConfig,
        placement: TrainPlacement,
        *,
        kill_when: Callable[[], bool] | None = None,
    ) -> tuple[int, ...]:
        """What `run_training` does, apart from Ray."""
        task, *_ = prepare_training(
            directory=directory,
            model_folder=model_folder,
            chat_config=ChatConfig(),
            rows=rows,
            row_type=type(rows[0]),
            reference_logps=reference,
            config=config,
            placement=placement,
        )
        assert task is not None, "finished before"
        return self.run(directory, dataclasses.asdict(task), world=placement.workers, kill_when=kill_when)


@contextlib.contextmanager
def rank_server() -> Iterator[Ranks]:
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    server = subprocess.Popen(
        [sys.executable, str(SERVER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env
    )
    try:
        yield Ranks(server)
    finally:
        assert server.stdin is not None
        server.stdin.close()
        try:
            server.wait(30)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
