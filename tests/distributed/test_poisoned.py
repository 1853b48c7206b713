"""A NaN in a file that training reads, through stage, Ray Train and DeepSpeed: one line, and nothing else has happened."""

import contextlib
import math
import os
import shutil
import signal
import threading
from pathlib import Path

import pytest

ray = pytest.importorskip("ray")
pytest.importorskip("deepspeed")

from fusion.chat import ChatConfig  # noqa: E402
from fusion.errors import InputError, StageError  # noqa: E402
from fusion.models import ModelRef, PinnedModel  # noqa: E402
from fusion.rows import ReferenceLogps  # noqa: E402
from fusion.stage import Stage, run_stage  # noqa: E402
from fusion.stages import prefer  # noqa: E402
from fusion.train.checkpoint import newest_complete  # noqa: E402
from fusion.train.metrics import read_metrics  # noqa: E402
from poison import poisoned, store_rows  # noqa: E402
from test_resume import reference  # noqa: E402
from test_train import CPU, WRPO, local_ray, make_model, quadruples, train_workers, wait_for  # noqa: E402

pytestmark = pytest.mark.ray

STEPS = 16
CONFIG = prefer.PreferConfig(train=WRPO.model_copy(update={"epochs": 4}), chat=ChatConfig())
PLACEMENT = CPU.model_copy(update={"checkpoint_every_steps": 1, "max_failures": 0})


@pytest.fixture(scope="module")
def cluster():
    directory = f"/tmp/rp-{os.getpid()}"
    with local_ray(directory):
        yield
    shutil.rmtree(directory, ignore_errors=True)


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@contextlib.contextmanager
def killed_at(checkpoint: Path):
    """Kill a worker once a checkpoint is there."""

    def kill() -> None:
        wait_for(checkpoint.exists, what="checkpoint")
        train_workers(os.getpid())[-1].send_signal(signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    yield
    thread.join()


def test_a_poisoned_file_is_named_and_the_checkpoints_wait_for_the_mended_one(cluster, tmp_path) -> None:
    rows = quadruples(20)
    logps = [ReferenceLogps(row_id, known, dict.fromkeys(known, (1,))) for row_id, known in reference(rows).items()]
    rows_stage, rows_file = store_rows(tmp_path, rows)
    logps_stage, logps_file = store_rows(tmp_path, logps, kind="reference")
    model = PinnedModel("start", ModelRef(path=make_model(tmp_path / "start")), tmp_path / "digests.json")
    stage = Stage(
        kind="prefer",
        slug="wrpo",
        version=prefer.VERSION,
        config=CONFIG,
        inputs={"model": model, "rows": rows_stage, "reference": logps_stage},
        run=prefer.run,
        row_type=None,
        placement=PLACEMENT,
        exclusive=True,
    )

    def run(**changed):
        inputs = {"model": model, "rows": rows_file, "reference": logps_file, **changed}
        return run_stage(stage, tmp_path, inputs=inputs, report=lambda progress: None, resume_command="again")[0]

    directory = stage.directory(tmp_path)
    checkpoints = directory / "checkpoints"
    with killed_at(checkpoints / "step_000002"), pytest.raises(StageError, match="workers failed"):
        run()
    newest, known, lines = newest_complete(checkpoints), content(checkpoints), read_metrics(directory)
    assert newest is not None and 2 <= newest[1].step < STEPS, "the kill came too late to mean anything"

    for name, file, place, value, text in (
        ("rows", rows_file, ("weight",), math.nan, "row p8: weight nan is not a finite number of 0 or more"),
        ("rows", rows_file, ("target_chosen", "score"), math.inf, "row p8/sft/0: score inf is not finite"),
        ("reference", logps_file, ("logps", "rejected", 0), math.nan, r"row p8: .*\(nan,\) of rejected are not finite"),
    ):
        with poisoned(file, 1, 1, place, value) as bad:
            with pytest.raises(InputError, match=rf"^{file.path}/part-00001.parquet: {text}") as caught:
                run(**{name: bad})
        assert caught.value.exit_code == 2
        assert content(checkpoints) == known and not (directory / "model").exists()

    artifact = run()
    assert artifact.manifest.notes["steps"] == STEPS and artifact.manifest.rows_out == 20
    done = newest[1].step
    again = read_metrics(directory)
    assert [line["step"] for line in again] == list(range(1, STEPS + 1))
    assert again[:done] == lines[:done], "with their times: these steps were not taken again"
