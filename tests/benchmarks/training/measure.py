"""Time of a step, and the check that all contenders compute the same thing before any is timed.

The one idea: only ratios taken side by side mean something on a shared machine, so contenders take turns after every
single step, and the one that begins changes with every repetition.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch

from benchmarks.training.contender import Contender
from benchmarks.training.shapes import Batch

FIRST_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2}
"""Largest relative difference of the first loss: the forward passes agree."""

SECOND_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 5e-2}
"""Of the loss after one update: so do the gradients. Adam turns rounding of tiny gradients into whole steps."""


class OutOfMemory(Exception):
    """A contender does not fit."""


@dataclasses.dataclass
class Timed:
    """Seconds per optimizer step, one value per repetition (its mean where a repetition has several steps)."""

    wall_s: list[float] = dataclasses.field(default_factory=list)
    cpu_s: list[float] = dataclasses.field(default_factory=list)
    """Of all threads of the process."""


def first_losses(contender: Contender, batches: Sequence[Batch]) -> tuple[float, float]:
    """Make two steps on the first batch and return their losses.

    On GPUs the other batches follow, so that allocator and kernels have seen every size before anything is timed.

    Raises:
        OutOfMemory: the contender does not fit.
    """
    contender.prepare()
    with memory_errors(contender):
        losses = contender.step(batches[0]), contender.step(batches[0])
        if contender.device.type == "cuda":
            for batch in batches[1:]:
                contender.step(batch)
    return losses


def disagreements(
    losses: Mapping[str, tuple[float, float]], contenders: Mapping[str, Contender], dtype: torch.dtype
) -> list[str]:
    """Return a line for each contender whose losses are not those of the first one with the same mathematics."""
    names = [name for name in losses if contenders[name].same_maths]
    lines = []
    for name in names[1:]:
        pairs = zip(
            losses[names[0]], losses[name], (FIRST_TOLERANCE[dtype], SECOND_TOLERANCE[dtype]), ("first", "second"),
            strict=True,
        )  # fmt: skip
        for expected, found, tolerance, which in pairs:
            # Written so that a loss that is not a number disagrees.
            if not abs(found - expected) <= tolerance * abs(expected):
                lines.append(f"{name}: {which} loss {found:.8g}, but {names[0]} has {expected:.8g}")
    return lines


def time_steps(
    contenders: Mapping[str, Contender], batches: Sequence[Batch], *, repeats: int, device: torch.device
) -> dict[str, Timed]:
    """Return the time of each contender, `repeats` values each; see `Timed`.

    Raises:
        OutOfMemory: a contender that did fit does not any more.
    """
    results = {name: Timed() for name in contenders}
    names = list(contenders)
    for repeat in range(repeats):
        shift = repeat % len(names)
        wall, cpu = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0.0)
        for batch in batches:
            for name in names[shift:] + names[:shift]:
                contenders[name].prepare()
                with memory_errors(contenders[name]):
                    wall_s, cpu_s = timed(lambda c=contenders[name], b=batch: c.step(b), device)
                wall[name] += wall_s
                cpu[name] += cpu_s
        for name in names:
            results[name].wall_s.append(wall[name] / len(batches))
            results[name].cpu_s.append(cpu[name] / len(batches))
    return results


def timed(action: Callable[[], object], device: torch.device) -> tuple[float, float]:
    """Return wall and process CPU seconds of `action`, with the garbage collector off and the device idle around it."""
    gc.collect()
    gc.disable()
    try:
        _synchronize(device)
        wall, cpu = time.perf_counter(), time.process_time()
        action()
        _synchronize(device)
        return time.perf_counter() - wall, time.process_time() - cpu
    finally:
        gc.enable()


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextlib.contextmanager
def memory_errors(contender: Contender) -> Iterator[None]:
    """Turn a failed allocation into `OutOfMemory` and drop the gradients of the step that failed."""
    try:
        yield
    except RuntimeError as error:  # torch.OutOfMemoryError is one; the CPU allocator raises a plain one
        if not isinstance(error, torch.OutOfMemoryError) and "allocate memory" not in str(error):
            raise
        raise OutOfMemory(f"out of memory: {str(error).splitlines()[0]}") from None
    finally:
        contender.optimizer.zero_grad(set_to_none=True)
