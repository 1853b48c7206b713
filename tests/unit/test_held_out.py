"""Which rows are held out, which evaluation is the best, and what of it a config may say."""

import hashlib

import numpy as np
import pytest
from pydantic import ValidationError

from fusion.errors import StageError
from fusion.losses import DpoLoss, SftLoss, WrpoLoss
from fusion.losses.alpha import ConstantAlpha
from fusion.train.held_out import best_step, evaluation_loss, final_step, is_due, split
from fusion.training import HeldOut, TrainConfig

IDS = [f"p{n}" for n in range(1000)]
WRPO = WrpoLoss.model_validate({"beta": 0.1, "alpha": {"from": 0.0, "to": 0.5}})


def config(loss, **held_out) -> TrainConfig:
    return TrainConfig(loss=loss, learning_rate=1e-3, global_batch=4, max_length=64, held_out=HeldOut(**held_out))


def held(ids: list[str], seed: int = 0, **fields) -> set[str]:
    trained, out = split(ids, HeldOut(**fields), seed=seed)
    assert sorted([*trained, *out]) == list(range(len(ids)))
    return {ids[i] for i in out}


def test_no_row_is_held_out_without_being_asked() -> None:
    trained, out = split(IDS, None, seed=0)
    assert np.array_equal(trained, np.arange(1000)) and len(out) == 0


def test_a_row_is_held_out_by_its_id_wherever_it_stands() -> None:
    assert held(IDS, rows=64) == held(IDS[::-1], rows=64) and len(held(IDS, rows=64)) == 64
    assert held(IDS, share=0.1) == held(IDS[::-1], share=0.1)
    assert held(IDS[:500], share=0.1) == held(IDS, share=0.1) & set(IDS[:500]), "new rows do not move older ones"
    assert held(IDS, rows=10) < held(IDS, rows=20), "more rows keep those held out before"


def test_the_share_is_met_and_the_seed_chooses() -> None:
    assert 70 < len(held(IDS, share=0.1)) < 130  # 100 +- 3 standard deviations of 9.5
    assert held(IDS, share=0.1) != held(IDS, share=0.1, seed=1)


@pytest.mark.parametrize("fields", [{"rows": 64}, {"share": 0.1}])
def test_all_rows_of_a_prompt_are_on_one_side(fields) -> None:
    """Imported rows of one prompt are p, p#2 and p#3; ids of a prompt's own may look like that, also `#2` of `p#2`."""
    ids = [f"{row_id}{further}" for row_id in IDS for further in ("", "#2", "#3", "#10", "#2#2")]
    out = held(ids, **fields)
    assert {row_id.split("#")[0] for row_id in out} == {row_id for row_id in out if "#" not in row_id}
    assert all(row_id.split("#")[0] in out for row_id in out)
    assert len(out) % 5 == 0 and (fields != {"rows": 64} or len(out) == 65), "whole prompts, at least as many rows"
    assert {row_id for row_id in held(IDS, rows=13) if fields == {"rows": 64}} <= out, "where its first row goes alone"


def test_further_rows_stay_together_where_the_first_is_dropped() -> None:
    ids = [f"{row_id}{further}" for row_id in IDS for further in ("#2", "#3")]
    trained, out = split(ids, HeldOut(share=0.3), seed=0, dropped=IDS)
    assert {ids[i].split("#")[0] for i in out}.isdisjoint(ids[i].split("#")[0] for i in trained)
    assert {ids[i].split("#")[0] for i in out} == held(IDS, share=0.3)


@pytest.mark.parametrize("name", ["#{}", "set#{}", "a#b#{}"])
def test_prompts_whose_own_ids_are_numbered_are_not_one_prompt(name) -> None:
    assert len(held([name.format(n) for n in range(2, 1002)], rows=64)) == 64


def test_the_split_of_plain_ids_is_the_one_of_before() -> None:
    """Hashes of (seed, row id) as they were drawn before rows of one prompt were kept together."""
    draws = {
        row_id: int.from_bytes(hashlib.sha256(f"7\0{row_id}".encode()).digest()[:6]) / 2**48
        for row_id in [*IDS, "a#b", "#1", "x#1", "#"]
    }
    assert held(list(draws), seed=7, share=0.2) == {row_id for row_id, place in draws.items() if place < 0.2}
    assert held(list(draws), seed=7, rows=50) == set(sorted(draws, key=lambda row_id: draws[row_id])[:50])


@pytest.mark.parametrize("fields", [{"rows": 3}, {"rows": 5}, {"share": 1e-9}])
def test_a_split_without_rows_on_a_side_is_refused(fields) -> None:
    with pytest.raises(StageError, match="both must be at least 1"):
        split(IDS[:3], HeldOut(**fields), seed=0)


def test_alpha_is_the_same_at_every_evaluation() -> None:
    fixed = evaluation_loss(config(WRPO, rows=4, alpha=0.3))
    assert fixed.alpha == ConstantAlpha(value=0.3)
    assert evaluation_loss(config(WRPO, rows=4)) == WRPO  # called with the last step, where the ramp has ended
    assert evaluation_loss(config(DpoLoss(beta=0.1), rows=4)) == DpoLoss(beta=0.1)


def test_due_steps_are_every_n_and_the_last() -> None:
    assert [s for s in range(1, 11) if is_due(s, HeldOut(rows=1, every=4), total_steps=10)] == [4, 8, 10]
    assert not any(is_due(s, None, total_steps=10) for s in range(1, 11))


def test_the_best_of_the_last_two() -> None:
    """FuseChat-3.0: checkpoints every 100 steps, the best of the last two."""
    losses = {100: {"loss": 0.1}, 200: {"loss": 0.3}, 300: {"loss": 0.4}}
    best = HeldOut(rows=1, keep="best", among=2)
    assert final_step(losses, best, total_steps=300) == 200
    assert final_step(losses, best.model_copy(update={"among": 3}), total_steps=300) == 100
    assert final_step(losses, HeldOut(rows=1), total_steps=300) == 300
    assert final_step({}, None, total_steps=300) == 300


def test_better_is_lower_for_a_loss_and_higher_for_the_rest() -> None:
    accuracy = HeldOut(rows=1, metric="rewards/accuracies")
    seen = {1: {"rewards/accuracies": 0.7}, 2: {"rewards/accuracies": 0.9}, 3: {"rewards/accuracies": 0.9}, 4: {}}
    assert best_step(seen, accuracy) == 3, "of equal ones the later; what was not finite is the worst"
    assert best_step({1: {"loss": 2.0}, 2: {"loss": 3.0}}, HeldOut(rows=1)) == 1


@pytest.mark.parametrize(
    ("loss", "fields", "text"),
    [
        (SftLoss(), {}, "either rows or share"),
        (SftLoss(), {"rows": 4, "share": 0.1}, "either rows or share"),
        (SftLoss(), {"rows": 4, "alpha": 0.1}, "the loss 'sft' has no alpha"),
        (SftLoss(), {"rows": 4, "metric": "rewards/margins"}, "sft has no rewards/margins"),
        (DpoLoss(beta=0.1), {"rows": 4, "alpha": 0.1}, "the loss 'dpo' has no alpha"),
    ],
)
def test_settings_that_do_nothing_are_refused(loss, fields, text) -> None:
    with pytest.raises(ValidationError, match=text):
        config(loss, **fields)
