"""Where the sequences of a packed pass lie: a prompt once, its responses behind it.

The one idea: all tokens of a pass are one row, and attention is told by ranges who sees whom. Training packs its
rows so (`fusion.train.packing`), scoring its conversations (`fusion.rewards.shared`).
"""

import dataclasses

import numpy as np

LEAST_ROWS = 4
"""Matrix products of fewer rows take another kernel on CPUs, whose rounding differs. They are filled up everywhere, so that
a row's numbers do not depend on what it is packed with."""
ALIGNMENT = 8
"""Tokens of a packed pass are filled up to a multiple of it."""


@dataclasses.dataclass(frozen=True, slots=True)
class Tree:
    """A prompt and its responses in a packed sequence, as ranges of token positions.

    Example: a prompt of 5 tokens at 100 with responses of 4, 3 and 2: `Tree(100, 105, 109, ((109, 112), (112, 114)))`.
    """

    start: int
    prompt_stop: int
    trunk_stop: int
    """The trunk is `start` to here: the prompt, in training with its longest response."""
    branches: tuple[tuple[int, int], ...] = ()

    @property
    def stop(self) -> int:
        return self.branches[-1][1] if self.branches else self.trunk_stop

    @property
    def reach(self) -> int:
        """Tokens that a last token can see, itself included, in the longest of its sequences."""
        longest = max((stop - start for start, stop in self.branches), default=0)
        return max(self.trunk_stop - self.start, self.prompt_stop - self.start + longest)

    def alone(self, branch: tuple[int, int]) -> "Tree":
        """Return the tree with this branch only."""
        return dataclasses.replace(self, branches=(branch,))


@dataclasses.dataclass(frozen=True, slots=True)
class Trees:
    """What attention has to know of a packed sequence: its trees, in order, and its length with the filling."""

    trees: tuple[Tree, ...]
    num_tokens: int
    apart: bool = False
    """Each trunk and each branch in calls of its own, chosen by its own length: slower by little, and no bit of a branch
    depends on the others. For passes without gradients."""


def at_least(places: np.ndarray, count: int) -> np.ndarray:
    """Add the first other places where there are fewer than `count`, which is at most the tokens of the pass."""
    if len(places) >= count:
        return places
    return np.sort(np.concatenate([places, np.setdiff1d(np.arange(count), places)[: count - len(places)]]))
