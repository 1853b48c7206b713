"""The batch plan: every row once per epoch, the same number of passes on all workers, nothing above its budget."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fusion.train.batches import batch_rows, epoch_order, micro_batches, steps_per_epoch


@given(
    num_rows=st.integers(1, 80),
    global_batch=st.integers(1, 33),
    epochs=st.integers(1, 3),
    seed=st.integers(0, 2**40),
)
def test_every_row_once_per_epoch(num_rows: int, global_batch: int, epochs: int, seed: int) -> None:
    per_epoch = steps_per_epoch(num_rows=num_rows, global_batch=global_batch)
    for epoch in range(epochs):
        steps = range(epoch * per_epoch, (epoch + 1) * per_epoch)
        batches = [batch_rows(s, seed=seed, num_rows=num_rows, global_batch=global_batch) for s in steps]
        assert sorted(np.concatenate(batches).tolist()) == list(range(num_rows))
        assert all(len(batch) == global_batch for batch in batches[:-1])
        assert 1 <= len(batches[-1]) <= global_batch


def test_order_is_fixed_for_ever() -> None:
    """Checkpoints and keys rely on it: another NumPy must give the same order."""
    assert epoch_order(seed=1, epoch=0, num_rows=8).tolist() == [2, 4, 7, 5, 0, 6, 3, 1]
    assert epoch_order(seed=1, epoch=1, num_rows=8).tolist() == [5, 6, 3, 0, 7, 2, 1, 4]


@given(
    sizes=st.lists(st.integers(2, 500), min_size=1, max_size=40),
    world_size=st.integers(1, 5),
    budget=st.integers(1, 3000),
)
def test_micro_batches_cover_the_step(sizes: list[int], world_size: int, budget: int) -> None:
    rows = list(range(len(sizes)))
    passes = micro_batches(rows, np.asarray(sizes), world_size=world_size, budget=budget)
    assert sorted(row for shares in passes for share in shares for row in share) == rows
    for shares in passes:
        assert len(shares) == world_size
        assert any(shares)  # no pass in which everybody idles
        for share in shares:
            assert sum(sizes[row] for row in share) <= budget or len(share) == 1
    again = micro_batches(rows[::-1], np.asarray(sizes), world_size=world_size, budget=budget)
    assert again == passes  # a function of the set of rows


@given(
    sizes=st.lists(st.integers(20, 400), min_size=64, max_size=128),
    world_size=st.sampled_from([2, 4, 8]),
)
def test_passes_are_balanced(sizes: list[int], world_size: int) -> None:
    """No worker's share of a pass is below another's by more than one smallest row that was dealt to the larger one.

    That is what the longest-processing-time rule promises for any two bins; the passes then group equal loads.
    """
    passes = micro_batches(range(len(sizes)), np.asarray(sizes), world_size=world_size, budget=4096)
    for shares in passes:
        loads = [sum(sizes[row] for row in share) for share in shares]
        fullest = max(shares, key=lambda share: sum(sizes[row] for row in share))
        assert max(loads) - min(loads) <= min(sizes[row] for row in fullest)


def test_balance_by_hand() -> None:
    """Sizes 9 8 7 6 5 4 for two workers: dealt 9, 8, 7 to the 8, 6 to the 9, then 5 and 4: 9+6+5 and 8+7+4."""
    (shares,) = micro_batches(range(6), np.asarray([9, 8, 7, 6, 5, 4]), world_size=2, budget=20)
    assert shares == ((0, 3, 4), (1, 2, 5))


def test_the_budget_makes_passes_and_a_large_row_is_alone() -> None:
    """39 tokens, 10 a pass: four bins; 15 exceeds every budget and gets one for itself, the rest share three."""
    passes = micro_batches(range(5), np.asarray([15, 8, 7, 5, 4]), world_size=1, budget=10)
    assert passes == [((0,),), ((3, 4),), ((1,),), ((2,),)]


def test_lognormal_rows_are_balanced_to_a_percent() -> None:
    """128 UltraFeedback-like rows on 8 workers, 16k tokens a pass: within 1.02 of even, pass by pass."""
    generator = np.random.default_rng(0)
    sizes = (
        generator.lognormal(np.log(120), 0.7, 128) + generator.lognormal(np.log(220), 0.4, (3, 128)).sum(0)
    ).astype(int)
    passes = micro_batches(range(128), sizes, world_size=8, budget=16384)
    loads = np.array([[sizes[list(share)].sum() for share in shares] for shares in passes], float)
    assert loads.shape[0] == 1
    assert (loads.max(1) / loads.mean(1)).max() < 1.02
