"""The data files of a training directory are written once, and a change of them or of the rows is refused by name."""

from pathlib import Path

import pytest

from fusion.errors import StageError
from fusion.rows import SftExample
from fusion.train.data_files import DATA, ENCODED, encoded_once, remove_encoded
from scored import prompt, scored


class Letters:
    """An encoder with one id per byte."""

    tokenizer_hash = "letters"

    def encode_prompt(self, messages) -> tuple[int, ...]:
        return tuple("".join(m.content for m in messages).encode())

    def encode_response(self, messages, text: str, *, finished: bool = True) -> tuple[int, ...]:
        return tuple(text.encode())


def rows(texts: tuple[str, ...] = ("one", "two", "three")) -> list[SftExample]:
    return [SftExample(prompt(f"p{i}"), scored("m", 1.0, prompt_id=f"p{i}", text=t)) for i, t in enumerate(texts)]


def opened(directory: Path, rows_: list[SftExample], *, tokenizer: str = "letters", max_length: int = 50) -> list[str]:
    chat = Letters()
    chat.tokenizer_hash = tokenizer
    return encoded_once(directory, rows_, chat, row_type=SftExample, max_length=max_length).row_ids


def test_the_file_is_written_once_and_read_again(tmp_path: Path) -> None:
    assert opened(tmp_path, rows()) == ["p0", "p1", "p2"]
    before = (tmp_path / ENCODED).stat().st_mtime_ns
    assert opened(tmp_path, rows()) == ["p0", "p1", "p2"]
    assert (tmp_path / ENCODED).stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("now", "what"),
    [
        ({"rows_": rows(("one", "two", "threE"))}, "rows changed"),
        ({"rows_": rows()[:2]}, "rows changed"),
        ({"rows_": rows()[::-1]}, "rows changed"),
        ({"rows_": rows(), "tokenizer": "other"}, "tokenizer changed"),
        ({"rows_": rows()[:2], "max_length": 51}, "rows and max_length changed"),
    ],
)
def test_other_input_is_refused_by_what_changed(tmp_path: Path, now: dict, what: str) -> None:
    opened(tmp_path, rows())
    with pytest.raises(StageError, match=f"{ENCODED} was made from other input: {what} since.*remove {tmp_path}"):
        opened(tmp_path, **now)
    assert opened(tmp_path, rows()) == ["p0", "p1", "p2"], "nothing was lost by the refusal"


def test_a_changed_file_is_refused_and_a_removed_one_is_made_again(tmp_path: Path) -> None:
    opened(tmp_path, rows())
    content = (tmp_path / ENCODED).read_bytes()
    (tmp_path / ENCODED).write_bytes(content.replace(b"p1", b"p9", 1))
    with pytest.raises(StageError, match=f"data file {tmp_path / ENCODED} was changed after it was written; remove it"):
        opened(tmp_path, rows())
    (tmp_path / ENCODED).unlink()
    opened(tmp_path, rows())
    assert (tmp_path / ENCODED).read_bytes() == content, "the same rows give the same bytes"


def test_a_kill_between_the_two_files_costs_the_encoding_only(tmp_path: Path) -> None:
    opened(tmp_path, rows())
    (tmp_path / DATA).unlink()
    assert opened(tmp_path, rows(("other", "rows", "now"))) == ["p0", "p1", "p2"], "as if nothing had been there"
    remove_encoded(tmp_path)
    assert not list(tmp_path.iterdir())
