"""The evaluate stage on hand-made scores, and the shape of the summary that is made of it."""

import json

import pytest

from fusion.config import Config
from fusion.errors import StageError
from fusion.report import StageReport, build_summary, result_table
from fusion.rows import EvaluationItem, Finish, Response, ScoredResponse
from fusion.stage import Stage, StageContext, StageResult, run_stage
from fusion.stages import evaluate
from fusion.stages.evaluate import EvaluateConfig


class NoConfig(Config):
    name: str


def scored(model, prompt_id, sample, score, *, decoding="sample", exact=None, tokens=3, finish=Finish.stop):
    response = Response(
        prompt_id, model, sample, decoding, f"answer {sample}", tuple(range(tokens)), finish, 1, 5, "tokenizer"
    )
    return ScoredResponse(response, score, "s", {} if exact is None else {"exact": exact})


def make(store, rows_by_model, *, comparisons=(), **more):
    inputs = {}
    for model, rows in rows_by_model.items():

        def write(ctx: StageContext, rows=rows) -> StageResult:
            for chunk in ctx.plan([r.response.row_id for r in rows], chunk_rows=100):
                ctx.commit(chunk, rows[chunk.start : chunk.stop])
            return StageResult(rows_in=len(rows))

        stage = Stage("score", model, 1, NoConfig(name=model), {}, write, ScoredResponse)
        artifact, _ = run_stage(stage, store, inputs={}, report=lambda _: None, resume_command="again")
        inputs[f"scored_{model}"] = (stage, artifact)
    config = EvaluateConfig(
        benchmark="held_out", models=tuple(rows_by_model), comparisons=comparisons, num_resamples=200, **more
    )
    stage = Stage(
        "evaluate",
        "held_out",
        evaluate.VERSION,
        config,
        {n: s for n, (s, _) in inputs.items()},
        evaluate.run,
        EvaluationItem,
    )
    return run_stage(
        stage, store, inputs={n: a for n, (_, a) in inputs.items()}, report=lambda _: None, resume_command="again"
    )[0]


def two_models():
    """Model b beats a by 0.5 on every sample of p0 to p9; greedy answers are equal."""
    rows = {"a": [], "b": []}
    for i in range(10):
        for model, lift in (("a", 0.0), ("b", 0.5)):
            for sample in range(2):
                rows[model].append(
                    scored(model, f"p{i}", sample, i / 20 + lift, exact=float(sample), tokens=2 + sample)
                )
            rows[model].append(scored(model, f"p{i}", 2, 0.3, decoding="greedy", exact=1.0, finish=Finish.length))
    return rows


def test_means_differences_and_items(tmp_path):
    artifact = make(tmp_path, two_models(), comparisons=(("b", "a"),))
    notes = artifact.manifest.notes
    assert (artifact.manifest.rows_in, artifact.manifest.rows_out) == (60, 60)
    assert notes["models"]["a"]["reward"]["mean"] == pytest.approx(0.225)
    assert notes["models"]["b"]["reward"]["mean"] == pytest.approx(0.725)
    assert notes["models"]["b"]["reward"]["low"] < 0.725 < notes["models"]["b"]["reward"]["high"]
    assert notes["models"]["a"]["exact"] == {"mean": 0.5, "low": 0.5, "high": 0.5}
    assert notes["models"]["a"]["greedy_exact"]["mean"] == 1.0
    by_metric = {d["metric"]: d for d in notes["differences"]}
    assert list(by_metric) == ["reward", "exact", "greedy_reward", "greedy_exact"]
    assert by_metric["reward"]["low"] == pytest.approx(0.5) and by_metric["reward"]["high"] == pytest.approx(0.5)
    assert by_metric["greedy_reward"]["mean"] == 0.0
    assert notes["answers"]["a"]["sample"] == {
        "num_responses": 20, "num_prompts": 10, "mean_tokens": 2.5, "share_finished": 1.0
    }  # fmt: skip
    assert notes["answers"]["a"]["greedy"]["share_finished"] == 0.0
    items = list(artifact.rows(EvaluationItem))
    assert len(items) == 60 and items[0].detail == {"exact": 0.0} and items[0].benchmark == "held_out"


def test_models_are_compared_over_the_prompts_that_all_have(tmp_path):
    rows = two_models()
    rows["b"] = [r for r in rows["b"] if r.response.prompt_id != "p9"]
    notes = make(tmp_path, rows, comparisons=(("b", "a"),)).manifest.notes
    assert notes["models"]["a"]["reward"]["mean"] == pytest.approx(sum(range(9)) / 9 / 20)
    assert notes["counts"]["prompts"]["reward"] == 9
    assert notes["counts"]["left_out"]["reward"] == {"a": 1}
    assert notes["differences"][0]["num_prompts"] == 9


def test_a_metric_that_the_scorer_does_not_state_is_none(tmp_path):
    rows = {"a": [scored("a", "p0", 0, 0.1), scored("a", "p1", 0, 0.2)]}
    notes = make(tmp_path, rows).manifest.notes
    assert notes["models"]["a"]["reward"]["mean"] == pytest.approx(0.15)
    assert notes["models"]["a"]["exact"] is None and notes["models"]["a"]["greedy_reward"] is None


def test_no_shared_prompt_names_the_model(tmp_path):
    rows = {"a": [scored("a", "p0", 0, 0.1), scored("a", "p2", 0, 0.1)], "b": [scored("b", "p1", 0, 0.2)]}
    with pytest.raises(StageError, match=r"no held-out prompt has reward for all models \(b has it for 1\)"):
        make(tmp_path, rows)


def test_summary_has_the_promised_shape(tmp_path):
    artifact = make(tmp_path, two_models(), comparisons=(("b", "a"),))
    stages = [
        StageReport("select/best", "select", "best", "abc", 1.23456, 10, 7, {"tie": 1, "low_margin": 2}, hit=False),
        StageReport.of(artifact, hit=True),
    ]
    summary = build_summary(recipe_name="demo", stages=stages, evaluate=artifact, total_seconds=12.3456)
    assert set(summary["models"]) == {"a", "b"}
    for metrics in summary["models"].values():
        assert set(metrics) == {"reward", "exact", "greedy_reward", "greedy_exact"}
        for interval in metrics.values():
            assert set(interval) == {"mean", "low", "high"}
            assert interval["low"] <= interval["mean"] <= interval["high"]
    assert {frozenset(d) for d in summary["differences"]} == {frozenset(("a", "b", "metric", "mean", "low", "high"))}
    assert summary["stages"][0] == {
        "stage": "select/best", "key": "abc", "seconds": 1.235, "rows_in": 10, "rows_out": 7,
        "quarantined": 3, "reasons": {"tie": 1, "low_margin": 2}, "hit": False,
    }  # fmt: skip
    assert summary["stages"][1]["rows_in"] == 60 and summary["stages"][1]["hit"] is True
    assert summary["total_seconds"] == 12.346
    json.dumps(summary, allow_nan=False)


def test_summary_without_evaluation():
    summary = build_summary(recipe_name="r", stages=[], evaluate=None, total_seconds=1.0)
    assert summary["models"] == {} and summary["differences"] == []
    assert "no evaluation" in result_table(summary)


def test_table_marks_the_best_and_aligns(tmp_path):
    artifact = make(tmp_path, two_models(), comparisons=(("b", "a"),))
    text = result_table(build_summary(recipe_name="demo", stages=[], evaluate=artifact, total_seconds=1.0))
    lines = text.splitlines()
    assert lines[0].split() == ["model", "reward", "exact", "greedy", "reward", "greedy", "exact"]
    assert lines[2].startswith("a ") and "0.225 [" in lines[2]
    assert lines[3].startswith("b ") and "]*" in lines[3]
    assert lines[2].index("0.225") == lines[3].index("0.725")
    assert any(line.startswith("b - a") and "+0.500 [+0.500, +0.500]" in line for line in lines)
