"""N steps = k steps + SIGKILL + resume, bit for bit; and what happens to damaged, foreign and hopeless trainings.

Real ranks with DeepSpeed and gloo, but without Ray, whose own part is in test_train.py.
"""

import json
import math
import shutil
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("deepspeed")

from safetensors.torch import load_file  # noqa: E402

from fusion.errors import StageError  # noqa: E402
from fusion.losses import SftLoss, WrpoLoss  # noqa: E402
from fusion.rows import SftExample  # noqa: E402
from fusion.train.checkpoint import newest_complete  # noqa: E402
from fusion.train.metrics import read_metrics  # noqa: E402
from fusion.train.notices import ALARMS, WARNINGS, read_notices  # noqa: E402
from fusion.training import HeldOut, TrainConfig  # noqa: E402
from test_train import CPU, make_model, prompt, quadruples, scored, sft_rows  # noqa: E402
from train_ranks import Ranks  # noqa: E402

pytestmark = pytest.mark.ray  # real components on CPU

WRPO = TrainConfig(
    loss=WrpoLoss.model_validate({"beta": 0.1, "alpha": {"from": 0.0, "to": 0.5}}),
    learning_rate=1e-3,
    global_batch=5,
    max_length=200,
    epochs=2,
    seed=5,
    held_out=HeldOut(rows=4, every=4, keep="best", alpha=0.25),
)
SFT = TrainConfig(loss=SftLoss(), learning_rate=3e-3, global_batch=5, max_length=200, epochs=2, seed=1)
ROWS = {"sft": sft_rows(20), "wrpo": quadruples(20)}
CONFIGS = {"sft": SFT, "wrpo": WRPO}
PLACEMENT = CPU.model_copy(update={"checkpoint_every_steps": 2})


def reference(rows: list) -> dict:
    """Some numbers for a reference: equal for all runs, which is all that matters here."""
    roles = ("source_chosen", "target_chosen", "rejected")
    return {row.row_id: {role: (-20.0 - i - n,) for n, role in enumerate(roles)} for i, row in enumerate(rows)}


def train(ranks: Ranks, directory: Path, model: Path, config: TrainConfig, *, rows=None, placement=PLACEMENT, **how):
    rows = ROWS[config.loss.type] if rows is None else rows
    known = reference(rows) if config.loss.needs_reference else None
    return ranks.train(directory, model, rows, known, config, placement, **how)


def outcome(directory: Path) -> dict:
    return json.loads((directory / "outcome.json").read_text())


def without_time(directory: Path) -> list[dict]:
    return [{k: v for k, v in line.items() if k != "step_seconds"} for line in read_metrics(directory)]


def assert_same_result(a: Path, b: Path) -> None:
    assert (a / "model/model.safetensors").read_bytes() == (b / "model/model.safetensors").read_bytes()
    assert without_time(a) == without_time(b)
    assert read_notices(a, ALARMS) == read_notices(b, ALARMS)
    assert outcome(a) == outcome(b)


def newest(directory: Path) -> int:
    found = newest_complete(directory / "checkpoints")
    return found[1].step if found else 0


# ---- kills ------------------------------------------------------------------------------------


def has_line(directory: Path, step: int) -> bool:
    return any(line["step"] >= step for line in read_metrics(directory))


MOMENTS = {
    # name: (how it shows that the moment has come, what a restart must then find)
    "before the first checkpoint": (lambda d: has_line(d, 1), lambda d: newest(d) == 0),
    "two steps before the next": (lambda d: has_line(d, 3), lambda d: newest(d) == 2),
    "during a write": (
        lambda d: (d / "checkpoints/.step_000004.tmp").exists(),
        lambda d: newest(d) < 4 and (d / "checkpoints/.step_000004.tmp").exists(),
    ),
    "after a write": (lambda d: (d / "checkpoints/step_000006").exists(), lambda d: newest(d) == 6),
    "after the last step, before the model is there": (
        lambda d: (d / "checkpoints/step_000008").exists(),
        lambda d: newest(d) == 8 and not (d / "model").exists(),
    ),
}


@pytest.mark.parametrize("loss", ["sft", "wrpo"])
@pytest.mark.parametrize("zero_stage", [1, 2, 3])
def test_killed_and_resumed_is_undisturbed_bit_for_bit(ranks, model_folder, tmp_path, zero_stage, loss) -> None:
    """One run is killed five times: before, during and after the write of a checkpoint, each time at another step."""
    config, placement = CONFIGS[loss], PLACEMENT.model_copy(update={"zero_stage": zero_stage})
    calm, killed, before = tmp_path / "calm", tmp_path / "killed", tmp_path / "before"
    assert train(ranks, calm, model_folder, config, placement=placement) == (0, 0)
    assert outcome(calm)["steps"] == 8
    for moment, (shows, left) in MOMENTS.items():
        for _attempt in range(6):  # a kill may come a few milliseconds late: then the same again from where it was
            shutil.rmtree(before, ignore_errors=True)
            if killed.exists():
                shutil.copytree(killed, before, symlinks=True)
            codes = train(ranks, killed, model_folder, config, placement=placement, kill_when=lambda s=shows: s(killed))
            if codes == (-9, -9) and left(killed):
                break
            shutil.rmtree(killed)
            if before.exists():
                before.rename(killed)
        else:
            pytest.fail(f"no kill {moment} was in time")
    assert not (killed / "model").exists()
    assert train(ranks, killed, model_folder, config, placement=placement) == (0, 0)
    assert_same_result(calm, killed)
    assert read_notices(killed, WARNINGS) == []


# ---- held-out rows ----------------------------------------------------------------------------


def test_evaluations_do_not_touch_the_training(ranks, model_folder, tmp_path) -> None:
    """Other evaluations give the same weights; held-out rows are never trained; any number of workers sees the same."""
    every, often, alone = (tmp_path / name for name in ("every", "often", "alone"))
    config = WRPO.model_copy(update={"held_out": HeldOut(rows=4, every=100, alpha=0.25)})
    assert train(ranks, every, model_folder, config) == (0, 0)
    assert train(ranks, often, model_folder, config.model_copy(update={"held_out": HeldOut(rows=4, every=2)})) == (0, 0)
    assert (every / "model/model.safetensors").read_bytes() == (often / "model/model.safetensors").read_bytes()
    placement = PLACEMENT.model_copy(update={"workers": 1, "tokens_per_micro_batch": 100_000})
    assert train(ranks, alone, model_folder, config, placement=placement) == (0,)
    one, two = read_metrics(every), read_metrics(alone)
    assert [line["step"] for line in one if "eval/loss" in line] == [8]
    assert [line["step"] for line in read_metrics(often) if "eval/loss" in line] == [2, 4, 6, 8]
    assert one[-1]["eval/alpha"] == 0.25 and read_metrics(often)[1]["eval/alpha"] == 0.5  # by default the last step's
    for name in (n for n in one[-1] if n.startswith("eval/")):
        assert one[-1][name] == pytest.approx(two[-1][name], abs=1e-4, rel=1e-4), name
    import pyarrow.parquet as pq

    from fusion.train.held_out import split

    table = pq.read_table(every / "encoded.parquet")
    trained, held_out = split(table["row_id"].to_pylist(), config.held_out, seed=config.seed)
    assert (len(trained), len(held_out)) == (16, 4)
    tokens = [
        sum(len(row["prompt_ids"]) + len(row[role][0]) for role in ("source_chosen", "target_chosen", "rejected"))
        for row in table.to_pylist()
    ]
    assert one[-1]["num_tokens"] == config.epochs * sum(tokens[row] for row in trained)


DIVERGING = SFT.model_copy(
    update={
        "learning_rate": 1.0,
        "schedule": "constant",
        "held_out": HeldOut(rows=5, every=2, keep="best"),
    }
)
"""Steps so large that every one makes the model worse, so that the best of the last two evaluations is not the last."""


@pytest.fixture(scope="module", params=[2, 3])
def diverged(request, ranks, model_folder, tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("diverged")
    placement = PLACEMENT.model_copy(update={"zero_stage": request.param})
    assert train(ranks, directory, model_folder, DIVERGING, placement=placement) == (0, 0)
    return directory


def test_the_best_of_the_last_two_evaluations_is_kept(diverged) -> None:
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    losses = {line["step"]: line["eval/loss"] for line in read_metrics(diverged) if "eval/loss" in line}
    assert losses[2] < losses[4] < losses[6], "the example must get worse"
    assert outcome(diverged)["kept_step"] == 4 and outcome(diverged)["steps"] == 6
    stored = get_fp32_state_dict_from_zero_checkpoint(str(diverged / "checkpoints/step_000004"), tag="engine")
    for name, weight in load_file(diverged / "model/model.safetensors").items():
        assert torch.equal(weight, stored[f"model.{name}"]), name
    kept = {path.name for path in (diverged / "checkpoints").iterdir()}
    assert kept == {"step_000002", "step_000004", "step_000006"}, "the best of all, and those to choose from"


def test_a_damaged_best_checkpoint_is_trained_again(ranks, model_folder, diverged, tmp_path) -> None:
    directory, zero_stage = tmp_path / "run", json.loads(newest_meta(diverged))["zero_stage"]
    placement = PLACEMENT.model_copy(update={"zero_stage": zero_stage})
    shutil.copytree(diverged, directory)
    shutil.rmtree(directory / "model")  # as if killed before the model was written
    flip(directory / "checkpoints/step_000004")
    assert train(ranks, directory, model_folder, DIVERGING, placement=placement) == (1, 1)
    assert "the best checkpoint, is damaged" in (directory / "ranks.log").read_text()
    assert newest(directory) == 2
    assert train(ranks, directory, model_folder, DIVERGING, placement=placement) == (0, 0)
    assert_same_result(diverged, directory)
    assert len(read_notices(directory, WARNINGS)) == 2


def newest_meta(directory: Path) -> str:
    return (directory / "checkpoints/step_000006/meta.json").read_text()


# ---- damage -----------------------------------------------------------------------------------


def flip(folder: Path) -> None:
    shard = next(iter(sorted(folder.rglob("*optim_states.pt"))))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)


@pytest.fixture(scope="module")
def begun(ranks, model_folder, tmp_path_factory) -> Path:
    """A WRPO training that was killed with checkpoints 4 and 6 of 8 steps."""
    directory = tmp_path_factory.mktemp("begun")
    checkpoint = directory / "checkpoints/step_000006"
    assert train(ranks, directory, model_folder, WRPO, kill_when=checkpoint.exists) == (-9, -9)
    assert newest(directory) == 6
    return directory


@pytest.fixture(scope="module")
def calm(ranks, model_folder, tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("calm")
    assert train(ranks, directory, model_folder, WRPO) == (0, 0)
    return directory


def test_damaged_checkpoints_cost_time_and_are_said(ranks, model_folder, begun, calm, tmp_path) -> None:
    some, all_ = tmp_path / "some", tmp_path / "all"
    number = len(list((begun / "checkpoints").glob("step_*")))
    for directory, damaged in ((some, ["step_000006"]), (all_, None)):
        shutil.copytree(begun, directory)
        for name in damaged or [path.name for path in (directory / "checkpoints").glob("step_*")]:
            flip(directory / "checkpoints" / name)
        assert train(ranks, directory, model_folder, WRPO) == (0, 0)
        assert_same_result(calm, directory)
    (one,) = read_notices(some, WARNINGS)
    assert one.name == "damaged_checkpoint" and one.step == 4
    assert "step_000006 is damaged (engine/" in one.text and one.text.endswith("training goes on from step 4")
    assert (some / "checkpoints/damaged_step_000006").is_dir()
    every = read_notices(all_, WARNINGS)
    assert len(every) == number >= 2 and all(
        w.text.endswith("no complete one is left, training starts over") for w in every
    )
    assert len(list((all_ / "checkpoints").glob("damaged_*"))) == number


def test_other_models_data_and_settings_are_refused_by_name(ranks, model_folder, begun, tmp_path) -> None:
    directory, other = tmp_path / "run", tmp_path / "other"
    shutil.copytree(begun, directory)
    shutil.copytree(model_folder, other)
    file = other / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)

    def refused(model: Path, config: TrainConfig, known: dict | None = None) -> str:
        rows = ROWS["wrpo"]
        assert ranks.train(directory, model, rows, known or reference(rows), config, PLACEMENT) == (0, 0)
        return outcome(directory)["error"]

    assert "written for another model" in refused(other, WRPO)
    assert "learning_rate was 0.001 and is 0.002" in refused(
        model_folder, WRPO.model_copy(update={"learning_rate": 0.002})
    )
    changed = reference(ROWS["wrpo"])
    changed["p3"]["rejected"] = (-1.0,)
    assert "the data file reference.npz has changed" in refused(model_folder, WRPO, changed)
    with pytest.raises(StageError, match=r"encoded\.parquet was made from other input: rows changed"):
        train(ranks, directory, model_folder, WRPO, rows=quadruples(19))
    encoded = directory / "encoded.parquet"
    original = encoded.read_bytes()
    encoded.write_bytes(original[:-1] + b"x")
    with pytest.raises(StageError, match=r"data file .*encoded.parquet was changed after it was written; remove it"):
        train(ranks, directory, model_folder, WRPO)
    encoded.unlink()
    assert newest(directory) == 6, "nothing was lost by all this"
    assert train(ranks, directory, model_folder, WRPO) == (0, 0)
    assert encoded.read_bytes() == original


# ---- memory -----------------------------------------------------------------------------------


def test_the_memory_estimate_is_within_a_factor_of_the_measurement(ranks, tmp_path) -> None:
    """A model of 11 million parameters, where weights and activations outweigh what libraries take."""
    model = make_model(
        tmp_path / "model", hidden_size=384, intermediate_size=1024, num_hidden_layers=5, vocab_size=4096
    )
    for zero_stage, workers in ((2, 2), (3, 2), (1, 1)):
        placement = PLACEMENT.model_copy(
            update={"zero_stage": zero_stage, "workers": workers, "tokens_per_micro_batch": 1200}
        )
        directory = tmp_path / f"zero{zero_stage}"
        config = SFT.model_copy(update={"epochs": 1, "global_batch": 16})
        rows = [SftExample(prompt(n), scored(f"p{n}", "source", "many words " * 14, 1.0)) for n in range(16)]
        train(ranks, directory, model, config, rows=rows, placement=placement)
        known = json.loads((directory / "memory.json").read_text())
        assert known["estimated"]["total"] > 3 * known["estimated"]["libraries"], "or the test would say little"
        ratio = known["measured"] / known["estimated"]["total"]
        assert 1 / 1.5 < ratio < 1.5, (zero_stage, ratio, known)


def test_too_little_memory_is_said_before_the_start(ranks, tmp_path, model_folder) -> None:
    """A model whose header claims 10^13 parameters; nothing but the header is read before the warning."""
    model = tmp_path / "model"
    shutil.copytree(model_folder, model)
    header = json.dumps({"w": {"dtype": "F32", "shape": [10**7, 10**6], "data_offsets": [0, 0]}}).encode()
    (model / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    directory = tmp_path / "run"
    assert train(ranks, directory, model, SFT) == (1, 1), "it cannot be loaded"
    (warning,) = read_notices(directory, WARNINGS)
    assert warning.name == "memory" and "2 of them on " in warning.text and "use more workers" in warning.text


# ---- hopeless ---------------------------------------------------------------------------------


def test_non_finite_steps_end_the_training_and_lose_nothing(ranks, model_folder, tmp_path) -> None:
    """A rate that overflows: stop after three, the last good checkpoint stays, and a sane rate says what to do."""
    rows, config = ROWS["wrpo"], WRPO.model_copy(update={"held_out": None, "epochs": 3, "learning_rate": 1e30, "warmup_ratio": 0.5, "max_grad_norm": 0.0})  # fmt: skip
    sane = config.model_copy(update={"learning_rate": 1e-3})
    placement = PLACEMENT.model_copy(update={"checkpoint_every_steps": 1})
    assert train(ranks, tmp_path, model_folder, config, rows=rows, placement=placement) == (0, 0)
    error = outcome(tmp_path)["error"]
    assert "loss or gradient is not finite at steps [2, 3, 4]; the last good checkpoint is kept" in error
    assert newest(tmp_path) == 1 and not (tmp_path / "model").exists()
    (alarm,) = [a for a in read_notices(tmp_path, ALARMS) if a.name == "non_finite"]
    assert alarm.step == 2
    assert train(ranks, tmp_path, model_folder, config, rows=rows, placement=placement) == (0, 0)
    assert outcome(tmp_path)["error"] == error, "the same from the last good checkpoint"
    assert train(ranks, tmp_path, model_folder, sane, rows=rows, placement=placement) == (0, 0)
    assert (
        f"learning_rate was 1e+30 and is 0.001. Put that back to go on, or remove {tmp_path / 'checkpoints'}"
        in (outcome(tmp_path)["error"])
    )
    shutil.rmtree(tmp_path / "checkpoints")  # as the message says
    assert train(ranks, tmp_path, model_folder, sane, rows=rows, placement=placement) == (0, 0)
    assert outcome(tmp_path)["steps"] == 12 and math.isfinite(read_metrics(tmp_path)[-1]["loss"])
