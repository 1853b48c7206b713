"""The learning rate as a pure function of the step: nothing to save, nothing to restore."""

import math
from typing import Literal


def warmup_steps(total_steps: int, warmup_ratio: float) -> int:
    """Return the number of steps in which the learning rate rises."""
    return math.ceil(warmup_ratio * total_steps)


def learning_rate(
    step: int, *, peak: float, total_steps: int, warmup_ratio: float, schedule: Literal["cosine", "linear", "constant"]
) -> float:
    """Return the learning rate of optimizer step `step` (0-based).

    It rises linearly over ceil(warmup_ratio * total_steps) steps; the first of them already moves, at
    peak / warmup_steps. Cosine and linear then fall towards 0, which step `total_steps` would have, so that the
    last step still learns.
    """
    warmup = warmup_steps(total_steps, warmup_ratio)
    if step < warmup:
        return peak * (step + 1) / warmup
    if schedule == "constant":
        return peak
    progress = (step - warmup) / max(1, total_steps - warmup)
    if schedule == "linear":
        return peak * (1 - progress)
    return peak * 0.5 * (1 + math.cos(math.pi * progress))
