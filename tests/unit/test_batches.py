"""The batch plan: every row once per epoch, the same number of passes on all workers, nothing above its budget."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("torch")

from fusion.train.batches import batch_rows, epoch_order, micro_batches, pad_batch, steps_per_epoch
from fusion.train.encode import EncodedRow


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
    lengths=st.lists(st.integers(2, 500), min_size=1, max_size=40),
    world_size=st.integers(1, 5),
    num_roles=st.integers(1, 3),
    tokens=st.integers(1, 3000),
)
def test_micro_batches_cover_the_step(lengths: list[int], world_size: int, num_roles: int, tokens: int) -> None:
    rows = list(range(len(lengths)))
    passes = micro_batches(rows, np.asarray(lengths), num_roles=num_roles, world_size=world_size, tokens=tokens)
    assert sorted(row for shares in passes for share in shares for row in share) == rows
    for shares in passes:
        assert len(shares) == world_size
        assert any(shares)  # no pass in which everybody idles
        counts = [len(share) for share in shares]
        assert max(counts) - min(counts) <= 1 or max(counts) <= -(-sum(counts) // world_size)
        for share in shares:
            padded = len(share) * num_roles * max((lengths[row] for row in share), default=0)
            assert padded <= tokens or len(share) == 1
    again = micro_batches(rows[::-1], np.asarray(lengths), num_roles=num_roles, world_size=world_size, tokens=tokens)
    assert again == passes  # a function of the set of rows


def test_balance_within_a_pass() -> None:
    """Lengths 9 8 7 6 5 4 for two workers: dealt 9+6+5 | 8+7+4, the loads differ by 1, not by 6."""
    (shares,) = micro_batches(range(6), np.asarray([9, 8, 7, 6, 5, 4]), num_roles=1, world_size=2, tokens=100)
    assert shares == ((0, 3, 4), (1, 2, 5))


def test_padded_layout_by_hand() -> None:
    """Two pairs; role-major order; a response token at position p is predicted at p - 1."""
    rows = [
        EncodedRow("a", 1.0, np.asarray([1, 2]), {"chosen": np.asarray([3, 4]), "rejected": np.asarray([5])}),
        EncodedRow("b", 1.0, np.asarray([6]), {"chosen": np.asarray([7]), "rejected": np.asarray([8, 9])}),
    ]
    batch = pad_batch(rows, pad_id=0)
    assert batch.roles == ("chosen", "rejected")
    assert batch.ids_ST.tolist() == [[1, 2, 3, 4], [6, 7, 0, 0], [1, 2, 5, 0], [6, 8, 9, 0]]
    assert batch.mask_ST.tolist() == [[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 0]]
    assert batch.sequence_N.tolist() == [0, 0, 1, 2, 3, 3]
    assert batch.column_N.tolist() == [1, 2, 0, 1, 0, 1]
    assert batch.target_N.tolist() == [3, 4, 7, 5, 8, 9]
    assert batch.num_tokens_S == (2, 1, 1, 2)
