"""Score on a real Ray cluster: python scorers and reward models by domain, bad rows quarantined, parts resumed."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from fusion import artifact as files
from fusion.artifact import Artifact
from fusion.config import Config
from fusion.errors import ModelError, RecipeError, StageError
from fusion.models import ModelRef, PinnedModel
from fusion.placement import ScorePlacement
from fusion.rewards import ClassifierSettings, PythonScorer, SequenceClassifier, Unscored, Verified
from fusion.rows import Message, Prompt, Response, ScoredResponse, Verdict
from fusion.stage import Stage, StageContext, StageResult, run_stage
from fusion.stages import score
from fusion.verifiers import MathVerifier
from scored import response
from tiny_models import save_reward_model

pytestmark = pytest.mark.ray

TEXTS = ("right", "raise", "nan", "text", "a longer answer")
ODD = PythonScorer(function="odd_scorer:f", version=1, parameters={"bonus": 0.25})


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    os.environ.update(
        {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled", "RAY_DATA_DISABLE_PROGRESS_BARS": "1"}
    )
    workers = {"env_vars": {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}}
    ray.init(
        num_cpus=8, include_dashboard=False, _temp_dir=f"/tmp/r-{os.getpid()}", log_to_driver=False, runtime_env=workers
    )
    yield
    ray.shutdown()


class Given(Config):
    name: str


ROWS: dict[str, list] = {}


def _give(ctx: StageContext) -> StageResult:
    rows = ROWS[ctx.config.name]
    for chunk in ctx.plan([r.prompt_id if isinstance(r, Prompt) else r.row_id for r in rows], chunk_rows=50):
        ctx.commit(chunk, rows[chunk.start : chunk.stop])
    return StageResult(rows_in=len(rows))


def given(name: str, rows: list, row_type: type) -> Stage:
    ROWS[name] = rows
    return Stage("given", name, 1, Given(name=name), {}, _give, row_type)


def run_score(root: Path, scorers, prompts: list[Prompt], responses: list[Response], **placement) -> Artifact:
    inputs = {"prompts": given("prompts", prompts, Prompt), "responses": given("responses", responses, Response)}
    models = {
        f"reward_{d}": PinnedModel(d, s.model, root / "digests.json")
        for d, s in scorers.items()
        if isinstance(s, SequenceClassifier)
    }
    stage = Stage(
        "score", "m", score.VERSION, score.ScoreConfig.of(scorers), {**inputs, **models}, score.run, ScoredResponse,
        placement=ScorePlacement(accelerator="cpu", **placement),
    )  # fmt: skip
    done = {name: _run(s, root, {}) for name, s in inputs.items()}
    return _run(stage, root, {**done, **models})


def _run(stage: Stage, root: Path, inputs) -> Artifact:
    return run_stage(stage, root, inputs=inputs, report=lambda progress: None, resume_command="again")[0]


def words(num: int, *, domain: str = "words") -> tuple[list[Prompt], list[Response]]:
    prompts = [Prompt(f"{domain}{i}", domain, (Message("user", f"q{i}"),), reference=str(i)) for i in range(num)]
    rows = [
        response("m", n, prompt_id=p.prompt_id, text=text, tokens=n + 1)
        for p in prompts
        for n, text in enumerate(TEXTS)
    ]
    return prompts, rows


def test_python_scorer_scores_rows_and_quarantines_the_bad_ones(tmp_path):
    prompts, responses = words(8)
    artifact = run_score(tmp_path, {"*": ODD}, prompts, responses, chunk_rows=7, replicas=2)
    rows = {r.response.row_id: r for r in artifact.rows(ScoredResponse)}
    assert [r.response.row_id for r in artifact.rows(ScoredResponse)] == [
        r.row_id for r in responses if r.row_id in rows
    ]
    for i in range(8):
        right, long = rows[f"words{i}/m/0"], rows[f"words{i}/m/4"]
        assert (right.score, right.objectives) == (5.25 + i, {"exact": 1.0})
        assert (long.score, long.objectives) == (15.25 + i, {"exact": 0.0})
        assert right.scorer == "odd_scorer:f" and right.response == responses[5 * i]
    assert artifact.manifest.quarantined == {"scorer_error": 16, "non_finite_score": 8}
    assert artifact.manifest.rows_in == 40 == artifact.manifest.rows_out + 24
    refused = [q for n in range(6) for q in files.read_quarantine(artifact.path, n)]
    details = {q.row_id.rsplit("/", 1)[1]: q.detail for q in refused}
    assert details == {
        "1": "ValueError: cannot judge this",
        "2": "score is nan",
        "3": "'score' is 'good' (str); return a number for it",
    }
    notes = artifact.manifest.notes
    (entry,) = notes["scores"]
    assert (entry["model"], entry["decoding"], entry["scorer"]) == ("m", "sample", "odd_scorer:f")
    assert (entry["n"], entry["min"], entry["max"]) == (16, 5.25, 22.25)
    assert sum(entry["histogram"]["counts"]) == 16
    assert entry["length_correlation"] == pytest.approx(0.91, abs=0.01)


def test_resume_keeps_parts_and_makes_the_missing_one(tmp_path):
    prompts, responses = words(4)
    first = run_score(tmp_path, {"*": ODD}, prompts, responses, chunk_rows=6)
    rows, notes = list(first.rows(ScoredResponse)), first.manifest.notes
    kept = (first.path / files.part_name(0)).stat().st_mtime_ns
    (first.path / files.MANIFEST).unlink()
    (first.path / files.part_name(1)).unlink()
    again = run_score(tmp_path, {"*": ODD}, prompts, responses, chunk_rows=99)
    assert list(again.rows(ScoredResponse)) == rows and again.manifest.notes == notes
    assert (again.path / files.part_name(0)).stat().st_mtime_ns == kept


def test_domains_have_their_own_scorers_and_reward_models_give_the_scores_of_load(tmp_path):
    folder = save_reward_model(tmp_path / "rm", max_length=128)
    model = SequenceClassifier(model=ModelRef(path=folder))
    chat, chat_rows = words(3, domain="chat")
    chat_rows.append(response("m", 5, prompt_id="chat2", text="x" * 200))
    math, math_rows = words(2, domain="math")
    other, other_rows = words(1, domain="other")
    responses = [*math_rows, *chat_rows, *other_rows]
    artifact = run_score(
        tmp_path / "store", {"chat": model, "math": ODD}, [*chat, *math, *other], responses, chunk_rows=9, replicas=2
    )
    rows = {r.response.row_id: r for r in artifact.rows(ScoredResponse)}
    assert artifact.manifest.quarantined == {
        "scorer_error": 4, "non_finite_score": 2, "context_length_exceeded": 1, "no_scorer": 5,
    }  # fmt: skip
    prompts = {p.prompt_id: p for p in chat}
    conversations = [(*prompts[r.prompt_id].messages, Message("assistant", r.text)) for r in chat_rows]
    expected = ClassifierSettings().load(folder).score(conversations)
    for row, result in zip(chat_rows, expected, strict=True):
        if result.score is not None:
            assert rows[row.row_id].score == result.score and rows[row.row_id].scorer == "sequence_classifier"
    assert {r.scorer for r in rows.values()} == {"sequence_classifier", "odd_scorer:f"}

    cut = SequenceClassifier(model=ModelRef(path=folder), truncation="left")
    artifact = run_score(tmp_path / "store", {"*": cut}, chat, chat_rows)
    found = {r.response.row_id: r.truncated for r in artifact.rows(ScoredResponse)}
    assert [row_id for row_id, truncated in found.items() if truncated] == ["chat2/m/5"]
    assert artifact.manifest.notes["truncated"] == 1


def test_what_cannot_be_loaded_ends_the_stage_in_one_line(tmp_path):
    prompts, responses = words(1)
    with pytest.raises(RecipeError, match="'odd_scorer:g': g does not exist"):
        run_score(tmp_path / "a", {"*": PythonScorer(function="odd_scorer:g", version=1)}, prompts, responses)
    broken = save_reward_model(tmp_path / "rm", num_labels=3)
    with pytest.raises(
        (StageError, ModelError), match=r"has 3 outputs \(LABEL_0, LABEL_1, LABEL_2\); say which make the score"
    ):
        run_score(tmp_path / "b", {"*": SequenceClassifier(model=ModelRef(path=broken))}, prompts, responses)


def test_where_a_model_lies_does_not_move_keys_but_its_content_does(tmp_path):
    one, same = (save_reward_model(tmp_path / name, seed=0) for name in ("one", "same"))
    other = save_reward_model(tmp_path / "other", seed=1)

    def key(folder: Path, **placement) -> str:
        scorers = {"*": SequenceClassifier(model=ModelRef(path=folder))}
        return Stage(
            "score", "m", 1, score.ScoreConfig.of(scorers),
            {"reward_*": PinnedModel("*", scorers["*"].model, tmp_path / "digests.json")}, score.run, ScoredResponse,
            placement=ScorePlacement(**placement),
        ).key  # fmt: skip

    assert key(one) == key(same) == key(one, replicas=3, chunk_rows=5) != key(other)


MATH = {
    "gold": "4+8=12, so the answer is 12.",
    "wrong": "so the answer is 13.",
    "none": "I would rather not say.",
}


def sums(*, references: tuple[str | None, ...]) -> tuple[list[Prompt], list[Response]]:
    prompts = [Prompt(f"s{i}", "math", (Message("user", "4+8?"),), reference=r) for i, r in enumerate(references)]
    rows = [
        response("m", n, prompt_id=p.prompt_id, text=text, tokens=n + 1)
        for p in prompts
        for n, text in enumerate(MATH.values())
    ]
    return prompts, rows


def test_a_verifier_alone_scores_one_and_zero_and_never_an_answer_that_it_could_not_judge(tmp_path):
    prompts, responses = sums(references=("12", None))
    artifact = run_score(tmp_path, {"math": MathVerifier()}, prompts, responses, chunk_rows=4, replicas=2)
    rows = [(r.score, str(r.verdict), r.verdict_reason, r.scorer, r.objectives) for r in artifact.rows(ScoredResponse)]
    assert rows == [
        (1.0, "correct", None, "math", {"exact": 1.0}),
        (0.0, "wrong", None, "math", {"exact": 0.0}),
        (0.0, "unparsable", "no_answer", "math", {"exact": 0.0}),
    ]
    assert artifact.manifest.quarantined == {"math_no_reference": 3}


def test_a_verifier_decides_and_a_scorer_ranks(tmp_path):
    """Both of a domain: verdict of the one, score and objectives of the other, and each domain has its own."""
    prompts, responses = sums(references=("12", None))
    other, more = words(2)
    both = Verified(verifier=MathVerifier(), reward=ODD, correct_bonus=100.0)
    artifact = run_score(tmp_path, {"math": both, "*": Unscored()}, [*prompts, *other], [*responses, *more])
    rows = {r.response.row_id: r for r in artifact.rows(ScoredResponse)}
    gold, wrong = rows["s0/m/0"], rows["s0/m/1"]
    assert (gold.score, gold.verdict, gold.objectives) == (len(MATH["gold"]) + 112.25, Verdict.correct, {"exact": 1.0})
    assert (wrong.score, wrong.verdict, wrong.objectives) == (len(MATH["wrong"]) + 12.25, Verdict.wrong, {"exact": 0.0})
    assert gold.scorer == "math+odd_scorer:f" and rows["words0/m/1"].scorer == "unscored"
    assert [r.score for r in rows.values() if r.verdict is None] == [0.0] * 10
    assert artifact.manifest.quarantined == {"math_no_reference": 3}
