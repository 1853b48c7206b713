"""Peak memory of a step over what is there between steps.

The base holds weights, reference and Adam's two states, and no gradient; so the peak is gradients, activations,
logits and whatever a layout keeps at once, which is what contenders differ in.

CPU: each contender in a fresh process of its own, with equal malloc settings: blocks of 64 KiB and more are mapped and
unmapped by themselves, so that resident memory follows what is alive. A step on one tiny row comes first, so that
Adam's states, libraries and their lasting buffers are in the base; whatever a real step adds counts. The kernel's
own high-water mark is reset before the step (`/proc/self/clear_refs`); where that is not allowed, a thread
samples the resident set.
CUDA: the allocator's high-water mark over what was allocated before, in the benchmark's process.

Units: bytes.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import gc
import multiprocessing
import os
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.training.contender import Contender, Weights
from benchmarks.training.measure import memory_errors
from benchmarks.training.roster import build
from benchmarks.training.shapes import Batch, Shape

MALLOC_SETTINGS = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "65536",
    "MALLOC_TOP_PAD_": "0",
    "MALLOC_MMAP_MAX_": "1000000",
}
TINY_TOKENS = 4
RESET_SLACK = 1 << 22
SAMPLE_S = 0.001

STATUS = Path("/proc/self/status")
CLEAR_REFS = Path("/proc/self/clear_refs")


@dataclasses.dataclass(frozen=True)
class Peak:
    """What a step needs over the base."""

    base: int
    over_base: int
    method: str


class MemoryFailure(Exception):
    """The measuring process ended without an answer; the message says how."""


def cuda_peak(contender: Contender, batches: Sequence[Batch]) -> Peak:
    """Return the peak over `batches` of the allocator.

    Raises:
        OutOfMemory: the contender does not fit.
    """
    contender.prepare()
    gc.collect()
    base = torch.cuda.memory_allocated(contender.device)
    torch.cuda.reset_peak_memory_stats(contender.device)
    with memory_errors(contender):
        for batch in batches:
            contender.step(batch)
    return Peak(base, torch.cuda.max_memory_allocated(contender.device) - base, "max_memory_allocated")


def cpu_peak(name: str, shape: Shape, *, threads: int) -> Peak:
    """Return the peak over the shape's batches of a fresh process.

    Raises:
        MemoryFailure: the process died or raised, or this is not Linux.
    """
    if not STATUS.exists():
        raise MemoryFailure("peak memory on CPUs is read from /proc, which this system has not")
    spawn = multiprocessing.get_context("spawn")
    receiver, sender = spawn.Pipe(duplex=False)
    with _environment(MALLOC_SETTINGS):
        process = spawn.Process(target=_measure, args=(sender, name, shape, threads), daemon=True)
        process.start()
    sender.close()
    try:
        answer = receiver.recv()
    except EOFError:
        process.join()
        raise MemoryFailure(f"the measuring process ended with exit code {process.exitcode}") from None
    process.join()
    if isinstance(answer, str):
        raise MemoryFailure(answer)
    return answer


def _measure(sender: Any, name: str, shape: Shape, threads: int) -> None:
    """Send a `Peak`, or what went wrong in one line."""
    try:
        sender.send(_peak_here(name, shape, threads))
    except Exception as error:  # the parent reports it beside the other contenders
        sender.send(f"{type(error).__name__}: {error}")


def _peak_here(name: str, shape: Shape, threads: int) -> Peak:
    torch.set_num_threads(threads)
    contender = build(name, Weights(shape, device=torch.device("cpu"), dtype=torch.float32).learner())
    torch.set_num_threads(threads)
    batches = shape.batches()
    contender.prepare()
    contender.step(_tiny(batches[0]))
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    base = _status("VmRSS")
    with memory_errors(contender):
        if _reset_high_water_mark(base):
            for batch in batches:
                contender.step(batch)
            return Peak(base, _status("VmHWM") - base, "VmHWM")
        with _Sampler() as sampler:
            for batch in batches:
                contender.step(batch)
        return Peak(base, sampler.peak - base, "sampled resident set")


def _tiny(batch: Batch) -> Batch:
    row = batch[0]
    responses = {role: ids[:TINY_TOKENS] for role, ids in row.responses.items()}
    return (dataclasses.replace(row, prompt_ids=row.prompt_ids[:TINY_TOKENS], responses=responses),)


def _status(field: str) -> int:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(field + ":"))
    return int(line.split()[1]) * 1024


def _reset_high_water_mark(base: int) -> bool:
    with contextlib.suppress(OSError):
        CLEAR_REFS.write_text("5")
    return _status("VmHWM") <= base + RESET_SLACK


class _Sampler:
    """Reads the resident set in a thread; torch's kernels run without the interpreter's lock."""

    def __init__(self) -> None:
        self.peak = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        while not self._stop.is_set():
            self.peak = max(self.peak, _status("VmRSS"))
            time.sleep(SAMPLE_S)

    def __enter__(self) -> _Sampler:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join()


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
