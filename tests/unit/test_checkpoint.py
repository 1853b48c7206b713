"""Which checkpoint is believed, what is refused by name, which ones stay; and metrics files across a resume."""

import json
from pathlib import Path

import pytest

from fusion.artifact import file_sha256, write_json
from fusion.errors import StageError
from fusion.train.checkpoint import (
    META,
    CheckpointMeta,
    check_fits,
    commit,
    evaluations,
    fault_of,
    look_up,
    name_of,
    newest_complete,
    set_aside,
)
from fusion.train.held_out import to_keep
from fusion.train.identity import RunIdentity
from fusion.training import HeldOut

IDENTITY = RunIdentity(
    config={"learning_rate": 1e-3, "loss": {"type": "dpo", "beta": 0.1}},
    files={"encoded.parquet": "aa", "reference.npz": "bb"},
    model="cc",
)


def meta_of(step: int, evaluation: dict[str, float] | None = None) -> CheckpointMeta:
    return CheckpointMeta(
        step=step, num_tokens=9, world_size=2, zero_stage=2, identity=IDENTITY, evaluation=evaluation, files={}
    )


def make(directory: Path, step: int, evaluation: dict[str, float] | None = None) -> Path:
    path = directory / name_of(step)
    (path / "engine").mkdir(parents=True)
    names = ["engine/model_states.pt", "engine/optim_states.pt"]
    for name in names:
        (path / name).write_bytes(f"{name} {step}".encode() * 50)
    digests = {name: file_sha256(path / name) for name in names}
    write_json(path / META, meta_of(step, evaluation).model_copy(update={"files": digests}).model_dump())
    return path


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[7] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "bit flip": (lambda p: flip(p / "engine/optim_states.pt"), "engine/optim_states.pt is damaged"),
    "truncation": (lambda p: (p / "engine/optim_states.pt").write_bytes(b"x"), "engine/optim_states.pt is damaged"),
    "deletion": (lambda p: (p / "engine/model_states.pt").unlink(), "files differ from meta.json: engine/model_states"),
    "foreign file": (lambda p: (p / "engine/other.pt").write_bytes(b"x"), "files differ from meta.json: engine/other"),
    "no meta": (lambda p: (p / META).unlink(), "meta.json is missing or unreadable"),
    "torn meta": (lambda p: (p / META).write_bytes((p / META).read_bytes()[:20]), "meta.json is missing or unreadable"),
    "swapped": (
        lambda p: (p / "engine/model_states.pt").rename(p / "engine/optim_states.pt"),
        "files differ from meta",
    ),
    "of another step": (lambda p: p.rename(p.with_name(name_of(110))), "meta.json is of step 100"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_newest_is_passed_over_and_named(tmp_path: Path, damage: str) -> None:
    good, bad = make(tmp_path, 40), make(tmp_path, 100)
    (tmp_path / ".step_000120.tmp").mkdir()  # a kill while writing
    assert look_up(tmp_path).found[0] == bad  # type: ignore[index]
    do, fault = DAMAGES[damage]
    do(bad)
    result = look_up(tmp_path)
    assert result.found is not None and result.found[0] == good and result.found[1].step == 40
    (named,) = result.damaged
    assert named.fault.startswith(fault) and named.path.parent == tmp_path
    assert fault_of(good) is None and fault_of(named.path) == named.fault


def test_damaged_checkpoints_are_set_aside_and_never_removed(tmp_path: Path) -> None:
    first = set_aside(make(tmp_path, 40))
    second = set_aside(make(tmp_path, 40))
    assert (first.name, second.name) == ("damaged_step_000040", "damaged_step_000040_2")
    commit(tmp_path, meta_of(50), lambda folder: (folder / "x").write_text("1"), keep=lambda known: {50})
    assert first.exists() and second.exists()
    assert newest_complete(tmp_path)[1].step == 50  # type: ignore[index]


def test_steps_are_ordered_as_numbers(tmp_path: Path) -> None:
    make(tmp_path, 999_999)
    assert newest_complete(tmp_path)[0] != make(tmp_path, 1_000_000)  # type: ignore[index]
    assert newest_complete(tmp_path)[1].step == 1_000_000  # type: ignore[index]
    assert newest_complete(tmp_path / "none") is None


OTHER = {
    "learning rate": (
        {"config": {"learning_rate": 0.01, "loss": {"type": "dpo", "beta": 0.1}}},
        "learning_rate was 0.001 and is 0.01",
    ),
    "loss": ({"config": {"learning_rate": 1e-3, "loss": {"type": "dpo", "beta": 0.2}}}, "loss.beta was 0.1 and is 0.2"),
    "field": ({"config": {**IDENTITY.config, "seed": 1}}, "seed was absent and is 1"),
    "data file": (
        {"files": {"encoded.parquet": "ab", "reference.npz": "bb"}},
        "the data file encoded.parquet has changed",
    ),
    "reference": ({"files": {"encoded.parquet": "aa"}}, "the data file reference.npz has changed"),
    "model": ({"model": "cd"}, "it was written for another model: the files of the start model differ"),
}


@pytest.mark.parametrize("what", OTHER)
def test_a_checkpoint_of_another_run_is_refused_by_what_differs(tmp_path: Path, what: str) -> None:
    path = make(tmp_path, 40)
    meta = newest_complete(tmp_path)[1]  # type: ignore[index]
    check_fits(path, meta, identity=IDENTITY, world_size=2, zero_stage=2)
    change, text = OTHER[what]
    with pytest.raises(
        StageError, match=f"does not belong to this run: {text}. Put that back to go on, or remove {tmp_path}"
    ):
        check_fits(path, meta, identity=IDENTITY.model_copy(update=change), world_size=2, zero_stage=2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"world_size": 4}, r"written by 2 workers and this run has 4.*set placement.train.workers=2"),
        ({"zero_stage": 3}, r"written with ZeRO-2 and this run has ZeRO-3.*set placement.train.zero_stage=2"),
    ],
)
def test_another_placement_is_refused_with_what_to_set(tmp_path: Path, change: dict, message: str) -> None:
    path = make(tmp_path, 40)
    meta = newest_complete(tmp_path)[1]  # type: ignore[index]
    fits = {"identity": IDENTITY, "world_size": 2, "zero_stage": 2}
    check_fits(path, meta, **fits)
    with pytest.raises(StageError, match=message):
        check_fits(path, meta, **{**fits, **change})


def test_the_newest_and_the_best_and_those_to_choose_from_stay(tmp_path: Path) -> None:
    """Losses 0.5, 0.2, 0.4, 0.3 at steps 10 to 40: the best is step 20, the newest is 45 (between evaluations)."""
    for step, loss in ((10, 0.5), (20, 0.2), (30, 0.4), (40, 0.3)):
        make(tmp_path, step, {"loss": loss})
    make(tmp_path, 45)
    known = evaluations(tmp_path)
    assert known == {10: {"loss": 0.5}, 20: {"loss": 0.2}, 30: {"loss": 0.4}, 40: {"loss": 0.3}, 45: None}
    last = HeldOut(rows=4, every=10)
    best = HeldOut(rows=4, every=10, keep="best", among=2)
    assert to_keep(known, None, newest=1) == {45}
    assert to_keep(known, last, newest=1) == {45, 20}
    assert to_keep(known, best, newest=1) == {45, 20, 30, 40}
    commit(
        tmp_path, meta_of(46), lambda folder: (folder / "x").write_text("1"), keep=lambda k: to_keep(k, last, newest=2)
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step_000020", "step_000045", "step_000046"]


def test_metrics_of_steps_that_are_done_again_are_removed(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from fusion.train.metrics import MetricsWriter, read_metrics

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
