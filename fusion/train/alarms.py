"""Alarms over the stream of a training's metrics: each says once, in numbers, that something goes wrong and what to do.

The one idea: an alarm is a function of the lines of metrics.jsonl and of nothing else, so a resumed run rebuilds its
watch from the file and raises the same alarms at the same steps. Values are means over a window of lines, because a
single batch of other rows moves them more than training does. Alarms never stop a training; the loop itself stops
after three non-finite steps.

What each looks at, and from when on:

- `chosen_falling`: the model gives the preferred responses less probability than at the start, although margins rise,
  which means that the rejected ones fall faster. Measured as the log-ratio to the start (reward / beta), which does
  not depend on which rows a step has, in nats per response and as a share of the log-probability at the start.
- `length_tilt`: the model favours longer (or shorter) responses beyond what preferring the chosen ones explains
  (`lengths.py`).
- `length_correlation`: over the rows of a step, the margin goes with the difference in length.
- `stuck_at_ln2`: after warm-up and a quarter of the steps a loss that began at ln 2 is still there.
- `non_finite`: a loss or gradient was NaN or infinite.
"""

import math
from collections import deque
from collections.abc import Mapping

from fusion.train.notices import Notice

WINDOW_SHARE = 0.1
"""Of the steps, at least `MIN_WINDOW` lines."""
MIN_WINDOW = 5
FALL_NATS = 1.0
"""Per response; a fall of less is noise for short responses."""
FALL_SHARE = 0.25
"""Of the log-probability at the start."""
TILT = 0.10
"""Share of the mean length that the tilt may lie outside of the range that the data explain."""
CORRELATION = 0.6
"""Mean of Pearson's r over the window, in either direction."""
LN2_BAND = 0.002
"""Nats around ln 2 that count as not moved."""
STUCK_SHARE = 0.25
"""Share of the steps after which a loss at ln 2 is stuck."""

Line = Mapping[str, float | None]


class Watch:
    """Sees the lines of metrics.jsonl in their order and returns the alarms that each of them raises."""

    def __init__(self, *, total_steps: int, warmup_steps: int, log_every: int = 1, beta: float | None = None) -> None:
        """
        Args:
            log_every: optimizer steps between lines.
            beta: what turns rewards into log-ratios; None for losses without.
        """
        lines = math.ceil(total_steps / log_every)
        self._window = max(MIN_WINDOW, math.ceil(lines * WINDOW_SHARE))
        self._total_steps, self._warmup_steps, self._beta = total_steps, warmup_steps, beta
        self._first: dict[str, list[float]] = {}
        self._last: dict[str, deque[float]] = {}
        self._raised: set[str] = set()

    def see(self, step: int, line: Line) -> list[Notice]:
        """Take the metrics of `step` (counted from 1) and return what is to be told now; each kind comes once."""
        for name, value in line.items():
            if value is not None and math.isfinite(value):
                first = self._first.setdefault(name, [])
                if len(first) < self._window:
                    first.append(value)
                self._last.setdefault(name, deque(maxlen=self._window)).append(value)
        texts = {
            "non_finite": self._non_finite(step, line),
            "chosen_falling": self._chosen_falling(),
            "length_tilt": self._length_tilt(),
            "length_correlation": self._length_correlation(),
            "stuck_at_ln2": self._stuck(step),
        }
        new = [Notice(name, step, text) for name, text in texts.items() if text and name not in self._raised]
        self._raised |= {notice.name for notice in new}
        return new

    def _mean(self, name: str) -> float | None:
        """Mean over the last window; None before a whole window after the first one has been seen."""
        last = self._last.get(name)
        if last is None or len(last) < self._window:
            return None
        return sum(last) / len(last)

    def _start(self, name: str) -> float:
        """Mean over the first window."""
        return sum(self._first[name]) / len(self._first[name])

    def _non_finite(self, step: int, line: Line) -> str | None:
        bad = [name for name in ("loss", "grad_norm") if name in line and not _is_finite(line[name])]
        if not bad:
            return None
        return (
            f"{' and '.join(bad)} not finite at step {step}; three such steps in a row end the training with its last "
            "good checkpoint kept. Lower learning_rate, or look for a broken row"
        )

    def _chosen_falling(self) -> str | None:
        reward, logp, margin = map(self._mean, ("rewards/chosen", "logps/chosen", "rewards/margins"))
        if reward is None or logp is None or margin is None or not self._beta:
            return None
        fall = -reward / self._beta
        at_start = logp + fall
        rising = margin > self._start("rewards/margins")
        if not rising or fall < FALL_NATS or fall < FALL_SHARE * abs(at_start):
            return None
        return (
            f"the log-probability of chosen responses has fallen by {fall:.1f} nats per response, from {at_start:.1f} "
            f"at the start to {logp:.1f}, while margins rise (to {margin:.2f}): rejected responses fall faster, and "
            "the freed probability goes to responses nobody has looked at. Lower learning_rate or raise beta"
        )

    def _length_tilt(self) -> str | None:
        tilt, shortest, longest = map(self._mean, ("lengths/tilt", "lengths/shortest", "lengths/longest"))
        if tilt is None or shortest is None or longest is None:
            return None
        low, high = min(0.0, shortest), max(0.0, longest)
        if low - TILT <= tilt <= high + TILT:
            return None
        asked = _more(shortest) if f"{shortest:.0%}" == f"{longest:.0%}" else f"{_more(shortest)} to {_more(longest)}"
        return (
            f"the model favours responses that are {_more(tilt)} than the average of their row, while the preferred "
            f"ones are {asked}: it learns length. Balance lengths in the selection or stop earlier"
        )

    def _length_correlation(self) -> str | None:
        r = self._mean("lengths/correlation")
        if r is None or abs(r) < CORRELATION:
            return None
        kind = "longer" if r > 0 else "shorter"
        return (
            f"margins go with the difference in length: r = {r:+.2f} over the rows of a step. Pairs whose chosen "
            f"response is {kind} are the ones that are learnt. Balance lengths in the selection"
        )

    def _stuck(self, step: int) -> str | None:
        loss = self._mean("loss")
        if loss is None:
            return None
        began = abs(self._first["loss"][0] - math.log(2)) < LN2_BAND and "rewards/margins" in self._first
        since = max(self._warmup_steps, STUCK_SHARE * self._total_steps)
        if not began or step <= since + self._window or abs(loss - math.log(2)) >= LN2_BAND:
            return None
        return (
            f"the loss is still {loss:.4f} at step {step} of {self._total_steps}, ln 2 = {math.log(2):.4f} is where it "
            "began: nothing is learnt. Raise learning_rate or beta, and look whether chosen and rejected differ"
        )


def _is_finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _more(share: float) -> str:
    return f"{abs(share):.0%} {'longer' if share > 0 else 'shorter'}"
