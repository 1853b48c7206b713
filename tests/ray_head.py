"""A head node of its own for tests that attach to a cluster or hand in jobs, and what waits for other processes."""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psutil

ROOT = Path(__file__).parents[1]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


@contextlib.contextmanager
def head_node(directory: Path) -> Iterator[tuple[str, str]]:
    """Addresses of a head node, for Ray and for its jobs. Its four GPUs exist only in Ray's books."""
    port, dashboard, client, agent = free_ports(4)
    session = tempfile.mkdtemp(prefix="r-", dir="/tmp")  # short: unix sockets live below it
    scripts = Path(sys.executable).parent
    process = subprocess.Popen(
        [
            scripts / "ray", "start", "--head", "--block", "--node-ip-address=127.0.0.1", f"--port={port}",
            f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}", f"--temp-dir={session}",
            f"--dashboard-agent-listen-port={agent}", "--num-cpus=8", "--num-gpus=4", "--disable-usage-stats",
        ],
        cwd=directory,
        env={**environment(), "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}", "RAY_AUTH_MODE": "disabled"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    try:
        jobs = f"http://127.0.0.1:{dashboard}"
        wait_for(lambda: answers(f"{jobs}/api/jobs/"), process)
        yield f"127.0.0.1:{port}", jobs
    finally:
        below = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for child in psutil.wait_procs(below, timeout=5)[1]:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        shutil.rmtree(session, ignore_errors=True)


def free_ports(count: int) -> list[int]:
    """Ports that are free now; all above those that Ray gives to its workers."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


def answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=5).status_code == 200
    except httpx.TransportError:
        return False


def wait_for(condition: Callable[[], object], process: subprocess.Popen, timeout_s: float = 300) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert process.poll() is None, f"the process ended too early, with {process.returncode}"
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)
