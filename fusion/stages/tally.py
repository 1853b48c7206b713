"""What a selection did, counted: wins per source, drops by reason, margins and lengths of what was taken.

Numbers for the report and for the question which source is worth its GPU hours; nothing is decided here.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fusion.rows import (
    Finish,
    ScoredResponse,
    WeightedGroups,
    WeightedPairs,
    WeightedResponses,
    responses_of,
    roles,
)
from fusion.select import Drop, PromptGroup
from fusion.select.guard import winner as won_by
from fusion.select.weighted import entropy
from fusion.stages.statistics import histogram, summary


class Tally:
    """Counts over the prompts of one select stage."""

    def __init__(self, row_type: type, *, sources: Sequence[str]) -> None:
        self._roles = roles(row_type)
        self._sources = tuple(sources)
        self._drops: dict[str, Counter[str]] = {}
        self._prompts: Counter[str] = Counter()
        self._rows: Counter[str] = Counter()
        self._datasets: Counter[str] = Counter()
        self._wins: dict[str, Counter[str]] = {}
        self._taken: Counter[str] = Counter()
        self._entropies: list[float] = []
        self._members: list[int] = []
        self._answers: Counter[str] = Counter()
        self._unfinished: Counter[str] = Counter()
        self._margins: list[float] = []
        self._tokens: dict[str, list[int]] = {role: [] for role in self._roles}
        self._characters: dict[str, list[int]] = {role: [] for role in self._roles}

    def add(self, group: PromptGroup, outcome: Any) -> None:
        """Count one prompt: `outcome` is its row or its Drop."""
        domain = group.prompt.domain
        self._prompts[domain] += 1
        for scored in (*group.source, *group.own):
            self._answers[scored.response.model] += 1
            self._unfinished[scored.response.model] += scored.response.finish_reason is Finish.length
        if isinstance(outcome, Drop):
            self._drops.setdefault(domain, Counter())[str(outcome.reason)] += 1
            return
        self._rows[domain] += 1
        if group.prompt.dataset is not None:
            self._datasets[group.prompt.dataset] += 1
        if isinstance(outcome, WeightedResponses | WeightedPairs | WeightedGroups):
            self._entropies.append(entropy(outcome.weights))
            self._members.append(len(outcome.weights))
        taken = {role: responses_of(outcome, role) for role in self._roles}
        winner = won_by(outcome)
        if winner in self._sources:
            self._wins.setdefault(domain, Counter())[winner] += 1
        self._taken.update({scored.response.model for responses in taken.values() for scored in responses})
        self._margins += _margins(taken, self._roles[0])
        for role, responses in taken.items():
            # Answers of a data set have text and no tokens.
            self._tokens[role] += [len(s.response.token_ids) for s in responses if s.response.token_ids]
            self._characters[role] += [len(scored.response.text) for scored in responses]

    @property
    def num_rows(self) -> int:
        """Rows counted so far."""
        return sum(self._rows.values())

    def drops(self) -> Counter[str]:
        """Return how often each reason dropped a prompt, over all domains."""
        return sum(self._drops.values(), Counter())

    def notes(self) -> dict[str, Any]:
        """Return the counts as plain JSON values.

        Keys: `wins` (source -> `count` of rows won and their `share` of all rows), `wins_by_domain`
        (domain -> source -> count), `drops` (reason -> count), `drops_by_domain` (domain -> reason -> count), `domains`
        (domain -> prompts and rows), `datasets` (data set -> rows), `taken` (model -> rows that hold an answer of it),
        `answers` (model -> count, unfinished), `margins` (n, mean, std, min, max and histogram of chosen minus rejected
        score, for groups best minus worst; None for SFT rows), `weights` (of rows with weights: their mean entropy in nats,
        that of equal weights, and the mean number of members; else None) and `lengths` (role -> mean tokens, None
        where no answer has any, and mean characters of its responses). A row is won by the source of its first response: of several, the best.
        """
        total = self.num_rows
        won = {source: sum(wins[source] for wins in self._wins.values()) for source in self._sources}
        margins = np.array(self._margins)
        return {
            "wins": {source: {"count": n, "share": n / total if total else 0.0} for source, n in won.items()},
            "wins_by_domain": {d: {s: w[s] for s in self._sources} for d, w in sorted(self._wins.items())},
            "drops": dict(sorted(self.drops().items())),
            "drops_by_domain": {d: dict(sorted(n.items())) for d, n in sorted(self._drops.items())},
            "domains": {d: {"prompts": n, "rows": self._rows[d]} for d, n in sorted(self._prompts.items())},
            "datasets": dict(sorted(self._datasets.items())),
            "taken": dict(sorted(self._taken.items())),
            "answers": {m: {"count": n, "unfinished": self._unfinished[m]} for m, n in sorted(self._answers.items())},
            "margins": {**summary(margins), "histogram": histogram(margins)} if len(margins) else None,
            "weights": {
                "mean_entropy": float(np.mean(self._entropies)),
                "mean_entropy_if_equal": float(np.mean(np.log(self._members))),
                "mean_members": float(np.mean(self._members)),
            }
            if self._members
            else None,
            "lengths": {
                role: {
                    "mean_tokens": float(np.mean(self._tokens[role])) if self._tokens[role] else None,
                    "mean_characters": float(np.mean(self._characters[role])),
                }
                for role in self._roles
                if self._characters[role]
            },
        }


def _margins(taken: Mapping[str, Sequence[ScoredResponse]], first: str) -> list[float]:
    """Return chosen minus rejected score of each pair of a row; of a row without pairs best minus worst, if it has both."""
    if "rejected" in taken:
        chosen = taken["target_chosen"] if "target_chosen" in taken else taken["chosen"]
        return [a.score - b.score for a, b in zip(chosen, taken["rejected"], strict=True)]
    whole = [scored.score for scored in taken[first]]
    return [max(whole) - min(whole)] if len(whole) > 1 else []
