"""Loading recipes: strict, layered, and clear about what is wrong."""

import copy
from pathlib import Path

import pytest
import yaml

from fusion.errors import InputError, RecipeError
from fusion.loading import merge, parse_yaml
from fusion.pipeline import build
from fusion.recipe import load_recipe
from jobs.run import plan

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


def test_an_overlay_with_another_objective_replaces_the_loss():
    base = {"loss": {"type": "wrpo", "beta": 1, "alpha": 0.1}}
    over_ipo = {"type": "wrpo", "objective": "ipo", "tau": 1, "alpha": 0.3}
    assert merge(base, {"loss": over_ipo})["loss"] == over_ipo
    assert merge(base, {"loss": {"type": "wrpo", "objective": "dpo", "beta": 2}})["loss"] == {
        "type": "wrpo", "objective": "dpo", "beta": 2, "alpha": 0.1,
    }  # fmt: skip
    assert merge({"loss": over_ipo}, {"loss": {"type": "wrpo", "tau": 2}})["loss"] == {**over_ipo, "tau": 2}


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
    "field of another objective": (
        {"arms": {"wrpo": {"loss": {"objective": "ipo", "tau": 1}}}},
        r"arms\.wrpo\.loss: unknown field 'beta'; known fields: alpha, log_ratios, mix, nll_weight, objective, tau, type",
    ),
    "field of an objective missing": (
        {"arms": {"wrpo": {"loss": {"objective": "simpo"}}}},
        r"arms\.wrpo\.loss\.gamma: is missing",
    ),
    "reserved": ({"sources": {"sft": {"repo": "o/s", "revision": "b" * 40}}}, r"the name 'sft' is taken"),
    "unknown arm served": ({"serve": {"arm": "dpo"}}, r"serve\.arm 'dpo' is not an arm"),
    "an arm beside another": (
        {"serve": {"arm": "sft", "also": ["wrpo"]}},
        r"'wrpo' is not a given model; known: target, s",
    ),
    "served twice": ({"serve": {"arm": "wrpo", "also": ["s"], "rewards": {"s": {"path": "x"}}}}, r"names 's' twice"),
    "canary": (
        {
            "serve": {
                "arm": "wrpo",
                "rewards": {"r": {"path": "x", "canary": {"prompt": "q", "better": "a", "worse": "a"}}},
            }
        },
        r"serve\.rewards\.r\.canary: better and worse are the same",
    ),
    "unknown loss": ({"arms": {"wrpo": {"loss": {"type": "kto"}}}}, r"arms\.wrpo\.loss"),
    "path in name": ({"name": "../x"}, r"name: "),
    "a side without prompts": (
        {"split": {"sft": 1, "preference": 0}},
        r"arms\.wrpo\.select quadruple takes prompts of side 'preference', and split gives that side none; give it",
    ),
    "no prompts for SFT": (
        {"split": {"sft": 0, "preference": 2}},
        r"sft\.select best takes prompts of side 'sft', and split gives that side none",
    ),
    "a guard that nothing passes": (
        {"arms": {"wrpo": {"guard": {"max_share": 0.9}}}},
        r"arms\.wrpo\.guard\.max_share 0\.9: 1 sources with at most that share each are less than all rows",
    ),
    "Parquet by its name": (
        {"prompts": [{"type": "jsonl", "path": "x.parquet"}]},
        r"prompts\[0\]: path x\.parquet is Parquet by its name; write type: parquet$",
    ),
    "no Parquet by its name": (
        {"prompts": [{"type": "parquet", "path": "x.jsonl"}]},
        r"prompts\[0\]: path x\.jsonl is no Parquet file by its name; write type: jsonl$",
    ),
    "a key of fields": (
        {"prompts": [{"type": "jsonl", "path": "x", "fields": {"promt": "q"}}]},
        r"prompts\[0\]\.fields: unknown key 'promt'; did you mean 'prompt'\?$",
    ),
    "a key that is no name": (
        {"sources": {"a b": {"repo": "o/s", "revision": "b" * 40}}},
        r"sources: key 'a b': String should match pattern",
    ),
    "no target": ({"target": None}, r"target"),
}


@pytest.mark.parametrize(("change", "message"), BAD.values(), ids=BAD)
def test_a_bad_recipe_is_named_by_file_and_field(tmp_path, change, message):
    with pytest.raises(RecipeError, match=message) as caught:
        load(tmp_path, change)
    assert str(tmp_path / "r.yaml") in str(caught.value)
    assert caught.value.exit_code == 2


PAIRS = {"type": "pairs", "pair": {"type": "source_pair", "side": "all"}}
BAD_PAIRS = {
    "a side of pairs without prompts": (
        {"domains": {"*": "sft"}},
        r"arms\.wrpo\.select quadruple takes prompts of side 'preference', and split gives that side none",
    ),
    "a word of the split": (
        {"domains": {"math": "pair_first"}},
        r"r\.yaml: split\.domains\.math: 'pair_first' is none of pairs_first, sft, .*; did you mean 'pairs_first'\?$",
    ),
    "a share of the split": (
        {"domains": {"math": {"sft": -1, "preference": 2}}},
        r"r\.yaml: split\.domains\.math\.sft: Input should be greater than or equal to 0 \(found -1\)$",
    ),
    "a field of the split": (
        {"domains": {"math": {"sftt": 1, "preference": 2}}},
        r"r\.yaml: split\.domains\.math: unknown field 'sftt'; did you mean 'sft'\?$",
    ),
    "empty shares of the split": (
        {"domains": {"math": {"sft": 0, "preference": 0}}},
        r"r\.yaml: split\.domains\.math: sft and preference are both 0; .*side$",
    ),
}


@pytest.mark.parametrize(("change", "message"), BAD_PAIRS.values(), ids=BAD_PAIRS)
def test_a_bad_split_by_pairs_is_one_line(tmp_path, change, message):
    with pytest.raises(RecipeError, match=message) as caught:
        load(tmp_path, data={**BASE, "split": {**PAIRS, **change}})
    assert len(str(caught.value).splitlines()) == 1


def test_a_mistake_in_a_list_is_one_line_and_an_empty_list_still_is_one(tmp_path):
    with pytest.raises(RecipeError) as caught:
        load(tmp_path, {"prompts": [{"type": "jsonl", "path": "x", "limit": 0}]})
    assert str(caught.value).splitlines() == [
        f"{tmp_path}/r.yaml: prompts[0].limit: Input should be greater than or equal to 1 (found 0)"
    ]
    with pytest.raises(RecipeError, match=r"prompts: Tuple should have at least 1 item"):
        load(tmp_path, {"prompts": []})


def test_fields_merged_into_another_type_name_it(tmp_path):
    pairs = {**BASE, "split": {**PAIRS, "domains": {"*": "pairs_first"}}}
    with pytest.raises(RecipeError, match=r"split: unknown field 'sft'; known .* \(for type pairs; for another, state"):
        load(tmp_path, data=pairs, sets=["split={sft: 4, preference: 6}"])
    merged = load(tmp_path, data=pairs, sets=["split={type: ratio, sft: 4, preference: 6}"]).split
    assert (merged.sft, merged.preference) == (4, 6)


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


QUADRUPLE, PAIR, SET = {"type": "quadruple"}, {"type": "on_policy_pair"}, {"type": "preference_set", "source_chosen": 2}
ARMS = {
    "ln_dpo": (PAIR, {"type": "ln_dpo", "beta": 10}, True),
    "ipo": (PAIR, {"type": "ipo", "tau": 0.01}, True),
    "simpo": ({"type": "source_pair"}, {"type": "simpo", "beta": 10, "gamma": 1}, False),
    "rloo": ({"type": "response_group", "of": "best_source"}, {"type": "rloo"}, True),
    "rloo_plain": ({"type": "response_group", "of": "own"}, {"type": "rloo", "clip": None}, False),
    "wrpo_set": (SET, {"type": "wrpo", "beta": 0.01, "alpha": {"type": "cosine", "from": 0, "to": 0.1}}, True),
    "wrpo_ipo": (QUADRUPLE, {"type": "wrpo", "objective": "ipo", "tau": 0.01, "alpha": 0.1}, True),
    "wrpo_ln": (QUADRUPLE, {"type": "wrpo", "objective": "ln_dpo", "beta": 10, "alpha": 0.1}, True),
    "wrpo_simpo": (SET, {"type": "wrpo", "objective": "simpo", "beta": 10, "gamma": 0, "alpha": 0.5}, False),
}


def test_every_loss_is_an_arm_and_has_a_reference_stage_only_if_it_needs_one(tmp_path):
    arms = {
        name: {"select": dict(select), "loss": loss, "learning_rate": 1e-6, "global_batch": 8, "max_length": 64}
        for name, (select, loss, _) in ARMS.items()
    }
    (tmp_path / "p.jsonl").touch()
    prompts = [{"type": "jsonl", "path": str(tmp_path / "p.jsonl"), "domain": "math"}]
    graph = build(load(tmp_path, {"arms": arms, "prompts": prompts}))
    for name, (select, _, needs_reference) in ARMS.items():
        stage = graph.models[name]
        assert stage.kind == "prefer" and ("reference" in stage.inputs) == needs_reference, name
        own = select["type"] not in ("source_pair", "response_group") or select.get("of") == "own"
        assert ("own" in stage.inputs["rows"].inputs) == own, name
        sources = [n for n in stage.inputs["rows"].inputs if n.startswith("source_")]
        assert bool(sources) == (select["type"] != "on_policy_pair" and select.get("of") != "own"), name


def test_selections_without_own_samples_stand_before_the_first_training(tmp_path):
    """Stages run in the order of the graph: a rule that leaves nothing is known before the SFT model is trained."""
    names = ("simpo", "rloo", "rloo_plain", "ln_dpo")
    arms = {
        name: {"select": dict(ARMS[name][0]), "loss": ARMS[name][1], "learning_rate": 1e-6, "global_batch": 8, "max_length": 64}
        for name in names
    }  # fmt: skip
    (tmp_path / "p.jsonl").touch()
    prompts = [{"type": "jsonl", "path": str(tmp_path / "p.jsonl"), "domain": "math"}]
    graph = build(load(tmp_path, {"arms": arms, "prompts": prompts}))
    place = {id(stage): number for number, stage in enumerate(graph.stages)}
    trained = place[id(graph.models["sft"])]
    before = {name: place[id(graph.selections[name])] < trained for name in names}
    assert before == {"simpo": True, "rloo": True, "rloo_plain": False, "ln_dpo": False}
    assert list(graph.selections) == ["sft", *sorted(["wrpo", *names])]
    for stage in graph.stages:
        assert all(place[id(node)] < place[id(stage)] for node in stage.inputs.values() if id(node) in place)


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


def test_plan_starts_at_the_base_that_run_has(tmp_path, monkeypatch):
    """Relative paths of the recipe start there; the recipe itself is found from where the command is typed."""
    monkeypatch.chdir(tmp_path)
    shared = tmp_path / "shared"
    shared.mkdir()
    (shared / "p.jsonl").write_text('{"prompt": "q"}\n')
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(BASE))
    plan([Path("r.yaml")], base=Path("shared"))
    assert (shared / "runs" / "r" / "recipe.resolved.json").is_file() and not (tmp_path / "runs").exists()
    with pytest.raises(RecipeError, match="--base nowhere is not a directory"):
        plan([tmp_path / "r.yaml"], base=Path("nowhere"))
