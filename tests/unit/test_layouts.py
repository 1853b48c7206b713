"""Published row layouts: every form there and back, what others published by hand, and what nobody should have written."""

import dataclasses
import json
import re

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion.layouts import LAYOUTS
from fusion.layouts.example import FACTS, KINDS, ROLES, Answer, Example, Kind, examples_of, row_of
from fusion.layouts.writing import json_text
from fusion.promptsets.records import Refused, content_digest
from fusion.row_files import count_rows, read_rows, row_type_of
from fusion.rows import (
    TRAINING_ROWS,
    Finish,
    Message,
    PreferencePair,
    Prompt,
    ScoredResponse,
    Verdict,
    WeightedGroups,
    WeightedPairs,
    WeightedResponses,
    responses_of,
    roles,
)
from jobs.layout_driver import export_rows, import_rows
from layout_examples import PUBLISHED, SHA, TEXT, A, B, C, Q, row_for
from poison import store_rows

FORMS = [(name, form) for name, layout in LAYOUTS.items() for form in layout.forms]
FORM_IDS = [f"{name}-{form.kind}-{form.needs[0]}" for name, form in FORMS]
SINGLE_TURN = ("wrpo", "simpo")
"""Layouts whose prompt is one user turn."""

# ---- examples ---------------------------------------------------------------------------------

WORDS = TEXT.filter(bool)
IDS = st.text("aé日🙂/. ..", min_size=1, max_size=6)
SCORES = st.floats(-3, 3)


@st.composite
def prompts(draw, *, single: bool = False) -> Prompt:
    turns = [Message("user", draw(WORDS))]
    if not single:
        if draw(st.booleans()):
            turns = [Message("user", draw(TEXT)), Message("assistant", draw(TEXT)), *turns]
        if draw(st.booleans()):
            turns = [Message("system", draw(WORDS)), *turns]
    facts = [draw(st.none() | TEXT) for _ in range(3)]
    tests = tuple(draw(st.lists(TEXT, max_size=2)))
    return Prompt(draw(IDS), draw(WORDS), tuple(turns), facts[0], tests, facts[1], facts[2])


@st.composite
def answers(draw, role: str, score: st.SearchStrategy[float], *, full: bool) -> Answer:
    """An answer of which everything is known, or (unless `full`) something."""
    facts = {
        "model": draw(WORDS.filter(lambda text: min(map(ord, text)) >= 32)),
        "score": draw(score),
        "scorer": draw(TEXT),
        "verdict": draw(st.sampled_from([v for v in Verdict if v is not Verdict.error])),
        "verdict_reason": draw(TEXT),
        "finish_reason": draw(st.sampled_from(Finish)),
        "sample": draw(st.integers(0, 9)),
    }
    assert set(facts) == set(FACTS)
    known = FACTS if full else draw(st.sets(st.sampled_from(FACTS)))
    return Answer(role, draw(TEXT), **{name: facts[name] for name in known})


@st.composite
def examples(draw, kind: Kind, *, single: bool = False, full: bool = False) -> Example:
    low, high = st.floats(-3, 0), st.floats(1, 3)
    held: list[Answer] = []
    for role in ROLES[kind]:
        few = {"responses": (1, 3), "source_chosen": (1, 3), "source_rejected": (0, 2)}.get(role, (1, 1))
        score = {"responses": SCORES, "response": SCORES}.get(role, low if role.endswith("rejected") else high)
        held += draw(st.lists(answers(role, score, full=full), min_size=few[0], max_size=few[1]))
    if kind is Kind.wrpo and full:  # one model for all own answers, and others for the sources
        held = [
            dataclasses.replace(a, model="sft" if a.role in ("target_chosen", "rejected") else f"a{a.model}")
            for a in held
        ]
    return Example(kind, draw(prompts(single=single)), tuple(held), draw(st.floats(0, 2)))


def held_by(name: str, example: Example) -> list[Example]:
    """The example as a layout can hold it: unpaired rows have one answer each, and a verdict."""
    if name != "trl_unpaired":
        return [example]
    judged = [dataclasses.replace(a, verdict=a.verdict or Verdict.wrong) for a in example.answers]
    return [dataclasses.replace(example, answers=(answer,)) for answer in judged]


def through_files(records: list[dict], schema: pa.Schema) -> list[list[dict]]:
    """What a JSON file and a Parquet or Arrow file give back of records."""
    table = pa.Table.from_pylist(records, schema=schema)
    return [[json.loads(json_text(record)) for record in records], table.to_pylist()]


# ---- there and back ---------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "form"), FORMS, ids=FORM_IDS)
@settings(deadline=None, max_examples=25)
@given(data=st.data())
def test_every_form_gives_back_what_it_was_given(name, form, data):
    """All that an example knows comes back, through JSON and through Arrow, also where it knows little."""
    drawn = data.draw(examples(form.kind, single=name in SINGLE_TURN))
    for example in held_by(name, drawn):
        records = list(form.records(example, plain=False))
        for read in through_files(records, form.schema(plain=False)):
            assert [LAYOUTS[name].example(record, domain="other") for record in read] == [example]


PLAIN_FACTS = {
    "wrpo": (), "trl": (), "sharegpt": (), "alpaca": (), "trl_unpaired": ("verdict",), "fusechat3": ("model",),
    "binarized": ("score",), "simpo": ("score",), "distilabel": ("model", "score"),
}  # fmt: skip
"""What a plain file of a layout says of an answer beside its text."""
PLAIN_IDS = {"wrpo", "binarized", "simpo"}


def forgotten(name: str, form, example: Example) -> Example:
    """What a plain file holds of an example."""
    asked = example.prompt
    has_id = name in PLAIN_IDS or (name == "distilabel" and form.kind is Kind.pair)
    prompt_id = asked.prompt_id if has_id else f"other-{content_digest(asked.messages)[:16]}"
    dataset = asked.dataset if name == "fusechat3" else None
    facts = ("model",) if (name, form.kind) == ("distilabel", Kind.sft) else PLAIN_FACTS[name]
    if name == "fusechat3" and len({answer.model for answer in example.answers}) > 1:
        facts = ()
    kept = [
        Answer(a.role, a.text, **{fact: getattr(a, fact) for fact in facts}) for a in example.answers
    ]  # of a verdict, only whether it is right
    if name == "trl_unpaired":
        kept = [
            dataclasses.replace(a, verdict=a.verdict if a.verdict is Verdict.correct else Verdict.wrong) for a in kept
        ]
    return Example(example.kind, Prompt(prompt_id, "other", asked.messages, dataset=dataset), tuple(kept))


@pytest.mark.parametrize(("name", "form"), FORMS, ids=FORM_IDS)
@settings(deadline=None, max_examples=15)
@given(data=st.data())
def test_a_plain_file_holds_the_published_columns_and_gives_them_back(name, form, data):
    drawn = data.draw(examples(form.kind, single=name in SINGLE_TURN))
    for example in held_by(name, drawn):
        records = list(form.records(example, plain=True))
        assert all(list(record) == form.schema(plain=True).names for record in records)
        for read in through_files(records, form.schema(plain=True)):
            assert [LAYOUTS[name].example(r, domain="other") for r in read] == [forgotten(name, form, example)]


@pytest.mark.parametrize("kind", [kind for kind in Kind if kind is not Kind.prompt])
@settings(deadline=None, max_examples=25)
@given(data=st.data())
def test_rows_and_examples_say_the_same(kind, data):
    example = data.draw(examples(kind, full=True).filter(lambda e: kind is not Kind.answers or len(e.answers) > 1))
    row = row_of(example)
    assert KINDS[type(row)] is kind and list(examples_of(row)) == [example]
    assert row_of(next(examples_of(row))) == row


def blank(row):
    """A row without what no layout holds: tokens, seeds, decodings, objectives."""

    def bare(held: ScoredResponse) -> ScoredResponse:
        response = dataclasses.replace(
            held.response, token_ids=(), seed=0, num_prompt_tokens=0, tokenizer="", decoding="imported"
        )
        return dataclasses.replace(held, response=response, objectives={}, truncated=False)

    bared = {}
    for role in roles(type(row)):
        held = tuple(map(bare, responses_of(row, role)))
        bared[role] = held if isinstance(getattr(row, role), tuple) else held[0]
    return dataclasses.replace(row, **bared)


SUFFIXES = (".parquet", ".jsonl", ".json", "")
CASES = [
    (row_type, name)
    for row_type in TRAINING_ROWS
    for name, layout in LAYOUTS.items()
    if KINDS[row_type] in layout.kinds and name != "trl_unpaired" and not row_type.__name__.startswith("Weighted")
]


@pytest.mark.parametrize(("row_type", "name"), CASES, ids=[f"{t.__name__}-{n}" for t, n in CASES])
def test_rows_of_an_artifact_come_back_through_files_of_every_format(tmp_path, row_type, name):
    rows = [row_for(row_type, f"p{n}") for n in range(9)]
    _, artifact = store_rows(tmp_path / "store", rows)
    for suffix in SUFFIXES:
        out = tmp_path / f"out{suffix}"
        done = export_rows([artifact.path], name, out)
        assert (done.examples, done.written, sum(done.records.values())) == (9, 9, 9)
        imported = import_rows([out], name, tmp_path / f"in{suffix}")
        assert (imported.records, imported.taken, imported.prompts, imported.rows) == (9, 9, 9, 9)
        back = tmp_path / f"in{suffix}" / "rows.parquet"
        assert (row_type_of(back), count_rows(back)) == (row_type, 9)
        assert list(read_rows(back)) == [blank(row) for row in rows]
    export_rows([back.parent], name, tmp_path / "again.jsonl")  # an import's folder is rows too
    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "again.jsonl").read_bytes()


# ---- rows of FuseRL ---------------------------------------------------------------------------


def test_weighted_pairs_become_pairs_with_their_share_as_weight(tmp_path):
    row = row_for(WeightedPairs, "p")
    (a, b), (c, _) = row.chosen, row.rejected
    _, artifact = store_rows(tmp_path / "store", [row])
    export_rows([artifact.path], "trl", tmp_path / "pairs.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    assert [(line["prompt_id"], line["weight"], line["chosen_model"]) for line in lines] == [
        ("p", 0.375, "a"), ("p", 0.125, "b")
    ]  # fmt: skip
    assert (lines[0]["chosen_score"], lines[0]["chosen_verdict"], lines[0]["rejected_verdict"]) == (
        5.5,
        "correct",
        "wrong",
    )
    done = import_rows([tmp_path / "pairs.jsonl"], "trl", tmp_path / "in")
    # Two rows of one prompt: one prompt, three answers, and row ids that stages can tell apart.
    assert (done.records, done.prompts, done.answers, done.rows) == (2, 1, 3, 2)
    first, second = read_rows(tmp_path / "in/rows.parquet")
    assert first == blank(PreferencePair(row.prompt, a, c, 0.375))
    assert (second.row_id, second.weight, second.chosen.response.text) == ("p#2", 0.125, b.response.text)


def test_weighted_responses_and_groups_become_one_record_each(tmp_path):
    for row_type, layout, weights in (
        (WeightedResponses, "sharegpt", [0.375, 0.125]),
        (WeightedGroups, "simpo", [0.25, 0.25]),
    ):
        _, artifact = store_rows(tmp_path / row_type.__name__, [row_for(row_type, "p")])
        out = tmp_path / f"{layout}.jsonl"
        export_rows([artifact.path], layout, out)
        assert [json.loads(line)["weight"] for line in out.read_text().splitlines()] == weights


def test_plain_leaves_weights_out_and_says_so(tmp_path, capsys):
    _, artifact = store_rows(tmp_path / "store", [row_for(WeightedPairs, "p")])
    export_rows([artifact.path], "trl", tmp_path / "pairs.jsonl", plain=True)
    assert list(json.loads((tmp_path / "pairs.jsonl").read_text().splitlines()[0])) == ["prompt", "chosen", "rejected"]
    assert "2 examples have another weight than 1, which --plain leaves out" in capsys.readouterr().out


# ---- what others published --------------------------------------------------------------------

PAIR, SFT = [("chosen", "Tell me"), ("rejected", "Tell")], [("response", "Tell me")]
WRPO_ROLES = [("source_chosen", "Tell me"), ("target_chosen", "Here: tell me"), ("rejected", "Tell")]
BOTH = [("responses", "Tell"), ("responses", "Tell me")]
SAID = {
    "README of WRPO": (SHA, WRPO_ROLES, [None] * 3, [None] * 3),
    "WRPO, prompt as text": (SHA, WRPO_ROLES, [None] * 3, [None] * 3),
    "TRL, prompt only": (None, [], [], []),
    "TRL, SFT": (None, SFT, [None], [None]),
    "TRL, prompt-completion": (None, SFT, [None], [None]),
    "TRL, preference": (None, PAIR, [None] * 2, [None] * 2),
    "TRL, implicit prompt": (None, PAIR, [None] * 2, [None] * 2),
    "TRL, standard": (None, PAIR, [None] * 2, [None] * 2),
    "TRL, unpaired": (None, BOTH[1:], [None], [None]),
    "SimPO, before selection": (None, BOTH, [0.1, 0.2], [None] * 2),
    "SimPO, after selection": (SHA, [PAIR[1], ("other", "so"), PAIR[0]], [0.1, 0.15, 0.2], [None] * 3),
    "UltraFeedback binarized": (SHA, PAIR, [8.5, 7.0], [None] * 2),
    "FuseChat-3.0 SFT-Data": (None, SFT, [None], ["Qwen2.5-72B-Instruct"]),
    "FuseChat-3.0 DPO-Data": (None, PAIR, [None] * 2, ["gemma"] * 2),
    "LLaMA-Factory sharegpt": (None, PAIR, [None] * 2, [None] * 2),
    "LLaMA-Factory alpaca": (None, SFT, [None], [None]),
    "LLaMA-Factory alpaca, preference": (None, PAIR, [None] * 2, [None] * 2),
    "distilabel generations": (None, BOTH, [3.0, 5.0], ["x", "y"]),
    "distilabel generation": (None, SFT, [None], ["y"]),
    "distilabel DPO": (SHA, PAIR[::-1], [3.0, 5.0], ["x", "y"]),
    "distilabel DPO, its own columns alone": (SHA, PAIR, [5.0, 3.0], ["y", "x"]),
}
"""Id, roles with texts, scores and models that each of them says."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_rows_are_read_as_their_publishers_mean_them(name):
    layout, record = PUBLISHED[name]
    prompt_id, said, scores, models = SAID[name]
    example = LAYOUTS[layout].example(record, domain="general")
    assert [(a.role, a.text) for a in example.answers] == said
    assert [a.score for a in example.answers] == scores and [a.model for a in example.answers] == models
    texts = [(m.role, m.content) for m in example.prompt.messages]
    before = [("system", "be short")] * ("system" in record or "system_prompt" in record)
    before += [("user", "hi"), ("assistant", "hello")] * ("history" in record)
    joined = "Translate:\nkerro minulle" if record.get("input") else Q["content"]
    assert texts == [*before, ("user", joined)]
    assert example.prompt.prompt_id == prompt_id or (prompt_id is None and example.prompt.prompt_id[:8] == "general-")
    assert example.prompt.dataset == record.get("dataset")
    if layout == "trl_unpaired":
        assert [a.verdict for a in example.answers] == [Verdict.correct]


def test_pairs_without_scores_get_the_order_alone_and_say_whose_it_is():
    row = row_of(LAYOUTS["trl"].example(PUBLISHED["TRL, preference"][1], domain="d"))
    assert [(s.score, s.scorer) for s in (row.chosen, row.rejected)] == [
        (1.0, "imported_order"),
        (0.0, "imported_order"),
    ]
    row = row_of(LAYOUTS["wrpo"].example(PUBLISHED["README of WRPO"][1], domain="d"))
    held = (row.source_chosen, row.target_chosen, row.rejected)
    assert [(s.score, s.scorer, s.response.model) for s in held] == [
        (1.0, "imported_order", "source"), (1.0, "imported_order", "sft"), (0.0, "imported_order", "sft")
    ]  # fmt: skip
    assert all(s.response.finish_reason is Finish.stop and not s.response.token_ids for s in held)
    # A made-up score goes out to nobody.
    assert [(a.score, a.scorer) for a in next(examples_of(row)).answers] == [(None, None)] * 3


def test_half_the_scores_are_none():
    """One side of a pair has a score: nothing is compared with a number that is not there."""
    record = PUBLISHED["TRL, preference"][1] | {"chosen_score": -7.0}
    example = LAYOUTS["trl"].example(record, domain="d")
    assert [a.score for a in example.answers] == [-7.0, None]
    assert [s.score for s in (row_of(example).chosen, row_of(example).rejected)] == [1.0, 0.0]


def test_answers_without_scores_are_no_group():
    record = {"prompt": "q", "all_generated_responses": ["a", "b"]}
    assert row_of(LAYOUTS["simpo"].example(record, domain="d")) is None
    assert row_of(LAYOUTS["simpo"].example(record | {"all_rm_scores": [1, None]}, domain="d")) is None
    assert row_of(LAYOUTS["simpo"].example(record | {"all_rm_scores": [1, 0.5]}, domain="d")).responses[1].score == 0.5


# ---- what nobody should have written ----------------------------------------------------------

LONE = "\ud800"
BAD = {
    "chosen and rejected to different prompts": (
        "trl", {"chosen": [Q, A], "rejected": [{"role": "user", "content": "?"}, C]}, "prompt_mismatch",
    ),
    "prompt of another conversation": ("binarized", {"prompt": "?", "chosen": [Q, A], "rejected": [Q, C]}, "prompt_mismatch"),
    "prompt messages of another": ("trl", {"prompt": [A], "chosen": [Q, A], "rejected": [Q, C]}, "prompt_mismatch"),
    "no prompt at all": ("trl", {"chosen": [A], "rejected": [C]}, "missing_prompt"),
    "chosen is of the user": ("trl", {"prompt": "q", "chosen": [Q], "rejected": [C]}, "bad_messages"),
    "chosen has two answers": ("trl", {"prompt": "q", "chosen": [A, B], "rejected": [C]}, "bad_messages"),
    "empty chosen": ("trl", {"prompt": "q", "chosen": [], "rejected": [C]}, "bad_messages"),
    "a number for an answer": ("trl", {"prompt": "q", "chosen": 3, "rejected": [C]}, "bad_messages"),
    "a number for a prompt": ("trl", {"prompt": 3}, "bad_messages"),
    "a blank prompt": ("trl", {"prompt": " "}, "empty_prompt"),
    "a prompt that ends with an answer": ("trl", {"prompt": [Q, A]}, "bad_messages"),
    "one message is no conversation": ("trl", {"messages": [A]}, "bad_messages"),
    "a tool's turn": ("sharegpt", {"conversations": [{"from": "observation", "value": "x"}]}, "bad_messages"),
    "no turn": ("sharegpt", {"conversations": []}, "bad_messages"),
    "a turn without value": ("sharegpt", {"conversations": [{"from": "human"}, {"from": "gpt"}]}, "bad_messages"),
    "a turn of a list": ("sharegpt", {"conversations": [{"from": ["human"], "value": "x"}]}, "bad_messages"),
    "history of threes": ("alpaca", {"instruction": "q", "output": "a", "history": [["a", "b", "c"]]}, "bad_field"),
    "system is a number": ("alpaca", {"instruction": "q", "output": "a", "system": 3}, "bad_field"),
    "source_model is a list": ("fusechat3", {"prompt": [Q], "chosen": [A], "rejected": [C], "source_model": []}, "bad_field"),
    "source_model of two lines": (
        "fusechat3", {"prompt": [Q], "chosen": [A], "rejected": [C], "source_model": "a\nb"}, "bad_field"
    ),
    "a model that is half a surrogate pair": ("trl", {"messages": [Q, A], "response_model": LONE}, "bad_unicode"),
    "a domain that is a number": ("trl", {"messages": [Q, A], "domain": 7}, "bad_field"),
    "one chosen answer": ("wrpo", {"prompt": Q, "chosen": [A], "rejected": [C]}, "bad_field"),
    "no rejected answer": ("wrpo", {"prompt": Q, "chosen": [A, B], "rejected": []}, "bad_field"),
    "chosen is not among the answers": (
        "simpo", {"prompt": Q["content"], "all_generated_responses": ["a", "Tell"], "chosen": [Q, A], "rejected": [Q, C]},
        "not_among_answers",
    ),
    "more scores than answers": ("simpo", {"prompt": "q", "all_generated_responses": ["a"], "all_rm_scores": [1, 2]}, "bad_field"),
    "a score that is text": ("simpo", {"prompt": "q", "all_generated_responses": ["a"], "all_rm_scores": ["1"]}, "bad_score"),
    "a score that is NaN": ("simpo", {"prompt": "q", "all_generated_responses": ["a"], "all_rm_scores": [float("nan")]}, "bad_score"),
    "a score that is true": ("binarized", {"chosen": [Q, A], "rejected": [Q, C], "score_chosen": True}, "bad_score"),
    "scores that are no list": ("simpo", {"prompt": "q", "all_generated_responses": ["a"], "all_rm_scores": 1}, "bad_field"),
    "a label of 1": ("trl_unpaired", {"prompt": "q", "completion": "a", "label": 1}, "bad_field"),
    "a verdict of its own": ("trl", {"messages": [Q, A], "response_verdict": "maybe"}, "bad_field"),
    "a model without a name": ("trl", {"messages": [Q, A], "response_model": ""}, "bad_field"),
    "a model of two lines": ("trl", {"messages": [Q, A], "response_model": "a\nb"}, "bad_field"),
    "a negative sample": ("trl", {"messages": [Q, A], "response_sample": -1}, "bad_field"),
    "a weight below 0": ("trl", {"messages": [Q, A], "weight": -1}, "bad_field"),
    "an id of two lines": ("trl", {"messages": [Q, A], "prompt_id": "a\nb"}, "bad_field"),
    "an id that is a list": ("trl", {"messages": [Q, A], "id": ["a"]}, "bad_field"),
    "tests that are numbers": ("trl", {"messages": [Q, A], "tests": [1]}, "bad_field"),
    "half a surrogate pair": ("trl", {"messages": [{"role": "user", "content": LONE}, A]}, "bad_unicode"),
    "an answer of a book": ("trl", {"messages": [Q, {"role": "assistant", "content": "x" * 200_001}]}, "too_long"),
    "another layout": ("wrpo", {"messages": [Q, A]}, "wrong_layout"),
    "columns of null": ("trl", {"messages": None, "prompt": None}, "wrong_layout"),
    "a pair whose rejected answer is null": ("trl", {"prompt": "q", "chosen": "good", "rejected": None}, "missing_side"),
    "a pair without a rejected answer": ("trl", {"prompt": "q", "chosen": "good"}, "missing_side"),
    "a pair without a chosen answer": ("trl", {"prompt": "q", "chosen": None, "rejected": "bad"}, "missing_side"),
    "half a conversation": ("binarized", {"chosen": [Q, A], "rejected": None}, "missing_side"),
    "answers with half a pair": (
        "simpo",
        {"prompt": "q", "all_generated_responses": ["a", "b"], "all_rm_scores": [1, 0], "chosen": [Q, A], "rejected": None},
        "missing_side",
    ),
    "generations with half a pair": ("distilabel", {"instruction": "q", "generations": ["a"], "chosen": [Q, A]}, "missing_side"),
    "an output beside half a pair": (
        "alpaca", {"instruction": "q", "output": "o", "chosen": "c", "rejected": None}, "missing_side"
    ),
    "a conversation beside half a pair": (
        "sharegpt",
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], "rejected": {"from": "gpt", "value": "b"}},
        "missing_side",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_read_has_a_reason(name):
    layout, record, reason = BAD[name]
    with pytest.raises(Refused) as caught:
        LAYOUTS[layout].example(record, domain="d")
    assert caught.value.reason == reason and caught.value.detail and "\n" not in caught.value.detail


COLUMNS = sorted({name for _, form in FORMS for name in form.schema(plain=False).names} | {"id"})
LEAVES = st.none() | st.booleans() | st.integers(-2, 2) | st.floats() | st.text(max_size=3) | st.sampled_from([A, Q, C])
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["role", "content", "from", "value"]), inner), max_leaves=6
)  # fmt: skip


@pytest.mark.parametrize("name", LAYOUTS)
@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_no_record_does_anything_but_be_read_or_be_refused(name, data):
    """Whatever stands in the columns that a layout needs: an example, a refusal with one line, and nothing else."""
    form = data.draw(st.sampled_from(LAYOUTS[name].forms))
    needed = {column: data.draw(VALUES) for column in form.needs}
    record = data.draw(st.dictionaries(st.sampled_from(COLUMNS), VALUES, max_size=4)) | needed
    try:
        example = LAYOUTS[name].example(record, domain="d")
        row = row_of(example)
    except Refused as refused:
        assert re.fullmatch(r"[a-z0-9_]+", refused.reason) and refused.detail
    except ValueError as error:  # what cannot be a row, by the row's own word
        assert str(error).startswith("row ")
    else:
        assert row is None or list(examples_of(row))
