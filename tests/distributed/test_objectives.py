"""Every kind of row and of fine-tuning through the real training: groups, sets, reference-free losses, adapters.

Real ranks with DeepSpeed and gloo, but without Ray, whose own part is in test_train.py.
"""

import dataclasses
import json
import math
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("deepspeed")

from safetensors.torch import load_file  # noqa: E402
from transformers import AutoModelForCausalLM  # noqa: E402

from fusion.chat import Chat  # noqa: E402
from fusion.losses import DpoLoss, IpoLoss, RlooLoss, SftLoss, SimpoLoss, WrpoLoss, WrpoSimpoLoss  # noqa: E402
from fusion.rows import (  # noqa: E402
    PreferencePair,
    PreferenceSet,
    ResponseGroup,
    SftExample,
    WeightedGroups,
    WeightedPairs,
    WeightedResponses,
    group_roles,
    responses_of,
    roles,
)
from fusion.train.encode import encode_rows  # noqa: E402
from fusion.train.metrics import read_metrics  # noqa: E402
from fusion.train.packing import Layout, pack  # noqa: E402
from fusion.train.policy import PolicyModel, cast_parameters, load_model  # noqa: E402
from fusion.training import Lora, TrainConfig  # noqa: E402
from test_train import CPU, pairs, prompt, quadruples, scored  # noqa: E402
from train_ranks import Ranks  # noqa: E402

pytestmark = pytest.mark.ray  # real components on CPU

NUM_ROWS = 11
WRPO = WrpoLoss.model_validate({"beta": 0.1, "alpha": {"from": 0.0, "to": 0.5}})


def config(loss, **changes) -> TrainConfig:
    settings = {"learning_rate": 1e-3, "global_batch": 4, "max_length": 200, "epochs": 2, "seed": 3} | changes
    return TrainConfig(loss=loss, **settings)


def groups() -> list[ResponseGroup]:
    """Two to four answers a prompt, with scores."""
    return [
        ResponseGroup(
            prompt(n), tuple(scored(f"p{n}", "source", f"{n * 8 + k} " * (1 + k), float(k)) for k in range(2 + n % 3))
        )
        for n in range(NUM_ROWS)
    ]


def sets() -> list[PreferenceSet]:
    """One or two source answers to prefer; every other prompt has one to avoid."""
    return [
        PreferenceSet(
            q.prompt,
            (q.source_chosen, scored(q.row_id, "other", f"it is {n * 8}", 0.9))[: 1 + n % 2],
            q.target_chosen,
            (scored(q.row_id, "third", "hm", -1.0),) * (n % 2),
            q.rejected,
        )
        for n, q in enumerate(quadruples(NUM_ROWS))
    ]


def reference_of(model_folder: Path, rows: list, *, dtype: torch.dtype = torch.float32) -> dict:
    """What the reference stage would say: the start model on the rows, by the same passes."""
    data = encode_rows(rows, Chat.load(model_folder), row_type=type(rows[0]), max_length=200)
    policy = PolicyModel(load_model(model_folder, dtype=torch.float32))
    cast_parameters(policy, dtype)
    found = {}
    with torch.no_grad():
        for row in data.rows(range(len(data))):
            batch = pack([row], layout=Layout.shared, group_roles=group_roles(type(rows[0])))
            sums = iter(policy(batch)[1].tolist())
            found[row.row_id] = {role: tuple(next(sums) for _ in ids) for role, ids in row.responses.items()}
    return found


OBJECTIVES = {
    "ipo": (IpoLoss(tau=0.1), pairs),
    "simpo": (SimpoLoss(beta=2.0, gamma=0.5), pairs),
    "wrpo over simpo": (WrpoSimpoLoss(beta=2.0, gamma=0.0, alpha=0.3), quadruples),
    "wrpo of sets": (WrpoLoss(beta=0.1, alpha={"type": "cosine", "from": 0.0, "to": 0.5}, nll_weight=0.1), None),
    "rloo": (RlooLoss(), None),
    "plain rloo": (RlooLoss(clip=None), None),
    "rloo with kl": (RlooLoss(kl=0.05), None),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_trains(ranks: Ranks, model_folder: Path, tmp_path: Path, name: str) -> None:
    """It starts at its known value, and at the end the better responses have gained on the worse ones."""
    loss, of = OBJECTIVES[name]
    rows = of(NUM_ROWS) if of else sets() if isinstance(loss, WrpoLoss) else groups()
    known = reference_of(model_folder, rows) if loss.needs_reference else None
    assert ranks.train(tmp_path, model_folder, rows, known, config(loss, epochs=4), CPU) == (0, 0), log(tmp_path)
    lines = read_metrics(tmp_path)
    assert len(lines) == 4 * 3 and all(math.isfinite(line["loss"]) for line in lines)
    first, last = lines[0], lines[-1]
    if loss.needs_reference:
        assert first["rewards/margins"] == 0.0  # exactly: policy and reference are one
    starts = {"ipo": (1 / 0.2) ** 2, "rloo": 0.0}
    if name in starts:
        assert first["loss"] == pytest.approx(starts[name], abs=1e-12)
    gain = [line["logps/chosen"] - line["logps/rejected"] for line in (first, last)]
    assert gain[1] > gain[0] or last["loss"] < first["loss"]
    if name == "wrpo of sets":
        assert first["loss"] == pytest.approx(math.log(2) + 0.1 * first["nll_loss"], abs=1e-6)
        assert (first["alpha"], last["alpha"]) == (0.0, 0.5) and 0 < last["alpha_lr_weighted_mean"] < 0.5
        assert {"rewards/source_rejected", "logps/target_rejected"} <= first.keys()


# ---- weighted rows ----------------------------------------------------------------------------


def weighted(kind: str, n: int, *, count: int, whole: bool) -> list:
    """A prompt with `count` answers, pairs or groups of weights 1 : 2 : 3 as one row, or each of them as a plain row of that
    weight."""
    asked = [prompt(n)] if whole else [dataclasses.replace(prompt(n), prompt_id=f"p{n}/{k}") for k in range(count)]
    rows = asked * count if whole else asked
    shares = tuple((k + 1) / sum(range(1, count + 1)) for k in range(count))
    best = tuple(scored(p.prompt_id, f"s{k}", f"{n * 8} " * (1 + k), 2.0 + k) for k, p in enumerate(rows))
    worst = tuple(scored(p.prompt_id, f"s{k}", "hm " * (1 + (n + k) % 4), 0.5) for k, p in enumerate(rows))
    third = tuple(scored(p.prompt_id, f"s{k}", f"{k} or {n}", 1.0) for k, p in enumerate(rows))
    groups = [(best[k], worst[k], third[k])[: 2 + (n + k) % 2] for k in range(count)]
    if whole:
        numbers = tuple(k for k, group in enumerate(groups) for _ in group)
        return {
            "sft": lambda: [WeightedResponses(asked[0], best, shares)],
            "dpo": lambda: [WeightedPairs(asked[0], best, worst, shares)],
            "rloo": lambda: [WeightedGroups(asked[0], tuple(s for g in groups for s in g), numbers, shares)],
        }[kind]()
    return {
        "sft": lambda: [SftExample(p, best[k], shares[k]) for k, p in enumerate(asked)],
        "dpo": lambda: [PreferencePair(p, best[k], worst[k], shares[k]) for k, p in enumerate(asked)],
        "rloo": lambda: [ResponseGroup(p, groups[k], shares[k]) for k, p in enumerate(asked)],
    }[kind]()


WEIGHTED = {"sft": SftLoss(), "dpo": DpoLoss(beta=0.1, nll_weight=0.1), "rloo": RlooLoss()}


@pytest.mark.parametrize("kind", WEIGHTED)
def test_weighted_rows_train_as_plain_ones(ranks: Ranks, model_folder: Path, tmp_path: Path, kind: str) -> None:
    """With one member a row it is plain training, bit for bit, metrics too. With up to three, every batch a whole epoch, it is
    training on as many rows of their weights, however the work is cut, with ZeRO-3 too: to rounding, which AdamW would make whole steps of
    where a gradient is almost nothing, hence the larger eps.
    """
    loss = WEIGHTED[kind]

    def train(name: str, rows: list, batch: int, **placement) -> tuple[dict, list[dict]]:
        directory = tmp_path / name
        directory.mkdir()
        known = reference_of(model_folder, rows) if loss.needs_reference else None
        settings = config(loss, global_batch=batch, epochs=1 if batch == 4 else 3, adam_eps=1e-5)
        placed = CPU.model_copy(update=placement)
        assert set(ranks.train(directory, model_folder, rows, known, settings, placed)) == {0}, log(directory)
        lines = [{n: v for n, v in line.items() if n != "step_seconds"} for line in read_metrics(directory)]
        return load_file(directory / "model/model.safetensors"), lines

    def rows(*, whole: bool, most: int) -> list:
        return [r for n in range(NUM_ROWS) for r in weighted(kind, n, count=1 + n % most, whole=whole)]

    one, plain = (train(f"one {whole}", rows(whole=whole, most=1), 4) for whole in (True, False))
    assert all(torch.equal(one[0][name], plain[0][name]) for name in plain[0]) and one[1] == plain[1]
    several, apart = rows(whole=True, most=3), rows(whole=False, most=3)
    assert (len(several), len(apart)) == (11, 21)
    sharded = train("sharded", several, 100, zero_stage=3)
    several = train("several", several, 100)
    apart = train("apart", apart, 100, workers=1, zero_stage=1, tokens_per_micro_batch=100_000)
    assert max((several[0][name] - one[0][name]).abs().max() for name in one[0]) > 1e-3
    for weights, lines in (several, sharded):
        for name in apart[0]:
            assert torch.allclose(weights[name], apart[0][name], rtol=0, atol=1e-5), name
        for a, b in zip(lines, apart[1], strict=True):
            assert a["loss"] == pytest.approx(b["loss"], abs=1e-6, rel=1e-5)
            assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-4)


def test_a_batch_that_weighs_nothing_changes_nothing(ranks: Ranks, model_folder: Path, tmp_path: Path) -> None:
    """One row of eleven has a weight: of three batches an epoch one has gradients."""
    rows = [dataclasses.replace(row, weight=float(n == 0)) for n, row in enumerate(pairs(NUM_ROWS))]
    settings = config(SimpoLoss(beta=2.0, gamma=0.5))
    assert ranks.train(tmp_path, model_folder, rows, None, settings, CPU) == (0, 0), log(tmp_path)
    lines = read_metrics(tmp_path)
    idle = [line for line in lines if line["grad_norm"] == 0]
    assert len(lines) == 6 and len(idle) == 4
    assert all(line["loss"] == 0 for line in idle) and all(math.isfinite(line["loss"]) for line in lines)


def log(directory: Path) -> str:
    return (directory / "ranks.log").read_text()[-2000:]


def test_groups_of_every_size_are_read_whole(model_folder: Path) -> None:
    rows = groups()
    data = encode_rows(rows, Chat.load(model_folder), row_type=ResponseGroup, max_length=200)
    assert data.num_responses.tolist() == [len(row.responses) for row in rows]
    for row, encoded in zip(rows, data.rows(range(len(data))), strict=True):
        for role in roles(ResponseGroup):
            assert encoded.scores[role] == tuple(s.score for s in responses_of(row, role))


# ---- precision --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def in_fp32(ranks: Ranks, model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    directory, rows = tmp_path_factory.mktemp("fp32"), quadruples(NUM_ROWS)
    known = reference_of(model_folder, rows)
    assert ranks.train(directory, model_folder, rows, known, config(WRPO), CPU) == (0, 0), log(directory)
    return read_metrics(directory)


@pytest.mark.parametrize("zero_stage", [1, 2, 3])
def test_bf16_follows_fp32(
    ranks: Ranks, model_folder: Path, tmp_path: Path, in_fp32: list[dict], zero_stage: int
) -> None:
    """Weights and activations of 8 bits of mantissa over fp32 master weights; policy and reference are one at the start.

    A log-probability of l nats is off by about l / 2^8, so rewards, and the loss with them, by beta * l / 2^8. The learning
    rate moves weights by more than their spacing in bf16; below it the narrow copies lag behind the fp32 ones by nature.
    """
    rows = quadruples(NUM_ROWS)
    known = reference_of(model_folder, rows, dtype=torch.bfloat16)
    half, placement = (
        config(WRPO, precision="bf16"),
        CPU.model_copy(update={"zero_stage": zero_stage}),
    )
    calm, killed = tmp_path / "calm", tmp_path / "killed"
    assert ranks.train(calm, model_folder, rows, known, half, placement) == (0, 0), log(calm)
    lines = read_metrics(calm)
    assert lines[0]["rewards/margins"] == 0.0
    off = 0.1 * max(abs(line[name]) for line in in_fp32 for name in line if name.startswith("logps/")) / 2**8
    assert [line["loss"] for line in lines] == pytest.approx([line["loss"] for line in in_fp32], abs=off)
    assert lines[0]["grad_norm"] == pytest.approx(in_fp32[0]["grad_norm"], rel=0.02)
    assert lines[-1]["loss"] < 0.9 * lines[0]["loss"]
    saved = load_file(calm / "model/model.safetensors")
    assert {weight.dtype for weight in saved.values()} == {torch.bfloat16}
    kill = (killed / "checkpoints/step_000002").exists
    assert ranks.train(killed, model_folder, rows, known, half, placement, kill_when=kill) == (-9, -9)
    assert ranks.train(killed, model_folder, rows, known, half, placement) == (0, 0), log(killed)
    again = load_file(killed / "model/model.safetensors")
    assert all(torch.equal(saved[name], again[name]) for name in saved)


# ---- adapters ---------------------------------------------------------------------------------


LORA = config(WRPO, learning_rate=1e-2, lora=Lora(rank=2, alpha=4, targets=("q_proj", "v_proj", "down_proj")))


@pytest.mark.parametrize("zero_stage", [2, 3])
def test_adapters_are_trained_resumed_and_merged(
    ranks: Ranks, model_folder: Path, tmp_path: Path, zero_stage: int
) -> None:
    """Killed and resumed bit for bit; the folder is an ordinary one in which only the named layers have moved."""
    rows = quadruples(NUM_ROWS)
    known = reference_of(model_folder, rows)
    placement = CPU.model_copy(update={"zero_stage": zero_stage})
    calm, killed = tmp_path / "calm", tmp_path / "killed"
    assert ranks.train(calm, model_folder, rows, known, LORA, placement) == (0, 0), log(calm)
    codes = ranks.train(
        killed, model_folder, rows, known, LORA, placement, kill_when=(killed / "checkpoints/step_000002").exists
    )
    assert codes == (-9, -9) and not (killed / "model").exists()
    assert ranks.train(killed, model_folder, rows, known, LORA, placement) == (0, 0), log(killed)
    file = "model/model.safetensors"
    assert (calm / file).read_bytes() == (killed / file).read_bytes()
    start, end = load_file(model_folder / "model.safetensors"), load_file(calm / file)
    assert start.keys() == end.keys()
    moved = {name.split(".")[-2] for name in start if not torch.equal(start[name], end[name])}
    assert moved == {"q_proj", "v_proj", "down_proj"}
    lines = read_metrics(calm)
    assert lines[0]["rewards/margins"] == 0.0 and lines[-1]["loss"] < lines[0]["loss"]
    assert AutoModelForCausalLM.from_pretrained(calm / "model").config.model_type == "qwen2"
    notes = json.loads((calm / "memory.json").read_text())
    assert notes["estimated"]["optimizer"] < 12 * sum(w.numel() for w in start.values()) / placement.workers


def test_the_head_cannot_have_an_adapter(ranks: Ranks, model_folder: Path, tmp_path: Path) -> None:
    wrong = LORA.model_copy(update={"lora": Lora(rank=2, alpha=4, targets=("lm_head",))})
    rows = quadruples(NUM_ROWS)
    ranks.train(tmp_path, model_folder, rows, reference_of(model_folder, rows), wrong, CPU)
    assert "lora.targets names the head (lm_head)" in json.loads((tmp_path / "outcome.json").read_text())["error"]
