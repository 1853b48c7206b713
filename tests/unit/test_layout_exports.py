"""Exports to published row layouts: from artifacts and from runs of a recipe, and the commands as they are typed."""

import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from fusion.artifact import Artifact
from fusion.errors import ArtifactError, InputError
from fusion.recipe import Recipe
from fusion.rows import Message, PreferenceQuadruple, SftExample
from fusion.stage import Stage, StageContext, StageResult, run_stage
from jobs.layout_driver import export_rows, find_rows, import_rows
from layout_examples import lines_of, row_for
from poison import store_rows
from scored import prompt, scored

ROOT = Path(__file__).parents[2]

# ---- exports ----------------------------------------------------------------------------------


def test_what_a_layout_cannot_hold_is_quarantined_or_said(tmp_path):
    rows = [row_for(PreferenceQuadruple, f"p{n}") for n in range(3)]
    long = dataclasses.replace(rows[1].prompt, messages=(Message("system", "s"), *rows[1].prompt.messages))
    rows[1] = dataclasses.replace(rows[1], prompt=long)
    _, artifact = store_rows(tmp_path / "store", rows)
    done = export_rows([artifact.path], "wrpo", tmp_path / "w.parquet")
    assert (done.examples, done.written, dict(done.refused)) == (3, 2, {"not_single_turn": 1})
    assert lines_of(tmp_path / "w.parquet.quarantine.jsonl")[0]["row_id"] == "p1"
    with pytest.raises(InputError, match=r"--layout trl has no place for a source's answer .*; these have: wrpo"):
        export_rows([artifact.path], "trl", tmp_path / "t.parquet")
    with pytest.raises(InputError, match="there is no such layout; there are: wrpo, trl"):
        export_rows([artifact.path], "trll", tmp_path / "t.parquet")
    _, bad = store_rows(tmp_path / "bad", [rows[1]])
    with pytest.raises(InputError, match=r"nothing to write to .*not_single_turn 1"):
        export_rows([bad.path], "wrpo", tmp_path / "none.jsonl")
    assert not list(tmp_path.glob("none*")) and not list(tmp_path.glob("t.*"))


def test_an_export_overwrites_its_own_files_only(tmp_path):
    _, artifact = store_rows(tmp_path / "store", [row_for(SftExample, "p")])
    mine = tmp_path / "mine.jsonl"
    mine.write_text("precious")
    with pytest.raises(InputError, match="exists and was not written by fuseline export"):
        export_rows([artifact.path], "trl", mine)
    (tmp_path / "folder").mkdir()
    for out, said in (
        (tmp_path / "folder", "exists and was not written"), (tmp_path / "rows.csv", "must end with"),
        (mine / "x.jsonl", "is not a folder"), (Path(".."), "name a file"), (tmp_path / "store/f.json", None),
    ):  # fmt: skip
        if said:
            with pytest.raises(InputError, match=said):
                export_rows([artifact.path], "trl", out)
        else:
            export_rows([artifact.path], "trl", out)
            export_rows([artifact.path], "trl", out)
    for _ in range(2):
        export_rows([artifact.path], "trl", tmp_path / "new")
    assert mine.read_text() == "precious" and sorted(p.name for p in (tmp_path / "new").iterdir()) == [
        "dataset_dict.json",
        "train",
    ]
    with pytest.raises(InputError, match="has no splits; give a folder"):
        export_rows([artifact.path], "trl", tmp_path / "t.jsonl", test=0.1)


# ---- rows of a recipe -------------------------------------------------------------------------


def small_recipe(root: Path) -> Recipe:
    model = {"repo": "owner/model", "revision": "a" * 40}
    training = {"learning_rate": 1e-3, "global_batch": 4, "max_length": 64}
    (root / "prompts.jsonl").write_text('{"prompt": "q"}\n')
    return Recipe.model_validate(
        {
            "name": "small", "root": str(root / "runs"), "target": model, "sources": {"a": model, "b": model},
            "prompts": [{"type": "jsonl", "path": str(root / "prompts.jsonl"), "domain": "d"}],
            "sampling": {"temperature": 1.0, "max_tokens": 8}, "split": {"sft": 1, "preference": 2},
            "score": {"*": {"type": "python", "function": "jobs.demo.readable:score", "version": 1}},
            "sft": {"select": {"type": "best"}, **training},
            "arms": {"wrpo": {"select": {"type": "quadruple"}, "loss": {"type": "wrpo", "beta": 0.1, "alpha": 0.1}, **training}},
        }
    )  # fmt: skip


def finish(stage: Stage, store: Path, rows: list, **inputs: Artifact) -> Artifact:
    """The artifact of a stage as if it had run, with these rows."""

    def run(ctx: StageContext) -> StageResult:
        for chunk in ctx.plan([str(number) for number in range(len(rows))], chunk_rows=5):
            ctx.commit(chunk, rows[chunk.start : chunk.stop])
        return StageResult(rows_in=len(rows))

    ready = dataclasses.replace(stage, run=run)
    return run_stage(ready, store, inputs=inputs, report=lambda progress: None, resume_command="again")[0]


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, Path]:
    """A recipe file, and a finished run of it: twelve prompts, some of them answered by one source only."""
    from fusion.pipeline import build

    root = tmp_path_factory.mktemp("run")
    recipe = small_recipe(root)
    (root / "recipe.json").write_text(recipe.model_dump_json(by_alias=True))
    graph = build(recipe)
    asked = [prompt(f"p{n}") for n in range(12)]
    best, quadruple = graph.selections["sft"], graph.selections["wrpo"]
    stages = {name: stage for name, stage in quadruple.inputs.items() if isinstance(stage, Stage)}
    ready = {"prompts": finish(stages["prompts"], recipe.store, asked)}
    for name, few in (("source_a", asked), ("source_b", asked[3:9])):
        answered = [scored(name[-1], n / 10, s, prompt_id=p.prompt_id) for n, p in enumerate(few) for s in range(2)]
        ready[name] = finish(stages[name], recipe.store, answered, prompts=ready["prompts"])
    finish(best, recipe.store, [row_for(SftExample, p.prompt_id) for p in asked[:4]], **ready)
    finish(quadruple, recipe.store, [row_for(PreferenceQuadruple, p.prompt_id) for p in asked[4:]], **ready)
    return root / "recipe.json", recipe.store


def test_rows_of_a_recipe_are_found_by_name(finished, tmp_path):
    recipe, store = finished
    for rows, layout, count in (
        ("wrpo", "wrpo", 8),
        ("sft", "fusechat3", 4),
        ("prompts", "trl", 12),
        ("answers", "distilabel", 12),
    ):
        done = export_rows([recipe], layout, tmp_path / f"{rows}.jsonl", rows=rows)
        assert (done.examples, done.records) == (count, {"train": count})
    read = lines_of(tmp_path / "answers.jsonl")
    assert [len(line["generations"]) for line in read] == [2] * 3 + [4] * 6 + [2] * 3
    assert (read[3]["generation_models"], read[3]["ratings"]) == (["a", "a", "b", "b"], [0.3, 0.3, 0.0, 0.0])
    done = import_rows([tmp_path / "answers.jsonl"], "distilabel", tmp_path / "in")
    assert (done.prompts, done.answers, done.rows, done.row_type) == (12, 36, 12, "ResponseGroup")
    (folder,) = store.glob("score/b-*")
    assert export_rows([folder], "simpo", tmp_path / "b.json").examples == 6


def test_rows_that_are_not_there_are_said(finished, tmp_path):
    recipe, store = finished
    for rows, said in (
        (None, "--rows is missing: say which rows of small: sft, wrpo, prompts, answers, own"),
        ("wrpoo", "--rows wrpoo: small has no such rows; it has: sft, wrpo, prompts, answers, own"),
        ("own", f"score/sft of small is not finished; run it first: fuseline run {recipe}"),
    ):
        with pytest.raises(InputError, match=re.escape(said)):
            find_rows([recipe], rows)
    with pytest.raises(InputError, match="is no recipe"):
        find_rows([store / "select"], "sft")
    with pytest.raises(InputError, match=r"has neither a manifest\.json nor a rows\.parquet"):
        find_rows([store], None)
    (folder,) = store.glob("select/quadruple-*")
    part = next(folder.glob("part-*.parquet"))
    whole = part.read_bytes()
    part.write_bytes(whole[:-1] + b"?")
    with pytest.raises(ArtifactError, match="is damaged"):
        find_rows([recipe], "wrpo")
    part.write_bytes(whole)


def fuseline(*args: object) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "jobs.run", *map(str, args)],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_the_commands_themselves(finished, tmp_path):
    """Both directions as they are typed, and a mistake is one line and exit code 2."""
    recipe, _ = finished
    out = tmp_path / "rows.parquet"
    done = fuseline("export", recipe, "--rows", "wrpo", "--layout", "wrpo", "--out", out)
    assert (done.returncode, done.stderr) == (0, "") and "8 examples in = 8 written + 0 quarantined" in done.stdout
    done = fuseline("import", out, "--layout", "trl", "--out", tmp_path / "in")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    assert f"nothing of layout trl in {out}; {out}:0: bad_messages: rejected must be a conversation" in done.stderr
