"""Sweeps: variants by name, what they share, and one line for whoever mistypes one."""

import json
from pathlib import Path

import pytest
import typer
from rich.console import Console

from fusion.errors import FuselineError, InputError, RecipeError, StageError
from jobs import sweep
from jobs.sweep import distinct_stages, exit_code, expand, print_legend, print_shared, settings_of, sweep_summary

RECIPES = Path(__file__).parents[2] / "jobs" / "recipes"
WRPO = RECIPES / "wrpo-llama3-8b.yaml"


def kinds(recipes) -> dict[str, int]:
    _, distinct = distinct_stages(recipes)
    found: dict[str, int] = {}
    for stage in distinct.values():
        found[stage.kind] = found.get(stage.kind, 0) + 1
    return found


def test_combinations_of_two_fields_have_names_and_values():
    found = expand([WRPO], ["arms.wrpo.loss.beta=[0.01, 0.1]", "sft.epochs=[1, 2]"], [], [])
    assert {n: (r.arms["wrpo"].loss.beta, r.sft.epochs) for n, r in found.items()} == {
        "wrpo.loss.beta-0.01_sft.epochs-1": (0.01, 1),
        "wrpo.loss.beta-0.01_sft.epochs-2": (0.01, 2),
        "wrpo.loss.beta-0.1_sft.epochs-1": (0.1, 1),
        "wrpo.loss.beta-0.1_sft.epochs-2": (0.1, 2),
    }
    assert {r.name for r in found.values()} == {f"wrpo-llama3-8b-{n}" for n in found}
    assert len({r.root for r in found.values()}) == 1


def test_an_alpha_sweep_trains_once_per_alpha_and_shares_everything_above():
    """Ten alphas: one reference stage of WRPO and ten trainings of it; answers, scores, SFT and the other arms once."""
    one = kinds(expand([WRPO], ["arms.wrpo.loss.alpha.to=[0.1]"], [], []))
    ten = kinds(expand([WRPO], [], [RECIPES / "variants" / "wrpo-alpha.yaml"], []))
    assert len(expand([WRPO], [], [RECIPES / "variants" / "wrpo-alpha.yaml"], [])) == 10
    more = {kind: ten[kind] - one[kind] for kind in one if ten[kind] != one[kind]}
    assert more == {"prefer": 9, "generate": 9, "score": 9, "evaluate": 9, "export": 9}


def test_a_sweep_over_sources_asks_each_source_once():
    found = expand([WRPO], [], [RECIPES / "variants" / "wrpo-sources.yaml"], [])
    assert [len(r.used_sources) for r in found.values()] == [1, 2, 5, 10]
    by_variant, distinct = distinct_stages(found)
    of_sources = {s.label for s in distinct.values() if s.kind == "generate"} & {
        f"generate/{name}" for name in found["sources-10"].sources
    }
    asked = [s for s in distinct.values() if s.label in of_sources]
    assert len(asked) == 10 == len(of_sources)
    assert {s.label for s in by_variant["sources-1"]} & of_sources == {"generate/mistral-large-2407"}


def test_what_is_set_holds_for_every_variant(tmp_path):
    file = tmp_path / "v.yaml"
    file.write_text("a: {seed: 5, arms: {wrpo: {epochs: 2}}}\nb: {sft: {epochs: 2}}\n")
    found = expand([WRPO], [], [file], ["arms.wrpo.epochs=3", "seed=9"])
    assert [(r.seed, r.arms["wrpo"].epochs) for r in found.values()] == [(9, 3), (9, 3)]


@pytest.mark.parametrize(
    ("vary", "text", "message"),
    [
        ([], None, "a sweep needs variants"),
        (["seed"], None, r"--vary seed: write it as field.sub=\[value, value\]"),
        (["seed=3"], None, "write it as field.sub="),
        (["seed=[]"], None, "write it as field.sub="),
        (["seed=[1, 1]"], None, "gives the variant 'seed-1' twice"),
        (["arms.wrpo.loss.alfa=[1]"], None, "variant wrpo.loss.alfa-1: arms.wrpo.loss: unknown field 'alfa'; did you mean 'alpha'"),
        (["sft.warmup_ratio=[0, 0.0]"], None, r"variants 'sft.warmup_ratio-0' and 'sft.warmup_ratio-0.0' are one recipe; give"),
        (["seed=[1, 2]", "seed=[3, 4]"], None, "variants 'seed-1_seed-3' and 'seed-2_seed-3' are one recipe"),
        (["name=[a, b]"], None, "--vary name: a sweep makes the name of each variant"),
        ([], "a: {name: zz, seed: 3}", "variant 'a' sets name, which a sweep makes of the variant; leave it out"),
        ([], "a: {seed: 42}\nb: {}", "variants 'a' and 'b' are one recipe"),
        (["seed=[1]"], "seed-1: {}", "there is a variant 'seed-1' already"),
        ([], "a: 3", "a holds int, not an overlay"),
        ([], "a: {learn_from: [nobody]}", "learn_from: 'nobody' is not a source; sources: mistral-large"),
        ([f"seed={list(range(20))}", f"sft.epochs={list(range(1, 15))}"], None, "280 variants are more than 256"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line_that_names_the_variant(tmp_path, vary, text, message):
    files = []
    if text is not None:
        (tmp_path / "v.yaml").write_text(text)
        files = [tmp_path / "v.yaml"]
    with pytest.raises(RecipeError, match=message):
        expand([WRPO], vary, files, [])


def test_what_is_shared_is_told(capsys):
    print_shared(expand([WRPO], ["arms.wrpo.loss.beta=[0.01, 0.1]"], [], []), Console(width=200))
    told = capsys.readouterr().out.splitlines()
    assert "5 of its own: 1 prefer, 1 generate, 1 score, 1 evaluate, 1 export" in told[1]
    assert told[2] == "2 variants: 136 stages, 73 to make, 63 shared"


def test_the_table_has_every_variants_arm_and_the_target_once():
    metrics = {m: {"mean": 0.5, "low": 0.4, "high": 0.6} for m in ("reward", "exact", "greedy_reward", "greedy_exact")}
    summaries = {name: {"models": {"target": metrics, "sft": metrics, "wrpo": metrics}} for name in ("a", "b")}
    assert list(sweep_summary(summaries, ["wrpo"])["models"]) == ["target", "a/wrpo", "b/wrpo"]
    summaries["b"] = {"models": {"target": {**metrics, "exact": None}, "wrpo": metrics}}
    assert list(sweep_summary(summaries, ["wrpo"])["models"]) == ["a/target", "a/wrpo", "b/target", "b/wrpo"]


def test_long_combinations_are_called_by_the_places_of_their_values():
    vary = ["arms.wrpo.loss.alpha.to=[0.1, 0.3]", "arms.wrpo.loss.beta=[0.01]", "arms.wrpo.learning_rate=[1e-7, 3e-7]"]
    found = expand([WRPO], vary, [], [])
    assert list(found) == ["v1_v1_v1", "v1_v1_v2", "v2_v1_v1", "v2_v1_v2"]
    assert found["v2_v1_v1"].arms["wrpo"].learning_rate == 1e-7


def test_variants_of_several_roots_have_nothing_in_common(tmp_path):
    with pytest.raises(RecipeError, match="the variants have different roots"):
        expand([WRPO], [f"root=[{tmp_path}/a, {tmp_path}/b]"], [], [])


def test_what_is_set_cannot_be_varied():
    for assignment in ("arms.wrpo.loss={type: wrpo}", "arms.wrpo.loss.beta=1", "arms.wrpo.loss.beta.x=1"):
        with pytest.raises(RecipeError, match=r"--vary arms.wrpo.loss.beta: --set arms.wrpo.loss\S* holds for every"):
            sweep._check_fields(["arms.wrpo.loss.beta=[1, 2]"], [assignment])


def test_a_legend_says_what_each_name_stands_for(capsys):
    vary = ["arms.wrpo.loss.alpha.to=[0.1, 0.3]", "arms.wrpo.loss.beta=[0.01]", "arms.wrpo.learning_rate=[1e-7, 3e-7]"]
    print_legend(settings_of(vary, []), Console(width=200, soft_wrap=True))
    assert capsys.readouterr().out.splitlines()[2] == (
        "v2_v1_v1: arms.wrpo.loss.alpha.to=0.3, arms.wrpo.loss.beta=0.01, arms.wrpo.learning_rate=1e-07"
    )


METRICS = {m: {"mean": 0.5, "low": 0.4, "high": 0.6} for m in ("reward", "exact", "greedy_reward", "greedy_exact")}


@pytest.fixture
def driven(tmp_path, monkeypatch):
    """A sweep over three seeds whose variants end as `outcomes` says; returns the exit code and what was written."""

    def go(outcomes: dict[int, FuselineError | None]) -> tuple[int, dict]:
        def drive(recipe, **_):
            if error := outcomes[recipe.seed]:
                raise error
            path = tmp_path / f"{recipe.name}.json"
            path.write_text(json.dumps({"models": {"target": METRICS, "wrpo": METRICS}}))
            return path

        monkeypatch.setattr("jobs.driver.drive", drive)
        monkeypatch.setattr(sweep, "stop_cleanly", lambda resume: None)
        code = 0
        try:
            sweep.command([WRPO], vary=["seed=[1, 2, 3]"], set_=[f"root={tmp_path}"], arms=["wrpo"])
        except typer.Exit as ended:
            code = ended.exit_code
        return code, json.loads((tmp_path / "wrpo-llama3-8b-sweep" / "sweep.json").read_text())

    return go


def test_a_variant_that_fails_does_not_end_the_sweep(driven, capsys):
    code, written = driven({1: None, 2: StageError("select/x: no row\n  stopped in y"), 3: None})
    assert code == 1
    assert set(written["variants"]) == {"seed-1", "seed-3"} and written["failed"] == {"seed-2": "select/x: no row"}
    assert written["settings"] == {f"seed-{n}": {"seed": n} for n in (1, 2, 3)}
    assert set(written["models"]) == {"target", "seed-1/wrpo", "seed-3/wrpo"}
    told = capsys.readouterr()
    assert (
        "failed: seed-2: select/x: no row" in told.out
        and "1 of 3 variants failed; go on with: fuseline sweep" in told.out
    )
    assert "error: variant seed-2: select/x: no row" in told.err


def test_exit_codes_of_sweeps(driven):
    bad = InputError("no such file")
    code, written = driven(dict.fromkeys((1, 2, 3), bad))
    assert code == 2 and written["variants"] == written["models"] == {} and len(written["failed"]) == 3
    assert driven(dict.fromkeys((1, 2, 3)))[0] == 0
    assert exit_code({}, {"a": bad, "b": StageError("x")}) == exit_code({"c": {}}, {"a": bad}) == 1
