"""Gradients of one global batch under ZeRO-3 on two workers against plain autograd, however the batch is cut.

Other stages: `test_train.py` compares what they train.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("deepspeed")

import pyarrow as pa  # noqa: E402

import tiny_causal  # noqa: E402
from fusion.losses import LossInputs, SequenceLogps, SftLoss, WrpoLoss  # noqa: E402
from fusion.rows import PreferenceQuadruple, SftExample, roles  # noqa: E402
from fusion.train.data_files import ENCODED  # noqa: E402
from fusion.train.encode import Encoded, save_encoded  # noqa: E402
from fusion.train.policy import load_model  # noqa: E402
from fusion.train.task import REFERENCE  # noqa: E402
from fusion.training import TrainConfig, TrainPlacement  # noqa: E402

pytestmark = pytest.mark.ray

WRPO = WrpoLoss.model_validate({"beta": 0.1, "alpha": {"from": 0.3, "to": 0.5}})
WORLD_SIZE = 2


def data_of(row_type: type, *, num_rows: int) -> Encoded:
    """Rows of very unequal sizes and weights, so that a wrong denominator shows."""
    generator = np.random.default_rng(4)
    columns: dict = {
        "row_id": [f"row {n}" for n in range(num_rows)],
        "weight": (0.25 + generator.random(num_rows)).tolist(),
        "prompt_ids": [tiny_causal.random_ids(generator, int(generator.integers(1, 30))) for _ in range(num_rows)],
    }
    for role in roles(row_type):
        columns[role] = [[tiny_causal.random_ids(generator, int(generator.integers(1, 40)))] for _ in range(num_rows)]
        columns |= {f"score/{role}": [[0.0]] * num_rows, f"weight/{role}": [[1.0]] * num_rows}
        columns[f"group/{role}"] = [[0]] * num_rows
    return Encoded(pa.table(columns), roles(row_type), frozenset(), num_rows, ())


def expected(folder: Path, data: Encoded, loss: SftLoss | WrpoLoss, reference: dict | None) -> tuple[float, dict]:
    """Loss and gradients of the weighted mean over the whole batch, each sequence in a forward pass of its own."""
    model = load_model(folder, dtype=torch.float32).train()
    rows = data.rows(range(len(data)))
    sums = {
        role: torch.stack([tiny_causal.plain_logp(model, row.prompt_ids, row.responses[role][0]) for row in rows])
        for role in data.roles
    }
    counts = {role: torch.tensor([len(row.responses[role][0]) for row in rows]) for role in data.roles}
    given = None
    if reference:
        given = SequenceLogps({role: torch.tensor(values) for role, values in reference.items()}, counts)
    weights = torch.tensor(data.weights)
    losses = loss(LossInputs(SequenceLogps(sums, counts), given, {}, 0, 9)).losses_B
    mass = loss.mass(torch.from_numpy(data.num_response_tokens), weights).sum()
    total = (losses * weights).sum() / mass
    total.backward()
    return total.item(), {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize(
    ("family", "checkpointing", "task"),
    [
        ("llama", False, "wrpo"),  # head and embedding apart
        ("qwen2", True, "wrpo"),  # tied, and layers computed twice
        ("gemma2", False, "wrpo"),  # tied, softcaps and windows
        ("llama", False, "sft"),
    ],
)
def test_gradients_of_any_cut_equal_plain_ones(tmp_path: Path, family: str, checkpointing: bool, task: str) -> None:
    folder = tmp_path / "start"
    tiny_causal.make(family).save_pretrained(folder)
    loss = WRPO if task == "wrpo" else SftLoss()
    data = data_of(PreferenceQuadruple if task == "wrpo" else SftExample, num_rows=7)
    save_encoded(data, tmp_path / ENCODED)
    reference = None
    if task == "wrpo":
        generator = np.random.default_rng(5)
        reference = {role: -60 - 20 * generator.random(len(data)) for role in data.roles}
        with (tmp_path / REFERENCE).open("wb") as handle:
            np.savez(handle, allow_pickle=False, **reference)
    value, gradients = expected(folder, data, loss, reference)
    found = _found(tmp_path, folder, loss, checkpointing=checkpointing)
    assert found["layout"] == "shared"
    assert found["passes"] >= 2, "the budget should cut the batch into several passes"
    assert found["metrics"]["loss"] == pytest.approx(value, rel=1e-5)
    assert found["gradients"].keys() == gradients.keys()
    for name, gradient in gradients.items():
        assert (found["gradients"][name] - gradient).norm() <= 1e-5 * gradient.norm(), name


def _found(directory: Path, folder: Path, loss: SftLoss | WrpoLoss, *, checkpointing: bool) -> dict:
    """What two processes make of it. Seven rows and a budget of about two rows: unequal passes, one worker idle at last."""
    config = TrainConfig(loss=loss, learning_rate=1e-3, global_batch=7, max_length=200, epochs=9, max_grad_norm=0.0)
    placement = TrainPlacement(
        workers=WORLD_SIZE, zero_stage=3, tokens_per_micro_batch=130, gradient_checkpointing=checkpointing
    )
    task = {
        "world_size": WORLD_SIZE,
        "train": {
            "directory": str(directory),
            "model_folder": str(folder),
            "pad_id": 0,
            "identity": {},
            "attempt": "test",
            "config": config.model_dump(mode="json"),
            "placement": placement.model_dump(mode="json"),
        },
    }
    (directory / "task.json").write_text(json.dumps(task))
    script = str(Path(__file__).with_name("zero_worker.py"))
    processes = [
        subprocess.Popen(
            [sys.executable, script, str(directory / "task.json"), str(rank), str(directory / "out.pt")],
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        )
        for rank in range(WORLD_SIZE)
    ]
    try:
        assert [process.wait(timeout=240) for process in processes] == [0] * WORLD_SIZE
    finally:
        for process in processes:
            process.kill()
    return torch.load(directory / "out.pt")
