"""The split by pairs: sides, the published counts of FuseChat-3.0 by arithmetic, and the stage that makes them."""

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from fusion.recipe import load_recipe
from fusion.rows import Assignment, PreferencePair, Prompt, SftExample
from fusion.select import AnySplit, ByDomain, Drop, PairSplit, PromptGroup, Reason, Split
from scored import prompt, scored

SPLIT = TypeAdapter(AnySplit)

RECIPE = load_recipe([Path(__file__).parents[2] / "jobs" / "recipes" / "fusechat3-llama31-8b.yaml"])
"""The shipped recipe: its split and its rules are what is counted here."""

PUBLISHED = {
    "UltraFeedback": ("instruction", 51_098, 20_439, 30_659),
    "Magpie-Pro-DPO": ("instruction", 20_374, 8_149, 12_225),
    "HelpSteer2": ("instruction", 9_435, 3_774, 5_661),
    "OpenMathInstruct-2": ("math", 51_803, 40_188, 11_615),
    "leetcode": ("code", 3_113, 1_877, 1_236),
    "self-oss-instruct-sc2": ("code", 12_892, 10_160, 2_732),
    "alpaca_gpt4_zh": ("chinese", 2_471, 2_471, 0),
    "Magpie-Qwen2-Pro-zh": ("chinese", 7_481, 7_481, 0),
}
"""Data set -> domain, total, SFT rows, DPO rows (arXiv 2503.04222, table 1)."""


def fusechat() -> PairSplit:
    assert isinstance(RECIPE.split, PairSplit)
    return RECIPE.split


def test_the_published_table_adds_up():
    assert all(total == sft + dpo for _, total, sft, dpo in PUBLISHED.values())
    sums = [sum(row[place] for row in PUBLISHED.values()) for place in (1, 2, 3)]
    assert sums == [158_667, 94_539, 64_128]


def answered(domain: str, index: int, *, has_pair: bool, name: str) -> tuple:
    """Two answers of one source; a pair by the domain's rule, or in one of the ways in which there is none."""
    low = 0.05 if has_pair else (0.2 if index % 2 else 0.0)  # inside the window, above it, or a tie
    verdicts = ("correct", "wrong") if has_pair else ("correct", "correct")
    judged = verdicts if domain in ("math", "code") else (None, None)
    return (
        scored("gemma", 0.3, 0, prompt_id=name, verdict=judged[0]),
        scored("gemma", 0.3 - low, 1, prompt_id=name, verdict=judged[1]),
    )


def test_a_synthetic_data_set_gives_the_published_counts_of_every_data_set():
    """As many prompts with and without a pair as the published SFT and DPO counts need, split and selected as the shipped recipe says.

    Instruction data also have 1,000 prompts each whose gap is outside the window: they are in neither set, as in the
    published totals. 161,667 prompts in all.
    """
    split, rules = fusechat(), {"sft": RECIPE.sft.select, "preference": RECIPE.arms["fusechat3"].select}
    found, groups = [], {}
    for dataset, (domain, total, _, dpo) in PUBLISHED.items():
        with_pair = total if domain == "instruction" else dpo
        extra = 1_000 if domain == "instruction" else 0
        for index in range(total + extra):
            name = f"{dataset}-{index}"
            asked = prompt(name, domain=domain, dataset=dataset)
            group = PromptGroup(asked, answered(domain, index, has_pair=index < with_pair, name=name))
            outcome = split.pair(group)
            found.append((asked, outcome if isinstance(outcome, Drop) else None))
            groups[name] = group
    sides = split.assign(found)
    sft, dpo = Counter(), Counter()
    for side in sides:
        if isinstance(side, Assignment):
            row = rules[side.side](groups[side.prompt_id])
            assert isinstance(row, SftExample if side.side == "sft" else PreferencePair)
            (sft if side.side == "sft" else dpo)[side.dataset] += 1
    assert {name: (sft[name], dpo[name]) for name in PUBLISHED} == {n: row[2:] for n, row in PUBLISHED.items()}
    assert (sft.total(), dpo.total()) == (94_539, 64_128)
    dropped = Counter(str(side.reason) for side in sides if isinstance(side, Drop))
    assert dropped == {"above_margin": 1_500, "tie": 1_500}


def by_word(shares: object, **fields) -> PairSplit:
    pair = {"type": "source_pair", "side": "all"}
    split = SPLIT.validate_python({"type": "pairs", "seed": 0, "pair": pair, "domains": {"*": shares}, **fields})
    assert isinstance(split, PairSplit)
    return split


NO_PAIR = Drop(Reason.tie)


def test_the_docstrings_example():
    """10 prompts of which 5 have a pair, at 4 : 6: 2 for SFT, 3 for preference, 5 on no side; pairs_first: 5 and 5."""
    found = [(prompt(f"p{i}"), None if i < 5 else NO_PAIR) for i in range(10)]

    def sides(shares: object) -> Counter:
        return Counter(s.side if isinstance(s, Assignment) else "none" for s in by_word(shares).assign(found))

    assert sides({"sft": 4, "preference": 6}) == {"sft": 2, "preference": 3, "none": 5}
    assert sides({"sft": 4, "preference": 6, "without_pair": "sft"}) == {"sft": 7, "preference": 3}
    assert sides("pairs_first") == {"sft": 5, "preference": 5}
    assert sides("sft") == {"sft": 10}


@given(
    st.lists(st.tuples(st.sampled_from(["a", "b"]), st.sampled_from([None, "x", "y"]), st.booleans()), max_size=40),
    st.integers(0, 5),
    st.integers(0, 5),
    st.integers(0, 3),
    st.randoms(use_true_random=False),
)
def test_no_prompt_is_on_both_sides_and_counts_are_exact(kinds, sft, preference, seed, rng):
    if sft == preference == 0:
        return
    found = [
        (prompt(f"p{i}", domain=domain, dataset=dataset), None if has else NO_PAIR)
        for i, (domain, dataset, has) in enumerate(kinds)
    ]
    split = by_word({"sft": sft, "preference": preference}, seed=seed)
    sides = split.assign(found)
    assert len(sides) == len(found)
    assigned = [side for side in sides if isinstance(side, Assignment)]
    assert len({side.prompt_id for side in assigned}) == len(assigned)
    for (asked, drop), side in zip(found, sides, strict=True):
        assert side is drop if drop else (isinstance(side, Assignment) and side.prompt_id == asked.prompt_id)
    for stratum in {(p.domain, p.dataset) for p, _ in found}:
        mine = [s for s in assigned if (s.domain, s.dataset) == stratum]
        num_sft = sum(s.side == "sft" for s in mine)
        assert num_sft == len(mine) * sft // (sft + preference)
    order = rng.sample(range(len(found)), len(found))
    again = split.assign([found[i] for i in order])
    assert [again[order.index(i)] for i in range(len(found))] == sides


def test_what_a_split_by_pairs_refuses():
    with pytest.raises(ValidationError, match="must look at all prompts: side: all, not preference"):
        by_word("sft", pair={"type": "source_pair"})
    with pytest.raises(ValidationError, match="must make pairs of source answers"):
        by_word("sft", pair={"type": "on_policy_pair"})
    with pytest.raises(ValidationError, match="must make pairs of source answers"):
        by_word("sft", pair={"type": "best", "side": "all"})
    with pytest.raises(ValidationError, match="both 0"):
        by_word({"sft": 0, "preference": 0})
    only_math = by_word("sft", domains={"math": "sft"})
    with pytest.raises(ValueError, match="says nothing of domain 'code'; add it, or"):
        only_math.assign([(prompt("p", domain="code"), None)])


def test_a_split_without_a_type_is_by_ratio():
    assert SPLIT.validate_python({"sft": 1, "preference": 2, "seed": 0}) == Split(sft=1, preference=2, seed=0)
    assert isinstance(fusechat().pair, ByDomain)
    assert isinstance(prompt(), Prompt)
