"""What the rules of FuseRL share: the shares that sources have in a prompt (arXiv 2504.06562, equation 8).

    w_i = exp(R_i / T) / sum_j exp(R_j / T)

with R_i the reward of source i and T the `temperature`. The paper takes the highest reward among the source's answers;
a reviewer asks for the mean, which `reward: mean` takes. T has no published value and must be said: the scores of ArmoRM
differ by 0.01 to 0.1 within a prompt, so T = 1 is almost uniform and T = 0.01 almost the best source alone. T -> 0 is
the best source (equally good ones share), T -> infinity is uniform, and `temperature: null` is exactly uniform. The
selection logs the mean entropy of the weights.
"""

import math
from collections.abc import Callable, Sequence
from typing import Literal, TypeVar

from pydantic import Field

from fusion.config import Config
from fusion.rows import ScoredResponse

Member = TypeVar("Member")


def softmax(rewards: Sequence[float], temperature: float | None) -> tuple[float, ...]:
    """Return shares that sum to 1: exp(r / T), normalised; equal ones for `temperature` None.

    Example: rewards 0.2 and 0.1 at T = 0.1 give e / (e + 1) = 0.731 and 0.269.
    """
    if temperature is None:
        return (1 / len(rewards),) * len(rewards)
    highest = max(rewards)
    # The difference first: r / T alone overflows for small T.
    powers = [math.exp((reward - highest) / temperature) for reward in rewards]
    total = math.fsum(powers)
    return tuple(power / total for power in powers)


def entropy(weights: Sequence[float]) -> float:
    """Return -sum w ln w in nats; ln K for K equal weights, 0 for one that has everything."""
    return -math.fsum(w * math.log(w) for w in weights if w > 0)


class Weighted(Config):
    """Fields of the rules whose rows have a weight per source."""

    temperature: float | None = Field(gt=0)
    """T of the softmax over rewards, in units of the score; null = equal weights."""
    reward: Literal["max", "mean"] = "max"
    """Reward of a source: that of its best answer, or the mean over its answers."""
    most: int | None = Field(default=None, ge=1)
    """How many sources (or, with `of: answers`, answers) are taken at most, best first; null = all.
    Sources are ranked by their reward, so with `reward: mean` by their means."""

    def reward_of(self, answers: Sequence[ScoredResponse]) -> float:
        """Return R of a source's answers."""
        scores = [answer.score for answer in answers]
        return max(scores) if self.reward == "max" else math.fsum(scores) / len(scores)

    def by_reward(self, members: Sequence[Member], reward: Callable[[Member], float]) -> list[Member]:
        """Return sources in the order in which `most` takes them: that of R, the highest first.

        Args:
            members: one per source, by the best answer of each; so they are in order already for `reward: max`, and so equal
                means fall.
            reward: R of one.
        """
        return sorted(members, key=lambda member: -reward(member)) if self.reward == "mean" else list(members)
