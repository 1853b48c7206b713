"""Files with scores: every row once and in order with the user's own columns, in each format; and the command's errors."""

import datetime
import decimal
import json
import math
import signal
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bad_rows import BAD_LINES, save_odd_reward_model
from fusion.errors import InputError
from fusion.rewards import ClassifierSettings
from fusion.rows import Message
from fusion.stages.score_columns import SCHEMA, Stamp
from fusion.stages.score_index import MOST_COLUMNS
from fusion.stages.score_output import Output, write_output
from jobs import score
from scored_file import score_here
from tiny_models import add_tokens, save_reward_model

STAMP = Stamp("rm", "r1", objectives=False, normalize=None)
ROWS = [
    {"prompt": "one", "response": "a", "lang": "en", "n": 1, "model": "m1", "mixed": 1, "tags": ["x"]},
    {"id": "k", "prompt": "two", "responses": ["b", "", "c" * 300], "n": 2.5, "mixed": "1", "big": 2**60},
    {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}], "lang": "de\u2028"},
    {"id": "k", "prompt": "two", "response": "b"},
    {"prompt": "five", "responses": ["d", "e"], "flag": True, "big": None},
]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save_odd_reward_model(tmp_path_factory.mktemp("rm"))


@pytest.fixture(scope="module")
def reward(model):
    return ClassifierSettings().load(model)


@pytest.fixture
def scored(tmp_path, model):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return score_here(path, model, tmp_path / "work", chunk_rows=2)


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


def alone(reward, prompt: str, answer: str) -> float:
    (result,) = reward.score([(Message("user", prompt), Message("assistant", answer))])
    assert result.score is not None
    return result.score


def test_json_lines_keep_order_bits_and_the_users_fields(scored, reward, tmp_path):
    out = Output(tmp_path / "s.jsonl")
    write_output(out, *scored, STAMP)
    rows = lines(out.path)
    assert [(r["id"], r["index"], r["response_index"], r["score"]) for r in rows] == [
        ("line-1", 0, None, alone(reward, "one", "a")),
        ("k", 1, 0, alone(reward, "two", "b")),
        ("line-3", 2, None, alone(reward, "hi", "yes")),
        ("line-5", 4, 0, alone(reward, "five", "d")),
        ("line-5", 4, 1, alone(reward, "five", "e")),
    ]
    assert list(rows[0]) == [*SCHEMA.names, "lang", "n", "input_model", "mixed", "tags"]
    assert (rows[0]["model"], rows[0]["input_model"], rows[0]["tags"], rows[0]["truncated"]) == (
        "rm",
        "m1",
        ["x"],
        False,
    )
    assert rows[2]["lang"] == "de\u2028" and rows[1]["big"] == 2**60
    num_tokens = len(reward.chat.encode_conversation([Message("user", "two"), Message("assistant", "c" * 300)])[0])
    assert lines(out.quarantine) == [
        {
            "line": 2, "index": 1, "id": "k", "response_index": 1, "reason": "empty_response",
            "detail": "the response is empty; ask for allow_empty to score it all the same",
        },
        {
            "line": 2, "index": 1, "id": "k", "response_index": 2, "reason": "context_length_exceeded",
            "detail": f"{num_tokens} tokens > 160",
        },
        {
            "line": 4, "index": 3, "id": "k", "response_index": None, "reason": "duplicate_id",
            "detail": "line 2 has the same id; ids must be unique",
        },
    ]  # fmt: skip


def test_parquet_and_folder_say_the_same_with_typed_columns(scored, tmp_path):
    jsonl, parquet, folder = (Output(tmp_path / name) for name in ("s.jsonl", "s.parquet", "s"))
    for out in (jsonl, parquet, folder):
        write_output(out, *scored, STAMP)
        assert out.quarantine.read_bytes() == jsonl.quarantine.read_bytes()
    table = pq.read_table(parquet.path)
    assert table.schema.field("n").type == pa.float64() and table.schema.field("big").type == pa.int64()
    assert table.schema.field("mixed").type == pa.string() and table.schema.field("flag").type == pa.bool_()
    assert table["mixed"].to_pylist()[:2] == ["1", '"1"'] and table["tags"][0].as_py() == '["x"]'
    ours = [{name: row[name] for name in SCHEMA.names} for row in lines(jsonl.path)]
    assert table.select(SCHEMA.names).to_pylist() == ours
    parts = sorted(folder.path.iterdir())
    assert [part.name for part in parts] == ["part-00000.parquet", "part-00001.parquet", "part-00002.parquet"]
    assert pa.concat_tables([pq.read_table(part) for part in parts]).equals(table)
    write_output(folder, *scored, STAMP)
    assert sorted(folder.path.iterdir()) == parts
    assert not [p for p in tmp_path.iterdir() if p.name.endswith((".tmp", ".old"))]


def test_sigmoid_is_laid_over_the_same_scores(scored, tmp_path):
    write_output(Output(tmp_path / "raw.jsonl"), *scored, STAMP)
    write_output(Output(tmp_path / "s.jsonl"), *scored, Stamp("rm", "r1", objectives=True, normalize="sigmoid"))
    for raw, mapped in zip(lines(tmp_path / "raw.jsonl"), lines(tmp_path / "s.jsonl"), strict=True):
        assert mapped["score"] == pytest.approx(1 / (1 + math.exp(-raw["score"])), rel=1e-12)
        assert mapped["objectives"] is None, "this model has none"


def test_parquet_columns_come_back_as_they_were_and_as_json(tmp_path, model):
    day = datetime.datetime(2026, 1, 2, 3, 4, 5)
    table = pa.table(
        {
            "prompt": ["a", None, "c"],
            "response": ["x", "y", "z"],
            "score": pa.array([1.5, 2.5, math.nan], pa.float32()),
            "day": pa.array([day] * 3, pa.timestamp("us")),
            "price": pa.array([decimal.Decimal("1.10")] * 3, pa.decimal128(5, 2)),
            "raw": pa.array([b"\xff"] * 3, pa.binary()),
            "text": pa.array([b"ok", b"ok", b"o\xff"], pa.binary()).view(pa.string()),
            "kind": pa.array(["u", "v", "u"]).dictionary_encode(),
            "nested": [{"x": [1, 2]}] * 3,
        }
    )
    pq.write_table(table, tmp_path / "r.parquet", row_group_size=2)
    scored = score_here(tmp_path / "r.parquet", model, tmp_path / "work")
    write_output(Output(tmp_path / "s.parquet"), *scored, STAMP)
    write_output(Output(tmp_path / "s.jsonl"), *scored, STAMP)
    back = pq.read_table(tmp_path / "s.parquet")
    assert back["id"].to_pylist() == ["row-0", "row-2"]
    for name in ("day", "price", "raw", "nested"):
        assert (
            back[name].to_pylist() == [table[name][0].as_py()] * 2 and back.schema.field(name).type == table[name].type
        )
    assert back.schema.field("input_score").type == pa.float32() and back["kind"].to_pylist() == ["u", "u"]
    first, last = lines(tmp_path / "s.jsonl")
    assert (first["day"], first["price"], first["raw"]) == ("2026-01-02T03:04:05", "1.10", "/w==")
    assert (first["input_score"], last["input_score"], last["text"]) == (1.5, None, "o\ufffd")
    assert lines(Output(tmp_path / "s.jsonl").quarantine)[0]["row"] == 1


def test_files_without_columns_of_the_users_and_with_too_many(tmp_path, model):
    pq.write_table(pa.table({"prompt": ["a"] * 5, "response": ["x"] * 5}), tmp_path / "r.parquet")
    scored = score_here(tmp_path / "r.parquet", model, tmp_path / "work")
    write_output(Output(tmp_path / "s.parquet"), *scored, STAMP)
    write_output(Output(tmp_path / "s.jsonl"), *scored, STAMP)
    assert pq.read_table(tmp_path / "s.parquet").schema.names == SCHEMA.names
    assert len(lines(tmp_path / "s.jsonl")) == 5
    wide = {"prompt": "a", "response": "b", **{f"f{i}": i for i in range(MOST_COLUMNS + 5)}}
    (tmp_path / "w.jsonl").write_text(json.dumps(wide) + "\n")
    scored = score_here(tmp_path / "w.jsonl", model, tmp_path / "work")
    with pytest.raises(InputError, match="more than 1000 different fields"):
        write_output(Output(tmp_path / "w.parquet"), *scored, STAMP)
    write_output(Output(tmp_path / "ws.jsonl"), *scored, STAMP)
    (row,) = lines(tmp_path / "ws.jsonl")
    assert len(row) == len(SCHEMA) + MOST_COLUMNS + 5


def test_every_kind_of_bad_row_is_quarantined_and_hurts_no_other(tmp_path, model, reward):
    good = b'{"prompt": "q", "response": "a"}\n'
    (tmp_path / "r.jsonl").write_bytes(b"".join(good + line + b"\n" for line, _ in BAD_LINES.values()))
    artifact, source, index = score_here(tmp_path / "r.jsonl", model, tmp_path / "work", chunk_rows=16)
    out = Output(tmp_path / "s.jsonl")
    write_output(out, artifact, source, index, STAMP)
    assert [line["reason"] for line in lines(out.quarantine)] == [reason for _, reason in BAD_LINES.values()]
    assert {row["score"] for row in lines(out.path)} == {alone(reward, "q", "a")}
    assert len(lines(out.path)) == len(BAD_LINES) == artifact.manifest.rows_out
    assert artifact.manifest.rows_in == 2 * len(BAD_LINES)


def test_a_text_that_the_models_embedding_lacks_is_one_quarantined_row(tmp_path):
    folder = add_tokens(save_reward_model(tmp_path / "rm", vocab_size=260), ["zebra", "yak"])
    rows = [{"id": text, "prompt": "q", "response": text} for text in ("ok", "a yak", "fine")]
    (tmp_path / "r.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = Output(tmp_path / "s.jsonl")
    write_output(out, *score_here(tmp_path / "r.jsonl", folder, tmp_path / "work"), STAMP)
    reward = ClassifierSettings().load(folder)
    assert [(r["id"], r["score"]) for r in lines(out.path)] == [(t, alone(reward, "q", t)) for t in ("ok", "fine")]
    (refused,) = lines(out.quarantine)
    assert (refused["id"], refused["reason"]) == ("a yak", "scorer_error")
    assert refused["detail"] == "the tokenizer gives id 260, the model has 260; they do not fit"


def test_a_row_without_an_id_is_not_refused_for_the_id_of_another(tmp_path, model, reward):
    rows = [{"id": "line-2", "prompt": "q", "response": "a"}, {"prompt": "q", "response": "b"}, {"prompt": "q"}]
    rows += [{"id": "line-3", "prompt": "q", "response": "c"}]
    (tmp_path / "r.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = Output(tmp_path / "s.jsonl")
    write_output(out, *score_here(tmp_path / "r.jsonl", model, tmp_path / "work"), STAMP)
    expected = [("line-2", "a"), ("line-2_", "b"), ("line-3", "c")]
    assert [(r["id"], r["score"]) for r in lines(out.path)] == [(i, alone(reward, "q", t)) for i, t in expected]
    assert [(r["id"], r["reason"]) for r in lines(out.quarantine)] == [("line-3_", "missing_field")]


# ---- the command ------------------------------------------------------------------------------


@pytest.fixture
def fuseline_score(tmp_path, monkeypatch, capsys):
    """Run the command in this process; return its exit code and what it said."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    monkeypatch.chdir(tmp_path)

    def run(*args: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["fuseline", *args])
        with pytest.raises(SystemExit) as ended:
            score.main()
        return ended.value.code or 0, capsys.readouterr().err

    yield run
    for number, handler in before.items():
        signal.signal(number, handler)


BAD_COMMANDS = {
    "no input": (["none.jsonl"], "input none.jsonl does not exist"),
    "input is a folder": (["full"], "is a directory"),
    "input without rows": (["empty.jsonl"], "holds no row"),
    "not Parquet": (["text.parquet"], "is not a Parquet file"),
    "no model": (["--model", "nowhere"], "model folder nowhere does not exist"),
    "model without weights": (["--model", "bare"], "has no *.safetensors file"),
    "no reward model": (["--model", "chat"], "is not a reward model"),
    "truncation": (["--truncation", "middle"], "--truncation middle: use error or left or right"),
    "normalize": (["--normalize", "softmax"], "--normalize softmax: use sigmoid"),
    "dtype": (["--dtype", "int8"], "--dtype: input should be 'float32', 'bfloat16' or 'float16'"),
    "max length of 1": (["--max-length", "1"], "--max-length: input should be greater than or equal to 2"),
    "max length": (["--max-length", "161"], "--max-length 161 is above the 160 positions"),
    "replicas": (["--replicas", "0"], "--replicas: input should be greater than or equal to 1"),
    "accelerator": (["--accelerator", "tpu"], "--accelerator: input should be 'auto', 'cpu' or 'gpu'"),
    "over the input": (["--out", "rows.jsonl"], "would overwrite the input"),
    "over a file of mine": (["--out", "mine.jsonl"], "was not written by fuseline score"),
    "other format": (["--out", "s.csv"], "must end with .jsonl or .parquet"),
    "no place for the output": (
        ["--out", "afile/x/s.jsonl"],
        "--out afile/x/s.jsonl cannot be written (Not a directory)",
    ),
    "output where nothing is made": (["--out", "/proc/nope/s.jsonl"], "--out /proc/nope/s.jsonl cannot be written"),
    "output of a long name": (["--out", "s" * 235 + ".jsonl"], "cannot be written (File name too long); name another"),
    "no place for the work": (["--work", "afile/w"], "--work afile/w cannot be written (Not a directory)"),
    "work is a file": (["--work", "afile"], "--work afile cannot be written"),
    "work where nothing is made": (["--work", "/proc/w"], "--work /proc/w cannot be written"),
    "model of no object": (["--model", "list"], "list/config.json is not a JSON object"),
    "outputs without numbers": (["--model", "words"], "words/config.json: id2label must name the outputs by number"),
    "no base": (["--base", "nowhere"], "--base nowhere is not a directory"),
    "no cluster": (["--address", "127.0.0.1:1"], "no Ray cluster at 127.0.0.1:1"),
}


@pytest.mark.parametrize(("args", "message"), BAD_COMMANDS.values(), ids=BAD_COMMANDS)
def test_bad_input_is_one_clear_line_and_exit_code_2(fuseline_score, tmp_path, model, args, message):
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "response": "b"}\n')
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "text.parquet").write_text("a")
    (tmp_path / "mine.jsonl").write_text("precious")
    (tmp_path / "afile").touch()
    for name in ("full", "bare", "chat", "list", "words"):
        (tmp_path / name).mkdir()
    config = json.loads((model / "config.json").read_text())
    (tmp_path / "bare" / "config.json").write_text(json.dumps(config))
    (tmp_path / "chat" / "config.json").write_text(json.dumps({**config, "architectures": ["LlamaForCausalLM"]}))
    (tmp_path / "list" / "config.json").write_text("[]")
    (tmp_path / "words" / "config.json").write_text(json.dumps({**config, "id2label": {"a": "b"}}))
    for name in ("chat", "list", "words"):
        (tmp_path / name / "model.safetensors").touch()
    if args[0].startswith("--"):
        args = ["rows.jsonl", *args]
    code, said = fuseline_score("--model", str(model), "--out", "s.jsonl", *args)
    assert code == 2 and message in said and said.startswith("error: "), said
    assert said.count("\n") == 1 and said.endswith("\n")
    assert (tmp_path / "mine.jsonl").read_text() == "precious"


def test_a_job_needs_a_base_or_absolute_paths(fuseline_score, tmp_path, model, monkeypatch):
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    code, said = fuseline_score("rows.jsonl", "--model", str(model), "--out", "s.jsonl")
    assert code == 2 and "input 'rows.jsonl' is relative, and this Ray job runs in a copy" in said
    code, said = fuseline_score(str(tmp_path / "rows.jsonl"), "--model", str(model), "--out", "s.jsonl")
    assert code == 2 and "--out 's.jsonl' is relative" in said and "give --base DIR" in said
