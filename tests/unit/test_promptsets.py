"""Prompt files as people have them: every record is a prompt or a quarantined row with file and line."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusion.errors import InputError
from fusion.promptsets.files import JsonlPrompts, ParquetPrompts, read_jsonl
from fusion.promptsets.records import Refused, to_prompt
from fusion.rows import Message, Prompt
from fusion.stage import Stage, run_stage
from fusion.stages import prompts


def load(tmp_path, *sets, held_out=None):
    inputs = {}
    if held_out:
        inputs["held_out"] = build("held-out", [held_out], {})
    stage = build("train", sets, inputs)
    done = {}
    for node in [*inputs.values(), stage]:
        given = {n: done[id(i)] for n, i in node.inputs.items()}
        done[id(node)], _ = run_stage(
            node, tmp_path / "store", inputs=given, report=lambda p: None, resume_command="go"
        )
    return done[id(stage)]


def build(slug, sets, inputs):
    return Stage(
        kind="prompts",
        slug=slug,
        version=prompts.VERSION,
        config=prompts.PromptsConfig(sets=tuple(s.identity for s in sets)),
        placement=prompts.PromptsPlacement(sets=tuple(sets)),
        inputs=inputs,
        run=prompts.run,
        row_type=Prompt,
    )


def jsonl(tmp_path, rows, name="p.jsonl", **more):
    path = tmp_path / name
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows))
    return JsonlPrompts(path=path, domain=more.pop("domain", "d"), **more)


def test_every_field_people_use_is_read():
    record = {
        "id": 7,
        "domain": "code",
        "prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}],
        "answer": 42,
        "tests": ["assert f(1) == 2"],
        "entry_point": "f",
    }
    expected = Prompt("7", "code", (Message("system", "s"), Message("user", "u")), "42", ("assert f(1) == 2",), "f")
    assert to_prompt(record, domain=None) == expected


BAD = {
    "missing_prompt": {"id": "a"},
    "empty_prompt": {"prompt": "  \n"},
    "bad_messages": {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
    "bad_field": {"prompt": "x", "tests": 3},
    "too_long": {"prompt": "x" * 200_001},
    "bad_unicode": {"prompt": "a\ud800b"},
}


@pytest.mark.parametrize(("reason", "record"), BAD.items())
def test_a_bad_record_is_quarantined_with_file_and_line(tmp_path, reason, record):
    artifact = load(tmp_path, jsonl(tmp_path, [{"prompt": "good"}, record]))
    assert artifact.manifest.quarantined == {reason: 1}
    assert (artifact.manifest.rows_in, artifact.manifest.rows_out) == (2, 1)
    refused = json.loads((artifact.path / "quarantine.jsonl").read_text())
    assert refused["detail"].startswith(f"{tmp_path}/p.jsonl:2")


def test_duplicates_and_held_out_prompts_are_taken_out(tmp_path):
    held = jsonl(tmp_path, [{"prompt": "secret  test"}], name="held.jsonl")
    rows = [
        {"id": "a", "prompt": "one"},
        {"id": "a", "prompt": "two"},
        {"id": "b", "prompt": "one "},
        {"id": "c", "prompt": "secret test"},
        {"prompt": "three"},
    ]
    artifact = load(tmp_path, jsonl(tmp_path, rows), held_out=held)
    assert artifact.manifest.quarantined == {"duplicate_id": 1, "duplicate_prompt": 1, "held_out": 1}
    kept = list(artifact.rows(Prompt))
    assert [p.messages[0].content for p in kept] == ["one", "three"]
    assert kept[1].prompt_id.startswith("d-") and len(kept[1].prompt_id) == 18


def test_a_limit_does_not_follow_file_order(tmp_path):
    rows = [{"id": f"{i}", "prompt": f"text {i}"} for i in range(100)]
    first = load(tmp_path, jsonl(tmp_path, rows, limit=10))
    again = load(tmp_path / "again", jsonl(tmp_path, rows[::-1], name="q.jsonl", limit=10))
    ids = {p.prompt_id for p in first.rows(Prompt)}
    assert ids == {p.prompt_id for p in again.rows(Prompt)}
    assert ids != {str(i) for i in range(10)}
    assert len(ids) == 10


def test_the_key_follows_content_and_not_the_path(tmp_path):
    a = jsonl(tmp_path, [{"prompt": "x"}], name="a.jsonl")
    b = jsonl(tmp_path, [{"prompt": "x"}], name="b.jsonl")
    c = jsonl(tmp_path, [{"prompt": "y"}], name="c.jsonl")
    assert build("t", [a], {}).key == build("t", [b], {}).key != build("t", [c], {}).key


def cut_gzip():
    return gzip.compress(b'{"prompt": "x"}\n' * 1000)[:-20]


FILES = {
    "torn line": (b'{"prompt": "x"}\n{"pro', r"p.jsonl:2: not JSON"),
    "not an object": (b'["x"]\n', r"p.jsonl:1: a list, not a JSON object"),
    "latin-1": (b'{"prompt": "caf\xe9"}\n', r"p.jsonl:1: not UTF-8 at byte 15"),
    "utf-16": ('{"prompt": "x"}'.encode("utf-16"), r"is UTF-16; convert it"),
    "cut gzip": (cut_gzip(), r"damaged gzip file"),
    "deep": (b'{"prompt": ' + b"[" * 100_000 + b"\n", r"p.jsonl:1: not JSON"),
}


@pytest.mark.parametrize(("data", "message"), FILES.values(), ids=FILES)
def test_a_file_that_cannot_be_read_is_refused_with_its_line(tmp_path, data, message):
    path = tmp_path / "p.jsonl"
    path.write_bytes(data)
    with pytest.raises(InputError, match=message):
        list(read_jsonl(path))


def test_a_missing_file_a_directory_and_an_empty_file(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        build("t", [JsonlPrompts(path=tmp_path / "none.jsonl")], {})
    with pytest.raises(InputError, match="is a directory"):
        build("t", [JsonlPrompts(path=tmp_path)], {})
    with pytest.raises(InputError, match="hold no record"):
        load(tmp_path, jsonl(tmp_path, []))


def test_bom_crlf_and_gzip_are_read(tmp_path):
    path = tmp_path / "p.jsonl.gz"
    path.write_bytes(gzip.compress(b'\xef\xbb\xbf{"prompt": "x"}\r\n\r\n{"prompt": "y"}\r\n'))
    assert [r["prompt"] for _, r in read_jsonl(path)] == ["x", "y"]


def test_parquet_torn_wrong_and_right(tmp_path):
    path = tmp_path / "p.parquet"
    pq.write_table(pa.table({"prompt": ["x", None], "domain": ["m", "m"]}), path)
    artifact = load(tmp_path, ParquetPrompts(path=path))
    assert (artifact.manifest.rows_out, artifact.manifest.quarantined) == (1, {"missing_prompt": 1})
    pq.write_table(pa.table({"text": ["x"]}), path)
    with pytest.raises(InputError, match="neither a prompt nor a messages field; it has: text"):
        load(tmp_path, ParquetPrompts(path=path))
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(InputError, match="not a readable Parquet file"):
        load(tmp_path, ParquetPrompts(path=path))


@given(
    st.dictionaries(
        st.sampled_from(["id", "prompt", "messages", "answer", "tests", "domain"]),
        st.from_type(object) | st.text() | st.lists(st.dictionaries(st.sampled_from(["role", "content"]), st.text())),
    )
)
def test_no_record_raises_anything_but_a_refusal(record):
    try:
        prompt = to_prompt(record, domain=None)
    except Refused as refused:
        assert refused.reason and refused.detail
    else:
        assert prompt.messages[-1].role == "user"
