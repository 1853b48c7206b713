"""Prompt files as people have them: every record is a prompt or a quarantined row with file and line."""

import dataclasses
import gzip
import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from fusion.errors import InputError, StageError
from fusion.pipeline import build as build_graph
from fusion.pipeline import unpinned
from fusion.promptsets import PromptSet
from fusion.promptsets.fields import find
from fusion.promptsets.files import JsonlPrompts, ParquetPrompts, read_jsonl
from fusion.promptsets.filters import Length
from fusion.promptsets.hub import HubPrompts
from fusion.promptsets.records import Refused, to_prompt
from fusion.recipe import load_recipe
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
    broken = pa.array([b"fine", b"\xff\xfe"]).view(pa.string())
    pq.write_table(pa.table({"prompt": broken, "domain": ["m", "m"]}), path)
    with pytest.raises(InputError, match=r"p\.parquet:1: text that is not UTF-8 \(invalid start byte\)"):
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


# ---- names of sets and of fields --------------------------------------------------------------


def test_paths_into_records():
    record = {"a": {"b": [{"c": 1}, {"c": None}]}, "a.b": "as it stands", "n": None}
    assert find(record, "a.b") == "as it stands"
    assert find(record, "a.b.0.c") == 1  # "a.b" is a name here, and "a.b.0.c" a path through a and b
    assert find(record, "a.b.-1.c") is None
    absent = find(record, "x")
    assert absent is find(record, "a.b.2.c") is find(record, "a.b.-3.c") is find(record, "n.x") is find(record, "a.b.c")
    assert absent is not None


def test_fields_of_other_names_are_read(tmp_path):
    rows = [{"problem": "2+2?", "expected_answer": 4, "id": 7, "prompt": "how it was made", "answer": "not this"}]
    fields = {"prompt": "problem", "reference": "expected_answer", "id": None}
    (prompt,) = load(tmp_path, jsonl(tmp_path, rows, fields=fields, name="f.jsonl")).rows(Prompt)
    assert (prompt.messages[0].content, prompt.reference) == ("2+2?", "4")
    assert prompt.prompt_id.startswith("d-")  # its own id is not ours


def test_fields_that_stand_deep_or_in_two_places(tmp_path):
    rows = [
        {"instruction": "Translate.", "input": "Guten Tag", "talk": [{"value": "x"}]},
        {"instruction": "Say hello.", "input": "", "talk": [{"value": "y"}]},
        {"instruction": 3, "input": None, "talk": []},
    ]
    joined = load(tmp_path, jsonl(tmp_path, rows, fields={"prompt": ["instruction", "input"]}))
    assert [p.messages[0].content for p in joined.rows(Prompt)] == ["Translate.\nGuten Tag", "Say hello."]
    assert joined.manifest.quarantined == {"bad_messages": 1}
    deep = load(tmp_path, jsonl(tmp_path, rows, fields={"prompt": "talk.0.value"}))
    assert [p.messages[0].content for p in deep.rows(Prompt)] == ["x", "y"]
    assert deep.manifest.quarantined == {"missing_prompt": 1}


def test_a_field_that_no_record_has_names_the_file(tmp_path):
    rows = [{"question": "x"}, {"question": "y", "solution": "z"}]
    with pytest.raises(InputError, match=r"p.jsonl: no record has a field 'problem', named for prompt; .* question"):
        load(tmp_path, jsonl(tmp_path, rows, fields={"prompt": "problem"}))
    with pytest.raises(InputError, match=r"p.jsonl has neither a prompt nor a messages field; it has: question; say"):
        load(tmp_path, jsonl(tmp_path, rows))
    fields = {"prompt": "question", "reference": "solution"}  # one record has it: that is a matter of rows
    assert load(tmp_path, jsonl(tmp_path, rows, fields=fields)).manifest.rows_out == 2
    with pytest.raises(ValidationError, match="Input should be 'id'"):
        jsonl(tmp_path, rows, fields={"question": "prompt"})


def test_a_json_list_is_read_and_told_by_its_place(tmp_path):
    path = tmp_path / "p.json"
    path.write_text(json.dumps([{"instruction": "a"}, {"instruction": ""}], indent=1))
    artifact = load(tmp_path, JsonlPrompts(path=path, domain="d", fields={"prompt": "instruction"}))
    assert artifact.manifest.quarantined == {"empty_prompt": 1}
    assert json.loads((artifact.path / "quarantine.jsonl").read_text())["detail"].startswith(f"{path}:2")
    path.write_text('{"prompt": "a line"}\n{"prompt": "another"}\n')
    assert load(tmp_path, JsonlPrompts(path=path, domain="d")).manifest.rows_out == 2
    path.write_text('["a"]')
    with pytest.raises(InputError, match=r"p.json:1: a str, not a JSON object"):
        load(tmp_path, JsonlPrompts(path=path, domain="d"))


def test_prompts_carry_the_name_of_their_set(tmp_path):
    sets = [jsonl(tmp_path, [{"prompt": n}], name=f"{n}.jsonl", **more) for n, more in (("a", {}), ("b", {}))]
    named = jsonl(tmp_path, [{"prompt": "c"}], name="c.jsonl").model_copy(update={"name": "UltraFeedback"})
    artifact = load(tmp_path, *sets, named)
    assert [p.dataset for p in artifact.rows(Prompt)] == [None, None, "UltraFeedback"]
    assert list(artifact.manifest.notes["datasets"]) == ["a.jsonl", "b.jsonl", "UltraFeedback"]
    other = named.model_copy(update={"name": "other"})
    assert build("t", [named], {}).key != build("t", [other], {}).key


def test_a_limit_counts_different_prompts_that_pass_the_filters(tmp_path):
    rows = [{"prompt": f"{'long ' * (i % 3)}text {i // 2}"} for i in range(60)]
    rules = (Length(max_characters=9),)
    every = load(tmp_path, jsonl(tmp_path, rows, filters=rules))
    some = load(tmp_path, jsonl(tmp_path, rows, filters=rules, limit=10))
    ids = [p.prompt_id for p in every.rows(Prompt)]
    chosen = [p.prompt_id for p in some.rows(Prompt)]
    assert len(chosen) == 10 < len(ids)
    assert chosen == [i for i in ids if i in set(chosen)]  # in the order of the file
    manifest = some.manifest
    assert manifest.rows_in + manifest.notes["not_taken"]["p.jsonl"] == 60
    assert load(tmp_path, jsonl(tmp_path, rows, filters=rules, limit=len(ids))).manifest.rows_out == len(ids)


def test_no_prompt_left_is_an_error_with_the_reasons(tmp_path):
    rows = [{"prompt": "too long for this"}, {"prompt": "and this one too"}]
    with pytest.raises(InputError, match=r"none of 2 records is left as a prompt \(length 2\)"):
        load(tmp_path, jsonl(tmp_path, rows, filters=(Length(max_characters=3),)))


def test_rows_left_out_on_purpose_do_not_hide_rows_that_failed(tmp_path):
    """Of ten rows seven are too long on purpose; two of the other three are broken, which is more than half."""
    rows = [*({"prompt": "x" * 50 + str(i)} for i in range(7)), {"prompt": ""}, {"prompt": 3}, {"prompt": "fine"}]
    sets = [jsonl(tmp_path, rows, filters=(Length(max_characters=10),))]
    stage = build("train", sets, {})
    strict = dataclasses.replace(stage, max_quarantined=0.5)
    with pytest.raises(StageError, match=r"2 of 3 rows were quarantined \(empty_prompt 1, bad_messages 1\)"):
        run_stage(strict, tmp_path / "store", inputs={}, report=lambda p: None, resume_command="go")


# ---- recipes ----------------------------------------------------------------------------------

RECIPE = Path(__file__).parents[2] / "jobs" / "recipes" / "wrpo-llama3-8b.yaml"


def test_a_recipe_cleans_its_training_prompts_and_leaves_held_out_ones_whole(tmp_path):
    path = tmp_path / "held.jsonl"
    path.write_text('{"prompt": "x"}\n')
    held = json.dumps(
        {"prompts": [{"type": "jsonl", "path": str(path), "domain": "instruction"}], "decodings": [{"max_tokens": 8}]}
    )
    hub = '{type: hub, repo: tatsu-lab/alpaca_eval, revision: "<40 hex>", domain: x}'
    recipe = load_recipe(
        [RECIPE], [f"evaluate={held}", f"clean.decontaminate.against=[{hub}]", "clean.decontaminate.n=8"]
    )
    stages = {stage.label: stage for stage in build_graph(recipe).stages}
    train, held_out = stages["prompts/train"].config, stages["prompts/held-out"].config
    assert (train.near_duplicates, train.overlap.n, train.against[0]["repo"]) == (0.85, 8, "tatsu-lab/alpaca_eval")
    assert (held_out.near_duplicates, held_out.overlap, held_out.against) == (None, None, ())
    assert "prompts (tatsu-lab/alpaca_eval)" in unpinned(recipe)
    off = load_recipe([RECIPE], ["clean={near_duplicates: null, decontaminate: null}"])
    plain = next(stage for stage in build_graph(off).stages if stage.label == "prompts/train").config
    assert (plain.near_duplicates, plain.overlap) == (None, None)


PUBLISHED = """
- {name: UltraFeedback, type: hub, repo: openbmb/UltraFeedback, revision: "<40 hex>", files: "*.jsonl",
   domain: instruction, fields: {prompt: instruction},
   filters: [{type: drop_code}, {type: drop_math}, {type: language, keep: [en]}]}
- {name: OpenMathInstruct-2, type: hub, repo: nvidia/OpenMathInstruct-2, revision: "<40 hex>", limit: 51803,
   files: "data/train_1M-*.parquet", domain: math, fields: {prompt: problem, reference: expected_answer}}
- {name: leetcode, type: hub, repo: greengerong/leetcode, revision: "<40 hex>", files: "*.jsonl", domain: code,
   fields: {id: slug, prompt: [title, content]}, filters: [{type: has_tests}]}
"""


def test_published_prompt_sets_can_be_written_and_wait_for_their_revision():
    import yaml

    sets = TypeAdapter(list[PromptSet]).validate_python(yaml.safe_load(PUBLISHED))
    assert all(isinstance(s, HubPrompts) and not s.pinned for s in sets)
    assert sets[0].identity["filters"][2] == {"type": "language", "keep": ["en"], "min_confidence": 0.5}
    with pytest.raises(InputError, match="nvidia/OpenMathInstruct-2: revision is the placeholder '<40 hex>'"):
        list(sets[1].records())


def test_reading_recipes_does_not_bring_what_filters_and_duplicates_need():
    heavy = ["datasketch", "scipy", "py3langid", "huggingface_hub"]
    code = f"import sys, fusion.pipeline; print([m for m in {heavy} if m in sys.modules])"
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True)
    assert done.stdout.strip() == "[]"


# ---- tests, gold answers and packed lists -----------------------------------------------------


def test_tests_that_are_objects_are_their_json_text():
    test = {"input": "1 2\n", "output": "3"}
    of_object = to_prompt({"prompt": "x", "tests": test}, domain="code")
    of_list = to_prompt(
        {"prompt": "x", "tests": [test, "assert f(1) == \u00e9", {"args": ["\u00e9"], "expected": None}]}, domain="code"
    )
    assert of_object.tests == (json.dumps(test),)
    assert of_list.tests == (json.dumps(test), "assert f(1) == \u00e9", '{"args": ["\u00e9"], "expected": null}')
    for odd in ([3], [[test]], {"input": float("nan")}, {"input": b"x"}, {"input": "a\ud800"}):
        with pytest.raises(Refused):
            to_prompt({"prompt": "x", "tests": odd}, domain="code")


def test_gold_answers_are_finite_numbers_or_text():
    nan, inf = float("nan"), float("inf")
    found = [to_prompt({"prompt": "x", **r}, domain="d").reference for r in ({"reference": nan}, {"reference": nan, "answer": 4}, {"answer": 0.5})]  # fmt: skip
    assert found == [None, "4", "0.5"]
    for odd in (True, False, inf, -inf, [1]):
        with pytest.raises(Refused, match="reference is ") as caught:
            to_prompt({"prompt": "x", "reference": odd}, domain="d")
        assert caught.value.reason == "bad_field"


def test_a_packed_json_list_is_read(tmp_path):
    path = tmp_path / "p.json.gz"
    path.write_bytes(gzip.compress(json.dumps([{"prompt": "a"}, {"prompt": ""}], indent=1).encode()))
    assert load(tmp_path, JsonlPrompts(path=path, domain="d")).manifest.quarantined == {"empty_prompt": 1}
    path.write_bytes(gzip.compress(b'{"prompt": "a"}\n{"prompt": "b"}\n'))
    assert load(tmp_path, JsonlPrompts(path=path, domain="d")).manifest.rows_out == 2
    path.write_bytes(gzip.compress(b"[" + b"1," * 1000)[:-9])
    with pytest.raises(InputError, match=r"p\.json\.gz is a damaged gzip file"):
        load(tmp_path, JsonlPrompts(path=path, domain="d"))
