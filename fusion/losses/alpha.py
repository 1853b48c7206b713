"""Schedules of alpha, the share of the source responses in the preferred side of WRPO (arXiv 2412.03187).

The one idea: alpha is a pure function of the optimizer step, so there is nothing to save and a resumed run has
the alpha of an undisturbed one. A moving schedule has exactly `from` at the first step and exactly `to` at the last;
a run of one step (or of none) has `from`. The published code uses t / N, so that its last step never reaches the end
point and a run of no steps divides by zero; here it is t / (N - 1), guarded.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field

from fusion.config import Config


class ConstantAlpha(Config):
    """The same alpha at every step."""

    type: Literal["constant"] = "constant"
    value: float = Field(ge=0, le=1)
    """Share of the source responses in the preferred side."""

    def value_at(self, step: int, total_steps: int) -> float:
        """Return alpha at optimizer step `step` (0-based) of `total_steps`."""
        return self.value


class _Moving(Config):
    """alpha goes from one value to another; a schedule says which part of the way is done when."""

    model_config = ConfigDict(validate_by_alias=True, validate_by_name=True, serialize_by_alias=True)

    from_: float = Field(alias="from", ge=0, le=1)
    """alpha of the first optimizer step."""
    to: float = Field(ge=0, le=1)
    """alpha of the last optimizer step."""

    @abc.abstractmethod
    def way(self, progress: float) -> float:
        """Return the part of the way from `from` to `to` at `progress`; both run from 0 to 1."""

    def value_at(self, step: int, total_steps: int) -> float:
        """Return alpha at optimizer step `step` (0-based) of `total_steps`."""
        last = total_steps - 1
        if step <= 0:
            return self.from_
        if step >= last:
            return self.to
        way = self.way(step / last)
        return (1 - way) * self.from_ + way * self.to  # this form is exact where all of the way is done


class LinearAlpha(_Moving):
    """alpha moves on a straight line, as in the paper."""

    type: Literal["linear"] = "linear"

    def way(self, progress: float) -> float:
        """Return the progress itself."""
        return progress


class CosineAlpha(_Moving):
    """alpha moves on half a cosine wave: slowly at both ends, fastest in the middle."""

    type: Literal["cosine"] = "cosine"

    def way(self, progress: float) -> float:
        """Return (1 - cos(pi * progress)) / 2."""
        return 0.5 * (1 - math.cos(math.pi * progress))


class StepAlpha(_Moving):
    """alpha jumps once."""

    type: Literal["step"] = "step"
    at: float = Field(default=0.5, gt=0, le=1)
    """Progress of the run, 0 at the first step and 1 at the last, from which on alpha is `to`."""

    def way(self, progress: float) -> float:
        """Return 0 before the jump and 1 from it on."""
        return float(progress >= self.at)


AnyAlpha = ConstantAlpha | LinearAlpha | CosineAlpha | StepAlpha


def _spelt_short(value: Any) -> Any:
    """Read `alpha: 0.3` as constant and `alpha: {from: 0, to: 0.5}` as linear."""
    if isinstance(value, int | float | str) and not isinstance(value, bool):
        return {"type": "constant", "value": value}
    if isinstance(value, dict) and "type" not in value:
        return {"type": "constant" if "value" in value else "linear", **value}
    return value


Alpha = Annotated[
    Annotated[AnyAlpha, Field(discriminator="type")],
    BeforeValidator(_spelt_short, json_schema_input_type=float | AnyAlpha),
]


def learning_rate_weighted_mean_alphas(alpha: AnyAlpha, learning_rates: Sequence[float]) -> list[float]:
    """Return sum(lr_s * alpha_s) / sum(lr_s) over the steps s <= t, for each step t: the alpha that the updates until
    then have seen on average.

    With warmup and cosine decay a ramp from 0 to `a` amounts to about 0.34 * a, so a constant alpha must be
    compared with the last of these numbers and not with the end point.

    Args:
        learning_rates: rate of every step of the run. As long as all are zero, the plain mean of alpha is returned.
    """
    means = []
    sum_rates = sum_weighted = sum_plain = 0.0
    for step, rate in enumerate(learning_rates):
        value = alpha.value_at(step, len(learning_rates))
        sum_rates += rate
        sum_weighted += rate * value
        sum_plain += value
        means.append(sum_weighted / sum_rates if sum_rates else sum_plain / (step + 1))
    return means
