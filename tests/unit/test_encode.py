"""Rows to ids: sampled ids are kept, foreign text is encoded, nothing is cut, every drop has a reason."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from fusion.errors import ArtifactError, InputError
from fusion.rows import (
    Finish,
    Message,
    PreferencePair,
    PreferenceSet,
    Prompt,
    Response,
    ResponseGroup,
    ScoredResponse,
    SftExample,
    WeightedGroups,
    WeightedPairs,
    WeightedResponses,
)
from fusion.train.encode import encode_rows, load_encoded, save_encoded
from fusion.train.held_out import take

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
    found = [data.row(i).responses["response"][0].tolist() for i in range(3)]
    assert found == [[7, 8, END], [120, 121, END], [120, 121]]  # no end of turn where none was reached
    assert data.row(0).prompt_ids.tolist() == [97, 98, 99]
    assert data.row(0).weight == 0.5
    assert data.num_response_tokens.tolist() == data.weighted_response_tokens.tolist() == [3, 3, 2]
    assert data.shares("response").tolist() == [1, 1, 1] and data.groups("response").tolist() == [0, 0, 0]
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
        assert found.row(0).responses["chosen"][0].tolist() == [49, 50, 51, 52, END]
        assert found.num_tokens.tolist() == [3 + 5 + 3 + 2]
        assert found.num_shared_tokens.tolist() == [3 + 5 + 2]
        assert found.scores("rejected").tolist() == [1.0]


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


def test_groups_of_any_size_are_stored(tmp_path: Path) -> None:
    """Two groups of 2 and 3 answers: ids and scores come back per answer; tables are filled with 0."""

    def group(name: str, *texts: str) -> ResponseGroup:
        return ResponseGroup(prompt(name), tuple(answer(name, t, score=float(len(t))) for t in texts), weight=0.5)

    data = encode_rows(
        [group("a", "1", "22"), group("b", "1", "333", "22")], ByteChat(), row_type=ResponseGroup, max_length=8
    )
    save_encoded(data, tmp_path / "e.parquet")
    for found in (data, load_encoded(tmp_path / "e.parquet")):
        assert [ids.tolist() for ids in found.row(1).responses["responses"]] == [
            [49, END],
            [51, 51, 51, END],
            [50, 50, END],
        ]
        assert found.row(0).scores == {"responses": (1.0, 2.0)}
        assert found.scores("responses").tolist() == [[1, 2, 0], [1, 3, 2]]
        assert found.num_responses.tolist() == [2, 3] and found.num_responses_of("responses").tolist() == [2, 3]
        assert found.num_response_tokens.tolist() == [2 + 3, 2 + 4 + 3]
        assert found.num_tokens.tolist() == [2 * 3 + 5, 3 * 3 + 9]
        assert found.num_shared_tokens.tolist() == [3 + 5, 3 + 9]
        assert found.longest.tolist() == [3 + 3, 3 + 4]
        assert found.group_roles == {"responses"}


def test_weights_and_groups_are_stored_with_their_responses(tmp_path: Path) -> None:
    """Tables are filled with 0; tokens count with their share: 0.75 * (1 + 1) + 0.25 * (3 + 1) = 2.5, one alone 2."""

    def both(name: str, *texts: str) -> tuple[ScoredResponse, ...]:
        return tuple(answer(name, text, score=float(9 - place)) for place, text in enumerate(texts))

    answers = [
        WeightedResponses(prompt("a"), both("a", "1", "333"), (0.75, 0.25)),
        WeightedResponses(prompt("b"), both("b", "1"), (1.0,)),
    ]
    pairs = [
        WeightedPairs(prompt("a"), both("a", "1", "333"), both("a", *"xyz")[1:], (0.75, 0.25)),
        WeightedPairs(prompt("b"), both("b", "1"), both("b", "x", "22")[1:], (1.0,)),
    ]
    groups = [
        WeightedGroups(prompt("a"), both("a", *"vwxyz"), (0, 0, 1, 1, 1), (0.75, 0.25)),
        WeightedGroups(prompt("b"), both("b", *"yz"), (0, 0), (1.0,)),
    ]
    expected = {
        "responses": ([[0.75, 0.25], [1, 0]], [[0, 0], [0, 0]], [2.5, 2]),
        "chosen": ([[0.75, 0.25], [1, 0]], [[0, 0], [0, 0]], [0.75 * 4 + 0.25 * 6, 5]),
        "rejected": ([[0.75, 0.25], [1, 0]], [[0, 0], [0, 0]], [0.75 * 4 + 0.25 * 6, 5]),
        "all": ([[0.75, 0.75, 0.25, 0.25, 0.25], [1, 1, 0, 0, 0]], [[0, 0, 1, 1, 1], [0] * 5], [4.5, 4]),
    }
    cases = [(answers, "responses", "responses"), (pairs, "chosen", "chosen"), (pairs, "rejected", "rejected")]
    for rows, role, name in [*cases, (groups, "responses", "all")]:
        shares, numbers, tokens = expected[name]
        data = encode_rows(rows, ByteChat(), row_type=type(rows[0]), max_length=8)
        save_encoded(data, tmp_path / "e.parquet")
        for stored, order in ((data, [0, 1]), (load_encoded(tmp_path / "e.parquet"), [0, 1]), (data, [1, 0])):
            found = take(stored, np.array(order))
            assert found.shares(role).tolist() == [shares[n] for n in order]
            assert found.groups(role).tolist() == [numbers[n] for n in order]
            assert found.weighted_response_tokens.tolist() == [tokens[n] for n in order]
        first = data.row(0)
        assert first.shares[role] == tuple(shares[0]) and first.groups[role] == tuple(numbers[0])
        assert take(data, np.array([1])).weighted_response_tokens.tolist() == [tokens[1]]


def test_one_long_answer_drops_the_whole_group() -> None:
    row = ResponseGroup(prompt("a"), (answer("a", "1"), answer("a", "12345")))
    data = encode_rows([row], ByteChat(), row_type=ResponseGroup, max_length=8)
    assert [(d.reason, d.detail) for d in data.dropped] == [
        ("too_long", "prompt 3 + responses 6 tokens > max_length 8")
    ]


def test_a_set_may_have_nothing_in_a_role() -> None:
    def of(name: str, model: str, score: float) -> ScoredResponse:
        return ScoredResponse(Response(name, model, 0, "sample", model, (), Finish.stop, 0, 3, "foreign"), score, "s")

    rows = [
        PreferenceSet(prompt("a"), (of("a", "x", 3.0),), of("a", "sft", 2.0), (), of("a", "sft", 1.0)),
        PreferenceSet(
            prompt("b"), (of("b", "x", 3.0),), of("b", "sft", 2.0), (of("b", "y", 0.0),), of("b", "sft", 1.0)
        ),
    ]
    data = encode_rows(rows, ByteChat(), row_type=PreferenceSet, max_length=20)
    assert data.row(0).responses["source_rejected"] == ()
    assert data.scores("source_rejected").tolist() == [[0.0], [0.0]]
    assert data.num_responses.tolist() == [3, 4]
