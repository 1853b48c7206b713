"""The stage contract: keys, plans, resume, accounting, damage, leases, and what explain says."""

import json
import multiprocessing
import os
import signal
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from fusion import artifact as files
from fusion.artifact import Artifact, Quarantined
from fusion.config import Config, Placement, canonical_json, fingerprint, later_field
from fusion.errors import ArtifactError, BusyError, StageError
from fusion.explain import state_of
from fusion.lease import hold
from fusion.rows import Message, Prompt
from fusion.stage import Stage, StageContext, StageResult, run_stage


class Doubling(Config):
    factor: int = 2
    fail_at: int | None = None


class Tripling(Doubling):
    """The same with a field more, as a later version has it."""

    offset: int = later_field(0, ge=0)


class Where(Placement):
    workers: int = 1


def prompt(i: int) -> Prompt:
    return Prompt(f"p{i}", "d", (Message("user", f"text {i}"),))


def make_run(calls: list[int]):
    def run(ctx: StageContext) -> StageResult:
        ids = [f"p{i}" for i in range(10)]
        for chunk in ctx.missing(ctx.plan(ids, chunk_rows=4)):
            calls.append(chunk.index)
            if ctx.config.fail_at == chunk.index and calls.count(chunk.index) == 1:
                raise StageError("it broke")
            rows = [prompt(i) for i in range(chunk.start, chunk.stop) if i != 3]
            refused = [Quarantined("p3", "unlucky")] if chunk.start <= 3 < chunk.stop else []
            ctx.commit(chunk, rows, quarantined=refused)
        return StageResult(rows_in=10)

    return run


def make_stage(calls, *, config=None, placement=None, inputs=None, **more) -> Stage:
    return Stage(
        kind="double",
        slug="x",
        version=1,
        config=config or Doubling(),
        placement=placement or Where(),
        inputs=inputs or {},
        run=make_run(calls),
        row_type=Prompt,
        **more,
    )


def execute(stage, store, *, inputs=None, repair=False):
    return run_stage(
        stage, store, inputs=inputs or {}, report=lambda p: None, resume_command="fuseline run r.yaml", repair=repair
    )


def test_rows_in_are_rows_out_plus_quarantined(tmp_path):
    artifact, hit = execute(make_stage([]), tmp_path)
    manifest = artifact.manifest
    assert not hit
    assert (manifest.rows_in, manifest.rows_out, manifest.quarantined) == (10, 9, {"unlucky": 1})
    assert [p.prompt_id for p in artifact.rows(Prompt)] == [f"p{i}" for i in range(10) if i != 3]
    assert json.loads((artifact.path / "quarantine.jsonl").read_text())["row_id"] == "p3"


def test_a_lost_row_fails_the_stage(tmp_path):
    def run(ctx):
        (chunk,) = ctx.plan(["p0", "p1"], chunk_rows=9)
        ctx.commit(chunk, [prompt(0)])
        return StageResult(rows_in=2)

    stage = Stage(kind="k", slug="s", version=1, config=Doubling(), inputs={}, run=run, row_type=Prompt)
    with pytest.raises(StageError, match="2 rows in but 1 out and 0 quarantined"):
        execute(stage, tmp_path)
    assert not (stage.directory(tmp_path) / files.MANIFEST).exists()


def test_a_detail_that_has_no_utf8_form_is_kept_as_its_escape(tmp_path):
    """What a hostile program returned ends up in a detail; it must not end the stage, now or at every resume."""
    refused = [Quarantined("中/m/0", "code_unverifiable", "returned \ud800 and ümläut")]
    files.commit_part(tmp_path, 0, [], Prompt, quarantined=refused)
    assert files.read_quarantine(tmp_path, 0) == refused
    assert "中" in (tmp_path / files.quarantine_name(0)).read_text(encoding="utf-8")


def test_too_many_quarantined_rows_fail_the_stage_and_name_the_reason(tmp_path):
    with pytest.raises(StageError, match=r"unlucky 1.*max_quarantined"):
        execute(make_stage([], max_quarantined=0.05), tmp_path)


def test_what_a_reason_quotes_does_not_end_its_line(tmp_path):
    """JSON leaves U+2028 and U+0085 in strings; both end a line for `str.splitlines`."""
    refused = [Quarantined("a\u2028b", "unlucky", "x\u0085y"), Quarantined("c", "unlucky", "")]
    files.commit_part(tmp_path, 0, [], Prompt, quarantined=refused)
    assert files.read_quarantine(tmp_path, 0) == refused


def test_a_second_run_does_nothing(tmp_path):
    calls = []
    execute(make_stage(calls), tmp_path)
    _, hit = execute(make_stage(calls), tmp_path)
    assert hit
    assert calls == [0, 1, 2]


def test_a_failed_stage_resumes_with_the_missing_parts_only(tmp_path):
    calls = []
    stage = make_stage(calls, config=Doubling(fail_at=1))
    with pytest.raises(StageError, match=r"it broke\n.*resume with: fuseline run r.yaml"):
        execute(stage, tmp_path)
    assert state_of(stage, tmp_path).status == "resumable"
    assert (state_of(stage, tmp_path).done, state_of(stage, tmp_path).total) == (1, 3)
    execute(stage, tmp_path)
    assert calls == [0, 1, 1, 2]


def test_a_plan_for_other_rows_is_refused(tmp_path):
    stage = make_stage([])
    directory = stage.directory(tmp_path)
    directory.mkdir(parents=True)
    files.write_json(directory / "plan.json", {"rows": 3, "row_ids_sha256": "0" * 64, "bounds": [0, 3]})
    with pytest.raises(ArtifactError, match="made for 3 other rows"):
        execute(stage, tmp_path)


def test_keys_follow_identity_and_not_placement():
    base = make_stage([])
    assert make_stage([], placement=Where(workers=64)).key == base.key
    assert make_stage([], config=Doubling(factor=3)).key != base.key
    assert make_stage([], inputs={"a": base}).key != base.key


def test_a_field_that_came_later_leaves_finished_results_alone_until_it_is_used(tmp_path):
    calls: list[int] = []
    execute(make_stage(calls), tmp_path)
    assert execute(make_stage(calls, config=Tripling()), tmp_path)[1] and calls == [0, 1, 2]
    assert Tripling().model_dump(mode="json") == Doubling().model_dump(mode="json")
    used = make_stage(calls, config=Tripling(offset=1))
    assert state_of(used, tmp_path).why == ("config.offset: (absent) -> 1",)
    assert Tripling.model_validate_json(used.config.model_dump_json()) == used.config
    with pytest.raises(ValidationError, match="offset"):
        Tripling(offset=-1)


def test_explain_names_the_field_that_changed(tmp_path):
    execute(make_stage([]), tmp_path)
    assert state_of(make_stage([]), tmp_path).status == "hit"
    assert state_of(make_stage([], placement=Where(workers=9)), tmp_path).status == "hit"
    new = state_of(make_stage([], config=Doubling(factor=5)), tmp_path)
    assert (new.status, new.why) == ("new", ("config.factor: 2 -> 5",))


@pytest.mark.parametrize("damage", ["flip", "cut", "delete", "swap", "foreign"])
def test_damage_is_found_named_and_repaired(tmp_path, damage):
    calls = []
    first = make_stage(calls)
    artifact, _ = execute(first, tmp_path)
    part = artifact.path / files.part_name(1)
    data = part.read_bytes()
    if damage == "flip":
        part.write_bytes(data[:40] + bytes([data[40] ^ 1]) + data[41:])
    elif damage == "cut":
        part.write_bytes(data[:-9])
    elif damage == "delete":
        part.unlink()
    elif damage == "swap":
        other = artifact.path / files.part_name(2)
        swapped = other.read_bytes()
        other.write_bytes(data)
        part.write_bytes(swapped)
    else:
        part.write_bytes(b"x" * len(data))

    def consume(ctx):
        rows = list(ctx.rows("a", Prompt))
        raise AssertionError(f"trained on {len(rows)} damaged rows")

    child = Stage(kind="k", slug="s", version=1, config=Doubling(), inputs={"a": first}, run=consume, row_type=None)
    with pytest.raises(ArtifactError, match=r"part-0000[12]\.parquet.*--repair"):
        loaded = Artifact.load(artifact.path)
        execute(child, tmp_path, inputs={"a": loaded})
    repaired, hit = execute(make_stage(calls), tmp_path, repair=True)
    assert not hit
    assert repaired.manifest.digest == artifact.manifest.digest
    assert calls == [0, 1, 2] + ([1, 2] if damage == "swap" else [1])


def test_an_input_made_again_with_other_bytes_is_noticed(tmp_path):
    first = make_stage([])
    artifact, _ = execute(first, tmp_path)

    def copy(ctx):
        rows = list(ctx.rows("a", Prompt))
        for chunk in ctx.plan([r.prompt_id for r in rows], chunk_rows=99):
            ctx.commit(chunk, rows)
        return StageResult(rows_in=len(rows))

    child = Stage(kind="k", slug="s", version=1, config=Doubling(), inputs={"a": first}, run=copy, row_type=Prompt)
    execute(child, tmp_path, inputs={"a": artifact})
    assert execute(child, tmp_path, inputs={"a": artifact})[1]
    other = Artifact(artifact.path, artifact.manifest.model_copy(update={"files": artifact.manifest.files[:1]}))
    with pytest.raises(ArtifactError, match="made from other bytes of its input 'a'"):
        execute(child, tmp_path, inputs={"a": other})


def _hold(stage_dir, ready):
    with hold(stage_dir, "cmd"):
        ready.set()
        time.sleep(60)


def test_one_driver_holds_a_training_stage_and_a_dead_one_is_taken_over(tmp_path):
    stage = make_stage([], exclusive=True)
    directory = stage.directory(tmp_path)
    directory.mkdir(parents=True)
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    holder = context.Process(target=_hold, args=(directory, ready))
    holder.start()
    try:
        assert ready.wait(30)
        with pytest.raises(BusyError, match=f"held by process {holder.pid} on .*remove .*lease.json"):
            execute(stage, tmp_path)
        os.kill(holder.pid, signal.SIGKILL)
        holder.join()
        artifact, hit = execute(stage, tmp_path)
    finally:
        holder.kill()
        holder.join()
    assert not hit
    assert artifact.manifest.rows_out == 9
    assert not (directory / "lease.json").exists()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@given(json_values)
def test_canonical_json_is_stable_and_readable(value):
    text = canonical_json(value)
    assert json.loads(text) == json.loads(json.dumps(value))
    assert canonical_json(json.loads(text)) == text


@given(st.dictionaries(st.text(), st.integers(), min_size=2))
def test_the_order_of_fields_does_not_matter(value):
    assert fingerprint(value) == fingerprint(dict(reversed(value.items())))


@pytest.mark.parametrize(
    ("value", "error"),
    [
        ({1}, TypeError),
        (Where(), TypeError),
        ({"a": float("nan")}, ValueError),
        ({3: 1}, TypeError),
        (object(), TypeError),
    ],
)
def test_what_has_no_stable_form_is_refused(value, error):
    with pytest.raises(error):
        fingerprint({"x": value} if not isinstance(value, dict) else value)
