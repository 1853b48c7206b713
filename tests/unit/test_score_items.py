"""Rows of a file to score: what they mean, which are refused and why, and that slices lose and repeat none."""

import io
import json
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bad_rows import BAD_LINES, MODEL_KINDS
from fusion.errors import InputError
from fusion.rewards.items import Refused, normalized, read_item, refusal
from fusion.rows import Message
from fusion.stages import score_input
from fusion.stages.score_columns import SCHEMA, carried_name
from fusion.stages.score_index import Index, index_of, json_type, merged_type
from fusion.stages.score_input import Row, RowFile, RowReader, open_rows
from fusion.stages.score_output import Output
from serving.schemas import RewardRequest
from serving.scoring import candidates

USER, ANSWER = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
Q, A, B = Message("user", "q"), Message("assistant", "a"), Message("assistant", "b")
SYSTEM = Message("system", "s")

FORMS = {
    "messages": ({"messages": [USER, ANSWER]}, [(None, (Q, A))]),
    "prompt and response": ({"prompt": "q", "response": "a"}, [(None, (Q, A))]),
    "prompt and responses": ({"prompt": "q", "responses": ["a", "b"]}, [(0, (Q, A)), (1, (Q, B))]),
    "one in a list": ({"prompt": "q", "responses": ["a"]}, [(0, (Q, A))]),
    "conversational prompt": (
        {"prompt": [{"role": "system", "content": "s"}, USER], "response": "a"},
        [(None, (SYSTEM, Q, A))],
    ),
    "conversational completion": ({"prompt": [USER], "completion": [ANSWER]}, [(None, (Q, A))]),
    "completion as text": ({"prompt": "q", "completion": "a"}, [(None, (Q, A))]),
    "conversational responses": ({"prompt": [USER], "responses": [[ANSWER], "b"]}, [(0, (Q, A)), (1, (Q, B))]),
    "null is absent": ({"prompt": "q", "response": "a", "messages": None, "id": None}, [(None, (Q, A))]),
    "own fields": ({"prompt": "q", "response": "a", "score": 3, "x": {"y": []}}, [(None, (Q, A))]),
    "null in a message": ({"messages": [{**USER, "name": None}, ANSWER]}, [(None, (Q, A))]),
}


@pytest.mark.parametrize(("record", "expected"), FORMS.values(), ids=FORMS)
def test_forms(record, expected):
    assert list(read_item(record).conversations) == expected


def test_ids_are_text_or_whole_numbers():
    assert [read_item({"id": i, "prompt": "q", "response": "a"}).id for i in ("x", 7, None)] == ["x", "7", None]


def reason_of(line: bytes) -> str | None:
    """Why a line of a file, or its first refused response, is not scored."""
    row = next(score_input.read_lines(io.BytesIO(line + b"\n"))).row(0)
    try:
        item = row.item()
    except Refused as refused:
        return refused.reason
    found = [refusal(conversation, allow_empty=False) for _, conversation in item.conversations]
    return next((refused.reason for refused in found if refused is not None), None)


@pytest.mark.parametrize(("line", "reason"), BAD_LINES.values(), ids=BAD_LINES)
def test_bad_lines_have_their_reason(request, line, reason):
    by_model = request.node.callspec.id in MODEL_KINDS
    assert reason_of(line) == (None if by_model else reason)


def test_an_empty_response_is_scored_when_asked_for():
    (only,) = read_item({"prompt": "q", "response": ""}).conversations
    assert refusal(only[1], allow_empty=True) is None


def test_details_do_not_repeat_texts():
    for line, _ in BAD_LINES.values():
        row = next(score_input.read_lines(io.BytesIO(line))).row(0)
        try:
            row.item()
        except Refused as refused:
            assert len(refused.detail) < 500 and "\n" not in refused.detail


# ---- the service reads items the same way -----------------------------------------------------

texts = st.text(st.characters(codec="utf-8"), max_size=6)
messages = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["system", "user", "assistant"]), "content": texts}),
    min_size=1,
    max_size=4,
)
http_items = st.one_of(
    st.fixed_dictionaries({"messages": messages}),
    st.fixed_dictionaries({"prompt": texts, "response": texts}),
    st.fixed_dictionaries({"prompt": texts, "responses": st.lists(texts, min_size=1, max_size=4)}),
)


@settings(deadline=None)
@given(items=st.lists(http_items, min_size=1, max_size=4), allow_empty=st.booleans())
def test_a_row_means_what_the_same_item_means_over_http(items, allow_empty):
    request = RewardRequest.model_validate({"model": "m", "input": items, "allow_empty": allow_empty})
    over_http = [(c.index, c.response_index, c.conversation, c.error_code) for c in candidates(request)]
    from_file = []
    for index, record in enumerate(items):
        for response_index, conversation in read_item(json.loads(json.dumps(record))).conversations:
            refused = refusal(conversation, allow_empty=allow_empty)
            from_file.append((index, response_index, conversation, refused and refused.reason))
    assert from_file == over_http


@settings(deadline=None)
@given(st.floats(-1e6, 1e6))
def test_normalized_scores_keep_their_order_and_stay_in_bounds(score):
    assert normalized(score, None) == score
    assert 0 <= normalized(score, "sigmoid") <= 1
    assert normalized(score, "sigmoid") + normalized(-score, "sigmoid") == pytest.approx(1)


# ---- slices -----------------------------------------------------------------------------------

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
records = st.one_of(
    http_items.flatmap(
        lambda item: st.fixed_dictionaries({"id": st.sampled_from(["a", 1, None, "line-2", "line-2_"])}).map(
            item.__or__
        )
    ),
    st.dictionaries(
        st.sampled_from(["id", "prompt", "response", "responses", "messages", "completion", "x"]), json_values
    ),
)
lines = st.one_of(
    records.map(lambda record: json.dumps(record).encode()),
    st.binary(max_size=12).map(lambda raw: raw.replace(b"\n", b" ")),
    st.just(b"  "),
)


def whole(source: RowFile) -> list[Row]:
    with source.path.open("rb") as file:
        found = [line for line in score_input.read_lines(file) if not line.blank]
    return [line.row(index) for index, line in enumerate(found)]


def seen(row: Row) -> tuple:
    return row.index, row.place, row.record, row.refused and (row.refused.reason, row.refused.detail)


def check_index(source: RowFile, index: Index, rows: list[Row]) -> None:
    """Check that slices hold every row once and in order, and count what scoring will account for."""
    reader = RowReader(source)
    assert [seen(row) for part in index.slices for row in reader.rows(part)] == [seen(row) for row in rows]
    assert index.rows == len(rows)
    first: dict[str, int] = {}
    expected = {}
    responses = 0
    for row in rows:
        name = source.own_id(row)
        if name is not None and name in first:
            expected[row.index] = first[name]
            responses += 1
            continue
        if name is not None:
            first[name] = row.place
        try:
            responses += len(row.item().conversations)
        except Refused:
            responses += 1
    assert {r: f for part in index.slices for r, f in zip(part.repeated, part.first, strict=True)} == expected
    assert index.responses == responses
    names = [source.name(row, part) for part in index.slices for row in reader.rows(part)]
    assert len(set(names)) == len(rows) - len(expected), "two rows have one name"
    assert all(name == (source.own_id(row) or name) for name, row in zip(names, rows, strict=True))


@settings(deadline=None, max_examples=150)
@given(body=st.lists(lines, min_size=1, max_size=12), slice_rows=st.integers(1, 5), ended=st.booleans())
def test_slices_of_any_bytes_hold_every_row_once(body, slice_rows, ended):
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "rows.jsonl"
        path.write_bytes(b"\n".join(body) + (b"\n" if ended else b""))
        try:
            source = open_rows(path)
        except InputError:
            raw = path.read_bytes()
            blank = not raw.removeprefix(b"\xef\xbb\xbf").strip()
            assert blank or raw[:2] in (b"\xff\xfe", b"\xfe\xff", b"\x1f\x8b")
            return
        rows = whole(source)
        index = index_of(source, Path(name), slice_rows=slice_rows)
        check_index(source, index, rows)
        assert all(part.rows <= slice_rows for part in index.slices)
        assert index_of(source, Path(name), slice_rows=99) == index, "the kept index was not used"


@settings(deadline=None, max_examples=60)
@given(
    rows=st.lists(
        st.tuples(st.sampled_from(["a", "b", None, "row-1"]), texts, st.lists(texts, max_size=3)),
        min_size=1,
        max_size=20,
    ),
    group=st.integers(1, 7),
    slice_rows=st.integers(1, 6),
    batch=st.integers(1, 5),
    data=st.data(),
)
def test_slices_of_parquet_hold_every_row_once(rows, group, slice_rows, batch, data):
    table = pa.table(
        {
            "id": pa.array([r[0] for r in rows], pa.string()),
            "prompt": [r[1] for r in rows],
            "responses": pa.array([r[2] for r in rows], pa.list_(pa.string())),
            "x": list(range(len(rows))),
        }
    )
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr(score_input, "BATCH_ROWS", batch)
        path = Path(name) / "rows.parquet"
        pq.write_table(table, path, row_group_size=group)
        source = open_rows(path)
        expected = [Row(i, i, record) for i, record in enumerate(table.drop_columns(["x"]).to_pylist())]
        index = index_of(source, Path(name), slice_rows=slice_rows)
        check_index(source, index, expected)
        reader = RowReader(source)
        for part in data.draw(st.permutations(index.slices)):  # as actors get them, and again after a restart
            mine = slice(part.first_row, part.first_row + part.rows)
            assert [seen(row) for row in reader.rows(part)] == [seen(row) for row in expected[mine]]
            carried = reader.carried(part)
            assert carried is not None and carried["x"].to_pylist() == list(range(len(rows)))[mine]


def test_a_row_without_an_id_is_none_that_another_row_has(tmp_path):
    own = ["line-2", None, "line-4", None, "line-4_", "line-4__", None, "line-4"]
    rows = [{"prompt": "a", "response": "b"} | ({"id": name} if name else {}) for name in own]
    (tmp_path / "r.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = open_rows(tmp_path / "r.jsonl")
    index = index_of(source, tmp_path, slice_rows=3)
    assert [(part.repeated, part.first) for part in index.slices] == [((), ()), ((), ()), ((7,), (3,))]
    names = [source.name(row, part) for part in index.slices for row in RowReader(source).rows(part)]
    assert names == ["line-2", "line-2_", "line-4", "line-4___", "line-4_", "line-4__", "line-7", "line-4"]
    assert index_of(source, tmp_path, slice_rows=3) == index
    # An index that was kept before rows were renamed is read as it was.
    kept = json.loads((tmp_path / "slices.json").read_text())
    for part in kept["slices"]:
        del part["renamed"], part["names"]
    (tmp_path / "slices.json").write_text(json.dumps(kept))
    assert [part.repeated for part in index_of(source, tmp_path, slice_rows=3).slices] == [(), (), (7,)]


def test_parquet_text_that_is_not_utf8_is_one_refused_row(tmp_path):
    bad = pa.array([b"ok", b"\xff\xfe", b"fine"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"prompt": ["a", "b", "c"], "response": bad}), tmp_path / "r.parquet")
    source = open_rows(tmp_path / "r.parquet")
    (part,) = index_of(source, tmp_path, slice_rows=9).slices
    rows = list(RowReader(source).rows(part))
    assert [row.refused and row.refused.reason for row in rows] == [None, "bad_utf8", None]


def test_lines_too_long_to_hold_are_passed_over(tmp_path, monkeypatch):
    monkeypatch.setattr(score_input, "MAX_LINE_BYTES", 64)
    good = b'{"prompt": "a", "response": "b"}\n'
    (tmp_path / "r.jsonl").write_bytes(good + b'{"prompt": "' + b"x" * 500 + b'"}\n' + good)
    source = open_rows(tmp_path / "r.jsonl")
    index = index_of(source, tmp_path, slice_rows=2)
    reader = RowReader(source)
    rows = [row for part in index.slices for row in reader.rows(part)]
    assert [(row.place, row.refused and row.refused.reason) for row in rows] == [(1, None), (2, "too_long"), (3, None)]


def test_a_line_cut_off_by_the_end_of_the_file_says_so(tmp_path):
    (tmp_path / "r.jsonl").write_bytes(b'\xef\xbb\xbf{"prompt": "a", "response": "b"}\r\n\r\n{"prompt": "a", "respo')
    source = open_rows(tmp_path / "r.jsonl")
    first, torn = whole(source)
    assert first.record == {"prompt": "a", "response": "b"}
    assert torn.refused is not None and (torn.place, torn.refused.reason) == (3, "torn_line")


@pytest.mark.parametrize("change", [lambda b: b.replace(b"one", b"two"), lambda b: b[:-1], lambda b: b""])
def test_a_changed_file_is_noticed(tmp_path, change):
    path = tmp_path / "r.jsonl"
    path.write_bytes(b'{"prompt": "one", "response": "b"}\n')
    source = open_rows(path)
    (part,) = index_of(source, tmp_path, slice_rows=9).slices
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(InputError, match="was changed while it was scored"):
        list(RowReader(source).rows(part))


def _parquet(path: Path, table: pa.Table) -> None:
    pq.write_table(table, path)


def _torn(path: Path) -> None:
    pq.write_table(pa.table({"prompt": ["a"] * 99}), path)
    path.write_bytes(path.read_bytes()[:-20])


STRUCTURAL = {
    "missing": ("r.jsonl", lambda p: None, "does not exist"),
    "directory": ("r.jsonl", lambda p: p.mkdir(), "is a directory"),
    "no rows": ("r.jsonl", lambda p: p.write_bytes(b"\n \n"), "holds no row"),
    "empty": ("r.jsonl", lambda p: p.write_bytes(b""), "holds no row"),
    "other name": ("r.csv", lambda p: p.write_bytes(b"a,b"), "must end with .jsonl or .parquet"),
    "UTF-16": ("r.jsonl", lambda p: p.write_text("{}", encoding="utf-16"), "is UTF-16"),
    "gzip": ("r.jsonl", lambda p: p.write_bytes(b"\x1f\x8b\x08\x00"), "compressed with gzip"),
    "Parquet by another name": ("r.jsonl", _torn, "is a Parquet file"),
    "not Parquet": ("r.parquet", lambda p: p.write_bytes(b"{}"), "is not a Parquet file"),
    "torn footer": ("r.parquet", _torn, "is not a readable Parquet file"),
    "Parquet without rows": ("r.parquet", lambda p: _parquet(p, pa.table({"prompt": []})), "holds no row"),
    "other columns": ("r.parquet", lambda p: _parquet(p, pa.table({"q": ["a"]})), "neither a messages nor a prompt"),
}


@pytest.mark.parametrize(("name", "make", "message"), STRUCTURAL.values(), ids=STRUCTURAL)
def test_a_file_without_usable_rows_is_refused_in_one_line(tmp_path, name, make, message):
    make(tmp_path / name)
    with pytest.raises(InputError, match=message) as caught:
        open_rows(tmp_path / name)
    assert "\n" not in str(caught.value) and name in str(caught.value)


# ---- output -----------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.lists(st.from_regex(rf"(input_){{0,3}}({'|'.join(SCHEMA.names)}|x)", fullmatch=True) | texts, unique=True))
def test_carried_columns_never_meet_ours_or_each_other(names):
    out = [carried_name(name) for name in names]
    assert len({*out, *SCHEMA.names}) == len(out) + len(SCHEMA.names)


@settings(deadline=None)
@given(st.lists(json_values, max_size=6))
def test_a_column_type_holds_all_its_values(values):
    kind = "null"
    for value in values:
        kind = merged_type(kind, json_type(value))
    held = {
        "null": type(None),
        "bool": bool,
        "int": int,
        "long": int,
        "float": (int, float),
        "str": str,
        "json": object,
    }
    assert all(value is None or isinstance(value, held[kind]) for value in values)
    assert merged_type(kind, kind) == kind


def test_what_is_not_ours_is_not_overwritten(tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_bytes(b'{"prompt": "a", "response": "b"}\n')
    source = open_rows(path)
    (tmp_path / "mine.jsonl").write_text("precious")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    (tmp_path / "s.jsonl.json").write_text("{}")
    for name, message in {
        "r.jsonl": "would overwrite the input",
        "mine.jsonl": "was not written by fuseline score",
        "full": "was not written by fuseline score",
        "s.jsonl": "s.jsonl.json exists and was not written",
        "s.csv": "must end with .jsonl or .parquet",
        "mine.jsonl/s.jsonl": "is not a folder",
    }.items():
        with pytest.raises(InputError, match=message):
            Output(tmp_path / name).check(source)
    Output(tmp_path / "new" / "s.parquet").check(source)
    mine = Output(tmp_path / "again.jsonl")
    mine.begin()
    mine.path.write_text("scores")
    mine.check(source)
