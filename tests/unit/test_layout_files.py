"""Files and folders of records: what is read of them, and what is refused with the place where it stands."""

import dataclasses
import gzip
import json
import os
import random
import re
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion.errors import InputError
from fusion.layouts.files import MAX_BYTES, read_records
from fusion.promptsets.records import Refused
from fusion.rows import PreferencePair, PreferenceQuadruple
from jobs.layout_driver import export_rows, import_rows
from layout_examples import PUBLISHED, TEXT, row_for
from poison import store_rows

# ---- files ------------------------------------------------------------------------------------


def places(path: Path) -> list[str]:
    return [place.removeprefix(f"{path}:") for place, _ in read_records(path)]


def test_a_json_array_is_read_member_by_member(tmp_path):
    path = tmp_path / "train.json"
    members = ['{"a": "]} \\" \\\\"}', '{"b": [[1], {"c": "{"}]}', "[1]", '{"x": 1, "x": 2}', '{"\u2028": "é"}']
    path.write_text("\ufeff [\n" + " ,\n".join(members) + "\n]\n", encoding="utf-8")
    found = [value if isinstance(value, dict) else value.reason for _, value in read_records(path)]
    assert found == [{"a": ']} " \\'}, {"b": [[1], {"c": "{"}]}, "not_an_object", "duplicate_key", {"\u2028": "é"}]
    assert places(path) == ["0", "1", "2", "3", "4"]
    path.write_text("[]")
    assert places(path) == []


NESTED = st.recursive(
    TEXT | st.integers(), lambda v: st.lists(v, max_size=2) | st.dictionaries(TEXT, v, max_size=2), max_leaves=4
)


@settings(deadline=None, max_examples=40)
@given(rows=st.lists(st.dictionaries(TEXT, NESTED, max_size=2), max_size=3),
       indent=st.sampled_from([None, 1]), escaped=st.booleans())  # fmt: skip
def test_an_array_gives_what_a_json_reader_gives(tmp_path_factory, rows, indent, escaped):
    path = tmp_path_factory.getbasetemp() / "array.json"
    path.write_text(json.dumps(rows, indent=indent, ensure_ascii=escaped), encoding="utf-8")
    assert [value for _, value in read_records(path)] == rows


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'[{"a": 1}, {"a": 2', "is cut: the JSON array does not end after row 1"),
        (b'[{"a": 1}, {"a": "2}]', "is cut: the JSON array does not end after row 1"),
        (b'[{"a": 1} {"a": 2}]', ":1: found '' where one JSON object should be"),
        (b'[{"a": 1}, 3, {"a": 2}]', ":1: found ', 3,' where one JSON object should be"),
        (b'["abc"]', """:0: found '"abc"' where one JSON object should be"""),
        (b'[{"a": 1}][{"a": 2}]', "there is more behind the array of 1 rows"),
        (b"", "is empty"),
        (b"\xff\xfe[\x00", "is UTF-16; convert it"),
    ],
)
def test_a_file_that_is_no_list_of_objects_is_refused_with_the_place(tmp_path, content, said):
    path = tmp_path / "train.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=re.escape(said)) as caught:
        list(read_records(path))
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_an_array_in_a_gzip_file_is_read_like_a_plain_one(tmp_path):
    path = tmp_path / "train.json.gz"
    path.write_bytes(gzip.compress(b'\xef\xbb\xbf [{"prompt": "a"}, [1], {"prompt": "b"}]'))
    read = [value if isinstance(value, dict) else value.reason for _, value in read_records(path)]
    assert read == [{"prompt": "a"}, "not_an_object", {"prompt": "b"}] and places(path) == ["0", "1", "2"]
    path.write_bytes(gzip.compress(b'{"prompt": "a"}\n{"prompt": "b"}\n'))
    assert places(path) == ["1", "2"]
    path.write_bytes(gzip.compress(b"[" + b'{"prompt": "a"}, ' * 9000 + b'{"prompt": "b"}'))
    with pytest.raises(InputError, match=r"train\.json\.gz is cut: the JSON array does not end after row 9001"):
        list(read_records(path))
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(InputError, match=r"train\.json\.gz is a damaged gzip file"):
        list(read_records(path))


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
@pytest.mark.parametrize("nested", [False, True])
def test_two_columns_of_one_name_are_told_in_one_line(tmp_path, suffix, nested):
    both = pa.table([["q"], ["r"]], names=["prompt", "prompt"])
    if nested:
        turn = pa.StructArray.from_arrays([pa.array(["q"]), pa.array(["r"])], names=["prompt", "prompt"])
        both = pa.table({"messages": pa.ListArray.from_arrays([0, 1], turn)})
    path = tmp_path / f"twice{suffix}"
    if suffix == ".parquet":
        pq.write_table(both, path)
    else:
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, both.schema) as writer:
            writer.write_table(both)
    with pytest.raises(InputError, match=r"twice\.\w+ has two columns 'prompt'; rename one or leave it out"):
        list(read_records(path))


def test_lines_are_counted_and_bad_ones_are_rows_with_a_reason(tmp_path):
    path = tmp_path / "rows.jsonl"
    huge = b'{"prompt": "' + b"x" * (MAX_BYTES + 5) + b'"}'
    lines = [
        b'\xef\xbb\xbf{"prompt": "a"}',
        b"",
        b"{",
        b"[1]",
        huge,
        b'{"a": "\xff"}',
        b'{"a": NaN}',
        b'{"prompt": "b"}',
    ]
    path.write_bytes(b"\n".join(lines))
    read = [
        (place.rpartition(":")[2], value.reason if isinstance(value, Refused) else value)
        for place, value in read_records(path)
    ]
    assert read == [
        ("1", {"prompt": "a"}), ("3", "bad_json"), ("4", "not_an_object"), ("5", "too_long"), ("6", "bad_utf8"),
        ("7", "bad_number"), ("8", {"prompt": "b"}),
    ]  # fmt: skip
    zipped = tmp_path / "rows.jsonl.gz"
    zipped.write_bytes(gzip.compress(b'{"prompt": "a"}\n' * 2))
    assert places(zipped) == ["1", "2"]
    zipped.write_bytes(gzip.compress(os.urandom(99).hex().encode() * 50)[:-20])
    with pytest.raises(InputError, match=r"rows\.jsonl\.gz is a damaged gzip file after line"):
        list(read_records(zipped))


def test_columnar_files_are_told_from_what_is_none(tmp_path):
    for name, said in (
        ("a.parquet", "not a Parquet file"),
        ("a.arrow", "not a readable Arrow stream from row 0"),
        ("a.csv", "must end with"),
    ):
        (tmp_path / name).write_bytes(b"prompt,chosen\n")
        with pytest.raises(InputError, match=said):
            list(read_records(tmp_path / name))
    whole = tmp_path / "cut.parquet"
    pq.write_table(pa.table({"prompt": ["q" * 99] * 5000}), whole)
    whole.write_bytes(whole.read_bytes()[:-9])
    with pytest.raises(InputError, match="not readable Parquet from row 0 on"):
        list(read_records(whole))
    text = pa.array([b"ok", b"\xff"]).cast(pa.binary()).view(pa.string())
    pq.write_table(pa.table({"prompt": text}), tmp_path / "bad.parquet")
    found = [value if isinstance(value, dict) else value.reason for _, value in read_records(tmp_path / "bad.parquet")]
    assert found == [{"prompt": "ok"}, "bad_utf8"]


@settings(deadline=None, max_examples=80)
@given(data=st.text('[]{}",:\\\\ a1', max_size=12).map(str.encode) | st.binary(max_size=8))
def test_no_bytes_do_anything_but_be_read_or_be_refused(tmp_path_factory, data):
    for name in ("any.json", "any.jsonl", "any.parquet", "any.arrow"):
        path = tmp_path_factory.getbasetemp() / name
        path.write_bytes(data)
        try:
            for place, found in read_records(path):
                assert place.startswith(f"{path}:") and isinstance(found, dict | Refused)
        except InputError as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize("name", ["wrpo.parquet", "wrpo.arrow"])
def test_damaged_columns_are_read_or_refused(tmp_path, name):
    """Single bytes of a file are changed: offsets, lengths, text and names of columns."""
    table = pa.Table.from_pylist([PUBLISHED["README of WRPO"][1]] * 40)
    path, chance, outcomes = tmp_path / name, random.Random(3), Counter()
    if name.endswith(".parquet"):
        pq.write_table(table, path)
    else:
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table)
    whole = path.read_bytes()
    for _ in range(150):
        damaged = bytearray(whole)
        damaged[chance.randrange(len(whole))] ^= chance.randrange(1, 256)
        path.write_bytes(damaged)
        try:
            outcomes.update(type(found).__name__ for _, found in read_records(path))
        except InputError as error:
            outcomes["file"] += 1
            assert "\n" not in str(error)
    assert outcomes["dict"] and outcomes["file"]


# ---- folders of save_to_disk ------------------------------------------------------------------


def test_a_folder_is_what_datasets_reads_and_splits_by_prompt(tmp_path):
    datasets = pytest.importorskip(
        "datasets", reason="datasets is not installed: the folder is read by our own reader alone"
    )
    rows = [row_for(PreferenceQuadruple, f"p{n}") for n in range(200)]
    _, artifact = store_rows(tmp_path / "store", rows)
    done = export_rows([artifact.path], "wrpo", tmp_path / "hf", plain=True, test=0.2)
    loaded = datasets.load_from_disk(str(tmp_path / "hf"))
    assert {name: len(split) for name, split in loaded.items()} == done.records == {"train": 165, "test": 35}
    assert loaded["train"].column_names == ["prompt_id", "prompt", "chosen", "rejected"]
    ids = {name: set(split["prompt_id"]) for name, split in loaded.items()}
    assert ids["train"] | ids["test"] == {row.row_id for row in rows} and not ids["train"] & ids["test"]
    first = loaded["train"][0]
    row = next(row for row in rows if row.row_id == first["prompt_id"])
    assert first["prompt"] == {"role": "user", "content": row.prompt.messages[0].content}
    texts = [row.source_chosen.response.text, row.target_chosen.response.text]
    assert [turn["content"] for turn in first["chosen"]] == texts
    # And what datasets itself has saved, with a shuffled test split and several shards.
    loaded.save_to_disk(str(tmp_path / "theirs"), num_shards={"train": 3, "test": 1})
    for split, count in done.records.items():
        imported = import_rows([tmp_path / "theirs"], "wrpo", tmp_path / f"in-{split}", split=split)
        assert (imported.records, imported.rows, imported.row_type) == (count, count, "PreferenceQuadruple")


def test_rows_of_one_prompt_are_all_in_one_split(tmp_path):
    """Three pairs of a prompt become rows p, p#2 and p#3; the draw is by what the prompt says."""
    pairs = []
    for row in (row_for(PreferencePair, f"p{n}") for n in range(40)):
        for suffix in ("", "#2", "#3"):
            name = row.prompt.prompt_id + suffix
            renamed = [
                dataclasses.replace(a, response=dataclasses.replace(a.response, prompt_id=name))
                for a in (row.chosen, row.rejected)
            ]
            pairs.append(PreferencePair(dataclasses.replace(row.prompt, prompt_id=name), *renamed))
    _, artifact = store_rows(tmp_path / "store", pairs)
    done = export_rows([artifact.path], "trl", tmp_path / "hf", plain=False, test=0.3)
    assert done.records["train"] % 3 == done.records["test"] % 3 == 0 < done.records["test"]


def test_a_hostile_folder_leads_nowhere(tmp_path):
    folder = tmp_path / "set"
    (folder / "train").mkdir(parents=True)
    (tmp_path / "secret.arrow").write_bytes(b"x")
    (folder / "dataset_dict.json").write_text('{"splits": ["train", "../../etc"]}')
    for name in ("../../secret.arrow", "/etc/passwd", "..", "", "a/b", "a\0b"):
        (folder / "train/state.json").write_text(json.dumps({"_data_files": [{"filename": name}]}))
        with pytest.raises(InputError, match="which is not in that folder"):
            list(read_records(folder))
    with pytest.raises(InputError, match=r"has no split '\.\./\.\./etc'; it has: train"):
        list(read_records(folder, split="../../etc"))
    for state in ("{}", "[", '{"_data_files": [{}]}', '{"_data_files": [{"filename": 3}]}', '{"_data_files": 3}'):
        (folder / "train/state.json").write_text(state)
        with pytest.raises(InputError, match="does not say filename as save_to_disk does"):
            list(read_records(folder))
    with pytest.raises(InputError, match=r"has no state\.json, so it is no folder of save_to_disk"):
        list(read_records(tmp_path))
