"""Rows to ids: sampled ids are kept, foreign text is encoded, nothing is cut, every drop has a reason."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from fusion.errors import ArtifactError, InputError
from fusion.rows import Finish, Message, PreferencePair, Prompt, Response, ScoredResponse, SftExample
from fusion.train.encode import encode_rows, load_encoded, save_encoded

END = 256


class ByteChat:
    """One id per byte; the end of turn is 256. Real templates are tested with `fusion.chat`."""

    tokenizer_hash = "own"

    def encode_prompt(self, messages: Sequence[Message]) -> tuple[int, ...]:
        return tuple("".join(m.content for m in messages).encode())

    def encode_response(self, messages: Sequence[Message], text: str, *, finished: bool = True) -> tuple[int, ...]:
        if "\x00" in text:
            raise InputError("the response holds a character without a token")
        return (*text.encode(), END) if finished else tuple(text.encode())


def prompt(name: str) -> Prompt:
    return Prompt(name, "math", (Message("user", "abc"),))


def answer(name: str, text: str, *, score: float = 1.0, tokenizer: str = "foreign", ids=(), finish=Finish.stop):
    return ScoredResponse(Response(name, "m", 0, "sample", text, ids, finish, 0, 3, tokenizer), score, "s")


def sft(name: str, text: str, **facts) -> SftExample:
    return SftExample(prompt(name), answer(name, text, **facts), weight=0.5)


def test_own_ids_are_kept_and_foreign_text_is_encoded() -> None:
    rows = [
        sft("a", "xy", tokenizer="own", ids=(7, 8, END)),
        sft("b", "xy"),
        sft("c", "xy", finish=Finish.length),
    ]
    data = encode_rows(rows, ByteChat(), row_type=SftExample, max_length=10)
    found = [data.row(i).responses["response"].tolist() for i in range(3)]
    assert found == [[7, 8, END], [120, 121, END], [120, 121]]  # no end of turn where none was reached
    assert data.row(0).prompt_ids.tolist() == [97, 98, 99]
    assert data.row(0).weight == 0.5
    assert data.num_response_tokens.tolist() == [3, 3, 2]
    assert data.longest.tolist() == [6, 6, 5]


def test_rows_are_dropped_whole_with_a_reason(tmp_path: Path) -> None:
    """max_length 8 = prompt 3 + text 4 + end of turn: one side too long drops the pair, nothing is cut."""

    def pair(name: str, chosen: str, rejected: str) -> PreferencePair:
        return PreferencePair(prompt(name), answer(name, chosen, score=2.0), answer(name, rejected, score=1.0))

    rows = [
        pair("fits", "1234", "1"),
        pair("long", "12345", "1"),
        pair("empty", "1", ""),
        pair("odd", "1", "\x00"),
    ]
    data = encode_rows(rows, ByteChat(), row_type=PreferencePair, max_length=8)
    save_encoded(data, tmp_path / "encoded.parquet")
    again = load_encoded(tmp_path / "encoded.parquet")
    for found in (data, again):
        assert found.row_ids == ["fits"] and found.rows_in == 4 and len(found) == 1
        assert [(d.row_id, d.reason) for d in found.dropped] == [
            ("long", "too_long"),
            ("empty", "empty_response"),
            ("odd", "unencodable"),
        ]
        assert found.dropped[0].detail == "prompt 3 + chosen 6 tokens > max_length 8"
        assert found.row(0).responses["chosen"].tolist() == [49, 50, 51, 52, END]
        assert found.num_tokens.tolist() == [3 + 5 + 3 + 2]


def test_no_row_at_all_can_be_stored(tmp_path: Path) -> None:
    data = encode_rows([sft("a", "")], ByteChat(), row_type=SftExample, max_length=8)
    save_encoded(data, tmp_path / "e.parquet")
    assert len(load_encoded(tmp_path / "e.parquet")) == 0


def test_a_torn_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "encoded.parquet"
    save_encoded(encode_rows([sft("a", "x")], ByteChat(), row_type=SftExample, max_length=8), path)
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(ArtifactError, match=r"encoded.parquet is not a readable Parquet file"):
        load_encoded(path)
