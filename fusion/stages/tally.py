"""What a selection did, counted: wins per source, drops by reason, margins and lengths of what was taken.

Numbers for the report and for the question which source is worth its GPU hours; nothing is decided here.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from fusion.rows import Finish, responses_of, roles
from fusion.select import Drop, PromptGroup
from fusion.stages.statistics import histogram, summary


class Tally:
    """Counts over the prompts of one select stage."""

    def __init__(self, row_type: type, *, sources: Sequence[str]) -> None:
        self._roles = roles(row_type)
        self._sources = tuple(sources)
        self._drops: Counter[str] = Counter()
        self._prompts: Counter[str] = Counter()
        self._rows: Counter[str] = Counter()
        self._wins: dict[str, Counter[str]] = {}
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
            self._drops[str(outcome.reason)] += 1
            return
        self._rows[domain] += 1
        taken = {role: responses_of(outcome, role) for role in self._roles}
        winner = taken[self._roles[0]][0].response.model  # rules put the best of a group role first
        if winner in self._sources:
            self._wins.setdefault(domain, Counter())[winner] += 1
        if "rejected" in taken:
            (chosen,) = taken["target_chosen"] if "target_chosen" in taken else taken["chosen"]
            (rejected,) = taken["rejected"]
            self._margins.append(chosen.score - rejected.score)
        elif len(whole := taken[self._roles[0]]) > 1:
            self._margins.append(whole[0].score - whole[-1].score)
        for role, responses in taken.items():
            self._tokens[role] += [len(scored.response.token_ids) for scored in responses]
            self._characters[role] += [len(scored.response.text) for scored in responses]

    def notes(self) -> dict[str, Any]:
        """Return the counts as plain JSON values.

        Keys: `wins` (source -> `count` of rows won and their `share` of all rows), `wins_by_domain`
        (domain -> source -> count), `drops` (reason -> count), `domains` (domain -> prompts and rows), `answers`
        (model -> count, unfinished), `margins` (n, mean, std, min, max and histogram of chosen minus rejected score, for
        groups best minus worst; None for SFT rows) and `lengths` (role -> mean tokens and mean characters of its
        responses). A row is won by the source of its first response: of several, the best.
        """
        total = sum(self._rows.values())
        won = {source: sum(wins[source] for wins in self._wins.values()) for source in self._sources}
        margins = np.array(self._margins)
        return {
            "wins": {source: {"count": n, "share": n / total if total else 0.0} for source, n in won.items()},
            "wins_by_domain": {d: {s: w[s] for s in self._sources} for d, w in sorted(self._wins.items())},
            "drops": dict(sorted(self._drops.items())),
            "domains": {d: {"prompts": n, "rows": self._rows[d]} for d, n in sorted(self._prompts.items())},
            "answers": {m: {"count": n, "unfinished": self._unfinished[m]} for m, n in sorted(self._answers.items())},
            "margins": {**summary(margins), "histogram": histogram(margins)} if len(margins) else None,
            "lengths": {
                role: {
                    "mean_tokens": float(np.mean(self._tokens[role])),
                    "mean_characters": float(np.mean(self._characters[role])),
                }
                for role in self._roles
                if self._tokens[role]
            },
        }
