"""The learning rate by hand."""

import math

import pytest

from fusion.train.schedule import learning_rate


def test_learning_rates() -> None:
    """10 steps, 20 % warmup: 0.5, 1, then cosine over 8 steps from 1; linear falls by 1/8; constant stays."""

    def rates(schedule: str, **changes: float) -> list[float]:
        settings = {"peak": 1.0, "total_steps": 10, "warmup_ratio": 0.2, "schedule": schedule} | changes
        return [learning_rate(t, **settings) for t in range(10)]  # type: ignore[arg-type]

    cosine = [0.5 * (1 + math.cos(math.pi * k / 8)) for k in range(8)]
    assert rates("cosine") == pytest.approx([0.5, 1.0, *cosine])
    assert rates("linear") == pytest.approx([0.5, 1.0, *(1 - k / 8 for k in range(8))])
    assert rates("constant") == pytest.approx([0.5] + [1.0] * 9)
    assert rates("linear", warmup_ratio=0.0)[0] == 1.0
    assert learning_rate(0, peak=2.0, total_steps=1, warmup_ratio=0.1, schedule="cosine") == 2.0
