"""Rule by_domain: each domain has a rule of its own, as FuseChat-3.0 has for instruction, math and code.

Example: `rules: {instruction: {type: same_source_pair, min_margin: 0.01, max_margin: 0.1}, math: {type: same_source_pair,
contrast: verdict}}`: a prompt of domain math gives the pair of the second rule, one of domain chinese is dropped
(`no_rule`), unless there is a rule `"*"`. All rules make rows of one type for one side of the split.
"""

import builtins
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from fusion.config import Config
from fusion.select.best import Best
from fusion.select.common import Drop, PromptGroup, Reason
from fusion.select.on_policy_pair import OnPolicyPair
from fusion.select.preference_set import SourceSet
from fusion.select.quadruple import Quadruple
from fusion.select.response_group import Group
from fusion.select.same_source_pair import SameSourcePair
from fusion.select.source_pair import SourcePair
from fusion.select.weighted_groups import SourceGroups
from fusion.select.weighted_pairs import SourcePairs
from fusion.select.weighted_responses import WeightedAnswers

PlainRule = Annotated[
    Best
    | Quadruple
    | OnPolicyPair
    | SourcePair
    | SameSourcePair
    | SourceSet
    | Group
    | WeightedAnswers
    | SourcePairs
    | SourceGroups,
    Field(discriminator="type"),
]
"""Every rule but this one."""

OTHERS = "*"


class ByDomain(Config):
    """One rule per domain."""

    type: Literal["by_domain"] = "by_domain"
    rules: dict[str, PlainRule] = Field(min_length=1)
    """Rule by domain; `*` is for all domains not named. Prompts of a domain without one give no row."""

    @model_validator(mode="after")
    def _alike(self) -> Self:
        for what, values in (
            ("rows", {name: rule.row_type.__name__ for name, rule in self.rules.items()}),
            ("side", {name: rule.side for name, rule in self.rules.items()}),
        ):
            if len(set(values.values())) > 1:
                told = ", ".join(f"{name} {value}" for name, value in values.items())
                raise ValueError(f"the rules of all domains need the same {what}; here: {told}")
        return self

    @property
    def row_type(self) -> builtins.type:
        """Rows that all of its rules make."""
        return next(iter(self.rules.values())).row_type

    @property
    def side(self) -> Literal["sft", "preference", "all"]:
        """Prompts that all of its rules are for."""
        return next(iter(self.rules.values())).side

    @property
    def slug(self) -> str:
        """What directories of its rows are called: the kinds of its rules."""
        return "-".join(dict.fromkeys(rule.type for rule in self.rules.values()))

    @property
    def needs_own(self) -> bool:
        """Whether any rule reads the target's own answers."""
        return any(rule.needs_own for rule in self.rules.values())

    @property
    def needs_sources(self) -> bool:
        """Whether any rule reads the sources' answers."""
        return any(rule.needs_sources for rule in self.rules.values())

    def __call__(self, group: PromptGroup) -> Any:
        """Return the row of one prompt, or why there is none."""
        domain = group.prompt.domain
        rule = self.rules.get(domain, self.rules.get(OTHERS))
        return Drop(Reason.no_rule, f"no rule for domain {domain!r}") if rule is None else rule(group)


def with_seed(select: Mapping[str, Any], seed: Any) -> dict[str, Any]:
    """Return a rule as it is typed, with the seed of its ties where it states none; for `by_domain` that of each rule."""
    if select.get("type") == "rows":
        return dict(select)
    if select.get("type") != "by_domain":
        return {"seed": seed, **select}
    rules = select.get("rules")
    if not isinstance(rules, Mapping):
        return dict(select)  # validation names what is wrong with it
    return {**select, "rules": {n: with_seed(r, seed) if isinstance(r, Mapping) else r for n, r in rules.items()}}
