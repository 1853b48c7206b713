"""Places where nothing can be written: one line and exit code 2, on every way to a file; a full disk is none of them."""

import errno
import os
import tempfile
from pathlib import Path

import pytest

from fusion.artifact import atomic_file, make_folder, try_writing, write_json
from fusion.config import Config
from fusion.errors import InputError
from fusion.stage import Stage, StageResult, run_stage
from jobs.layout_driver import export_rows, import_rows


def unusable(root: Path) -> list[Path]:
    """Places under a file, and one in a file system that takes no files of ours, also from root."""
    (root / "file").write_text("precious")
    return [root / "file" / "x.json", root / "file" / "sub" / "x.json", Path("/proc/fuseline/x.json")]


def test_a_file_where_there_can_be_none_is_a_mistake_and_one_line(tmp_path):
    for place in unusable(tmp_path):
        for write in (lambda p: write_json(p, {}), lambda p: make_folder(p / "deeper")):
            with pytest.raises(InputError, match=r"cannot be written \(.+\); name another place") as caught:
                write(place)
            assert str(caught.value).startswith(str(place)) and "\n" not in str(caught.value)
            assert caught.value.exit_code == 2 and ".tmp" not in str(caught.value)
        with pytest.raises(OSError, match=r"Not a directory|File exists|No such file"):
            try_writing(place)
    assert (tmp_path / "file").read_text() == "precious"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_full_or_failing_disk_is_no_mistake(tmp_path, monkeypatch, number):
    def full(**_: object) -> None:
        raise OSError(number, os.strerror(number), str(tmp_path))

    monkeypatch.setattr(tempfile, "mkstemp", full)
    with pytest.raises(OSError, match=os.strerror(number)) as caught:
        write_json(tmp_path / "x.json", {})
    assert not isinstance(caught.value, InputError)


def test_what_fails_while_a_file_is_written_is_no_mistake(tmp_path):
    with pytest.raises(PermissionError), atomic_file(tmp_path / "x.json"):
        raise PermissionError(errno.EACCES, "the input cannot be read")
    assert not list(tmp_path.iterdir())


def test_imports_and_exports_say_that_a_place_is_none(tmp_path):
    source = tmp_path / "p.jsonl"
    source.write_text('{"prompt": "q", "chosen": "a", "rejected": "b"}\n')
    import_rows([source], "trl", tmp_path / "in")
    (tmp_path / "a.parquet").write_bytes(b"precious")
    for out in (tmp_path / "a.parquet/sub/q.parquet", tmp_path / "a.parquet/sub/folder", Path("/proc/fuseline.jsonl")):
        with pytest.raises(InputError, match="cannot be written"):
            export_rows([tmp_path / "in"], "trl", out)
    for out in (tmp_path / "a.parquet/sub", Path("/proc/fuseline")):
        with pytest.raises(InputError, match="cannot be written"):
            import_rows([source], "trl", out)
    assert (tmp_path / "a.parquet").read_bytes() == b"precious"


def test_a_store_that_can_be_none_is_a_mistake(tmp_path):
    stage = Stage(
        kind="k", slug="s", version=1, config=Config(), inputs={}, run=lambda ctx: StageResult(rows_in=0), row_type=None
    )
    (tmp_path / "file").write_text("precious")
    with pytest.raises(InputError, match=r"cannot be written \(.*Not a directory|File exists"):
        run_stage(stage, tmp_path / "file", inputs={}, report=lambda _: None, resume_command="again")
