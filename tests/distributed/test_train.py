"""Training under Ray Train and DeepSpeed on two CPU workers: equal results, and nothing lost to kills."""

import contextlib
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

ray = pytest.importorskip("ray")
torch = pytest.importorskip("torch")

from safetensors.torch import load_file  # noqa: E402
from transformers import Qwen2Config, Qwen2ForCausalLM  # noqa: E402

from fusion.artifact import read_part  # noqa: E402
from fusion.chat import Chat, ChatConfig  # noqa: E402
from fusion.errors import StageError  # noqa: E402
from fusion.losses import DpoLoss, SftLoss, WrpoLoss  # noqa: E402
from fusion.row_tables import from_table  # noqa: E402
from fusion.rows import (  # noqa: E402
    Finish,
    Message,
    PreferencePair,
    PreferenceQuadruple,
    Prompt,
    ReferenceLogps,
    Response,
    ScoredResponse,
    SftExample,
)
from fusion.train.checkpoint import newest_complete  # noqa: E402
from fusion.train.fit import STORAGE  # noqa: E402
from fusion.train.metrics import read_metrics  # noqa: E402
from fusion.train.run import run_reference, run_training  # noqa: E402
from fusion.training import HeldOut, TrainConfig, TrainPlacement  # noqa: E402
from tiny_models import save_tokenizer  # noqa: E402

pytestmark = pytest.mark.ray

TEMPLATE = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def make_model(folder: Path, **fields) -> Path:
    """A random Qwen2 whose head is large enough that ZeRO-3 really splits it; tied, as small Qwen2 models are."""
    tokenizer = save_tokenizer(
        folder,
        template=TEMPLATE,
        specials=["<|end|>", "<|user|>", "<|assistant|>", "<|system|>"],
        eos="<|end|>",
        pad=None,
    )
    torch.manual_seed(3)
    sizes = {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
    config = Qwen2Config(
        **{**sizes, **fields},
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        initializer_range=0.2,
        attention_dropout=0.1,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    Qwen2ForCausalLM(config).save_pretrained(folder)
    return folder


def scored(prompt_id: str, model: str, text: str, score: float) -> ScoredResponse:
    response = Response(prompt_id, model, 0, "sample", text, (), Finish.stop, 0, 1, "of another tokenizer")
    return ScoredResponse(response, score, "test")


def prompt(n: int) -> Prompt:
    return Prompt(f"p{n}", "math", (Message("user", f"add {n} and {n * 7}" + " please" * (n % 3)),))


def quadruples(count: int) -> list[PreferenceQuadruple]:
    return [
        PreferenceQuadruple(
            prompt(n),
            scored(f"p{n}", "source", f"the answer is {n * 8}", 1.0),
            scored(f"p{n}", "sft", f"{n * 8}", 0.5),
            scored(f"p{n}", "sft", "no idea" * (1 + n % 4), 0.0),
        )
        for n in range(count)
    ]


def sft_rows(count: int) -> list[SftExample]:
    return [SftExample(prompt(n), scored(f"p{n}", "source", "ok " * (1 + n % 5), 1.0)) for n in range(count)]


def pairs(count: int) -> list[PreferencePair]:
    return [PreferencePair(q.prompt, q.target_chosen, q.rejected) for q in quadruples(count)]


CPU = TrainPlacement(accelerator="cpu", workers=2, zero_stage=2, tokens_per_micro_batch=400, checkpoint_every_steps=2)
WRPO = TrainConfig(
    loss=WrpoLoss.model_validate({"beta": 0.1, "alpha": {"from": 0.0, "to": 0.5}}),
    learning_rate=1e-3,
    global_batch=6,
    max_length=200,
    epochs=2,
    seed=5,
)


@contextlib.contextmanager
def local_ray(temp_dir: str):
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    ray.init(num_cpus=8, include_dashboard=False, _temp_dir=temp_dir, log_to_driver=False)
    try:
        yield
    finally:
        ray.shutdown()


@pytest.fixture(scope="module")
def cluster():
    directory = f"/tmp/rt-{os.getpid()}"
    with local_ray(directory):
        yield
    shutil.rmtree(directory, ignore_errors=True)


def weights(directory: Path) -> dict:
    return load_file(directory / "model" / "model.safetensors")


def assert_identical(a: Path, b: Path) -> None:
    left, right = weights(a), weights(b)
    assert left.keys() == right.keys()
    for name in left:
        assert torch.equal(left[name], right[name]), name


def reference_of(directory: Path, model_folder: Path, rows: list, row_type: type, *, workers: int = 2) -> dict:
    chunks = [(i, start, min(start + 5, len(rows))) for i, start in enumerate(range(0, len(rows), 5))]
    placement = CPU.model_copy(update={"workers": workers})
    outcome = run_reference(
        directory=directory,
        model_folder=model_folder,
        chat_config=ChatConfig(),
        rows=rows,
        row_type=row_type,
        chunks=chunks,
        max_length=200,
        precision="fp32",
        placement=placement,
    )
    assert outcome.rows_out == len(rows)
    parts = [read_part(directory / f"part-{i:05d}.parquet") for i in range(len(chunks))]
    return {row.row_id: row.logps for part in parts for row in from_table(part, ReferenceLogps)}


@pytest.fixture(scope="module")
def reference(cluster, model_folder, tmp_path_factory):
    return reference_of(tmp_path_factory.mktemp("reference"), model_folder, quadruples(20), PreferenceQuadruple)


def train(directory: Path, model_folder: Path, reference, *, config=WRPO, rows=None, **placement):
    return run_training(
        directory=directory,
        model_folder=model_folder,
        chat_config=ChatConfig(),
        rows=(rows := quadruples(20) if rows is None else rows),
        row_type=type(rows[0]),
        reference_logps=reference,
        config=config,
        placement=CPU.model_copy(update=placement),
    )


@pytest.fixture(scope="module")
def undisturbed(reference, model_folder, tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("undisturbed")
    outcome = train(directory, model_folder, reference)
    assert (outcome.rows_in, outcome.rows_trained, outcome.dropped, outcome.steps) == (20, 20, {}, 8)
    return directory


def test_metrics_have_the_schedule_and_the_right_start(undisturbed: Path) -> None:
    lines = read_metrics(undisturbed)
    assert [line["step"] for line in lines] == list(range(1, 9))
    first, last = lines[0], lines[-1]
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-12)
    # The policy is the reference, bit for bit, though the reference was made in other, larger passes.
    assert [first[f"rewards/{name}"] for name in ("source_chosen", "target_chosen", "rejected", "margins")] == [0.0] * 4
    assert (first["alpha"], last["alpha"]) == (0.0, 0.5)
    assert last["epoch"] == 2 and last["loss"] < first["loss"]
    assert lines[3]["epoch"] == 1.0
    for line in lines:
        mixed = line["alpha"] * line["rewards/source_chosen"] + (1 - line["alpha"]) * line["rewards/target_chosen"]
        assert line["rewards/chosen"] == pytest.approx(mixed, abs=1e-5)


@pytest.mark.parametrize(("zero_stage", "workers"), [(1, 2), (3, 2), (2, 1)])
def test_any_zero_stage_and_number_of_workers_trains_the_same(
    undisturbed, reference, model_folder, tmp_path, zero_stage, workers
) -> None:
    budget = 400 if workers == 2 else 100_000  # another cut of the batches too
    train(tmp_path, model_folder, reference, zero_stage=zero_stage, workers=workers, tokens_per_micro_batch=budget)
    expected, found = weights(undisturbed), weights(tmp_path)
    start = load_file(model_folder / "model.safetensors")
    assert expected.keys() == found.keys() == start.keys()
    for name in expected:
        assert torch.allclose(expected[name], found[name], rtol=0, atol=1e-5), name
    assert max((expected[n] - start[n]).abs().max() for n in start) > 1e-3
    for a, b in zip(read_metrics(undisturbed), read_metrics(tmp_path), strict=True):
        for name in a.keys() - {"step_seconds"}:
            assert a[name] == pytest.approx(b[name], abs=1e-4, rel=1e-4), name


# ---- kills ------------------------------------------------------------------------------------


def wait_for(condition, *, what: str, seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"no {what} within {seconds} s"
        time.sleep(0.02)


def train_workers(root: int) -> list[psutil.Process]:
    """Processes of Ray Train workers below the process `root`."""
    found = []
    for process in psutil.Process(root).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if process.cmdline()[:1] and "RayTrainWorker" in process.cmdline()[0]:
                found.append(process)
    return found


def test_killed_worker_is_started_again_and_the_weights_are_the_same(
    undisturbed, reference, model_folder, tmp_path
) -> None:
    killed: list[int] = []

    def kill() -> None:
        wait_for((tmp_path / "checkpoints" / "step_000002").exists, what="checkpoint")
        victim = train_workers(os.getpid())[-1]
        victim.send_signal(signal.SIGKILL)
        if not (tmp_path / "model").exists():
            killed.append(victim.pid)

    thread = threading.Thread(target=kill)
    thread.start()
    outcome = train(tmp_path, model_folder, reference, checkpoint_every_steps=1)
    thread.join()
    assert killed, "the kill came too late to mean anything"
    assert outcome.steps == 8
    assert_identical(undisturbed, tmp_path)
    assert [line["step"] for line in read_metrics(tmp_path)] == list(range(1, 9))
    for a, b in zip(read_metrics(undisturbed), read_metrics(tmp_path), strict=True):
        assert {k: v for k, v in a.items() if k != "step_seconds"} == {
            k: v for k, v in b.items() if k != "step_seconds"
        }


DRIVER = """
import sys, json
from pathlib import Path
sys.path[:0] = {tests!r}
from test_train import local_ray, train
with local_ray({temp!r}):
    train(Path({directory!r}), Path({model!r}), json.loads({reference!r}), checkpoint_every_steps=1, keep_checkpoints=3)
"""


def corrupt_snapshots(storage: Path) -> None:
    """Leave of every earlier attempt a torn snapshot, the file that Ray Train overwrites in place."""
    from ray.train.v2._internal.constants import CHECKPOINT_MANAGER_SNAPSHOT_FILENAME

    attempts = [path for path in storage.iterdir() if path.is_dir()] if storage.exists() else []
    for attempt in attempts or [storage / "run-0a1b2c3d"]:
        attempt.mkdir(parents=True, exist_ok=True)
        (attempt / CHECKPOINT_MANAGER_SNAPSHOT_FILENAME).write_bytes(b'{"checkpoint_results": [{"checkpoi')


def test_killed_driver_damaged_checkpoint_other_world_size(
    undisturbed, reference, model_folder, tmp_path, caplog
) -> None:
    """The driver is killed, its newest checkpoint and Ray Train's snapshot are damaged: the next run says so and goes on."""
    directory, temp = tmp_path / "run", f"/tmp/rd-{os.getpid()}"
    script = DRIVER.format(
        tests=[str(Path(__file__).parent), str(Path(__file__).parents[1])],
        temp=temp,
        directory=str(directory),
        model=str(model_folder),
        reference=json.dumps(reference),
    )
    driver = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    checkpoints = directory / "checkpoints"
    try:
        wait_for((checkpoints / "step_000003").exists, what="checkpoint")
        below = psutil.Process(driver.pid).children(recursive=True)
        for process in (*train_workers(driver.pid), driver, *below):  # all of it, as when a machine goes down
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        assert not (directory / "model").exists(), "the kill came too late to mean anything"
    finally:
        driver.kill()
        driver.wait()
    psutil.wait_procs(below, timeout=30)
    shutil.rmtree(temp, ignore_errors=True)

    corrupt_snapshots(directory / STORAGE)
    with pytest.raises(StageError, match=r"written by 2 workers and this run has 1.*placement.train.workers=2"):
        train(directory, model_folder, reference, workers=1)

    newest = max(path for path in checkpoints.iterdir() if path.name.startswith("step_"))
    shard = next(path for path in sorted(newest.rglob("*optim_states.pt")))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    found = newest_complete(checkpoints)
    assert found is not None and found[0] != newest
    corrupt_snapshots(directory / STORAGE)
    outcome = train(directory, model_folder, reference)
    assert outcome.steps == 8
    (warning,) = outcome.warnings
    assert f"{newest.name} is damaged ({shard.relative_to(newest)} is damaged) and was set aside" in warning.text
    assert warning.text in caplog.text, "the driver says it while it happens"
    assert outcome.memory["measured"] > 0
    assert_identical(undisturbed, directory)
    assert [line["step"] for line in read_metrics(directory)] == list(range(1, 9))
    assert not checkpoints.exists() and not (directory / STORAGE).exists()

    before = (directory / "model" / "model.safetensors").stat().st_mtime_ns
    assert train(directory, model_folder, reference).steps == 8  # finished: nothing is started
    assert (directory / "model" / "model.safetensors").stat().st_mtime_ns == before


# ---- refusals, and two at once ----------------------------------------------------------------


def test_held_out_rows_are_counted_and_never_lost(cluster, reference, model_folder, tmp_path) -> None:
    long = SftExample(prompt(90), scored("p90", "source", "x" * 300, 1.0))
    config = TrainConfig(
        loss=SftLoss(),
        learning_rate=1e-3,
        global_batch=4,
        max_length=200,
        held_out=HeldOut(rows=4, every=2),
    )
    outcome = train(tmp_path, model_folder, None, config=config, rows=[*sft_rows(14), long], workers=1)
    assert (outcome.rows_in, outcome.rows_trained, outcome.rows_held_out, outcome.dropped) == (
        15,
        10,
        4,
        {"too_long": 1},
    )
    assert (outcome.steps, outcome.kept_step) == (3, 3)
    assert [line["step"] for line in read_metrics(tmp_path) if "eval/loss" in line] == [2, 3]


def test_two_trainings_at_once_from_threads(cluster, reference, model_folder, tmp_path) -> None:
    """SFT and DPO side by side; long and empty rows are dropped with a reason, and the folder is complete."""
    broken = [
        SftExample(prompt(90), scored("p90", "source", "x" * 300, 1.0)),
        SftExample(prompt(91), scored("p91", "source", "", 1.0)),
    ]
    sft = TrainConfig(loss=SftLoss(), learning_rate=3e-3, global_batch=4, max_length=200, epochs=3)
    dpo = TrainConfig(loss=DpoLoss(beta=0.1), learning_rate=1e-3, global_batch=8, max_length=200)
    named = {"target_chosen": "chosen", "rejected": "rejected"}
    of_pairs = {row: {named[r]: v for r, v in values.items() if r in named} for row, values in reference.items()}
    outcomes = {}

    def run(name: str, **arguments) -> None:
        outcomes[name] = train(tmp_path / name, model_folder, workers=1, **arguments)

    threads = [
        threading.Thread(
            target=run, args=("sft",), kwargs={"reference": None, "config": sft, "rows": sft_rows(14) + broken}
        ),
        threading.Thread(target=run, args=("dpo",), kwargs={"reference": of_pairs, "config": dpo, "rows": pairs(20)}),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (outcomes["sft"].rows_in, outcomes["sft"].rows_trained, outcomes["sft"].steps) == (16, 14, 12)
    assert outcomes["sft"].dropped_ids == {"too_long": ["p90"], "empty_response": ["p91"]}
    reasons = [json.loads(line) for line in (tmp_path / "sft" / "quarantine.jsonl").read_text().splitlines()]
    assert [(r["row_id"], r["reason"]) for r in reasons] == [("p90", "too_long"), ("p91", "empty_response")]
    losses = [line["loss"] for line in read_metrics(tmp_path / "sft")]
    assert losses[-1] < 0.5 * losses[0]
    first = read_metrics(tmp_path / "dpo")[0]
    # Not 0 exactly: this reference was made of quadruples, where other responses share the prompt.
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-6)
    folder = tmp_path / "sft" / "model"
    saved = Qwen2ForCausalLM.from_pretrained(folder)
    assert saved.config.attention_dropout == 0.1 and saved.config.tie_word_embeddings
    assert (folder / "chat_template.jinja").read_text() == TEMPLATE
    assert Chat.load(folder, ChatConfig()).tokenizer_hash == Chat.load(model_folder, ChatConfig()).tokenizer_hash


def test_non_finite_steps_end_the_training(cluster, model_folder, tmp_path) -> None:
    config = TrainConfig(
        loss=SftLoss(), learning_rate=1e30, warmup_ratio=0.5, global_batch=2, max_length=200, max_grad_norm=0.0
    )
    with pytest.raises(StageError, match=r"not finite at steps \[2, 3, 4\]"):
        train(tmp_path, model_folder, None, config=config, rows=sft_rows(14), workers=1, checkpoint_every_steps=1)
    found = newest_complete(tmp_path / "checkpoints")
    assert found is not None and found[1].step == 1
    assert not (tmp_path / "model").exists()


def test_missing_reference_rows_are_named(model_folder, tmp_path) -> None:
    with pytest.raises(StageError, match=r"2 of 3 rows have no finite reference log-probability: \['p1', 'p2'\]"):
        zero = dict.fromkeys(("source_chosen", "target_chosen", "rejected"), (0.0,))
        train(tmp_path, model_folder, {"p0": zero, "p2": zero | {"rejected": (math.nan,)}}, rows=quadruples(3))
