"""Loading recipes: strict, layered, and clear about what is wrong."""

import copy
from pathlib import Path

import pytest
import yaml

from fusion.errors import InputError, RecipeError
from fusion.recipe import load_recipe, merge, parse_yaml

BASE = {
    "name": "r",
    "target": {"repo": "o/t", "revision": "a" * 40},
    "sources": {"s": {"repo": "o/s", "revision": "b" * 40, "sampling": {"temperature": 0.7}}},
    "prompts": [{"type": "jsonl", "path": "p.jsonl", "domain": "math"}],
    "sampling": {"temperature": 0.8, "num_samples": 5},
    "score": {"*": {"type": "python", "function": "a.b:c", "version": 1}},
    "split": {"sft": 1, "preference": 2},
    "sft": {"select": {"type": "best"}, "learning_rate": 1e-5, "global_batch": 8, "max_length": 64},
    "arms": {
        "wrpo": {
            "select": {"type": "quadruple"},
            "loss": {"type": "wrpo", "beta": 0.1, "alpha": {"from": 0, "to": 0.5}},
            "learning_rate": 1e-6,
            "global_batch": 8,
            "max_length": 64,
        }
    },
}


def load(tmp_path, changes=None, sets=None, data=None):
    path = tmp_path / "r.yaml"
    data = merge(copy.deepcopy(data or BASE), changes or {})
    path.write_text(yaml.safe_dump(data))
    return load_recipe([path], sets)


def test_blocks_inherit_seed_and_sampling(tmp_path):
    recipe = load(tmp_path, {"seed": 7})
    assert recipe.sources["s"].sampling.temperature == 0.7
    assert recipe.sources["s"].sampling.num_samples == 5
    assert recipe.target.sampling == recipe.sampling
    own = load(tmp_path, {"target": {"sampling": {"num_samples": 8}}}).target.sampling
    assert (own.num_samples, own.temperature) == (8, 0.8)
    assert (recipe.split.seed, recipe.sft.seed, recipe.arms["wrpo"].select.seed) == (7, 7, 7)


def test_set_lays_values_over_the_file(tmp_path):
    sets = ["arms.wrpo.loss.beta=0.02", "seed=3", "prompts=[{type: jsonl, path: q.jsonl, domain: d}]"]
    recipe = load(tmp_path, sets=sets)
    assert recipe.arms["wrpo"].loss.beta == 0.02
    assert recipe.seed == recipe.sft.seed == 3
    assert recipe.prompts[0].path == Path("q.jsonl")


def test_overlays_merge_maps_and_replace_lists_and_other_types():
    base = {"a": {"x": 1, "y": 2}, "l": [1, 2], "u": {"type": "one", "p": 1}}
    assert merge(base, {"a": {"y": 3}}) == {**base, "a": {"x": 1, "y": 3}}
    assert merge(base, {"l": [9]})["l"] == [9]
    assert merge(base, {"u": {"type": "two"}})["u"] == {"type": "two"}
    assert merge(base, {"u": {"type": "one", "q": 2}})["u"] == {"type": "one", "p": 1, "q": 2}


BAD = {
    "misspelt": (
        {"arms": {"wrpo": {"loss": {"betta": 1}}}},
        r"arms\.wrpo\.loss: unknown field 'betta'; did you mean 'beta'",
    ),
    "negative": ({"sft": {"learning_rate": -1}}, r"sft\.learning_rate: .*greater than 0 \(found -1\)"),
    "wrong type": ({"seed": "x"}, r"seed: .*integer"),
    "nan": ({"sft": {"learning_rate": float("nan")}}, r"sft\.learning_rate"),
    "branch": ({"target": {"revision": "main"}}, r"target: revision 'main' is not a 40-hex commit"),
    "two places": ({"target": {"path": "x"}}, r"target: give either repo and revision, or path"),
    "rows do not fit": (
        {"arms": {"wrpo": {"select": {"type": "on_policy_pair"}}}},
        r"arms\.wrpo: select on_policy_pair makes PreferencePair rows but loss wrpo reads PreferenceQuadruple",
    ),
    "no scorer": ({"score": {"*": None, "code": {"type": "python", "function": "a:b", "version": 1}}}, r"score"),
    "reserved": ({"sources": {"sft": {"repo": "o/s", "revision": "b" * 40}}}, r"the name 'sft' is taken"),
    "unknown arm served": ({"serve": {"arm": "dpo"}}, r"serve\.arm 'dpo' is not an arm"),
    "unknown loss": ({"arms": {"wrpo": {"loss": {"type": "kto"}}}}, r"arms\.wrpo\.loss"),
    "path in name": ({"name": "../x"}, r"name: "),
    "no target": ({"target": None}, r"target"),
}


@pytest.mark.parametrize(("change", "message"), BAD.values(), ids=BAD)
def test_a_bad_recipe_is_named_by_file_and_field(tmp_path, change, message):
    with pytest.raises(RecipeError, match=message) as caught:
        load(tmp_path, change)
    assert str(tmp_path / "r.yaml") in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\na: 2", "line 2: key 'a' occurs twice"),
        ("no: 1", "line 1: key False is not text; quote it"),
        ("1: x", "line 1: key 1 is not text"),
        ("a: !!python/object:os.system {}", "could not determine a constructor"),
        ("a: &x [1]\nb: *x", r"line 2: aliases \(\*x\) are not allowed"),
        ("a: [1", "line 1"),
        ("a: \x00", "special characters are not allowed"),
    ],
)
def test_yaml_traps_are_refused(text, message):
    with pytest.raises(RecipeError, match=message):
        parse_yaml(text, "r.yaml")


def test_exponents_without_a_dot_are_numbers():
    assert parse_yaml("a: 3e-7\nb: 1E5\nc: 1.0e-3", "r.yaml") == {"a": 3e-7, "b": 1e5, "c": 1e-3}


@pytest.mark.parametrize("assignment", ["x", "=1", "a..b=1", "name.x=1"])
def test_a_bad_assignment_is_refused(tmp_path, assignment):
    with pytest.raises(RecipeError, match=r"--set|unknown field"):
        load(tmp_path, sets=[assignment])


def test_a_missing_recipe_and_one_that_is_no_map(tmp_path):
    with pytest.raises(InputError, match=r"none.yaml does not exist"):
        load_recipe([tmp_path / "none.yaml"])
    (tmp_path / "l.yaml").write_text("- 1")
    with pytest.raises(RecipeError, match="holds list, not a mapping"):
        load_recipe([tmp_path / "l.yaml"])
