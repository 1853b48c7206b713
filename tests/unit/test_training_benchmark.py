"""The training benchmark compares equal mathematics, and its FLOPs are those that torch executes."""

import dataclasses
import importlib.util
from statistics import median

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.training.contender import Contender, Weights
from benchmarks.training.flops import Layout, flop_limit, minimal_layout, step_flops
from benchmarks.training.measure import disagreements, first_losses, time_steps
from benchmarks.training.roster import CONTENDERS, build
from benchmarks.training.shapes import SHAPES, Lognormal, ModelShape, Shape, Task

TINY = ModelShape(hidden=64, layers=2, intermediate=176, vocab=300, heads=2, kv_heads=1)
LENGTHS = Lognormal(prompt_median=20, prompt_sigma=0.7, response_median=30, response_sigma=0.5)
TINY_SHAPES: dict[Task, Shape] = {
    "wrpo": Shape("tiny", "wrpo", TINY, LENGTHS, rows=5),
    "sft": Shape("tiny-sft", "sft", TINY, LENGTHS, rows=11),  # more than one padded batch
}
CPU = torch.device("cpu")
HAS_TRL = importlib.util.find_spec("trl") is not None


def names(task: Task) -> list[str]:
    return [n for n, e in CONTENDERS.items() if e.task == task and (HAS_TRL or e.module != "trl_peers")]


def built(task: Task, *only: str) -> tuple[Shape, Weights, dict[str, Contender]]:
    shape = TINY_SHAPES[task]
    weights = Weights(shape, device=CPU, dtype=torch.float32)
    return shape, weights, {name: build(name, weights.learner()) for name in only or names(task)}


def flat(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().double().flatten() for p in model.parameters()])


@pytest.mark.parametrize("task", ["wrpo", "sft"])
def test_contenders_agree_on_loss_and_update(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    # So large that the rounding of the weights is small beside their update.
    monkeypatch.setattr("benchmarks.training.contender.LEARNING_RATE", 1e-3)
    shape, weights, contenders = built(task)
    (batch,) = shape.batches()
    start = flat(weights.learner().policy)
    losses, updates = {}, {}
    for name, contender in contenders.items():
        contender.prepare()
        losses[name] = contender.step(batch)
        updates[name] = flat(contender.policy) - start
    compared = [name for name in contenders if contenders[name].same_maths]
    assert len(compared) >= 3
    first = compared[0]
    assert abs(losses[first] - 0.6931) > 1e-2, "with equal policy and reference the loss would be log 2 for everyone"
    for name in compared[1:]:
        assert losses[name] == pytest.approx(losses[first], rel=1e-4), name
        # Of the update, not of the weights, which hardly move.
        assert (updates[name] - updates[first]).norm() <= 1e-4 * updates[first].norm(), name


def test_disagreement_is_found() -> None:
    shape, _, pair = built("wrpo", "official", "ours")
    losses = {name: first_losses(contender, shape.batches()) for name, contender in pair.items()}
    assert disagreements(losses, pair, torch.float32) == []
    assert losses["ours"][1] < losses["ours"][0], "a step on the same rows lowers their loss"
    off = losses | {"ours": (losses["ours"][0] * 1.001, losses["ours"][1])}
    assert len(disagreements(off, pair, torch.float32)) == 1
    assert disagreements(losses | {"ours": (float("nan"), 1.0)}, pair, torch.float32)


def addmm_flops(out: torch.Size, a: torch.Size, b: torch.Size, **_: object) -> int:
    """Of `out += a @ b`, by the shapes."""
    return 2 * a[0] * a[1] * b[1]


@pytest.mark.parametrize("task", ["wrpo", "sft"])
def test_flops_are_those_executed(task: Task) -> None:
    shape, _, contenders = built(task)
    (batch,) = shape.batches()
    for name, contender in contenders.items():
        contender.prepare()
        # Torch's counter does not know the in-place product by itself.
        with FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: addmm_flops}) as counter:
            contender.step(batch)
        counts = counter.get_flop_counts()["Global"]
        executed = counts[torch.ops.aten.mm] + counts.get(torch.ops.aten.addmm_, 0)
        # Without pairs: on CPUs the counter does not see inside attention.
        linear = dataclasses.replace(contender.layout(batch), pairs=0)
        assert executed == step_flops(TINY, linear, contender.passes()), name


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("4k-64:512", 1.08),
        ("4k-256:256", 1.52),
        ("4k-512:128", 2.26),
        ("4k-1024:128", 2.62),
        ("4k-ultrafeedback", 2.39),
        ("32k-256:256", 1.71),
        ("128k-256:256", 1.89),
    ],
)
def test_flop_limits_of_the_shapes(name: str, published: float) -> None:
    assert flop_limit(SHAPES[name].model, SHAPES[name].batches()) == pytest.approx(published, rel=0.01)


def test_packed_stream_trains_every_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.training.official.PACKED_LENGTH", 50)
    shape, weights, contenders = built("sft", "sft-official")
    (batch,) = shape.batches()
    stream = torch.tensor([i for row in batch for ids in (row.prompt_ids, row.responses["response"]) for i in ids])
    model = weights.learner().policy
    total, predicted = 0.0, 0
    with torch.no_grad():
        for part in stream.split(50):
            total += float(model(input_ids=part[None], labels=part[None]).loss) * (len(part) - 1)
            predicted += len(part) - 1
    assert len(stream) % 50 > 1, "the rest of the stream is part of the test"
    assert contenders["sft-official"].step(batch) == pytest.approx(total / predicted, rel=1e-5)


def test_minimal_layout_by_hand() -> None:
    shape = dataclasses.replace(TINY_SHAPES["wrpo"], rows=1)
    ((row,),) = shape.batches()
    row = dataclasses.replace(row, prompt_ids=row.prompt_ids[:2], responses={"a": [1], "b": [1, 2, 3]})
    # Prompt 1 + 2 pairs; "a" sees 3 positions; "b" sees 3, 4 and 5.
    assert minimal_layout((row,)) == Layout(positions=6, pairs=3 + 3 + 12, head_rows=4)


def test_lengths_are_fixed_and_lognormal() -> None:
    shape = dataclasses.replace(SHAPES["4k-ultrafeedback"], rows=200, num_batches=1)
    (batch,) = shape.batches()
    assert median(row.lengths[0] for row in batch) == pytest.approx(120, rel=0.02)
    assert median(length for row in batch for length in row.lengths[1]) == pytest.approx(220, rel=0.02)
    assert [row.lengths for row in batch] == [row.lengths for row in shape.batches()[0]]


def test_every_repetition_is_timed() -> None:
    shape, _, pair = built("wrpo", "official", "ours")
    found = time_steps(pair, shape.batches(), repeats=3, device=CPU)
    assert all(len(t.wall_s) == len(t.cpu_s) == 3 and min(t.wall_s) > 0 for t in found.values())
