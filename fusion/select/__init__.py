"""From scored answers to training rows: one rule per file, and the union of them, which is the registry.

A rule is a frozen config that is called with all answers to one prompt and returns a row or a `Drop` with
its reason. It says which row type it makes and which answers it needs. To add one, write
`select/<name>.py` and put its class into `RULES` and `PlainRule` (by_domain.py); the tests that run over `RULES` then
demand its properties. Pure Python: nothing here imports Ray or a model library.
"""

from typing import Annotated

from pydantic import Field

from fusion.select.best import Best
from fusion.select.by_domain import ByDomain, PlainRule, with_seed
from fusion.select.common import Drop, PromptGroup, Reason
from fusion.select.given_rows import GivenRows
from fusion.select.guard import Guard
from fusion.select.on_policy_pair import OnPolicyPair
from fusion.select.pair_split import AnySplit, PairSplit, Shares
from fusion.select.preference_set import SourceSet
from fusion.select.quadruple import Quadruple
from fusion.select.response_group import Group
from fusion.select.same_source_pair import SameSourcePair
from fusion.select.source_pair import SourcePair
from fusion.select.split import Side, Split
from fusion.select.weighted_groups import SourceGroups
from fusion.select.weighted_pairs import SourcePairs
from fusion.select.weighted_responses import WeightedAnswers

RULES = (
    Best,
    Quadruple,
    OnPolicyPair,
    SourcePair,
    SameSourcePair,
    SourceSet,
    Group,
    WeightedAnswers,
    SourcePairs,
    SourceGroups,
)
"""Members of `Rule` that look at one prompt, for tests and tables."""

Rule = Annotated[PlainRule | ByDomain, Field(discriminator="type")]

Selection = Annotated[PlainRule | ByDomain | GivenRows, Field(discriminator="type")]
"""Where training rows come from: a rule, or a file that has them."""

__all__ = [
    "RULES",
    "AnySplit",
    "Best",
    "ByDomain",
    "Drop",
    "GivenRows",
    "Group",
    "Guard",
    "OnPolicyPair",
    "PairSplit",
    "PromptGroup",
    "Quadruple",
    "Reason",
    "Rule",
    "SameSourcePair",
    "Selection",
    "Shares",
    "Side",
    "SourceGroups",
    "SourcePair",
    "SourcePairs",
    "SourceSet",
    "Split",
    "WeightedAnswers",
    "with_seed",
]
