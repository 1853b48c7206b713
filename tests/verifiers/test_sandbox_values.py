"""Values on their way between processes: what is carried comes out the same, and nothing hostile gets in."""

import collections
import contextlib
import json
import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusion.verifiers.sandbox import values
from fusion.verifiers.sandbox.compare import same
from fusion.verifiers.sandbox.values import Decoder, Encoder, MalformedError, UncarriedError

TEXTS = st.text(st.characters(exclude_categories=()), max_size=8)
HASHABLE = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | TEXTS
    | st.binary(max_size=8)
    | st.complex_numbers(allow_nan=False)
    | st.decimals(allow_nan=False)
    | st.fractions()
    | st.dates()
    | st.datetimes()
    | st.timedeltas(),
    lambda inner: st.tuples(inner, inner) | st.frozensets(inner, max_size=3),
    max_leaves=5,
)
VALUES = st.recursive(
    HASHABLE,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(HASHABLE, inner, max_size=3)
        | st.sets(HASHABLE, max_size=3)
        | st.lists(inner, max_size=3).map(collections.deque)
    ),
    max_leaves=12,
)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from(["list", "dict", "same", "set", "int", "Match", "x", "ff"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=2),
    max_leaves=12,
)


def carried(value: object) -> object:
    return Decoder().decode(values.loads(values.dumps(Encoder().encode(value))))


def types(value: object) -> object:
    """Return the types of a value, in the order of its parts."""
    if isinstance(value, dict):
        return type(value), [(types(key), types(item)) for key, item in value.items()]
    if isinstance(value, list | tuple | collections.deque):
        return type(value), [types(item) for item in value]
    return type(value)


@given(VALUES)
def test_values_come_out_as_they_went_in(value: object) -> None:
    assert carried(value) == value
    assert types(carried(value)) == types(value)


@given(VALUES)
def test_a_plain_tree_is_the_same_as_itself(value: object) -> None:
    tree = values.loads(values.dumps(Encoder(plain=True).encode(value)))
    assert same(tree, Encoder(plain=True).encode(value), 0.0)


@given(JSON)
def test_hostile_trees_are_refused_or_are_values(tree: object) -> None:
    """Nothing but `MalformedError` comes of them, in the process of a test and in that of the judge."""
    with contextlib.suppress(MalformedError):
        Decoder().decode(tree)
    for expected in ([1, (2.0,)], {"a": {1}}, 1j):
        with contextlib.suppress(MalformedError):
            assert not same(Encoder(plain=True).encode(expected), tree, 1e-6)


@pytest.mark.parametrize("line", [b"", b"{", b"\xff", b"[" * 100_000, b"1" * 5000, b"[1,", b"nul", b"[1] [2]"])
def test_lines_that_are_no_trees(line: bytes) -> None:
    with pytest.raises(MalformedError):
        values.loads(line)


def test_special_floats() -> None:
    assert math.isnan(carried(math.nan))  # type: ignore[arg-type]
    assert carried([math.inf, -math.inf]) == [math.inf, -math.inf]
    assert math.copysign(1, carried(-0.0)) == -1  # type: ignore[arg-type]


def test_cycles_and_shared_parts_stay() -> None:
    row = [0]
    value: list = [row, row]
    value.append(value)
    result = carried(value)
    assert isinstance(result, list)
    assert result[0] is result[1]
    assert result[2] is result
    result[0].append(1)
    assert result[1] == [0, 1]


class Sub(int):
    pass


@pytest.mark.parametrize(
    "value",
    [
        object(),
        Sub(1),
        iter([]),
        (x for x in ()),
        len,
        int,
        type("L", (list,), {})([1]),
        {1: object()},
        [[Sub(2)]],
        math,
    ],
    ids=str,
)
def test_objects_are_not_carried(value: object) -> None:
    for plain in (True, False):
        with pytest.raises(UncarriedError):
            Encoder(plain=plain).encode(value)


def test_a_match_is_carried_as_a_result_only() -> None:
    match = re.search("b", "abc")
    tree = values.loads(values.dumps(Encoder().encode([match, None])))
    assert tree == ["list", 0, [["Match", "<re.Match object; span=(1, 2), match='b'>"], None]]
    assert Decoder(match=lambda text: text[:9]).decode(tree) == ["<re.Match", None]
    for encoder in (Encoder(plain=True), Encoder(exact=True)):
        with pytest.raises(UncarriedError, match="Match"):
            encoder.encode(match)
    for hostile in (tree, ["Match"], ["Match", 1, 2], ["Match", ["list", 0, []]]):
        with pytest.raises(MalformedError):
            Decoder().decode(hostile)


def test_depth_and_size_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(values, "MAX_CONTAINERS", 10_000)
    deep: list = []
    for _ in range(1000):
        deep = [deep]
    bomb: list = []
    for _ in range(60):
        bomb = [bomb, bomb]
    cycle: list = []
    cycle.append(cycle)
    for value in (deep, bomb, cycle):
        with pytest.raises(UncarriedError):
            Encoder(plain=True).encode(value)
    assert carried(bomb[:]) is not None  # Shared parts are told once.


def test_colliding_keys_cost_the_judge_nothing() -> None:
    """As objects these 30,000 integers have one hash; as texts they have not."""
    modulus = 2**61 - 1
    tree = ["set", None, [["int", hex(k * modulus)] for k in range(8, 30_000)]]
    line = json.dumps(tree).encode()
    assert same(values.loads(line), values.loads(line), 1e-6)


def test_what_a_call_did_to_its_arguments_is_done_here_too() -> None:
    """The way of one call: arguments out, results and contents back."""
    inner = {"k": [1]}
    arguments = (inner, [3, 1, 2])
    there = Encoder()
    sent = values.loads(values.dumps(there.encode(arguments)))
    decoder = Decoder()
    args = decoder.decode(sent)
    args[0]["k"].append(args[1])
    args[1].sort()
    numbered = list(decoder.numbered)
    back = Encoder(numbered=list(numbered))
    result = back.encode(args[1])
    contents = [back.contents(container) for container in numbered]
    here = Decoder(list(there.numbered))
    assert here.decode(result) is arguments[1]
    for container, tree in zip(there.numbered, values.loads(values.dumps(contents)), strict=True):
        here.refill(container, tree)
    assert arguments == ({"k": [1, [1, 2, 3]]}, [1, 2, 3])
    assert inner["k"][1] is arguments[1]
