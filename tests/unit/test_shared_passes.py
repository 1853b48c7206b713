"""The layout of passes that share prompts: every conversation once, every token where attention is told it is."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion.packed.trees import at_least
from fusion.rewards.common import Tokens
from fusion.rewards.shared import plan_passes


def test_places_are_filled_up_with_the_first_others():
    assert at_least(np.array([2, 9]), 4).tolist() == [0, 1, 2, 9]
    assert at_least(np.array([0, 1, 2, 3, 40, 41, 42, 43, 44]), 16).tolist() == [*range(11), 40, 41, 42, 43, 44]
    assert at_least(np.array([5, 6]), 2).tolist() == [5, 6]


PROMPTS = ((1, 2, 3), (1, 2), (7,) * 40)
CONVERSATIONS = st.lists(
    st.builds(
        lambda prompt, length, first: Tokens(prompt, tuple(range(first, first + length))),
        st.sampled_from(PROMPTS),
        st.integers(0, 60),
        st.integers(100, 120),
    ),
    min_size=1,
    max_size=30,
)


def test_a_worked_layout():
    """Two answers to [1, 2, 3] and one to [1, 2], all in one pass of 11 tokens filled up to 16."""
    asked = [Tokens((1, 2, 3), (4, 5)), Tokens((1, 2), (6, 7)), Tokens((1, 2, 3), (8, 9, 10))]
    (each,) = plan_passes(asked, [(4, 1), (3, 0), (5, 1)], tokens_per_forward=100)
    assert each.ids_1T.tolist() == [[1, 2, 3, 4, 5, 8, 9, 10, 1, 2, 6, 7, 0, 0, 0, 0]]
    assert each.positions_1T.tolist() == [[0, 1, 2, 3, 4, 3, 4, 5, 0, 1, 2, 3, 0, 0, 0, 0]]
    assert [(t.start, t.prompt_stop, t.trunk_stop, t.branches) for t in each.trees.trees] == [
        (0, 3, 3, ((3, 5), (5, 8))),
        (8, 10, 10, ((10, 12),)),
    ]
    # The first two conversations read place 1 of the prompt that they share.
    assert (each.items, each.read_SP.tolist()) == ((0, 2, 1), [[4, 1], [7, 1], [11, 8]])
    assert each.needed_N.tolist() == [0, 1, 2, 3, 4, 7, 8, 11]
    assert each.trees.apart and each.trees.num_tokens == 16


@settings(max_examples=400, deadline=None)
@given(CONVERSATIONS, st.integers(1, 300), st.data())
def test_every_conversation_once_with_its_own_tokens(asked, tokens_per_forward, data):
    num_read = data.draw(st.integers(1, 2))
    read = [tuple(data.draw(st.integers(0, len(tokens) - 1)) for _ in range(num_read)) for tokens in asked]
    found = list(plan_passes(asked, read, tokens_per_forward=tokens_per_forward))
    assert sorted(item for each in found for item in each.items) == list(range(len(asked)))
    for each in found:
        (ids,), (positions,) = each.ids_1T.tolist(), each.positions_1T.tolist()
        assert len(ids) == len(positions) == each.trees.num_tokens and len(ids) % 8 == 0
        assert len(each.needed_N) % 8 == 0 and set(each.read_SP.flatten().tolist()) <= set(each.needed_N.tolist())
        sequences = []
        for tree in each.trees.trees:
            assert tree.trunk_stop == tree.prompt_stop
            # The trunk alone is the sequence of an empty answer.
            for start, stop in (*tree.branches, (tree.prompt_stop, tree.prompt_stop)):
                places = [*range(tree.start, tree.prompt_stop), *range(start, stop)]
                assert [positions[p] for p in places] == list(range(len(places)))
                sequences.append([ids[p] for p in places])
        for item, places in zip(each.items, each.read_SP.tolist(), strict=True):
            assert list(asked[item].ids) in sequences
            assert [(ids[p], positions[p]) for p in places] == [(asked[item].ids[p], p) for p in read[item]]
        if len(each.items) > 1:
            assert sum(len(t) for t in {asked[i].prompt for i in each.items}) <= tokens_per_forward
            assert each.trees.trees[-1].stop <= tokens_per_forward
