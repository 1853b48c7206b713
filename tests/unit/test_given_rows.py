"""Rows that are given: a file of training rows in the place of a rule, from a published data set to a trained arm's input."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fusion.errors import InputError, RecipeError
from fusion.pipeline import build
from fusion.planning import plan
from fusion.recipe import load_recipe
from fusion.row_files import RowFile
from fusion.rows import PreferencePair, PreferenceQuadruple, SftExample
from fusion.stage import Stage, run_stage
from scored import answers, prompt

RECIPE = """
name: given
root: {root}
target: {{path: {root}/model}}
prompts: [{{type: jsonl, path: {root}/prompts.jsonl, domain: words}}]
sampling: {{num_samples: 1}}
score: {{"*": {{type: unscored}}}}
split: {{sft: 1, preference: 1}}
sft: {{select: {{type: rows, path: {root}/sft.parquet, holds: SftExample}}, learning_rate: 1e-3, global_batch: 2, max_length: 9}}
arms:
  wrpo:
    select: {{type: rows, path: {root}/rows.parquet, holds: PreferenceQuadruple}}
    loss: {{type: wrpo, beta: 0.1, alpha: 0.1}}
    learning_rate: 1e-3
    global_batch: 2
    max_length: 9
"""


def quadruples(num: int) -> list[PreferenceQuadruple]:
    rows = []
    for n in range(num):
        own, source = answers("sft", 1.0, 0.0, prompt_id=f"p{n}"), answers("gemma", 2.0, prompt_id=f"p{n}")
        rows.append(PreferenceQuadruple(prompt(f"p{n}"), source[0], own[0], own[1]))
    return rows


@pytest.fixture
def world(tmp_path: Path) -> Path:
    (tmp_path / "prompts.jsonl").write_text(json.dumps({"prompt": "q"}) + "\n")
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (model / "model.safetensors").write_bytes(b"not read here")
    write(tmp_path / "rows.parquet", quadruples(5), PreferenceQuadruple)
    write(tmp_path / "sft.parquet", [SftExample(prompt("p0"), answers("gemma", 1.0, prompt_id="p0")[0])], SftExample)
    (tmp_path / "r.yaml").write_text(RECIPE.format(root=tmp_path))
    return tmp_path


def write(path: Path, rows: list, row_type: type) -> None:
    file = RowFile(path, row_type)
    file.write(rows)
    file.close()


def pq_bytes(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return sink.getvalue().to_pybytes()


def selection(root: Path, arm: str) -> Stage:
    return build(load_recipe([root / "r.yaml"])).selections[arm]


def run(root: Path, stage: Stage):
    return run_stage(stage, root / "store", inputs={}, report=lambda _: None, resume_command="again")[0]


def test_given_rows_are_the_rows_of_the_arm_and_counted(world):
    stage = selection(world, "wrpo")
    artifact = run(world, stage)
    assert list(artifact.rows(PreferenceQuadruple)) == quadruples(5)
    notes = artifact.manifest.notes
    assert notes["wins"]["gemma"] == {"count": 5, "share": 1.0} and notes["margins"]["mean"] == 1.0
    assert notes["taken"] == {"gemma": 5, "sft": 5} and artifact.manifest.rows_in == 5
    rows = {
        line.stage.label: line.rows for line in plan(build(load_recipe([world / "r.yaml"]))) if line.stage.inputs == {}
    }
    assert rows["select/rows"] in (0, 5)


def test_the_key_is_the_content_and_not_the_place(world):
    before = selection(world, "wrpo").key
    (world / "rows.parquet").rename(world / "moved.parquet")
    assignment = f"arms.wrpo.select.path={world}/moved.parquet"
    assert build(load_recipe([world / "r.yaml"], [assignment])).selections["wrpo"].key == before
    write(world / "rows.parquet", quadruples(4), PreferenceQuadruple)
    assert selection(world, "wrpo").key != before


def test_other_rows_none_and_no_file_are_named(world):
    write(world / "sft.parquet", [], PreferencePair)
    with pytest.raises(InputError, match=r"sft\.parquet holds PreferencePair rows, the recipe says holds: SftExample"):
        run(world, selection(world, "sft"))
    (world / "sft.parquet").write_bytes(pq_bytes(pa.table({"prompt": ["x"]})))
    with pytest.raises(InputError, match=r"sft\.parquet holds no training rows: its schema names no row type"):
        selection(world, "sft")  # known when the run is planned
    (world / "sft.parquet").write_bytes(b"no parquet")
    with pytest.raises(InputError, match=r"sft\.parquet is not a readable Parquet file"):
        selection(world, "sft")
    write(world / "sft.parquet", [], SftExample)
    write(world / "rows.parquet", [], PreferenceQuadruple)
    with pytest.raises(InputError, match=r"rows\.parquet holds no row"):
        run(world, selection(world, "wrpo"))
    (world / "rows.parquet").unlink()
    with pytest.raises(
        InputError, match=r"rows\.parquet is not a file; name the rows\.parquet that `fuseline import` wrote"
    ):
        selection(world, "wrpo")


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("arms.wrpo.select.holds=PreferencePair", "select rows makes PreferencePair rows but loss wrpo reads"),
        (
            "arms.wrpo.select={type: quadruple}",
            r"arms\.wrpo\.select quadruple reads the sources' answers, and there are no",
        ),
        ("arms.wrpo.guard={max_share: 0.5}", r"arms\.wrpo\.guard: given rows are taken as they are; leave it out"),
        ("arms.wrpo.select.holds=Rows", "Input should be 'SftExample'"),
    ],
)
def test_what_a_recipe_of_given_rows_refuses(world, assignment, message):
    with pytest.raises(RecipeError, match=message):
        load_recipe([world / "r.yaml"], [assignment])
