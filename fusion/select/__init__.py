"""From scored answers to training rows: one rule per file, and the union of them, which is the registry.

A rule is a frozen config that is called with all answers to one prompt and returns a row or a `Drop` with
its reason. It says which row type it makes and which answers it needs. To add one, write
`select/<name>.py` and put its class into `RULES` and `Rule`; the tests that run over `RULES` then
demand its properties. Pure Python: nothing here imports Ray or a model library.
"""

from typing import Annotated

from pydantic import Field

from fusion.select.best import Best
from fusion.select.common import Drop, PromptGroup, Reason
from fusion.select.on_policy_pair import OnPolicyPair
from fusion.select.preference_set import SourceSet
from fusion.select.quadruple import Quadruple
from fusion.select.response_group import Group
from fusion.select.source_pair import SourcePair
from fusion.select.split import Side, Split

RULES = (Best, Quadruple, OnPolicyPair, SourcePair, SourceSet, Group)
"""Members of `Rule`, for tests and tables."""

Rule = Annotated[
    Best | Quadruple | OnPolicyPair | SourcePair | SourceSet | Group,
    Field(discriminator="type"),
]

__all__ = [
    "RULES",
    "Best",
    "Drop",
    "Group",
    "OnPolicyPair",
    "PromptGroup",
    "Quadruple",
    "Reason",
    "Rule",
    "Side",
    "SourcePair",
    "SourceSet",
    "Split",
]
