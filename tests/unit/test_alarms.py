"""Alarms of a training: worked examples of what each measures, when it speaks, and that resumed runs say the same."""

import math
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from fusion.losses import LossInputs, SequenceLogps  # noqa: E402
from fusion.train.alarms import Watch  # noqa: E402
from fusion.train.lengths import PREFIX, derive, row_sums  # noqa: E402
from fusion.train.notices import ALARMS, read_notices  # noqa: E402
from fusion.train.record import Recorder  # noqa: E402

LN2 = math.log(2)


def alarms(lines: list[dict], *, beta: float | None = 1.0, total: int = 50, **how) -> dict[str, tuple[int, str]]:
    watch = Watch(total_steps=total, warmup_steps=5, beta=beta, **how)
    return {a.name: (a.step, a.text) for step, line in enumerate(lines, 1) for a in watch.see(step, line)}


def healthy(step: int, **changes: float) -> dict[str, float]:
    """A preference training that goes well: the margin rises by 0.1 per step, chosen by 0.02."""
    line = {"loss": LN2 * 0.97**step, "grad_norm": 1.0, "rewards/margins": 0.1 * step, "rewards/chosen": 0.02 * step}
    line |= {"logps/chosen": -20 + 0.02 * step, "lengths/tilt": 0.0, "lengths/shortest": 0.0, "lengths/longest": 0.0}
    return {**line, "lengths/correlation": 0.1 * (-1) ** step, **changes}


def test_a_healthy_training_is_silent() -> None:
    assert alarms([healthy(step) for step in range(1, 51)]) == {}
    sft = [{"loss": 1.5 - 0.01 * step, "grad_norm": 1.0, "logps/response": -30.0} for step in range(50)]
    assert alarms(sft, beta=None) == {}


def test_chosen_falling() -> None:
    """Chosen falls by 0.2 nats per step from -20: at the mean of steps 24 to 28 the fall of 5.2 is over a quarter."""
    lines = [healthy(s, **{"rewards/chosen": -0.2 * s, "logps/chosen": -20 - 0.2 * s}) for s in range(1, 51)]
    step, text = alarms(lines)["chosen_falling"]
    assert step == 27  # mean of steps 23..27 is 25: a fall of 5.0 of 20
    assert "fallen by 5.0 nats per response, from -20.0 at the start to -25.0" in text
    assert alarms([{**line, "rewards/margins": 0.0} for line in lines]) == {}, "margins do not rise"
    with_beta = [{**line, "rewards/chosen": 0.1 * line["rewards/chosen"]} for line in lines]
    assert alarms(with_beta, beta=0.1)["chosen_falling"][0] == 27, "the log-ratio is reward / beta"
    short = [healthy(s, **{"rewards/chosen": -0.015 * s, "logps/chosen": -1 - 0.015 * s}) for s in range(1, 51)]
    assert alarms(short) == {}, "less than 1 nat is noise"


def test_stuck_at_ln2() -> None:
    lines = [healthy(s, loss=LN2 - 0.0001 * (s % 3)) for s in range(1, 51)]
    step, text = alarms(lines)["stuck_at_ln2"]
    assert step == 18  # after a quarter (12.5) and a window of five
    assert "nothing is learnt" in text
    assert alarms([healthy(s, loss=LN2 - 0.001 * s) for s in range(1, 51)]) == {}, "slow is not stuck"
    assert alarms([{"loss": LN2, "grad_norm": 1.0} for _ in range(50)], beta=None) == {}, "an SFT loss may be anywhere"
    crossing = [healthy(s, loss=2.0 if s < 5 else LN2) for s in range(1, 51)]
    assert alarms(crossing) == {}, "it did not begin there"


def test_non_finite_is_told_at_once_and_once() -> None:
    lines = [healthy(1), healthy(2, loss=math.nan), healthy(3, grad_norm=math.inf)]
    assert alarms(lines)["non_finite"] == (2, alarms(lines)["non_finite"][1])
    assert alarms([healthy(1), {**healthy(2), "grad_norm": None}])["non_finite"][1].startswith("grad_norm not finite")


def test_length_tilt_is_what_the_data_do_not_explain() -> None:
    def with_tilt(tilt: float, shortest: float, longest: float) -> dict:
        line = {"lengths/tilt": tilt, "lengths/shortest": shortest, "lengths/longest": longest}
        return alarms([healthy(s, **line) for s in range(1, 51)])

    assert with_tilt(0.3, 0.4, 0.4) == {}, "the preferred responses are 40 % longer"
    assert with_tilt(0.3, -0.1, 0.25) == {}, "one of the preferred responses is 25 % longer"
    step, text = with_tilt(0.3, 0.1, 0.1)["length_tilt"]
    assert step == 5 and "30% longer than the average of their row, while the preferred ones are 10% longer" in text
    assert "35% shorter" in with_tilt(-0.35, 0.0, 0.1)["length_tilt"][1]


def test_length_correlation_speaks_of_the_mean_over_a_window() -> None:
    assert alarms([healthy(s, **{"lengths/correlation": 0.9 * (-1) ** s}) for s in range(1, 51)]) == {}
    found = alarms([healthy(s, **{"lengths/correlation": -0.7}) for s in range(1, 51)])
    assert "r = -0.70" in found["length_correlation"][1] and "shorter" in found["length_correlation"][1]


# ---- what a step adds up ----------------------------------------------------------------------


def inputs(ratios: dict[str, list], lengths: dict[str, list], weights: dict[str, list] | None = None) -> LossInputs:
    zeros = {role: torch.zeros(torch.tensor(v).shape) for role, v in ratios.items()}
    counts = {role: torch.tensor(v) for role, v in lengths.items()}
    policy = SequenceLogps({role: torch.tensor(v) for role, v in ratios.items()}, counts)
    shares = {role: torch.tensor(v) for role, v in (weights or {}).items()}
    return LossInputs(policy, SequenceLogps(zeros, counts), {}, 0, 1, weights=shares)


def step_of(inputs_: LossInputs) -> dict[str, float]:
    sums = row_sums(inputs_)
    rows = len(next(iter(sums.values())))
    return derive({"loss": 1.0} | {name: float(v.mean()) for name, v in sums.items()}, num_rows=rows)


def test_tilt_of_two_pairs() -> None:
    """Row 1: z = (ln 3, 0), lengths 30 and 10: weights 3/4 and 1/4, so 25 of a plain 20. Row 2: z = 0: 10 of 10."""
    found = step_of(
        inputs({"chosen": [math.log(3), 0.0], "rejected": [0.0, 0.0]}, {"chosen": [30, 10], "rejected": [10, 10]})
    )
    assert found["lengths/tilt"] == pytest.approx(35 / 30 - 1)
    assert found["lengths/shortest"] == found["lengths/longest"] == pytest.approx(40 / 30 - 1)
    assert found["loss"] == 1.0 and not any(name.startswith(PREFIX) for name in found)


def test_correlation_is_pearsons_r() -> None:
    """Margins 1, 2, 3, 5 (mean 2.75) and differences in length 2, 1, 4, 5 (mean 3).

    The products of the deviations add up to 1.75 + 1.5 + 0.25 + 4.5 = 8, their squares to 8.75 and 10.
    """
    margins, longer = [1.0, 2.0, 3.0, 5.0], [12, 11, 14, 15]
    found = step_of(inputs({"chosen": margins, "rejected": [0.0] * 4}, {"chosen": longer, "rejected": [10] * 4}))
    assert found["lengths/correlation"] == pytest.approx(8 / math.sqrt(8.75 * 10), abs=1e-9)


def test_no_correlation_of_rounding_of_few_rows_or_of_equal_lengths() -> None:
    tiny = inputs(
        {"chosen": [1e-7, 2e-7, 3e-7, 0.0], "rejected": [0.0] * 4}, {"chosen": [1, 2, 3, 4], "rejected": [1] * 4}
    )
    few = inputs({"chosen": [1.0, 2.0, 3.0], "rejected": [0.0] * 3}, {"chosen": [1, 2, 3], "rejected": [1] * 3})
    equal = inputs({"chosen": [1.0, 2.0, 3.0, 5.0], "rejected": [0.0] * 4}, {"chosen": [4] * 4, "rejected": [4] * 4})
    for case in (tiny, few, equal):
        assert "lengths/correlation" not in step_of(case)


def test_group_roles_leave_out_what_a_row_does_not_have() -> None:
    """(B, K): one row with sources of 10 and 30 tokens and a missing third, its own of 20 and a rejected of 40."""
    found = row_sums(
        inputs(
            {"source_chosen": [[0.0, 0.0, 9.0]], "target_chosen": [0.0], "rejected": [0.0]},
            {"source_chosen": [[10, 30, 0]], "target_chosen": [20], "rejected": [40]},
        )
    )
    values = {name.removeprefix(PREFIX): float(v) for name, v in found.items()}
    assert values["plain"] == values["tilted"] == 25
    assert (values["shortest"], values["longest"], values["m"], values["d"]) == (10, 30, 0, -20)


def test_margins_and_differences_of_weighted_pairs_are_weighted() -> None:
    """Pairs with z 2 and -1 of 20 and 10 tokens, and 0 and 4 of 30 and 50; w = (0.75, 0.25); a second row has one pair.

    Margin 0.75 * 3 + 0.25 * -4 = 1.25, difference 0.75 * 10 + 0.25 * -20 = 2.5.
    """
    shares = [[0.75, 0.25], [1.0, 0.0]]
    found = row_sums(
        inputs(
            {"chosen": [[2.0, 0.0], [1.0, 0.0]], "rejected": [[-1.0, 4.0], [0.0, 0.0]]},
            {"chosen": [[20, 30], [7, 0]], "rejected": [[10, 50], [5, 0]]},
            {"chosen": shares, "rejected": shares},
        )
    )
    values = {name.removeprefix(PREFIX): v.tolist() for name, v in found.items()}
    assert (values["m"], values["d"], values["plain"]) == ([1.25, 1.0], [2.5, 2.0], [27.5, 6.0])
    assert (values["shortest"], values["longest"]) == ([20.0, 7.0], [30.0, 7.0])


def test_losses_without_reference_or_sides_have_no_lengths() -> None:
    counts = {"response": torch.tensor([3])}
    only = SequenceLogps({"response": torch.tensor([-1.0])}, counts)
    assert row_sums(LossInputs(only, None, {}, 0, 1)) == {} and row_sums(LossInputs(only, only, {}, 0, 1)) == {}
    assert derive({"loss": 1.0}, num_rows=4) == {"loss": 1.0}


# ---- across a resume --------------------------------------------------------------------------


def test_a_resumed_run_raises_the_same_alarms(tmp_path: Path) -> None:
    lines = [healthy(s, **{"rewards/chosen": -0.2 * s, "logps/chosen": -20 - 0.2 * s}) for s in range(1, 51)]
    lines[9]["loss"] = math.nan
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"

    def record(directory: Path, start: int, stop: int) -> None:
        directory.mkdir(exist_ok=True)
        with Recorder(directory, Watch(total_steps=50, warmup_steps=5, beta=1.0), steps_done=start) as recorder:
            for step in range(start + 1, stop + 1):
                recorder.write(step, lines[step - 1])

    record(whole, 0, 50)
    record(resumed, 0, 30)  # killed after 30 steps, with a checkpoint at 22
    record(resumed, 22, 50)
    assert [a.name for a in read_notices(whole, ALARMS)] == ["non_finite", "chosen_falling"]
    assert read_notices(whole, ALARMS) == read_notices(resumed, ALARMS)
