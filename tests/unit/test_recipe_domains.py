"""Domains of a recipe: what decides by domain must know them before anything runs, and sources answer theirs alone."""

from pathlib import Path

import pytest

from fusion.errors import RecipeError
from fusion.loading import read_layers, validate
from fusion.pipeline import build, unpinned
from fusion.recipe import Recipe, load_recipe

FUSECHAT = Path(__file__).parents[2] / "jobs" / "recipes" / "fusechat3-llama31-8b.yaml"
HUB = {"repo": "a/b", "revision": "<40 hex>"}


def replaced(**blocks) -> Recipe:
    """The recipe with whole blocks in the place of its own."""
    return validate(Recipe, {**read_layers([FUSECHAT], called="recipe"), **blocks}, where="r")


def stages(*assignments: str) -> list:
    return build(load_recipe([FUSECHAT], list(assignments))).stages


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("evaluate.score={math: {type: math}}", r"evaluate\.score has no scorer for domain 'instruction'; add it"),
        ("target.domains=[math]", r"target: unknown field 'domains'"),
        ("sources.gemma-2-27b-it.domains=[a/b]", "String should match pattern"),
        ("arms.fusechat3.guard={}", "a guard needs max_share or max_longer_share"),
        ("sft.guard={max_longer_share: 0.5}", r"sft\.guard\.max_longer_share: SftExample rows have no rejected side"),
        ("evaluate.comparisons=[[]]", "comparisons"),
    ],
)
def test_what_cannot_work_is_said_before_anything_runs(assignment, message):
    with pytest.raises(RecipeError, match=message):
        load_recipe([FUSECHAT], [assignment])


def test_a_split_by_pairs_must_know_every_domain_that_prompt_sets_state():
    pair = {"type": "same_source_pair", "side": "all"}
    with pytest.raises(RecipeError, match=r"split: domains says nothing of 'chinese'; add it"):
        replaced(split={"type": "pairs", "pair": pair, "domains": {"math": "sft"}})
    rules = {"type": "by_domain", "rules": {"math": pair}}
    with pytest.raises(RecipeError, match=r"split: pair has no rule for 'code', whose side depends on pairs; add it"):
        replaced(split={"type": "pairs", "pair": rules, "domains": {"chinese": "sft", "*": "pairs_first"}})


def test_own_sampling_in_every_domain_leaves_no_empty_stage():
    source = {**HUB, "sampling_by_domain": {"math": {"num_samples": 9}}}
    recipe = replaced(sources={"s": source}, prompts=[{"type": "hub", **HUB, "domain": "math"}])
    found = build(recipe).stages
    asked = [(s.slug, s.config.domains, s.config.num_samples) for s in found if s.kind == "generate"]
    assert [each for each in asked if each[0].startswith("s")][:1] == [("s", ("math",), 9)]
    assert not [each for each in asked if each[0] == "s@1"]


def test_the_order_of_domains_is_no_part_of_a_key():
    keys = [
        {s.key for s in stages(f"sources.gemma-2-27b-it.domains={order}") if s.slug == "gemma-2-27b-it"}
        for order in ("[instruction, code]", "[code, instruction]")
    ]
    assert keys[0] == keys[1] and keys[0]


def test_a_source_that_is_not_learnt_from_need_not_be_pinned():
    recipe = load_recipe([FUSECHAT], ["learn_from=[gemma-2-27b-it, qwen2_5-math-72b-instruct]"])
    missing = " ".join(unpinned(recipe))
    assert "gemma-2-27b-it" in missing and "mistral-large" not in missing
