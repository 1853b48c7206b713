"""Rule same_source_pair: the best against the worst answer of one source, the pairs of FuseChat-3.0 (arXiv 2503.04222).

A source whose own best and worst answer are a pair (margins, verdicts, lengths) may supply it; one pair is made per prompt.
The paper keeps score gaps between 0.01 and 0.1 (`min_margin`, `max_margin`) and does not say which source supplies the
pair where several can. `choose` says it here; ties are drawn with the seed:

    best     the source whose chosen answer scores highest (default)
    widest   the source with the largest gap
    closest  the source with the smallest gap
    random   drawn, every source that can with the same chance

Example: source a scores 3 and 5, b 1 and 4, c 4.5: `best` gives (a 5, a 3), `widest` (b 4, b 1); c alone is no pair. With
`max_margin: 2` b's gap of 3 is out. With `contrast: verdict` (math, code) the chosen answer is correct and the rejected
one wrong, and a source whose answers are all of one kind supplies none.
A prompt where no source has a pair is dropped with the reason of the source that gave the best answer.
"""

from collections.abc import Mapping
from typing import ClassVar, Literal

from fusion.rows import PreferencePair
from fusion.select.common import Drop, Pair, Paired, PromptGroup, Reason


class SameSourcePair(Paired):
    """The best and the worst answer of one source."""

    row_type: ClassVar[type] = PreferencePair
    needs_own: ClassVar[bool] = False
    needs_sources: ClassVar[bool] = True

    type: Literal["same_source_pair"] = "same_source_pair"
    side: Literal["sft", "preference", "all"] = "preference"
    """Prompts that it is for: one side of the split, or all."""
    choose: Literal["best", "widest", "closest", "random"] = "best"
    """Which source supplies the pair where several can."""

    def __call__(self, group: PromptGroup) -> PreferencePair | Drop:
        """Return the row of one prompt, or why there is none."""
        answers = self.eligible(group.source, Reason.no_source_response)
        if isinstance(answers, Drop):
            return answers
        pairs = self.source_pairs(answers)
        return pairs if isinstance(pairs, Drop) else PreferencePair(group.prompt, *self._one_of(pairs))

    def _one_of(self, pairs: Mapping[str, Pair]) -> Pair:
        def rank(pair: Pair) -> float:
            chosen, rejected = pair
            match self.choose:
                case "best":
                    return -chosen.score
                case "widest":
                    return rejected.score - chosen.score
                case "closest":
                    return chosen.score - rejected.score
                case "random":
                    return 0.0

        return min(pairs.values(), key=lambda pair: (rank(pair), self.ticket(pair[0], "source")))
