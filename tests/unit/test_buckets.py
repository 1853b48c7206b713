"""Shapes of forward passes: fixed by the length of a conversation alone."""

from hypothesis import given
from hypothesis import strategies as st

from fusion.rewards.buckets import MAX_ROWS, num_rows, padded_length, plan_batches

LENGTHS = st.lists(st.integers(1, 9000), max_size=40)


def test_the_ladder():
    assert [padded_length(n) for n in (1, 31, 32, 47, 48, 63, 64, 95, 96, 4095, 4096)] == [
        32, 32, 48, 48, 64, 64, 96, 96, 128, 4096, 6144,
    ]  # fmt: skip


@given(LENGTHS, st.integers(1, 20_000))
def test_every_item_once_in_the_shape_of_its_own_length(lengths, tokens_per_forward):
    batches = list(plan_batches(lengths, tokens_per_forward=tokens_per_forward))
    assert sorted(i for b in batches for i in b.items) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch.items) <= batch.num_rows <= MAX_ROWS
        for item in batch.items:
            assert batch.length == padded_length(lengths[item]) > lengths[item]
            assert batch.num_rows == num_rows(batch.length, tokens_per_forward=tokens_per_forward)
            assert batch.num_rows == 1 or batch.num_rows * batch.length <= tokens_per_forward
