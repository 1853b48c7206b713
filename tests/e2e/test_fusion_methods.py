"""FuseChat-3.0 and FuseRL from prompts to a model, with the real engines and the real verifiers, on tiny random models.

Random models answer nothing right, so the right and wrong answers of the math and code domains are those of a data set:
a source of kind `existing`, whose pairs the split by pairs and both methods then train on.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fusion.artifact import Artifact
from fusion.rows import Assignment, PreferencePair, ScoredResponse, WeightedPairs, WeightedResponses
from jobs.demo.random_models import build
from ray_head import environment

pytestmark = pytest.mark.ray

FUSELINE = (sys.executable, "-m", "jobs.run")
WORDS, SUMS, PROGRAMS = 12, 8, 6


def prompts() -> Iterator[dict]:
    for n in range(WORDS):
        yield {"id": f"w{n}", "domain": "words", "prompt": f"say something about {n} 中"}
    for n in range(SUMS):
        yield {"id": f"s{n}", "domain": "math", "prompt": f"what is {n} + {n}?", "reference": str(2 * n)}
    for n in range(PROGRAMS):
        tests = [f"assert f(2) == {2 + n}\nassert f(5) == {5 + n}"]
        yield {"id": f"c{n}", "domain": "code", "prompt": f"write f that adds {n}", "tests": tests, "entry_point": "f"}


def answers() -> Iterator[dict]:
    """A right and a wrong answer to each sum and program; to the last of each, two right ones, so no pair."""
    for n in range(SUMS):
        for start, given in (("Well, ", 2 * n), ("So ", 2 * n if n == SUMS - 1 else 2 * n + 1)):
            yield {"id": f"s{n}", "text": f"{start}{n} and {n} make it. The answer is {given}."}
    for n in range(PROGRAMS):
        wrong = n if n == PROGRAMS - 1 else n + 1
        yield {"id": f"c{n}", "text": f"def f(x):\n    return x + {n}"}
        yield {"id": f"c{n}", "text": f"```python\ndef f(x):\n    return {wrong} + x\n```"}
    yield {"id": "nobody", "text": "to no prompt of ours"}


def recipe() -> dict:
    training = {"learning_rate": 1e-3, "global_batch": 4, "max_length": 256}
    python = {"type": "python", "function": "jobs.demo.readable:score", "version": 1}
    verdicts = {"contrast": "verdict", "allow_length": True}
    pairs = {"words": {"type": "same_source_pair", "allow_length": True}, "*": {"type": "same_source_pair", **verdicts}}
    return {
        "name": "methods",
        "seed": 3,
        "root": "runs",
        "target": {"path": "models/target"},
        "sources": {
            "llama": {"path": "models/llama", "sampling_by_domain": {"code": {"num_samples": 1}}},
            "book": {
                "type": "existing",
                "data": {"type": "jsonl", "path": "answers.jsonl"},
                "response": "text",
                "match": "id",
            },
        },
        "prompts": [{"type": "jsonl", "path": "prompts.jsonl", "name": "tiny"}],
        "clean": {"near_duplicates": None},
        "sampling": {"temperature": 1.0, "max_tokens": 12, "num_samples": 3},
        "dtype": "float32",
        "max_model_len": 256,
        "score": {
            "words": python,
            "math": {"type": "verified", "verifier": {"type": "math"}, "reward": python},
            "code": {"type": "verified", "verifier": {"type": "code"}, "reward": python, "correct_bonus": 1.0},
        },
        "split": {
            "type": "pairs",
            "pair": {"type": "by_domain", "rules": {name: {**rule, "side": "all"} for name, rule in pairs.items()}},
            "domains": {"words": {"sft": 4, "preference": 6}, "*": "pairs_first"},
        },
        "sft": {
            "select": {
                "type": "by_domain",
                "rules": {
                    "words": {"type": "weighted_responses", "temperature": 0.1, "allow_length": True},
                    "*": {"type": "weighted_responses", "temperature": 0.1, "allow_length": True, "only_correct": True},
                },
            },
            **training,
        },
        "arms": {
            "fusechat3": {
                "select": {"type": "by_domain", "rules": pairs},
                "loss": {"type": "ln_dpo", "beta": 10.0},
                "held_out": {"rows": 4, "every": 2, "keep": "best", "among": 2},
                **training,
            },
            "fuserl": {
                "select": {"type": "weighted_pairs", "temperature": 0.1, "side": "all", "allow_length": True},
                "loss": {"type": "simpo", "beta": 2.0, "gamma": 0.5},
                **training,
            },
        },
        "serve": {"arm": "fuserl"},
        "placement": {"parallel_stages": 2, "score": {"cpus": 2}},
    }


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("m")
    build(root / "models", seed=0)
    (root / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts()))
    (root / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in answers()))
    (root / "recipe.yaml").write_text(json.dumps(recipe()))  # JSON is YAML without aliases
    done = fuseline(root, "run", "recipe.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    return root


def fuseline(root: Path, *args: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [*FUSELINE, *args], cwd=root, env=environment(), capture_output=True, text=True, timeout=580, check=False
    )


def artifact(root: Path, stage: str, slug: str) -> Artifact:
    (found,) = (root / "runs" / "store" / stage).glob(f"{slug}-" + "?" * 12)
    return Artifact.load(found)


def test_verdicts_of_the_real_verifiers_stand_beside_the_scorers_numbers(project):
    rows = {r.response.row_id: r for r in artifact(project, "score", "book").rows(ScoredResponse)}
    assert [str(rows[f"s0/book/{n}"].verdict) for n in (0, 1)] == ["correct", "wrong"]
    assert [str(rows[f"c1/book/{n}"].verdict) for n in (0, 1)] == ["correct", "wrong"]
    assert rows["c1/book/1"].verdict_reason == "wrong_answer" and rows["c1/book/0"].score > 1
    assert {r.scorer for r in rows.values()} == {"math+jobs.demo.readable:score", "code+jobs.demo.readable:score"}
    assert artifact(project, "score", "book").manifest.notes["sandbox"][0] in ("L2", "L3")
    assert artifact(project, "existing", "book").manifest.quarantined == {"unknown_prompt": 1}


def test_a_domain_with_its_own_sampling_is_an_artifact_of_its_own(project):
    most, code = artifact(project, "generate", "llama"), artifact(project, "generate", "llama@1")
    assert (most.manifest.rows_in, code.manifest.rows_in) == (3 * (WORDS + SUMS), PROGRAMS)


def test_every_prompt_has_the_side_that_its_pairs_give_it(project):
    sides = {row.prompt_id: row.side for row in artifact(project, "split", "pairs").rows(Assignment)}
    math = {name: side for name, side in sides.items() if name.startswith("s")}
    assert math == {f"s{n}": "sft" if n == SUMS - 1 else "preference" for n in range(SUMS)}
    code = {name: side for name, side in sides.items() if name.startswith("c")}
    assert code == {f"c{n}": "sft" if n == PROGRAMS - 1 else "preference" for n in range(PROGRAMS)}
    words = [side for name, side in sides.items() if name.startswith("w")]
    assert words.count("sft") == len(words) * 4 // 10

    pairs = list(artifact(project, "select", "same_source_pair").rows(PreferencePair))
    assert {row.row_id for row in pairs} == {name for name, side in sides.items() if side == "preference"}
    taught = {row.row_id: row for row in artifact(project, "select", "weighted_responses").rows(WeightedResponses)}
    assert set(taught) == {name for name, side in sides.items() if side == "sft"}
    for name in (f"s{SUMS - 1}", f"c{PROGRAMS - 1}"):
        assert [a.response.model for a in taught[name].responses] == ["book"] and taught[name].weights == (1.0,)


def test_weighted_rows_hold_a_pair_of_each_source_that_has_one(project):
    pairs = list(artifact(project, "select", "weighted_pairs").rows(WeightedPairs))
    assert max(len(row.chosen) for row in pairs) == 2
    assert artifact(project, "select", "weighted_pairs").manifest.notes["weights"]["mean_members"] > 1


def test_all_arms_are_trained_and_the_one_to_serve_is_exported_with_its_sources(project):
    for kind, slug in (("sft", "sft"), ("prefer", "fusechat3"), ("prefer", "fuserl")):
        manifest = artifact(project, kind, slug).manifest
        assert manifest.notes["steps"] > 0 and manifest.num_quarantined == 0
    card = (project / "runs/methods/model/README.md").read_text()
    assert "answers of a data set" in card and "3 at temperature 1" in card


def test_a_second_run_does_nothing_and_rows_can_be_exported(project):
    done = fuseline(project, "run", "recipe.yaml")
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if " in = " in line]
    assert lines and all(line.startswith("hit") for line in lines), done.stdout
    exported = fuseline(
        project, "export", "recipe.yaml", "--rows", "fusechat3", "--layout", "trl", "--out", "pairs.jsonl"
    )
    assert exported.returncode == 0, exported.stderr
    rows = [json.loads(line) for line in (project / "pairs.jsonl").read_text().splitlines()]
    assert len(rows) == artifact(project, "select", "same_source_pair").manifest.rows_out
