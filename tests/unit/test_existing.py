"""Answers of a data set as responses: matched to prompts, in their order, every record accounted for."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from fusion.artifact import commit_part
from fusion.errors import InputError
from fusion.promptsets import ExistingAnswers
from fusion.rows import Finish, Message, Response, ScoredResponse, SftExample
from fusion.select import Best, Split
from fusion.stage import Chunk, Stage, StageResult
from fusion.stages import existing, select
from fusion.stages.statistics import score_statistics
from fusion.train.encode import encode_row
from prompt_runs import EXACT, prompt_set, refused, run, stage_of, write

READ = TypeAdapter(ExistingAnswers)


def answers_of(path, **more) -> ExistingAnswers:
    kind = "parquet" if path.suffix == ".parquet" else "jsonl"
    return READ.validate_python({"type": "existing", "data": {"type": kind, "path": str(path)}, **more})


def load(root, prompts, source: ExistingAnswers, name="llama-405b"):
    """The artifacts of the prompts and of the answers to them."""
    asked = stage_of("train", (prompts,), {}, EXACT)
    given = run(asked, root / "store")
    stage = Stage(
        kind="existing",
        slug=name,
        version=existing.VERSION,
        config=existing.ExistingConfig(name=name, answers=source.identity),
        placement=existing.ExistingPlacement(answers=source),
        inputs={"prompts": asked},
        run=existing.run,
        row_type=Response,
        max_quarantined=0.5,
    )
    return given, run(stage, root / "store", {"prompts": given})


def responses(artifact) -> list[Response]:
    return list(artifact.rows(Response))


def test_answers_come_in_the_order_of_the_prompts(tmp_path):
    prompts = prompt_set(tmp_path / "p.jsonl", ["first?", "second?", "third?"])
    rows = [
        {"problem": "third?", "generated_solution": "c"},
        {"problem": "second?", "generated_solution": " b1 \n"},
        {"problem": "not ours", "generated_solution": "x"},
        {"problem": "second?", "generated_solution": "b2"},
        {"problem": "second?", "generated_solution": "b1"},
        {"problem": "first?", "generated_solution": "  "},
    ]
    source = answers_of(write(tmp_path / "a.jsonl", rows), response="generated_solution", fields={"prompt": "problem"})
    _, artifact = load(tmp_path, prompts, source)
    assert [(r.row_id, r.text) for r in responses(artifact)] == [
        ("p-1/llama-405b/0", "b1"),
        ("p-1/llama-405b/1", "b2"),
        ("p-2/llama-405b/0", "c"),
    ]
    assert responses(artifact)[0] == Response(
        "p-1", "llama-405b", 0, "existing", "b1", (), Finish.stop, 0, num_prompt_tokens=0, tokenizer=""
    )
    place = tmp_path / "a.jsonl"
    assert refused(artifact) == {
        f"{place}:3": ("unknown_prompt", ""),
        f"{place}:5": ("duplicate_answer", "p-1 has it already"),
        f"{place}:6": ("empty_response", "the answer is empty"),
    }
    assert artifact.manifest.notes == {
        "responses": 3,
        "prompts_answered": 2,
        "prompts_unanswered": 1,
        "unknown_prompts": 1,
    }


def test_answers_to_prompts_that_are_not_ours_are_no_failure(tmp_path):
    prompts = prompt_set(tmp_path / "p.jsonl", ["ours"])
    rows = [{"prompt": f"other {i}", "response": "x"} for i in range(99)] + [{"prompt": "ours", "response": "y"}]
    _, artifact = load(tmp_path, prompts, answers_of(write(tmp_path / "a.jsonl", rows)))
    assert artifact.manifest.quarantined == {"unknown_prompt": 99}
    assert (artifact.manifest.rows_in, artifact.manifest.rows_out) == (100, 1)


def test_records_are_matched_by_id(tmp_path):
    prompts = prompt_set(tmp_path / "p.jsonl", ["a", "b"])  # p-0 and p-1
    rows = [{"uuid": "p-1", "output": "to b"}, {"uuid": 7, "output": "to nobody"}, {"uuid": None, "output": "x"}]
    source = answers_of(write(tmp_path / "a.jsonl", rows), match="id", fields={"id": "uuid"}, response="output")
    _, artifact = load(tmp_path, prompts, source)
    assert [(r.prompt_id, r.text) for r in responses(artifact)] == [("p-1", "to b")]
    assert artifact.manifest.quarantined == {"unknown_prompt": 1, "missing_id": 1}


def test_only_so_many_answers_to_a_prompt_are_taken(tmp_path):
    prompts = prompt_set(tmp_path / "p.jsonl", ["a"])
    rows = [{"prompt": "a", "response": text} for text in ("1", "2", "3", "1")]
    source = answers_of(write(tmp_path / "a.jsonl", rows), max_per_prompt=2)
    _, artifact = load(tmp_path, prompts, source)
    assert [(r.sample, r.text) for r in responses(artifact)] == [(0, "1"), (1, "2")]
    assert artifact.manifest.quarantined == {"over_limit": 1, "duplicate_answer": 1}


def test_conversations_lists_of_answers_and_how_they_ended(tmp_path):
    prompts = prompt_set(tmp_path / "p.jsonl", ["a", "b"])
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "to a"}]
    one = answers_of(write(tmp_path / "a.jsonl", [{"messages": turns}]), response="messages.-1.content")
    _, artifact = load(tmp_path, prompts, one, name="one")
    assert [(r.prompt_id, r.text) for r in responses(artifact)] == [("p-0", "to a")]
    rows = [
        {"prompt": "b", "all": ["x", "", 3, "y"], "why": "length"},
        {"prompt": "a", "all": ["z"], "why": "stop"},
        {"prompt": "a", "all": ["w"], "why": "eos"},
        {"prompt": "a", "all": [], "why": None},
    ]
    fields = {"finish_reason": "why"}
    several = answers_of(write(tmp_path / "b.jsonl", rows), response="all", fields=fields)
    with pytest.raises(Exception, match="4 of 7 rows were quarantined"):
        load(tmp_path, prompts, several, name="several")
    rows = [*rows[:2], {"prompt": "a", "all": ["v"], "why": None}]
    several = answers_of(write(tmp_path / "c.jsonl", rows), response="all", fields=fields)
    _, artifact = load(tmp_path, prompts, several, name="several")
    assert [(r.row_id, r.text, str(r.finish_reason)) for r in responses(artifact)] == [
        ("p-0/several/0", "z", "stop"),
        ("p-0/several/1", "v", "stop"),
        ("p-1/several/0", "x", "length"),
        ("p-1/several/1", "y", "length"),
    ]
    place = tmp_path / "c.jsonl"
    assert refused(artifact) == {
        f"{place}:1/1": ("empty_response", "the answer is empty"),
        f"{place}:1/2": ("bad_field", "response is a int, not text"),
    }


def test_a_wrong_field_or_no_match_at_all_is_said_at_once(tmp_path):
    prompts = prompt_set(tmp_path / "p.jsonl", ["a"])
    path = write(tmp_path / "a.jsonl", [{"prompt": "b", "output": "x"}])
    with pytest.raises(InputError, match=r"a.jsonl: no record has a field 'response', named for response; .*output"):
        load(tmp_path, prompts, answers_of(path))
    with pytest.raises(InputError, match=r"no record answers one of the 1 prompts \(unknown_prompt 1\); check match"):
        load(tmp_path, prompts, answers_of(path, response="output"))
    with pytest.raises(InputError, match=r"\(the files hold no record\)"):
        load(tmp_path, prompts, answers_of(write(tmp_path / "empty.jsonl", [])))


def test_where_takes_some_records_and_a_field_that_none_has_names_the_file(tmp_path):
    prompts = prompt_set(tmp_path / "p.jsonl", ["a"])
    rows = [{"prompt": "a", "response": "x", "model": "m"}, {"prompt": "a", "response": "y"}]
    path = write(tmp_path / "a.jsonl", rows)
    _, artifact = load(tmp_path, prompts, answers_of(path, where={"model": "m"}))  # one record has it: a matter of rows
    assert [r.text for r in responses(artifact)] == ["x"]
    said = r"a.jsonl: no record has a field 'modell', named in where; the first one has: prompt, model, response"
    with pytest.raises(InputError, match=said):
        load(tmp_path, prompts, answers_of(path, where={"model": "m", "modell": "m"}))
    with pytest.raises(InputError, match="no record answers one of the 1 prompts"):  # the field is there
        load(tmp_path, prompts, answers_of(path, where={"model": "other"}))


def test_parquet_and_the_key(tmp_path):
    prompts = prompt_set(tmp_path / "p.jsonl", ["a"])
    pq.write_table(pa.table({"prompt": ["a"], "response": ["x"]}), tmp_path / "a.parquet")
    one = answers_of(tmp_path / "a.parquet")
    _, artifact = load(tmp_path, prompts, one)
    assert [r.text for r in responses(artifact)] == ["x"]
    (tmp_path / "a.parquet").rename(tmp_path / "b.parquet")
    moved = answers_of(tmp_path / "b.parquet")
    assert moved.identity == answers_of(tmp_path / "b.parquet").identity  # the content, not the place
    assert moved.identity != answers_of(tmp_path / "b.parquet", max_per_prompt=1).identity
    hub = {"type": "hub", "repo": "nvidia/OpenMathInstruct-2", "revision": "<40 hex>"}
    assert READ.validate_python({"data": hub}).identity["repo"] == "nvidia/OpenMathInstruct-2"


def test_a_resumed_stage_writes_what_is_missing_only(tmp_path, monkeypatch):
    monkeypatch.setattr(existing, "CHUNK_ROWS", 2)
    prompts = prompt_set(tmp_path / "p.jsonl", [str(i) for i in range(5)])
    rows = [{"prompt": str(i), "response": f"to {i}"} for i in range(5)]
    source = answers_of(write(tmp_path / "a.jsonl", rows))
    _, artifact = load(tmp_path, prompts, source)
    texts = [r.text for r in responses(artifact)]
    before = {file.name: file.stat().st_mtime_ns for file in artifact.path.glob("part-*.parquet")}
    (artifact.path / "manifest.json").unlink()
    (artifact.path / "part-00001.parquet").unlink()
    _, again = load(tmp_path, prompts, source)
    after = {file.name: file.stat().st_mtime_ns for file in again.path.glob("part-*.parquet")}
    assert [r.text for r in responses(again)] == texts == [f"to {i}" for i in range(5)]
    assert {name for name in before if before[name] != after[name]} == {"part-00001.parquet"}


ANSWERS = st.lists(
    st.tuples(st.sampled_from(["a", "b", "c", "elsewhere"]), st.sampled_from(["x", "y", "z", "", None, 3])), max_size=12
)


@given(ANSWERS, st.sampled_from([None, 1, 2]))
@settings(max_examples=25, deadline=None)
def test_rows_in_are_rows_out_and_rows_refused(tmp_path_factory, found, most):
    root = tmp_path_factory.mktemp("answers")
    prompts = prompt_set(root / "p.jsonl", ["c", "a", "b"])
    rows = [{"prompt": "c", "response": "always"}, *({"prompt": p, "response": r} for p, r in found)]
    source = answers_of(write(root / "a.jsonl", rows), max_per_prompt=most)
    asked = stage_of("train", (prompts,), {}, EXACT)
    given_prompts = run(asked, root / "store")
    stage = Stage(
        kind="existing",
        slug="s",
        version=1,
        config=existing.ExistingConfig(name="s", answers=source.identity),
        placement=existing.ExistingPlacement(answers=source),
        inputs={"prompts": asked},
        run=existing.run,
        row_type=Response,
    )
    artifact = run(stage, root / "store", {"prompts": given_prompts})
    manifest, got = artifact.manifest, responses(artifact)
    assert manifest.rows_in == manifest.rows_out + manifest.num_quarantined == len(rows)
    order = [r.prompt_id for r in got]
    assert order == sorted(order)  # p-0, p-1, p-2: the order of the prompts
    for prompt_id in set(order):
        mine = [r for r in got if r.prompt_id == prompt_id]
        assert [r.sample for r in mine] == list(range(len(mine)))
        assert len({r.text for r in mine}) == len(mine) <= (most or len(rows))


def test_selection_statistics_and_encoding_take_such_rows(tmp_path):
    """What follows a source: its answers are scored, selected and made into ids like those of any other."""
    prompts = prompt_set(tmp_path / "p.jsonl", ["a", "b", "c"])
    rows = [{"prompt": p, "response": f"{n} to {p}"} for p in "cb" for n in ("one", "two")]
    given_prompts, artifact = load(tmp_path, prompts, answers_of(write(tmp_path / "a.jsonl", rows)))
    scored = [ScoredResponse(r, float(len(r.text) - r.sample), "length") for r in responses(artifact)]
    commit_part(tmp_path / "scored", 0, scored, ScoredResponse)
    (entry,) = score_statistics(tmp_path / "scored", [Chunk(0, 0, 4)])["scores"]
    assert (entry["n"], entry["mean_tokens"], entry["length_correlation"]) == (4, None, None)
    assert np.isclose(entry["mean"], 7.5)

    def give(ctx) -> StageResult:
        for chunk in ctx.plan([s.response.row_id for s in scored], chunk_rows=9):
            ctx.commit(chunk, scored)
        return StageResult(rows_in=len(scored))

    source = Stage("score", "s", 1, existing.ExistingConfig(name="s", answers={}), {}, give, ScoredResponse)
    asked = stage_of("train", (prompts,), {}, EXACT)
    config = select.SelectConfig(rule=Best(seed=1), split=Split(sft=1, preference=0, seed=1))
    stage = Stage("select", "best", 1, config, {"prompts": asked, "source_s": source}, select.run, SftExample)
    inputs = {"prompts": given_prompts, "source_s": run(source, tmp_path / "store")}
    chosen = list(run(stage, tmp_path / "store", inputs).rows(SftExample))
    assert [(row.row_id, row.response.response.text) for row in chosen] == [("p-1", "one to b"), ("p-2", "one to c")]
    encoded = encode_row(chosen[0], ByteChat(), max_length=64)
    assert list(encoded.responses["response"][0]) == [*b"one to b", 256]


class ByteChat:
    """One id per byte; the end of turn is 256."""

    tokenizer_hash = "its own"

    def encode_prompt(self, messages: tuple[Message, ...]) -> tuple[int, ...]:
        return tuple("".join(m.content for m in messages).encode())

    def encode_response(self, messages: tuple[Message, ...], text: str, *, finished: bool = True) -> tuple[int, ...]:
        return (*text.encode(), 256) if finished else tuple(text.encode())
