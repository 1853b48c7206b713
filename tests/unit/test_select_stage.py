"""Stage select on real artifacts: every prompt accounted for, sides kept apart, counts that add up."""

import dataclasses
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusion import artifact as files
from fusion.artifact import Artifact
from fusion.config import Config
from fusion.errors import ArtifactError, InputError
from fusion.rows import (
    Assignment,
    Finish,
    PreferencePair,
    PreferenceQuadruple,
    PreferenceSet,
    Prompt,
    ResponseGroup,
    ScoredResponse,
    SftExample,
    WeightedResponses,
)
from fusion.select import (
    Best,
    Group,
    Guard,
    PairSplit,
    PromptGroup,
    Quadruple,
    Rule,
    SameSourcePair,
    SourceSet,
    Split,
    WeightedAnswers,
)
from fusion.stage import Stage, StageContext, StageResult, run_stage
from fusion.stages import select, split
from fusion.stages.statistics import histogram
from scored import answers, prompt, scored

SPLIT = Split(sft=1, preference=2, seed=7)
SOURCES = ("a", "b")


class Given(Config):
    """Rows that a test gives, by a name in ROWS."""

    name: str


ROWS: dict[str, list] = {}


def _give(ctx: StageContext) -> StageResult:
    rows = ROWS[ctx.config.name]
    ids = [r.prompt_id if isinstance(r, Prompt) else r.response.row_id for r in rows]
    for chunk in ctx.plan(ids, chunk_rows=7):
        ctx.commit(chunk, rows[chunk.start : chunk.stop])
    return StageResult(rows_in=len(rows))


def given_stage(name: str, rows: list, row_type: type) -> Stage:
    ROWS[name] = rows
    return Stage("given", name, 1, Given(name=name), {}, _give, row_type)


def run_select(
    root: Path,
    rule: Rule,
    prompts: list,
    sources: dict[str, list],
    own: list | None = None,
    *,
    guard: Guard | None = None,
) -> Artifact:
    inputs = {"prompts": given_stage("prompts", prompts, Prompt)}
    inputs |= {f"source_{n}": given_stage(n, rows, ScoredResponse) for n, rows in sources.items()}
    if own is not None:
        inputs["own"] = given_stage("own", own, ScoredResponse)
    config = select.SelectConfig(rule=rule, split=SPLIT, guard=guard)
    stage = Stage("select", rule.type, select.VERSION, config, inputs, select.run, rule.row_type)
    done = {n: _run(s, root, {}) for n, s in inputs.items()}
    return _run(stage, root, done)


def _run(stage: Stage, root: Path, inputs) -> Artifact:
    return run_stage(stage, root, inputs=inputs, report=lambda progress: None, resume_command="again")[0]


def world(num: int = 30):
    """Prompts of two domains; on p3 source b has lost its answers, p4 has only cut ones, p5 ties everywhere."""
    rng = random.Random(3)
    prompts = [prompt(f"p{i}", domain="math" if i % 2 else "words") for i in range(num)]
    rows: dict[str, list[ScoredResponse]] = {"a": [], "b": [], "sft": []}
    for i in range(num):
        for model in rows:
            found = answers(model, *(0.5 if i == 5 else rng.random() for _ in range(3)), prompt_id=f"p{i}")
            if i == 4:
                cut = [dataclasses.replace(f.response, finish_reason=Finish.length) for f in found]
                found = tuple(dataclasses.replace(f, response=r) for f, r in zip(found, cut, strict=True))
            if (i, model) != (3, "b"):
                rows[model] += found
    sides = SPLIT.assign(p.prompt_id for p in prompts)
    own = [row for row in rows["sft"] if sides[row.response.prompt_id] == "preference"]
    return prompts, {"a": rows["a"], "b": rows["b"]}, own, sides


def test_best_covers_its_side_and_counts_wins(tmp_path):
    prompts, sources, _, sides = world()
    artifact = run_select(tmp_path, Best(), prompts, sources)
    rows = list(artifact.rows(SftExample))
    mine = [p.prompt_id for p in prompts if sides[p.prompt_id] == "sft"]
    assert len(mine) == artifact.manifest.rows_in == 10
    for row in rows:
        pool = [r for rows_ in sources.values() for r in rows_ if r.response.prompt_id == row.row_id]
        assert row.response.score == max(r.score for r in pool)
    notes = artifact.manifest.notes
    assert [r.row_id for r in rows] == [i for i in mine if i != "p4"]
    won = {s: sum(r.response.response.model == s for r in rows) for s in SOURCES}
    assert notes["wins"] == {s: {"count": n, "share": n / len(rows)} for s, n in won.items()}
    assert sum(n for by in notes["wins_by_domain"].values() for n in by.values()) == len(rows)
    assert notes["margins"] is None


def test_quadruples_cover_the_other_side_with_every_drop_named(tmp_path):
    prompts, sources, own, sides = world()
    artifact = run_select(tmp_path, Quadruple(), prompts, sources, own)
    rows = list(artifact.rows(PreferenceQuadruple))
    mine = [p.prompt_id for p in prompts if sides[p.prompt_id] == "preference"]
    special = {"p4": "only_truncated", "p5": "tie"}
    expected = {i: special[i] for i in mine if i in special}
    assert expected, "the split must put a special prompt on this side"
    refused = files.read_quarantine(artifact.path, 0)
    assert {q.row_id: q.reason for q in refused} == expected
    assert [r.row_id for r in rows] == [i for i in mine if i not in expected]
    notes = artifact.manifest.notes
    assert notes["drops"] == artifact.manifest.quarantined
    assert artifact.manifest.rows_in == len(mine) == len(rows) + len(expected) == 20
    margins = [r.target_chosen.score - r.rejected.score for r in rows]
    assert notes["margins"]["mean"] == pytest.approx(np.mean(margins))
    assert notes["margins"]["n"] == len(rows) == sum(w["count"] for w in notes["wins"].values())
    assert notes["domains"]["math"]["prompts"] + notes["domains"]["words"]["prompts"] == 20
    assert notes["lengths"]["rejected"] == {"mean_tokens": 3.0, "mean_characters": len("answer 0 of sft")}


def test_sets_and_groups_are_counted_by_their_best_answer_and_by_every_response(tmp_path):
    """A row is won by the source of its best answer; margins of groups are best minus worst; lengths are of responses."""
    prompts, sources, own, _ = world()
    sets = run_select(tmp_path, SourceSet(source_chosen=2, source_rejected=1), prompts, sources, own)
    rows = list(sets.rows(PreferenceSet))
    notes = sets.manifest.notes
    won = {s: sum(r.source_chosen[0].response.model == s for r in rows) for s in SOURCES}
    assert {s: w["count"] for s, w in notes["wins"].items()} == won and min(won.values()) > 0
    assert notes["margins"]["mean"] == pytest.approx(np.mean([r.target_chosen.score - r.rejected.score for r in rows]))
    assert set(notes["lengths"]) == {"source_chosen", "target_chosen", "source_rejected", "rejected"}
    assert max(len(r.source_chosen) for r in rows) == 2

    sources["a"] = [_with_tokens(row, 9 if row.response.sample == 0 else 3) for row in sources["a"]]
    groups = run_select(tmp_path / "groups", Group(of="best_source"), prompts, sources)
    rows = list(groups.rows(ResponseGroup))
    notes = groups.manifest.notes
    spans = [max(a.score for a in r.responses) - min(a.score for a in r.responses) for r in rows]
    assert notes["margins"]["n"] == len(rows) and notes["margins"]["mean"] == pytest.approx(np.mean(spans))
    tokens = [len(a.response.token_ids) for r in rows for a in r.responses]
    assert notes["lengths"] == {
        "responses": {"mean_tokens": pytest.approx(np.mean(tokens)), "mean_characters": len("answer 0 of a")}
    }
    assert 3 < np.mean(tokens) < 9
    assert notes["drops"] == {"tie": 1}


def _with_tokens(row: ScoredResponse, num: int) -> ScoredResponse:
    return dataclasses.replace(row, response=dataclasses.replace(row.response, token_ids=tuple(range(num))))


def test_sft_and_preference_share_no_prompt_and_side_all_takes_every_one(tmp_path):
    prompts, sources, own, _ = world()
    best = run_select(tmp_path, Best(), prompts, sources)
    quadruples = run_select(tmp_path, Quadruple(), prompts, sources, own)
    everything = run_select(tmp_path, Best(side="all"), prompts, sources)
    one, other = {r.row_id for r in best.rows(SftExample)}, {r.row_id for r in quadruples.rows(PreferenceQuadruple)}
    assert one and other and not one & other
    assert everything.manifest.rows_in == 30
    assert {r.row_id for r in everything.rows(SftExample)} == {p.prompt_id for p in prompts} - {"p4"}


def test_a_resumed_selection_makes_the_same_rows_and_notes(tmp_path, monkeypatch):
    monkeypatch.setattr(select, "CHUNK_ROWS", 4)
    prompts, sources, own, _ = world()
    first = run_select(tmp_path, Quadruple(), prompts, sources, own)
    rows, notes = list(first.rows(PreferenceQuadruple)), first.manifest.notes
    (first.path / files.MANIFEST).unlink()
    (first.path / files.part_name(2)).unlink()
    again = run_select(tmp_path, Quadruple(), prompts, sources, own)
    assert list(again.rows(PreferenceQuadruple)) == rows and again.manifest.notes == notes


def test_rows_out_of_order_are_an_error_and_not_a_silent_loss(tmp_path):
    prompts, sources, _, _ = world()
    sources["b"] = sources["b"][::-1]
    with pytest.raises(ArtifactError, match=r"b/2 answers no prompt .* or stands out of the order"):
        run_select(tmp_path, Best(side="all"), prompts, sources)


def test_a_side_without_prompts_is_named(tmp_path):
    with pytest.raises(InputError, match=r"no prompt of 1 is on side 'sft' of the split 1:2"):
        run_select(tmp_path, Best(), [prompt("p0")], {"a": [scored("a", 1.0, prompt_id="p0")]})


@given(st.lists(st.floats(-1e6, 1e6, allow_subnormal=False), min_size=1, max_size=50))
def test_histograms_hold_every_value_once(values):
    found = histogram(np.array(values))
    edges, counts = found["edges"], found["counts"]
    assert sum(counts) == len(values) and len(edges) == len(counts) + 1 <= 26
    slack = 1e-9 + 1e-9 * max(map(abs, edges))
    assert edges[0] <= min(values) + slack and max(values) <= edges[-1] + slack


def test_histogram_edges_are_round():
    found = histogram(np.array([0.0, 0.24, 0.25, 1.0]))
    assert found["edges"][:3] == [0.0, 0.05, 0.1] and found["counts"][4:6] == [1, 1]


# ---- the split by pairs, as a stage ---------------------------------------------------------------


def run_split(root: Path, prompts: list, sources: dict[str, list]) -> tuple[Stage, Artifact, dict, dict]:
    rule = {"type": "same_source_pair", "side": "all", "min_margin": 0.2}
    shares = {"math": {"sft": 1, "preference": 1}, "words": "pairs_first"}
    config = split.SplitConfig(split=PairSplit(type="pairs", pair=rule, domains=shares, seed=5))  # type: ignore[arg-type]
    inputs = {"prompts": given_stage("prompts", prompts, Prompt)}
    inputs |= {f"source_{n}": given_stage(n, rows, ScoredResponse) for n, rows in sources.items()}
    done = {n: _run(s, root, {}) for n, s in inputs.items()}
    stage = Stage("split", "pairs", split.VERSION, config, inputs, split.run, Assignment)
    return stage, _run(stage, root, done), inputs, done


def test_sides_by_pairs_are_rows_and_selections_keep_to_them(tmp_path):
    prompts, sources, _, _ = world(60)
    stage, artifact, inputs, done = run_split(tmp_path, prompts, sources)
    sides = {row.prompt_id: row.side for row in artifact.rows(Assignment)}
    assert artifact.manifest.rows_in == 60 == len(sides) + artifact.manifest.num_quarantined
    pairs = {
        p.prompt_id: isinstance(SameSourcePair(min_margin=0.2)(_group(p, sources)), PreferencePair) for p in prompts
    }
    for p in prompts:
        if p.domain == "words":
            assert sides[p.prompt_id] == ("preference" if pairs[p.prompt_id] else "sft")
        else:
            assert (p.prompt_id in sides) == pairs[p.prompt_id]
    math = [side for name, side in sides.items() if int(name[1:]) % 2]
    assert math.count("sft") == len(math) // 2 > 3
    assert artifact.manifest.notes["domains"]["math"]["no_side"] == 30 - len(math) > 0

    everything = {**inputs, "split": stage}
    taken = {}
    for rule in (Best(), SameSourcePair(min_margin=0.2)):
        config = select.SelectConfig(rule=rule, split=None)
        made = Stage("select", rule.type, select.VERSION, config, everything, select.run, rule.row_type)
        rows = _run(made, tmp_path, {**done, "split": artifact})
        taken[rule.type] = {row.row_id for row in rows.rows(rule.row_type)}
    assert taken["same_source_pair"] == {name for name, side in sides.items() if side == "preference"}
    assert taken["best"] == {n for n, side in sides.items() if side == "sft"} - {"p4"}  # p4 has only cut answers


def _group(asked: Prompt, sources: dict[str, list]) -> PromptGroup:
    mine = tuple(r for rows in sources.values() for r in rows if r.response.prompt_id == asked.prompt_id)
    return PromptGroup(asked, mine)


def test_a_guard_leaves_rows_out_with_their_reason_and_counts_them_by_domain(tmp_path):
    prompts, sources, _, _ = world(40)
    sources["a"] = [dataclasses.replace(row, score=row.score + 0.6) for row in sources["a"]]  # a wins nearly all
    done = run_select(tmp_path, Best(side="all"), prompts, sources, guard=Guard(max_share=0.7))
    notes = done.manifest.notes
    assert notes["drops"]["source_share"] > 0 and notes["wins"]["a"]["share"] <= 0.7
    assert notes["drops"] == done.manifest.quarantined
    added = Counter()
    for drops in notes["drops_by_domain"].values():
        added.update(drops)
    assert added == notes["drops"] and notes["taken"] == {s: w["count"] for s, w in notes["wins"].items() if w["count"]}
    with pytest.raises(InputError, match=r"the guard leaves none of \d+ rows \(a won .*\); loosen it"):
        run_select(tmp_path, Best(side="all"), prompts, {"a": sources["a"]}, guard=Guard(max_share=0.7))


def test_a_rule_that_leaves_no_row_names_its_reasons(tmp_path):
    prompts, sources, _, _ = world()
    said = r"^select/same_source_pair: the rule leaves no row of 20 prompts \(below_margin 19, tie 1\); loosen it"
    with pytest.raises(InputError, match=said) as caught:
        run_select(tmp_path, SameSourcePair(min_margin=100), prompts, sources)
    assert caught.value.exit_code == 2
    with pytest.raises(InputError, match=said):  # all parts are there the second time, and the answer is the same
        run_select(tmp_path, SameSourcePair(min_margin=100), prompts, sources)


def test_weights_are_logged_as_entropy(tmp_path):
    prompts, sources, _, _ = world()
    done = run_select(tmp_path, WeightedAnswers(temperature=None, side="all"), prompts, sources)
    weights = done.manifest.notes["weights"]
    rows = list(done.rows(WeightedResponses))
    assert (
        weights["mean_members"] == pytest.approx(np.mean([len(r.weights) for r in rows]))
        and 1 < weights["mean_members"] < 2
    )
    assert weights["mean_entropy"] == pytest.approx(weights["mean_entropy_if_equal"])
    cold = run_select(tmp_path, WeightedAnswers(temperature=1e-9, side="all"), prompts, sources)
    assert cold.manifest.notes["weights"]["mean_entropy"] < 0.1 * weights["mean_entropy"]
