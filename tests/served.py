"""A service in a process of its own, as people start it, for benchmarks and long tests."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import yaml

ROOT = Path(__file__).parents[1]
ENV = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "disabled",
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "PYTHONPATH": str(ROOT),
}


class Service:
    """A running service and what it printed so far."""

    def __init__(self, url: str, process: subprocess.Popen[str], lines: list[str]) -> None:
        self.url, self.process, self.lines = url, process, lines
        self.http = httpx.Client(base_url=url, timeout=120)

    @property
    def ray_address(self) -> str:
        """Address of the Ray cluster that it runs on."""
        line = next(line for line in self.lines if line.startswith("Ray cluster: "))
        return line.removeprefix("Ray cluster: ").strip()

    def processes(self, title: str) -> list[psutil.Process]:
        """Return the living processes of the service whose command line begins with `title`, oldest first.

        Ray gives its workers titles: `ray::ServeReplica:fuseline:reward:rm`, `ray::ProxyActor`; vLLM `VLLM::EngineCore`.
        """
        found = []
        for child in psutil.Process(self.process.pid).children(recursive=True):
            try:
                if " ".join(child.cmdline()).startswith(title) and child.status() != psutil.STATUS_ZOMBIE:
                    found.append(child)
            except psutil.NoSuchProcess:
                continue
        return sorted(found, key=lambda child: child.create_time())

    @classmethod
    @contextmanager
    def of(cls, folder: Path, **config: Any) -> Iterator["Service"]:
        """Start the service of a serve config, which is written into `folder`."""
        file = folder / "serve.yaml"
        file.write_text(yaml.safe_dump(config), encoding="utf-8")
        with cls.run("jobs.run", "serve", str(file)) as service:
            yield service

    @classmethod
    @contextmanager
    def start(cls, *arguments: str) -> Iterator["Service"]:
        """Start `python -m jobs.serve` with these arguments."""
        with cls.run("jobs.serve", *arguments) as service:
            yield service

    @classmethod
    @contextmanager
    def run(cls, *command: str) -> Iterator["Service"]:
        """Run a module that serves, on a free port, and end it by its own pid."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        process = subprocess.Popen(
            [sys.executable, "-m", *command, "--port", str(port)],
            cwd=ROOT,
            env={**os.environ, **ENV},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        lines: list[str] = []
        try:
            assert process.stdout is not None
            for line in process.stdout:
                lines.append(line)
                if line.startswith("serving at "):
                    break
            if process.poll() is not None:
                raise RuntimeError("the service ended at its start:\n" + "".join(lines))
            yield cls(f"http://127.0.0.1:{port}", process, lines)
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                process.wait(60)
