"""Training rows: what they refuse, which responses they hold, and their way through Arrow and Parquet."""

import dataclasses
import math

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion.errors import ArtifactError, InputError
from fusion.row_tables import from_table, schema_of, to_table
from fusion.rows import (
    TRAINING_ROWS,
    Finish,
    PreferencePair,
    PreferenceQuadruple,
    PreferenceSet,
    ReferenceLogps,
    Response,
    ResponseGroup,
    ScoredResponse,
    SftExample,
    Verdict,
    WeightedGroups,
    WeightedPairs,
    WeightedResponses,
    group_roles,
    response_groups,
    response_weights,
    responses_of,
    roles,
)
from poison import poisoned, store_rows
from scored import prompt, scored

A, B, C = scored("a", 5.0), scored("b", 4.0), scored("c", 1.0)
BEST, WORST = scored("sft", 3.0, 0), scored("sft", 0.0, 1)


def row_of(row_type: type, p: str = "p"):
    """A row of the type that answers the prompt `p`."""
    a, b, c = (scored(model, score, prompt_id=p) for model, score in (("a", 5.0), ("b", 4.0), ("c", 1.0)))
    best, worst = (scored("sft", score, prompt_id=p) for score in (3.0, 0.0))
    held = {
        SftExample: (a,),
        PreferencePair: (a, b),
        PreferenceQuadruple: (a, best, worst),
        PreferenceSet: ((a, b), best, (c,), worst),
        ResponseGroup: ((a, c),),
        WeightedResponses: ((a, b), (0.75, 0.25)),
        WeightedPairs: ((a, best), (c, worst), (0.75, 0.25)),
        WeightedGroups: ((a, c, best, worst), (0, 0, 1, 1), (0.75, 0.25)),
    }
    return row_type(prompt(p), *held[row_type])


# ---- invariants -------------------------------------------------------------------------------


def test_sets_and_groups_hold_their_responses_in_order():
    row = PreferenceSet(prompt(), (A, B), BEST, (C,), WORST)
    assert roles(PreferenceSet) == ("source_chosen", "target_chosen", "source_rejected", "rejected")
    held = {role: responses_of(row, role) for role in roles(PreferenceSet)}
    assert held == {"source_chosen": (A, B), "target_chosen": (BEST,), "source_rejected": (C,), "rejected": (WORST,)}
    assert group_roles(PreferenceSet) == {"source_chosen", "source_rejected"}
    assert group_roles(ResponseGroup) == {"responses"} and group_roles(PreferenceQuadruple) == frozenset()
    assert responses_of(ResponseGroup(prompt(), (A, C)), "responses") == (A, C)
    assert row.row_id == ResponseGroup(prompt(), (A, C)).row_id == "p"


def test_weighted_rows_hold_their_responses_with_shares_and_groups():
    answers, pairs, groups = (row_of(t) for t in (WeightedResponses, WeightedPairs, WeightedGroups))
    assert roles(WeightedResponses) == roles(WeightedGroups) == ("responses",)
    assert roles(WeightedPairs) == ("chosen", "rejected")
    assert group_roles(WeightedPairs) == {"chosen", "rejected"}
    assert group_roles(WeightedResponses) == group_roles(WeightedGroups) == {"responses"}
    assert response_weights(answers, "responses") == (0.75, 0.25)
    assert response_weights(pairs, "chosen") == response_weights(pairs, "rejected") == (0.75, 0.25)
    assert response_weights(groups, "responses") == (0.75, 0.75, 0.25, 0.25)
    assert response_groups(groups, "responses") == (0, 0, 1, 1)
    assert response_groups(pairs, "chosen") == (0, 0)


@pytest.mark.parametrize(
    "row_type", [t for t in TRAINING_ROWS if t not in (WeightedResponses, WeightedPairs, WeightedGroups)]
)
def test_responses_of_other_rows_have_all_of_their_role_and_are_in_one_group(row_type):
    row = row_of(row_type)
    for role in roles(row_type):
        count = len(responses_of(row, role))
        assert response_weights(row, role) == (1.0,) * count and response_groups(row, role) == (0,) * count


def test_least_sizes_are_allowed():
    assert PreferenceSet(prompt(), (A,), BEST, (), WORST).source_rejected == ()
    assert len(ResponseGroup(prompt(), (A, A)).responses) == 2
    assert len(WeightedResponses(prompt(), (A,), (1.0,)).responses) == 1
    assert len(WeightedPairs(prompt(), (A, B), (C, C), (1.0, 0.0)).chosen) == 2
    assert len(WeightedGroups(prompt(), (A, A), (0, 0), (1.0,)).responses) == 2


def judged(score: float, verdict: Verdict | None) -> ScoredResponse:
    return dataclasses.replace(scored("a", score), verdict=verdict)


@pytest.mark.parametrize("wrong", [Verdict.wrong, Verdict.unparsable])
def test_a_verifier_tells_a_pair_apart_before_scores_do(wrong):
    """The reward model prefers the answer that is wrong; where no verifier has looked at both, it decides."""
    right, liked = judged(1.0, Verdict.correct), judged(2.0, wrong)
    assert PreferencePair(prompt(), right, liked).chosen == right
    assert WeightedPairs(prompt(), (right,), (liked,), (1.0,)).chosen == (right,)
    for chosen, rejected in (
        (right, judged(2.0, None)),
        (right, judged(2.0, Verdict.correct)),
        (judged(1.0, wrong), A),
    ):
        with pytest.raises(ValueError, match=r"row p: chosen score 1\.0 is not above rejected score"):
            PreferencePair(prompt(), chosen, rejected)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PreferenceSet(prompt(), (), BEST, (), WORST), "row p: source_chosen is empty"),
        (
            lambda: PreferenceSet(prompt(), (A,), WORST, (), BEST),
            r"row p: chosen score 0\.0 is not above rejected score 3",
        ),
        (lambda: PreferenceSet(prompt(), (A,), BEST, (), BEST), "is not above rejected score"),
        (lambda: PreferenceSet(prompt(), (A,), BEST, (), C), "target_chosen is of sft but rejected of c"),
        (lambda: PreferenceSet(prompt(), (A, BEST), BEST, (), WORST), "a source answer is of sft, the target itself"),
        (lambda: PreferenceSet(prompt(), (A,), BEST, (WORST,), WORST), "a source answer is of sft, the target itself"),
        (lambda: PreferenceSet(prompt(), (A, C), BEST, (B,), WORST), "not above every source_rejected"),
        (lambda: PreferenceSet(prompt(), (C,), BEST, (C,), WORST), "not above every source_rejected"),
        (lambda: PreferenceSet(prompt("q"), (A,), BEST, (), WORST), "row q: response of a answers p"),
        (lambda: PreferenceSet(prompt(), (A,), BEST, (scored("c", 1.0, prompt_id="q"),), WORST), "of c answers q"),
        (lambda: ResponseGroup(prompt(), (A,)), "row p: 1 responses; a group needs at least two"),
        (lambda: ResponseGroup(prompt(), ()), "row p: 0 responses"),
        (lambda: ResponseGroup(prompt(), (A, scored("c", 1.0, prompt_id="q"))), "row p: response of c answers q"),
        (lambda: WeightedResponses(prompt(), (), ()), "row p: 0 weights for 0 responses; one each, at least one"),
        (lambda: WeightedResponses(prompt(), (A, B), (1.0,)), "row p: 1 weights for 2 responses"),
        (lambda: WeightedResponses(prompt(), (A, B), (0.5, 0.4)), r"weights \(0.5, 0.4\) are not shares that sum to 1"),
        (lambda: WeightedResponses(prompt(), (A, B), (1.5, -0.5)), "are not shares that sum to 1"),
        (lambda: WeightedResponses(prompt(), (A, B), (math.nan, 0.5)), "are not shares that sum to 1"),
        (lambda: WeightedResponses(prompt("q"), (A,), (1.0,)), "row q: response of a answers p"),
        (lambda: WeightedPairs(prompt(), (A, B), (C,), (0.5, 0.5)), "row p: 2 chosen against 1 rejected"),
        (lambda: WeightedPairs(prompt(), (A,), (C,), (0.5, 0.5)), "row p: 2 weights for 1 pairs"),
        (lambda: WeightedPairs(prompt(), (A, C), (C, B), (0.5, 0.5)), r"row p: chosen score 1\.0 is not above"),
        (lambda: WeightedPairs(prompt(), (A,), (scored("c", 1.0, prompt_id="q"),), (1.0,)), "of c answers q"),
        (lambda: WeightedGroups(prompt(), (), (), ()), "row p: 0 weights for 0 groups"),
        (lambda: WeightedGroups(prompt(), (A, B, C), (0, 0, 1), (0.5, 0.5)), "each group needs at least two responses"),
        (lambda: WeightedGroups(prompt(), (A, B, C, C), (0, 1, 0, 1), (0.5, 0.5)), "that stand together"),
        (lambda: WeightedGroups(prompt(), (A, B, C, C), (1, 1, 0, 0), (0.5, 0.5)), "in the order of the groups"),
        (lambda: WeightedGroups(prompt(), (A, B, C), (0, 0), (1.0,)), r"groups \(0, 0\) of 3 responses and 1 weights"),
        (lambda: WeightedGroups(prompt(), (A, B), (0, 0), (0.5, 0.5)), "each group needs at least two responses"),
        (lambda: scored("a", math.nan), "row p/a/0: score nan is not finite"),
        (lambda: scored("a", -math.inf), "row p/a/0: score -inf is not finite"),
        (
            lambda: ReferenceLogps("p", {"chosen": (-1.0,), "rejected": (math.nan,)}, {}),
            r"row p: .* \(nan,\) of rejected",
        ),
    ],
)
def test_rows_that_cannot_be_are_refused_by_name(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("weight", [math.nan, math.inf, -math.inf, -0.5])
@pytest.mark.parametrize("row_type", TRAINING_ROWS)
def test_a_weight_that_no_loss_can_have_is_refused(row_type, weight):
    row = row_of(row_type)
    with pytest.raises(ValueError, match=f"row p: weight {weight} is not a finite number of 0 or more"):
        dataclasses.replace(row, weight=weight)
    assert dataclasses.replace(row, weight=0.0).weight == 0


# ---- Arrow ------------------------------------------------------------------------------------

TEXT = st.text('aé日🙂\n"\0', max_size=4)


@st.composite
def answers_of(draw, model: str, score: st.SearchStrategy[float]):
    response = Response(
        "p", model, draw(st.integers(0, 9)), "sample", draw(TEXT), tuple(draw(st.lists(st.integers(0, 9), max_size=3))),
        draw(st.sampled_from(Finish)), draw(st.integers(0, 2**62)), 3, "t",
    )  # fmt: skip
    objectives = draw(st.dictionaries(TEXT, st.floats(-1, 1), max_size=2))
    verdict, reason = draw(st.none() | st.sampled_from(Verdict)), draw(st.none() | TEXT)
    return ScoredResponse(response, draw(score), "s", objectives, verdict, reason, draw(st.booleans()))


@st.composite
def shares(draw, count: int):
    """Numbers that sum to 1; some are 0."""
    parts = [draw(st.integers(1, 9)), *(draw(st.integers(0, 9)) for _ in range(count - 1))]
    return tuple(part / sum(parts) for part in parts)


@st.composite
def training_rows(draw, row_type: type):
    above, below = st.floats(1, 2), st.floats(-2, 0)
    tests = tuple(draw(st.lists(TEXT, max_size=2)))
    asked = dataclasses.replace(prompt(), reference=draw(st.none() | TEXT), tests=tests, dataset=draw(st.none() | TEXT))
    weight = draw(st.floats(0, 2))
    good, bad = answers_of("sft", above), answers_of("sft", below)
    many = st.lists(answers_of("a", above), min_size=1, max_size=3).map(tuple)
    few = st.lists(answers_of("b", below), max_size=2).map(tuple)
    if row_type is SftExample:
        return SftExample(asked, draw(good), weight)
    if row_type is PreferencePair:
        return PreferencePair(asked, draw(good), draw(bad), weight)
    if row_type is PreferenceQuadruple:
        return PreferenceQuadruple(asked, draw(answers_of("a", above)), draw(good), draw(bad), weight)
    if row_type is PreferenceSet:
        return PreferenceSet(asked, draw(many), draw(good), draw(few), draw(bad), weight)
    if row_type is ResponseGroup:
        return ResponseGroup(asked, (*draw(many), *draw(many)), weight)
    if row_type is WeightedResponses:
        return WeightedResponses(asked, held := draw(many), draw(shares(len(held))), weight)
    if row_type is WeightedPairs:
        count = draw(st.integers(1, 3))
        sides = (tuple(draw(st.lists(side, min_size=count, max_size=count))) for side in (good, bad))
        return WeightedPairs(asked, *sides, draw(shares(count)), weight)
    assert row_type is WeightedGroups
    held = [(*draw(many), *draw(many)) for _ in range(draw(st.integers(1, 2)))]
    numbers = tuple(number for number, one in enumerate(held) for _ in one)
    return WeightedGroups(asked, tuple(s for one in held for s in one), numbers, draw(shares(len(held))), weight)


@pytest.mark.parametrize("row_type", TRAINING_ROWS)
@settings(deadline=None)  # the first call derives the schema
@given(data=st.data())
def test_every_training_row_comes_back_from_arrow_as_it_was(row_type, data):
    rows = data.draw(st.lists(training_rows(row_type), max_size=3))
    table = to_table(rows, row_type)
    assert table.schema.equals(schema_of(row_type))
    assert list(from_table(table, row_type)) == rows


@pytest.mark.parametrize(
    "row",
    [
        PreferenceSet(prompt(), (A, B), BEST, (), WORST, 0.5),
        ResponseGroup(prompt(), (A, B, C), 0.25),
        WeightedResponses(prompt(), (A, B, C), (0.5, 0.25, 0.25), 0.5),
        WeightedPairs(prompt(), (A, B), (C, C), (1.0, 0.0)),
        WeightedGroups(prompt(), (A, B, A, B, C), (0, 0, 1, 1, 1), (0.25, 0.75)),
    ],
    ids=lambda row: type(row).__name__,
)
def test_groups_come_back_from_parquet_as_they_were(tmp_path, row):
    """Empty groups and groups of different sizes, with the schema that readers compare."""
    rows = [row, dataclasses.replace(row, weight=2.0)]
    pq.write_table(to_table(rows, type(row)), tmp_path / "rows.parquet")
    assert list(from_table(pq.read_table(tmp_path / "rows.parquet"), type(row))) == rows


PLACES = {
    SftExample: ("response", "score"),
    PreferencePair: ("rejected", "score"),
    PreferenceQuadruple: ("source_chosen", "score"),
    PreferenceSet: ("source_rejected", 0, "score"),
    ResponseGroup: ("responses", 1, "score"),
    WeightedResponses: ("responses", 1, "score"),
    WeightedPairs: ("chosen", 1, "score"),
    WeightedGroups: ("responses", 2, "score"),
}
"""A score of each row type."""


@pytest.mark.parametrize("row_type", TRAINING_ROWS)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_poisoned_file_is_refused_with_its_name_and_the_row(tmp_path, row_type, value):
    """Exit code 2 and one line, although the manifest vouches for the file."""
    _, artifact = store_rows(tmp_path, [row_of(row_type, f"p{n}") for n in range(10)])
    file = artifact.path / "part-00001.parquet"
    for place, what in ((PLACES[row_type], "score"), (("weight",), "weight")):
        with poisoned(artifact, 1, 2, place, value) as bad:
            bad.verify()
            with pytest.raises(
                InputError, match=rf"^{file}: row p9[^ ]*: {what} {value} is not .*; mend it, or remove"
            ) as caught:
                list(bad.rows(row_type))
            assert caught.value.exit_code == 2 and "\n" not in str(caught.value)
    assert [read.row_id for read in artifact.rows(row_type)] == [f"p{n}" for n in range(10)]


@pytest.mark.parametrize("value", [math.nan, 0.5, None])
@pytest.mark.parametrize("row_type", [WeightedResponses, WeightedPairs, WeightedGroups])
def test_poisoned_shares_are_refused_with_the_file_and_the_row(tmp_path, row_type, value):
    _, artifact = store_rows(tmp_path, [row_of(row_type, f"p{n}") for n in range(10)])
    with poisoned(artifact, 0, 3, ("weights", 0), value) as bad:
        with pytest.raises(InputError, match=rf"part-00000.parquet: row p3: weights \({value}, 0.25\) are not shares"):
            list(bad.rows(row_type))


@pytest.mark.parametrize("value", [math.nan, -math.inf, None])
def test_a_poisoned_reference_is_refused_with_its_name_and_the_row(tmp_path, value):
    rows = [ReferenceLogps(f"p{n}", {"responses": (-1.0, -2.0)}, {"responses": (1, 2)}) for n in range(10)]
    _, artifact = store_rows(tmp_path, rows)
    with poisoned(artifact, 0, 3, ("logps", "responses", 1), value) as bad:
        with pytest.raises(
            InputError, match=rf"{artifact.path}/part-00000.parquet: row p3: .*\(-1.0, {value}\) of responses"
        ):
            list(bad.rows(ReferenceLogps))


def test_rows_of_another_type_are_refused_with_both_schemas():
    table = to_table([ResponseGroup(prompt(), (A, B))], ResponseGroup)
    with pytest.raises(ArtifactError, match=r"not PreferenceSet(?s:.*)source_chosen(?s:.*)found(?s:.*)responses"):
        list(from_table(table, PreferenceSet))
    with pytest.raises(TypeError, match="expected PreferenceSet, got ResponseGroup"):
        to_table([ResponseGroup(prompt(), (A, B))], PreferenceSet)
