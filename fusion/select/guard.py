"""Guards: what a whole selection must keep to, whatever its rule chose prompt by prompt.

    max_share          no source may win more than this share of the rows
    max_longer_share   of the rows with a pair, at most this share may have the longer text on the chosen side

Where a selection is beyond a guard, rows are left out until it holds: of the source with too many wins those drawn by a
hash of (seed, prompt), and of the rows that teach length those whose chosen text is longest relative to the rejected one.
Nothing is chosen anew, so every row left is the one its rule made; what is left out is counted (`source_share`,
`longer_share`). Shares are of the rows that remain.
Example: wins a 6, b 2, c 2 and `max_share: 0.5`: 2 rows of a go, 4 of the 8 left are a's. Of 10 pairs 8 have the longer
text chosen, `max_longer_share: 0.6`: 5 go, the most lopsided first; 3 of the 5 left are longer.
"""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any, Self

from pydantic import Field, model_validator

from fusion.config import Config
from fusion.rows import responses_of, roles
from fusion.select.common import Drop, Reason
from fusion.select.split import rank


class Guard(Config):
    """Limits of a selection as a whole."""

    max_share: float | None = Field(default=None, gt=0, lt=1)
    """Largest share of the rows that one source may win; null = no limit."""
    max_longer_share: float | None = Field(default=None, gt=0, lt=1)
    """Largest share of the rows whose chosen text is longer than the rejected one, in characters; null = no limit."""
    seed: int = Field(default=0, ge=0)
    """Seed of what is left out; the recipe's own where it is not given."""

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.max_share is None and self.max_longer_share is None:
            raise ValueError("a guard needs max_share or max_longer_share")
        return self

    def leaves_nothing(self, num_sources: int) -> bool:
        """Return whether `max_share` can hold for no number of rows that so many sources win all of.

        Shares of all sources add up to 1, so they cannot each be below 1 / `num_sources`.
        """
        return self.max_share is not None and self.max_share * num_sources < 1 - 1e-9

    def left_out(self, rows: Sequence[Any], *, sources: Sequence[str]) -> dict[int, Drop]:
        """Return the places of the rows to leave out, each with its reason.

        Args:
            rows: training rows of one type, in order.
            sources: names of the sources; a row won by another model counts in the total only.
        """
        out: dict[int, Drop] = {}
        while True:  # what one guard takes may break the other; each turn takes a row or ends it
            before = len(out)
            for share, cut in ((self.max_longer_share, self._longer), (self.max_share, self._wins)):
                if share is not None:
                    out |= cut(rows, [place for place in range(len(rows)) if place not in out], share, sources)
            if len(out) == before:
                return out

    def _wins(self, rows: Sequence[Any], left: Sequence[int], share: float, sources: Sequence[str]) -> dict[int, Drop]:
        winners = {place: winner(rows[place]) for place in left}
        wins = Counter(name for name in winners.values() if name in sources)
        allowed = allowed_wins(wins, others=len(left) - wins.total(), share=share)
        out = {}
        for name, most in allowed.items():
            own = sorted((p for p in left if winners[p] == name), key=lambda p: rank(self.seed, rows[p].row_id))
            for place in own[most:]:
                out[place] = Drop(
                    Reason.source_share, f"{name} won {wins[name]} rows, {most} are {share:g} of what is left"
                )
        return out

    def _longer(self, rows: Sequence[Any], left: Sequence[int], share: float, _: Sequence[str]) -> dict[int, Drop]:
        tilts = {place: tilt(rows[place]) for place in left}
        longer = [place for place, value in tilts.items() if value is not None and value > 0]
        paired = sum(value is not None for value in tilts.values())
        # With n of N longer, and k of them out: (n - k) <= share * (N - k).
        excess = max(0, math.ceil((len(longer) - share * paired) / (1 - share) - 1e-9))
        worst = sorted(longer, key=lambda place: (-(tilts[place] or 0.0), rank(self.seed, rows[place].row_id)))
        detail = f"{len(longer)} of {paired} rows have the longer text chosen, more than {share:g}"
        return {place: Drop(Reason.longer_share, detail) for place in worst[:excess]}


def winner(row: Any) -> str:
    """Return the model of the first response of a row's first role; rules put the best one there."""
    return responses_of(row, roles(type(row))[0])[0].response.model


def tilt(row: Any) -> float | None:
    """Return ln(characters chosen / characters rejected) of a row, all its pairs together; None for rows without pairs."""
    held = roles(type(row))
    if "rejected" not in held:
        return None
    chosen = responses_of(row, "target_chosen" if "target_chosen" in held else "chosen")
    length = [1 + sum(len(s.response.text) for s in side) for side in (chosen, responses_of(row, "rejected"))]
    return math.log(length[0] / length[1])


def allowed_wins(wins: Counter[str], *, others: int, share: float) -> dict[str, int]:
    """Return how many wins each source may keep so that none has more than `share` of what is then left.

    Every source above a number c is cut to c, the largest one with c <= share * (what is left). It is 0 where no number of
    rows would do, because `share` times the number of sources is below 1 and nobody else has rows.
    """
    ranked = sorted(wins.values(), reverse=True)
    cap = ranked[0] if ranked else 0
    if cap > share * (others + sum(ranked)):
        for cut in range(1, len(ranked) + 1):  # the `cut` largest are cut to c, the rest keep theirs
            # c <= share * (cut * c + rest). Once share * cut is 1 or more, the cap is never below the next source.
            cap = math.floor(share * (others + sum(ranked[cut:])) / (1 - share * cut) + 1e-9)
            if cut == len(ranked) or ranked[cut] <= cap:
                break
    return {name: min(count, cap) for name, count in wins.items()}
