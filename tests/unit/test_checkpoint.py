"""Which checkpoint is believed; and metrics files across a resume. The writing itself is tested with DeepSpeed."""

import json
import logging
from pathlib import Path

import pytest

pytest.importorskip("torch")

from fusion.artifact import file_sha256, write_json
from fusion.errors import StageError
from fusion.train.checkpoint import META, CheckpointMeta, _check_fits, name_of, newest_complete
from fusion.train.metrics import MetricsWriter, read_metrics


def make(directory: Path, step: int) -> Path:
    path = directory / name_of(step)
    (path / "engine").mkdir(parents=True)
    names = ["engine/model_states.pt", "engine/optim_states.pt"]
    for name in names:
        (path / name).write_bytes(f"{name} {step}".encode() * 50)
    digests = {name: file_sha256(path / name) for name in names}
    meta = CheckpointMeta(step=step, num_tokens=9, world_size=2, zero_stage=2, identity="abc", files=digests)
    write_json(path / META, meta.model_dump())
    return path


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[7] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "bit flip": lambda p: flip(p / "engine/optim_states.pt"),
    "truncation": lambda p: (p / "engine/optim_states.pt").write_bytes(b"x"),
    "deletion": lambda p: (p / "engine/model_states.pt").unlink(),
    "foreign file": lambda p: (p / "engine/other.pt").write_bytes(b"x"),
    "no meta": lambda p: (p / META).unlink(),
    "torn meta": lambda p: (p / META).write_bytes((p / META).read_bytes()[:20]),
    "swapped": lambda p: (p / "engine/model_states.pt").rename(p / "engine/optim_states.pt"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_newest_is_passed_over_and_named(tmp_path: Path, caplog, damage: str) -> None:
    good, bad = make(tmp_path, 40), make(tmp_path, 100)
    (tmp_path / ".step_000120.tmp").mkdir()  # a kill while writing
    assert newest_complete(tmp_path)[0] == bad  # type: ignore[index]
    DAMAGES[damage](bad)
    with caplog.at_level(logging.WARNING):
        found = newest_complete(tmp_path)
    assert found is not None and found[0] == good and found[1].step == 40
    assert str(bad) in caplog.text


def test_steps_are_ordered_as_numbers(tmp_path: Path) -> None:
    make(tmp_path, 999_999)
    assert newest_complete(tmp_path)[0] != make(tmp_path, 1_000_000)  # type: ignore[index]
    assert newest_complete(tmp_path)[1].step == 1_000_000  # type: ignore[index]
    assert newest_complete(tmp_path / "none") is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"world_size": 4}, r"written by 2 workers and this run has 4.*set placement.train.workers=2"),
        ({"zero_stage": 3}, r"written with ZeRO-2 and this run has ZeRO-3.*set placement.train.zero_stage=2"),
        ({"identity": "xyz"}, r"another training config or other rows; remove"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path, change: dict, message: str) -> None:
    meta = newest_complete(make(tmp_path, 40).parent)[1]  # type: ignore[index]
    fits = {"identity": "abc", "world_size": 2, "zero_stage": 2}
    _check_fits(tmp_path, meta, **fits)
    with pytest.raises(StageError, match=message):
        _check_fits(tmp_path, meta, **{**fits, **change})


def test_metrics_of_steps_that_are_done_again_are_removed(tmp_path: Path) -> None:
    with MetricsWriter(tmp_path, steps_done=0) as writer:
        for step in (1, 2, 3):
            writer.write(step, {"loss": float(step)})
    with (tmp_path / "metrics.jsonl").open("a") as handle:
        handle.write('{"step": 4, "lo')  # killed while writing
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2, 3]
    with MetricsWriter(tmp_path, steps_done=2) as writer:
        writer.write(3, {"loss": float("nan")})
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 2.0}, {"step": 3, "loss": None}]
