"""The split of FuseChat-3.0: a prompt's side depends on whether its source answers make a preference pair.

The published counts (arXiv 2503.04222, table 1) say what happened: SFT and DPO rows of every data set add up to its total,
so no prompt is in both; instruction data are cut exactly 4 : 6, after the filter on score gaps; of math and code a prompt
is in the DPO set where it has a pair, else in the SFT set (inferred: the shares there are no ratio); Chinese is all SFT.

    {sft: 4, preference: 6}   prompts with a pair are cut by a hash of (seed, id), SFT's share rounded down as in the
                              published table; a prompt without a pair is on no side, or for SFT with `without_pair: sft`
    pairs_first               with a pair: preference; without: SFT
    sft                       SFT

The cut is made within each data set (`Prompt.dataset`, else the domain), as the table's rows are. Example: 10 prompts of
one set of which 5 have a pair, at 4 : 6: 2 are for SFT, 3 for preference and 5 on no side; with pairs_first 5 and 5.
"""

import difflib
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from fusion.config import Config
from fusion.rows import Assignment, PreferencePair, Prompt
from fusion.select.by_domain import OTHERS, ByDomain, PlainRule
from fusion.select.common import Drop
from fusion.select.split import Side, Split, rank


class Shares(Config):
    """Shares of the prompts that have a pair."""

    sft: int = Field(ge=0)
    """Share for SFT, relative to `preference`."""
    preference: int = Field(ge=0)
    """Share for the preference stage, relative to `sft`."""
    without_pair: Literal["drop", "sft"] = "drop"
    """Where prompts without a pair go: on no side, or to SFT."""

    @model_validator(mode="after")
    def _not_empty(self) -> Self:
        if self.sft == self.preference == 0:
            raise ValueError("sft and preference are both 0; give the prompts to at least one side")
        return self


WORDS = ("pairs_first", "sft")


def _spelled(value: Any) -> Any:
    """Refuse what is neither a word nor shares in one line, in the place of one line per member of the union."""
    if isinstance(value, Mapping | Shares) or value in WORDS:
        return value
    near = difflib.get_close_matches(str(value), WORDS, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"{value!r} is none of {', '.join(WORDS)}, {{sft: N, preference: M}}{hint}")


def _kind(value: Any) -> str:
    return "word" if isinstance(value, str) else "shares"


Mode = Annotated[
    Annotated[
        Annotated[Literal["pairs_first", "sft"], Tag("word")] | Annotated[Shares, Tag("shares")], Discriminator(_kind)
    ],
    BeforeValidator(_spelled),
]


class PairSplit(Config):
    """Sides by the pairs that a rule makes of the sources' answers."""

    type: Literal["pairs"]
    pair: Annotated[PlainRule | ByDomain, Field(discriminator="type")]
    """Rule whose pairs count; it reads source answers only."""
    domains: dict[str, Mode] = Field(min_length=1)
    """What happens to the prompts of each domain; `*` is for all domains not named."""
    seed: int = Field(ge=0)
    """Seed of the cut; the recipe's own where it is not given."""

    @model_validator(mode="after")
    def _rule_fits(self) -> Self:
        if self.pair.row_type is not PreferencePair or self.pair.needs_own:
            raise ValueError(
                "split.pair must make pairs of source answers: source_pair, same_source_pair, or by_domain of them"
            )
        if self.pair.side != "all":
            raise ValueError(f"split.pair must look at all prompts: side: all, not {self.pair.side}")
        return self

    def assign(self, found: Sequence[tuple[Prompt, Drop | None]]) -> list[Assignment | Drop]:
        """Return the side of each prompt, in order, or why it is on none.

        Args:
            found: prompts, each with None where it has a pair, else the reason why it has none.

        Raises:
            ValueError: a domain that `domains` does not name.
        """
        sides: dict[str, Side] = {}
        cuts: dict[tuple[str, str | None], tuple[Shares, list[str]]] = {}
        for prompt, drop in found:
            mode = self._mode(prompt.domain)
            if isinstance(mode, str):
                sides[prompt.prompt_id] = "preference" if mode == "pairs_first" and drop is None else "sft"
            elif drop is None:
                cuts.setdefault((prompt.domain, prompt.dataset), (mode, []))[1].append(prompt.prompt_id)
            elif mode.without_pair == "sft":
                sides[prompt.prompt_id] = "sft"
        for shares, ids in cuts.values():
            sides |= self._cut(ids, shares)
        return [_outcome(prompt, drop, sides.get(prompt.prompt_id)) for prompt, drop in found]

    def gives(self, side: Side) -> bool:
        """Return whether a prompt of any domain can be on this side."""
        return any(_gives(mode, side) for mode in self.domains.values())

    def lacks(self, domains: Sequence[str]) -> str | None:
        """Return what is missing for prompts of these domains, in words; None where nothing is."""
        for domain in domains:
            if domain not in self.domains and OTHERS not in self.domains:
                return f"domains says nothing of {domain!r}; add it, or '*' for all others"
            rules = self.pair.rules if isinstance(self.pair, ByDomain) else {OTHERS: self.pair}
            if self._mode(domain) != "sft" and domain not in rules and OTHERS not in rules:
                return f"pair has no rule for {domain!r}, whose side depends on pairs; add it, or '*' for all others"
        return None

    def _cut(self, ids: Sequence[str], shares: Shares) -> dict[str, Side]:
        num_sft = len(ids) * shares.sft // (shares.sft + shares.preference)
        for_sft = set(sorted(ids, key=lambda each: rank(self.seed, each))[:num_sft])
        return {each: "sft" if each in for_sft else "preference" for each in ids}

    def _mode(self, domain: str) -> Mode:
        if domain not in self.domains and OTHERS not in self.domains:
            raise ValueError(f"split.domains says nothing of domain {domain!r}; add it, or '*' for all others")
        return self.domains[domain if domain in self.domains else OTHERS]


def _gives(mode: Mode, side: Side) -> bool:
    if isinstance(mode, str):
        return side == "sft" or mode == "pairs_first"
    if side == "preference":
        return mode.preference > 0
    return mode.sft > 0 or mode.without_pair == "sft"


def _outcome(prompt: Prompt, drop: Drop | None, side: Side | None) -> Assignment | Drop:
    if side is not None:
        return Assignment(prompt.prompt_id, prompt.domain, prompt.dataset, side)
    assert drop is not None, f"{prompt.prompt_id} has a pair and no side"
    return drop


def _by_ratio(value: Any) -> Any:
    """Read a split that names no type as one by ratio."""
    return {"type": "ratio", **value} if isinstance(value, Mapping) and "type" not in value else value


AnySplit = Annotated[
    Annotated[Split | PairSplit, Field(discriminator="type")],
    BeforeValidator(_by_ratio),
]
