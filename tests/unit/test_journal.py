"""The journal of an actor: deaths make suspects, suspects stand alone in the end, finished rows stay."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusion.stages.journal import (
    FOLDER,
    Attempt,
    Group,
    Sampled,
    Starts,
    groups_of,
    read_past,
    remove_journal,
    remove_torn,
)

DIE = """
import os, sys
from pathlib import Path
from fusion.stages.journal import Attempt, Sampled
attempt = Attempt(Path(sys.argv[1]), 7, run=sys.argv[2])
attempt.begin([int(row) for row in sys.argv[3].split(",")])
attempt.finish([Sampled(int(row), (5, 6), "stop") for row in sys.argv[4].split(",") if row])
if len(sys.argv) > 5:
    attempt.crash(sys.argv[5])
os.kill(os.getpid(), 9)
"""


def die(directory: Path, run: str, begun: str, finished: str, *words: str) -> None:
    """An attempt at chunk 7 in a process of its own that is killed with SIGKILL."""
    command = [sys.executable, "-c", DIE, str(directory), run, begun, finished, *words]
    assert subprocess.run(command, check=False).returncode == -9


def test_rows_in_the_engine_at_a_death_are_suspects_and_finished_ones_are_kept(tmp_path: Path) -> None:
    die(tmp_path, "a", "0,1,2,3", "1,3", "RuntimeError: boom")
    past = read_past(tmp_path, 7, run="a")
    assert past.crashes == Counter({0: 1, 2: 1})
    assert past.finished == {row: Sampled(row, (5, 6), "stop") for row in (1, 3)}
    assert past.last_words == "RuntimeError: boom"
    assert read_past(tmp_path, 8, run="a").crashes == Counter()


def test_the_last_attempt_of_an_earlier_driver_is_not_held_against_its_rows(tmp_path: Path) -> None:
    die(tmp_path, "a", "0,1", "")
    die(tmp_path, "a", "0", "")
    past = read_past(tmp_path, 7, run="b")
    assert past.crashes == Counter({0: 1, 1: 1}), "only the first died under a driver that lived on"
    assert read_past(tmp_path, 7, run="a").crashes == Counter({0: 2, 1: 1})


def test_a_living_or_ended_attempt_is_no_death(tmp_path: Path) -> None:
    living, ended = Attempt(tmp_path, 7, run="a"), Attempt(tmp_path, 7, run="a")
    living.begin([0])
    ended.begin([1])
    ended.close()
    assert read_past(tmp_path, 7, run="a").crashes == Counter()
    living.close()


def test_a_torn_last_line_is_left_out_and_a_torn_line_before_it_is_an_error(tmp_path: Path) -> None:
    die(tmp_path, "a", "0,1", "")
    (file,) = (tmp_path / FOLDER).iterdir()
    whole = file.read_text()
    file.write_text(whole + '{"finished": [[0, [1, 2')
    assert read_past(tmp_path, 7, run="a").crashes == Counter({0: 1, 1: 1})
    file.write_text('{"begi\n' + whole)
    with pytest.raises(ValueError):
        read_past(tmp_path, 7, run="a")


def test_every_line_is_on_the_disk_when_its_call_returns(tmp_path: Path) -> None:
    attempt = Attempt(tmp_path, 7, run="a")
    attempt.begin([3])
    assert [json.loads(line) for line in attempt.path.read_text().splitlines()] == [{"run": "a"}, {"begin": [3]}]
    attempt.close()


def test_commit_removes_dead_attempts_but_no_living_one(tmp_path: Path) -> None:
    die(tmp_path, "a", "0", "")
    other, mine = Attempt(tmp_path, 7, run="b"), Attempt(tmp_path, 7, run="a")
    mine.commit()
    assert list((tmp_path / FOLDER).iterdir()) == [other.path]
    remove_journal(tmp_path)
    assert other.path.exists(), "another driver is at work"
    other.close()
    remove_journal(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_half_written_files_go_when_nobody_can_be_writing_them(tmp_path: Path) -> None:
    torn, foreign = tmp_path / ".part-00007.parquet.x1.tmp", tmp_path / ".part-00008.parquet.x1.tmp"
    torn.touch()
    foreign.touch()
    attempt = Attempt(tmp_path, 7, run="a")
    remove_torn(tmp_path, 7)
    assert torn.exists()
    attempt.close()
    remove_torn(tmp_path, 7)
    assert not torn.exists()
    assert foreign.exists()


@given(st.dictionaries(st.integers(0, 200), st.integers(0, 2), max_size=80))
def test_groups_hold_every_row_once_and_suspects_apart(crashes: dict[int, int]) -> None:
    counts = Counter(crashes)
    groups = groups_of(sorted(crashes), counts)
    assert sorted(row for group in groups for row in group.rows) == sorted(crashes)
    once = sum(n == 1 for n in crashes.values())
    for group in groups:
        (level,) = {counts[row] for row in group.rows}
        assert group.alone == (level > 0)
        assert level < 2 or len(group.rows) == 1
        assert level != 1 or len(group.rows) ** 2 <= once


def test_a_poison_row_is_found_with_few_engines_and_nothing_else_is_lost() -> None:
    poison, rows, crashes, engines = {17, 18, 90}, set(range(100)), Counter(), 0
    finished: set[int] = set()
    while todo := [r for r in sorted(rows - finished) if crashes[r] < 3]:
        engines += 1
        for group in groups_of(todo, crashes):
            if poison & set(group.rows):
                crashes.update(group.rows)
                break
            finished |= set(group.rows)
    assert finished == rows - poison
    assert engines == 1 + 2 + 3 + 1, "all together, two groups with a poison row, each such row alone, and the rest"


def test_groups_of_is_plain_without_crashes() -> None:
    assert groups_of(range(5), Counter()) == [Group((0, 1, 2, 3, 4), alone=False)]


def test_starts_are_counted_from_the_last_progress(tmp_path: Path) -> None:
    assert [Starts(tmp_path, run="a").begin() for _ in range(3)] == [0, 1, 2]
    working = Starts(tmp_path, run="a")
    assert working.begin() == 3
    working.progress()
    working.progress()
    assert Starts(tmp_path, run="a").begin() == 0
    assert Starts(tmp_path, run="b").begin() == 0
    assert [p.name for p in tmp_path.iterdir()] == [FOLDER]
