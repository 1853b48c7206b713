"""Published row layouts: every form there and back, what others published by hand, and what nobody should have written."""

import dataclasses
import gzip
import json
import os
import random
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from fusion.artifact import Artifact
from fusion.errors import ArtifactError, InputError
from fusion.layouts import LAYOUTS, layout_named
from fusion.layouts.example import FACTS, KINDS, ROLES, Answer, Example, Kind, examples_of, row_of
from fusion.layouts.files import MAX_BYTES, read_records
from fusion.layouts.importing import import_files
from fusion.layouts.writing import json_text
from fusion.promptsets.common import DomainName
from fusion.promptsets.existing import ExistingAnswers
from fusion.promptsets.files import JsonlFile
from fusion.promptsets.records import Refused, content_digest, to_prompt
from fusion.recipe import Recipe
from fusion.row_files import count_rows, read_rows, row_type_of
from fusion.rows import (
    TRAINING_ROWS,
    Finish,
    Message,
    PreferencePair,
    PreferenceQuadruple,
    PreferenceSet,
    Prompt,
    ResponseGroup,
    ScoredResponse,
    SftExample,
    Verdict,
    WeightedGroups,
    WeightedPairs,
    WeightedResponses,
    responses_of,
    roles,
)
from fusion.stage import Stage, StageContext, StageResult, run_stage
from jobs.layout_driver import export_rows, find_rows, import_rows
from poison import store_rows
from scored import prompt, scored

ROOT = Path(__file__).parents[2]
FORMS = [(name, form) for name, layout in LAYOUTS.items() for form in layout.forms]
FORM_IDS = [f"{name}-{form.kind}-{form.needs[0]}" for name, form in FORMS]
SINGLE_TURN = ("wrpo", "simpo")
"""Layouts whose prompt is one user turn."""

# ---- examples ---------------------------------------------------------------------------------

ALPHABET = 'aé日🙂\n"\\\u2028\0 #'
TEXT = st.text(ALPHABET, max_size=6).map(str.strip)
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


def row_for(row_type: type, p: str):
    """A row that answers the prompt `p`, with verdicts, several models and a weight."""
    a, b, c = (scored(model, score, prompt_id=p) for model, score in (("a", 5.5), ("b", 4.0), ("c", 1.0)))
    a = dataclasses.replace(a, verdict=Verdict.correct)
    c = dataclasses.replace(c, verdict=Verdict.wrong, verdict_reason="timeout")
    cut = scored("sft", 0.0, 3, prompt_id=p, finish=Finish.length)
    best = scored("sft", 3.0, 1, prompt_id=p)
    held = {
        SftExample: (a,),
        PreferencePair: (a, c),
        PreferenceQuadruple: (a, best, cut),
        PreferenceSet: ((a, b), best, (c,), cut),
        ResponseGroup: ((a, c),),
        WeightedResponses: ((a, b), (0.75, 0.25)),
        WeightedPairs: ((a, b), (c, c), (0.75, 0.25)),
        WeightedGroups: ((a, b, a, c), (0, 0, 1, 1), (0.5, 0.5)),
    }
    return row_type(prompt(p, domain="math"), *held[row_type], weight=0.5)


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

Q = {"role": "user", "content": "Translate: kerro minulle"}
A = {"role": "assistant", "content": "Tell me"}
B = {"role": "assistant", "content": "Here: tell me"}
C = {"role": "assistant", "content": "Tell"}
SHA = "3ebac2832721f4ef8e9ead1bb19e251e5d21d60dbd9f89cae931fe4aac900058"

PUBLISHED = {
    "README of WRPO": ("wrpo", {"prompt_id": SHA, "prompt": Q, "chosen": [A, B], "rejected": [C]}),
    "WRPO, prompt as text": ("wrpo", {"prompt_id": SHA, "prompt": Q["content"], "chosen": [A, B], "rejected": [C]}),
    "TRL, prompt only": ("trl", {"prompt": [Q]}),
    "TRL, SFT": ("trl", {"messages": [Q, A]}),
    "TRL, prompt-completion": ("trl", {"prompt": [Q], "completion": [A]}),
    "TRL, preference": ("trl", {"prompt": [Q], "chosen": [A], "rejected": [C]}),
    "TRL, implicit prompt": ("trl", {"chosen": [Q, A], "rejected": [Q, C]}),
    "TRL, standard": ("trl", {"prompt": Q["content"], "chosen": "Tell me", "rejected": "Tell"}),
    "TRL, unpaired": ("trl_unpaired", {"prompt": [Q], "completion": [A], "label": True}),
    "SimPO, before selection": (
        "simpo",
        {"prompt": Q["content"], "all_generated_responses": ["Tell", "Tell me"], "all_rm_scores": [0.1, 0.2]},
    ),
    "SimPO, after selection": (
        "simpo",
        {
            "prompt_id": SHA, "prompt": Q["content"], "all_generated_responses": ["Tell", "so", "Tell me"],
            "all_rm_scores": [0.1, 0.15, 0.2], "chosen": [Q, A], "rejected": [Q, C],
        },
    ),
    "UltraFeedback binarized": (
        "binarized",
        {
            "prompt": Q["content"], "prompt_id": SHA, "chosen": [Q, A], "rejected": [Q, C], "messages": [Q, A],
            "score_chosen": 8.5, "score_rejected": 7.0,
        },
    ),
    "FuseChat-3.0 SFT-Data": (
        "fusechat3",
        {
            "dataset": "openmathinstruct2", "source_model": "Qwen2.5-72B-Instruct",
            "conversations": [{"from": "human", "value": Q["content"]}, {"from": "gpt", "value": "Tell me"}],
        },
    ),
    "FuseChat-3.0 DPO-Data": (
        "fusechat3",
        {"dataset": "ultrafeedback", "source_model": "gemma", "prompt": [Q], "chosen": [A], "rejected": [C]},
    ),
    "LLaMA-Factory sharegpt": (
        "sharegpt",
        {
            "conversations": [{"from": "human", "value": Q["content"]}], "chosen": {"from": "gpt", "value": "Tell me"},
            "rejected": {"from": "gpt", "value": "Tell"}, "system": "be short",
        },
    ),
    "LLaMA-Factory alpaca": (
        "alpaca",
        {
            "instruction": "Translate:", "input": "kerro minulle", "output": "Tell me", "system": "be short",
            "history": [["hi", "hello"]],
        },
    ),
    "LLaMA-Factory alpaca, preference": (
        "alpaca", {"instruction": "Translate: kerro minulle", "input": "", "chosen": "Tell me", "rejected": "Tell"}
    ),
    "distilabel generations": (
        "distilabel",
        {
            "instruction": Q["content"], "generations": ["Tell", "Tell me"], "generation_models": ["x", "y"],
            "ratings": [3, 5], "rationales": ["", ""],
        },
    ),
    "distilabel generation": (
        "distilabel", {"system_prompt": "be short", "instruction": Q["content"], "generation": "Tell me", "model_name": "y"}
    ),
    "distilabel DPO": (
        "distilabel",
        {
            "instruction": Q["content"], "generations": ["Tell", "Tell me"], "generation_models": ["x", "y"],
            "ratings": [3, 5], "prompt": Q["content"], "prompt_id": SHA, "chosen": [Q, A], "chosen_model": "y",
            "chosen_rating": 5, "rejected": [Q, C], "rejected_model": "x", "rejected_rating": 3,
        },
    ),
    "distilabel DPO, its own columns alone": (
        "distilabel",
        {
            "prompt": Q["content"], "prompt_id": SHA, "chosen": [Q, A], "chosen_model": "y", "chosen_rating": 5,
            "rejected": [Q, C], "rejected_model": "x", "rejected_rating": 3,
        },
    ),
}  # fmt: skip
"""Records as the publishers' own documents show them."""

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


# ---- files ------------------------------------------------------------------------------------


def places(path: Path) -> list[str]:
    return [place.removeprefix(f"{path}:") for place, _ in read_records(path)]


def test_a_json_array_is_read_member_by_member(tmp_path):
    path = tmp_path / "train.json"
    members = ['{"a": "]} \\" \\\\"}', '{"b": [[1], {"c": "{"}]}', "[1]", '{"x": 1, "x": 2}', '{"\u2028": "é"}']
    path.write_text("\ufeff [\n" + " ,\n".join(members) + "\n]\n", encoding="utf-8")
    found = [value if isinstance(value, dict) else value.reason for _, value in read_records(path)]
    assert found == [{"a": ']} " \\'}, {"b": [[1], {"c": "{"}]}, "not_an_object", "duplicate_key", {"\u2028": "é"}]
    assert places(path) == ["0", "1", "2", "3", "4"]
    path.write_text("[]")
    assert places(path) == []


NESTED = st.recursive(
    TEXT | st.integers(), lambda v: st.lists(v, max_size=2) | st.dictionaries(TEXT, v, max_size=2), max_leaves=4
)


@settings(deadline=None, max_examples=40)
@given(rows=st.lists(st.dictionaries(TEXT, NESTED, max_size=2), max_size=3),
       indent=st.sampled_from([None, 1]), escaped=st.booleans())  # fmt: skip
def test_an_array_gives_what_a_json_reader_gives(tmp_path_factory, rows, indent, escaped):
    path = tmp_path_factory.getbasetemp() / "array.json"
    path.write_text(json.dumps(rows, indent=indent, ensure_ascii=escaped), encoding="utf-8")
    assert [value for _, value in read_records(path)] == rows


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'[{"a": 1}, {"a": 2', "is cut: the JSON array does not end after row 1"),
        (b'[{"a": 1}, {"a": "2}]', "is cut: the JSON array does not end after row 1"),
        (b'[{"a": 1} {"a": 2}]', ":1: found '' where one JSON object should be"),
        (b'[{"a": 1}, 3, {"a": 2}]', ":1: found ', 3,' where one JSON object should be"),
        (b'["abc"]', """:0: found '"abc"' where one JSON object should be"""),
        (b'[{"a": 1}][{"a": 2}]', "there is more behind the array of 1 rows"),
        (b"", "is empty"),
        (b"\xff\xfe[\x00", "is UTF-16; convert it"),
    ],
)
def test_a_file_that_is_no_list_of_objects_is_refused_with_the_place(tmp_path, content, said):
    path = tmp_path / "train.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=re.escape(said)) as caught:
        list(read_records(path))
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_an_array_in_a_gzip_file_is_read_like_a_plain_one(tmp_path):
    path = tmp_path / "train.json.gz"
    path.write_bytes(gzip.compress(b'\xef\xbb\xbf [{"prompt": "a"}, [1], {"prompt": "b"}]'))
    read = [value if isinstance(value, dict) else value.reason for _, value in read_records(path)]
    assert read == [{"prompt": "a"}, "not_an_object", {"prompt": "b"}] and places(path) == ["0", "1", "2"]
    path.write_bytes(gzip.compress(b'{"prompt": "a"}\n{"prompt": "b"}\n'))
    assert places(path) == ["1", "2"]
    path.write_bytes(gzip.compress(b"[" + b'{"prompt": "a"}, ' * 9000 + b'{"prompt": "b"}'))
    with pytest.raises(InputError, match=r"train\.json\.gz is cut: the JSON array does not end after row 9001"):
        list(read_records(path))
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(InputError, match=r"train\.json\.gz is a damaged gzip file"):
        list(read_records(path))


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
@pytest.mark.parametrize("nested", [False, True])
def test_two_columns_of_one_name_are_told_in_one_line(tmp_path, suffix, nested):
    both = pa.table([["q"], ["r"]], names=["prompt", "prompt"])
    if nested:
        turn = pa.StructArray.from_arrays([pa.array(["q"]), pa.array(["r"])], names=["prompt", "prompt"])
        both = pa.table({"messages": pa.ListArray.from_arrays([0, 1], turn)})
    path = tmp_path / f"twice{suffix}"
    if suffix == ".parquet":
        pq.write_table(both, path)
    else:
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, both.schema) as writer:
            writer.write_table(both)
    with pytest.raises(InputError, match=r"twice\.\w+ has two columns 'prompt'; rename one or leave it out"):
        list(read_records(path))


def test_lines_are_counted_and_bad_ones_are_rows_with_a_reason(tmp_path):
    path = tmp_path / "rows.jsonl"
    huge = b'{"prompt": "' + b"x" * (MAX_BYTES + 5) + b'"}'
    lines = [
        b'\xef\xbb\xbf{"prompt": "a"}',
        b"",
        b"{",
        b"[1]",
        huge,
        b'{"a": "\xff"}',
        b'{"a": NaN}',
        b'{"prompt": "b"}',
    ]
    path.write_bytes(b"\n".join(lines))
    read = [
        (place.rpartition(":")[2], value.reason if isinstance(value, Refused) else value)
        for place, value in read_records(path)
    ]
    assert read == [
        ("1", {"prompt": "a"}), ("3", "bad_json"), ("4", "not_an_object"), ("5", "too_long"), ("6", "bad_utf8"),
        ("7", "bad_number"), ("8", {"prompt": "b"}),
    ]  # fmt: skip
    zipped = tmp_path / "rows.jsonl.gz"
    zipped.write_bytes(gzip.compress(b'{"prompt": "a"}\n' * 2))
    assert places(zipped) == ["1", "2"]
    zipped.write_bytes(gzip.compress(os.urandom(99).hex().encode() * 50)[:-20])
    with pytest.raises(InputError, match=r"rows\.jsonl\.gz is a damaged gzip file after line"):
        list(read_records(zipped))


def test_columnar_files_are_told_from_what_is_none(tmp_path):
    for name, said in (
        ("a.parquet", "not a Parquet file"),
        ("a.arrow", "not a readable Arrow stream from row 0"),
        ("a.csv", "must end with"),
    ):
        (tmp_path / name).write_bytes(b"prompt,chosen\n")
        with pytest.raises(InputError, match=said):
            list(read_records(tmp_path / name))
    whole = tmp_path / "cut.parquet"
    pq.write_table(pa.table({"prompt": ["q" * 99] * 5000}), whole)
    whole.write_bytes(whole.read_bytes()[:-9])
    with pytest.raises(InputError, match="not readable Parquet from row 0 on"):
        list(read_records(whole))
    text = pa.array([b"ok", b"\xff"]).cast(pa.binary()).view(pa.string())
    pq.write_table(pa.table({"prompt": text}), tmp_path / "bad.parquet")
    found = [value if isinstance(value, dict) else value.reason for _, value in read_records(tmp_path / "bad.parquet")]
    assert found == [{"prompt": "ok"}, "bad_utf8"]


@settings(deadline=None, max_examples=80)
@given(data=st.text('[]{}",:\\\\ a1', max_size=12).map(str.encode) | st.binary(max_size=8))
def test_no_bytes_do_anything_but_be_read_or_be_refused(tmp_path_factory, data):
    for name in ("any.json", "any.jsonl", "any.parquet", "any.arrow"):
        path = tmp_path_factory.getbasetemp() / name
        path.write_bytes(data)
        try:
            for place, found in read_records(path):
                assert place.startswith(f"{path}:") and isinstance(found, dict | Refused)
        except InputError as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize("name", ["wrpo.parquet", "wrpo.arrow"])
def test_damaged_columns_are_read_or_refused(tmp_path, name):
    """Single bytes of a file are changed: offsets, lengths, text and names of columns."""
    table = pa.Table.from_pylist([PUBLISHED["README of WRPO"][1]] * 40)
    path, chance, outcomes = tmp_path / name, random.Random(3), Counter()
    if name.endswith(".parquet"):
        pq.write_table(table, path)
    else:
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table)
    whole = path.read_bytes()
    for _ in range(150):
        damaged = bytearray(whole)
        damaged[chance.randrange(len(whole))] ^= chance.randrange(1, 256)
        path.write_bytes(damaged)
        try:
            outcomes.update(type(found).__name__ for _, found in read_records(path))
        except InputError as error:
            outcomes["file"] += 1
            assert "\n" not in str(error)
    assert outcomes["dict"] and outcomes["file"]


# ---- folders of save_to_disk ------------------------------------------------------------------


def test_a_folder_is_what_datasets_reads_and_splits_by_prompt(tmp_path):
    datasets = pytest.importorskip(
        "datasets", reason="datasets is not installed: the folder is read by our own reader alone"
    )
    rows = [row_for(PreferenceQuadruple, f"p{n}") for n in range(200)]
    _, artifact = store_rows(tmp_path / "store", rows)
    done = export_rows([artifact.path], "wrpo", tmp_path / "hf", plain=True, test=0.2)
    loaded = datasets.load_from_disk(str(tmp_path / "hf"))
    assert {name: len(split) for name, split in loaded.items()} == done.records == {"train": 165, "test": 35}
    assert loaded["train"].column_names == ["prompt_id", "prompt", "chosen", "rejected"]
    ids = {name: set(split["prompt_id"]) for name, split in loaded.items()}
    assert ids["train"] | ids["test"] == {row.row_id for row in rows} and not ids["train"] & ids["test"]
    first = loaded["train"][0]
    row = next(row for row in rows if row.row_id == first["prompt_id"])
    assert first["prompt"] == {"role": "user", "content": row.prompt.messages[0].content}
    texts = [row.source_chosen.response.text, row.target_chosen.response.text]
    assert [turn["content"] for turn in first["chosen"]] == texts
    # And what datasets itself has saved, with a shuffled test split and several shards.
    loaded.save_to_disk(str(tmp_path / "theirs"), num_shards={"train": 3, "test": 1})
    for split, count in done.records.items():
        imported = import_rows([tmp_path / "theirs"], "wrpo", tmp_path / f"in-{split}", split=split)
        assert (imported.records, imported.rows, imported.row_type) == (count, count, "PreferenceQuadruple")


def test_rows_of_one_prompt_are_all_in_one_split(tmp_path):
    """Three pairs of a prompt become rows p, p#2 and p#3; the draw is by what the prompt says."""
    pairs = []
    for row in (row_for(PreferencePair, f"p{n}") for n in range(40)):
        for suffix in ("", "#2", "#3"):
            name = row.prompt.prompt_id + suffix
            renamed = [
                dataclasses.replace(a, response=dataclasses.replace(a.response, prompt_id=name))
                for a in (row.chosen, row.rejected)
            ]
            pairs.append(PreferencePair(dataclasses.replace(row.prompt, prompt_id=name), *renamed))
    _, artifact = store_rows(tmp_path / "store", pairs)
    done = export_rows([artifact.path], "trl", tmp_path / "hf", plain=False, test=0.3)
    assert done.records["train"] % 3 == done.records["test"] % 3 == 0 < done.records["test"]


def test_a_hostile_folder_leads_nowhere(tmp_path):
    folder = tmp_path / "set"
    (folder / "train").mkdir(parents=True)
    (tmp_path / "secret.arrow").write_bytes(b"x")
    (folder / "dataset_dict.json").write_text('{"splits": ["train", "../../etc"]}')
    for name in ("../../secret.arrow", "/etc/passwd", "..", "", "a/b", "a\0b"):
        (folder / "train/state.json").write_text(json.dumps({"_data_files": [{"filename": name}]}))
        with pytest.raises(InputError, match="which is not in that folder"):
            list(read_records(folder))
    with pytest.raises(InputError, match=r"has no split '\.\./\.\./etc'; it has: train"):
        list(read_records(folder, split="../../etc"))
    for state in ("{}", "[", '{"_data_files": [{}]}', '{"_data_files": [{"filename": 3}]}', '{"_data_files": 3}'):
        (folder / "train/state.json").write_text(state)
        with pytest.raises(InputError, match="does not say filename as save_to_disk does"):
            list(read_records(folder))
    with pytest.raises(InputError, match=r"has no state\.json, so it is no folder of save_to_disk"):
        list(read_records(tmp_path))


# ---- imports ----------------------------------------------------------------------------------


def write_lines(path: Path, *records) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def lines_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_an_import_accounts_for_every_record(tmp_path, capsys):
    good = {"prompt_id": "a", "prompt": Q, "chosen": [A, B], "rejected": [C]}
    source = write_lines(
        tmp_path / "w.jsonl",
        good,
        good | {"prompt_id": "b", "chosen": [A]},
        good | {"prompt": "another question"},
        good | {"prompt_id": "c", "chosen_scores": [1, 2], "rejected_scores": [3]},
        good | {"prompt_id": "d", "chosen_models": ["gemma", None], "domain": "math"},
        good,
    )
    done = import_rows([source], "wrpo", tmp_path / "in", domain="chat", model="llama")
    assert (done.records, done.taken, dict(done.refused)) == (6, 3, {"bad_field": 1, "id_conflict": 1, "not_a_row": 1})
    assert done.records == done.taken + sum(done.refused.values())
    out = capsys.readouterr().out
    assert "6 records in = 3 taken + 3 quarantined (bad_field 1, id_conflict 1, not_a_row 1)" in out
    assert "3 rows say only which answer is better" in out
    refused = lines_of(tmp_path / "in/quarantine.jsonl")
    assert [(line["row_id"], line["reason"]) for line in refused] == [
        (f"{source}:2", "bad_field"), (f"{source}:3", "id_conflict"), (f"{source}:4", "not_a_row")
    ]  # fmt: skip
    assert "chosen score 2.0 is not above rejected score 3.0" in refused[2]["detail"]
    prompts_read = lines_of(tmp_path / "in/prompts.jsonl")
    assert prompts_read == [
        {"id": "a", "domain": "chat", "messages": [Q]}, {"id": "d", "domain": "math", "messages": [Q]}
    ]  # fmt: skip
    read = lines_of(tmp_path / "in/answers.jsonl")
    assert [(a["id"], a["model"], a["sample"], a["role"], a["response"]) for a in read] == [
        ("a", "llama", 0, "source_chosen", "Tell me"),
        ("a", "sft", 0, "target_chosen", "Here: tell me"),
        ("a", "sft", 1, "rejected", "Tell"),
        ("d", "gemma", 0, "source_chosen", "Tell me"),
        ("d", "sft", 0, "target_chosen", "Here: tell me"),
        ("d", "sft", 1, "rejected", "Tell"),
    ]
    assert not any("score" in answer for answer in read)  # the file says none
    assert [row.row_id for row in read_rows(tmp_path / "in/rows.parquet")] == ["a", "d", "a#2"]
    summary = json.loads((tmp_path / "in/import.json").read_text())
    assert (summary["finished"], summary["records"], summary["quarantined"]) == (True, 6, dict(done.refused))


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_half_a_pair_is_quarantined_and_what_gives_no_row_is_counted(tmp_path, capsys, suffix):
    records = [
        {"prompt": "q1", "chosen": "good", "rejected": None},
        {"prompt": "q2", "chosen": "good", "rejected": "bad"},
        {"prompt": "q3", "chosen": None, "rejected": "bad"},
        {"prompt": "q4", "chosen": None, "rejected": None},
    ]
    source = write_lines(tmp_path / "half.jsonl", *records)
    if suffix == ".parquet":
        source = tmp_path / "half.parquet"
        pq.write_table(pa.Table.from_pylist(records), source)
    done = import_rows([source], "trl", tmp_path / "in")
    assert (done.taken, done.rows, done.without_row, dict(done.refused)) == (2, 1, 1, {"missing_side": 2})
    assert "1 records gave no row: prompts alone, or answers that no score compares" in capsys.readouterr().out
    assert [line["detail"] for line in lines_of(tmp_path / "in/quarantine.jsonl")] == [
        "chosen is there and rejected is null; a pair needs both, other rows neither",
        "rejected is there and chosen is null; a pair needs both, other rows neither",
    ]
    assert json.loads((tmp_path / "in/import.json").read_text())["without_row"] == 1


def test_a_row_of_another_layout_has_what_is_not_null(tmp_path):
    record = {"prompt_id": "a", "prompt": Q, "chosen": None, "rejected": [C]}
    with pytest.raises(Refused) as caught:
        LAYOUTS["wrpo"].example(record, domain="d")
    assert caught.value.reason == "wrong_layout"
    assert caught.value.detail.endswith("the row has: prompt_id, prompt, rejected (null: chosen)")
    source = write_lines(tmp_path / "w.jsonl", {"prompt": "q", "chosen": None, "rejected": None})
    with pytest.raises(InputError, match=re.escape("it has prompt (null: chosen, rejected), as in: --layout trl")):
        import_rows([source], "wrpo", tmp_path / "in")


TURN_Q = {"from": "human", "value": "q"}
WORTHLESS = {
    "sharegpt, empty": ("sharegpt", {"conversations": [TURN_Q, {"from": "gpt", "value": ""}]}, "empty_response"),
    "alpaca, empty": ("alpaca", {"instruction": "q", "output": ""}, "empty_response"),
    "alpaca, blank": ("alpaca", {"instruction": "q", "output": " \n\t"}, "empty_response"),
    "trl, empty chosen": ("trl", {"prompt": "q", "chosen": "", "rejected": "bad"}, "empty_response"),
    "trl, blank rejected": ("trl", {"prompt": "q", "chosen": "good", "rejected": " "}, "empty_response"),
    "trl, empty completion": ("trl", {"prompt": "q", "completion": ""}, "empty_response"),
    "trl_unpaired, empty": ("trl_unpaired", {"prompt": "q", "completion": "", "label": False}, "empty_response"),
    "distilabel, empty": ("distilabel", {"instruction": "q", "generation": " "}, "empty_response"),
    "wrpo, empty source answer": ("wrpo", {"prompt": "q", "chosen": ["", "b"], "rejected": ["c"]}, "empty_response"),
    "a group with an empty answer": (
        "simpo", {"prompt": "q", "all_generated_responses": ["a", ""], "all_rm_scores": [1, 0]}, "empty_response"
    ),
    "trl, one text": ("trl", {"prompt": "q", "chosen": "x", "rejected": "x"}, "identical_text"),
    "trl, one text with white space": ("trl", {"prompt": "q", "chosen": "x", "rejected": " x\n"}, "identical_text"),
    "binarized, one text": ("binarized", {"chosen": [Q, A], "rejected": [Q, A], "score_chosen": 2, "score_rejected": 1}, "identical_text"),
    "simpo, one text": (
        "simpo",
        {"prompt": Q["content"], "all_generated_responses": ["Tell me", "Tell me"], "chosen": [Q, A], "rejected": [Q, A]},
        "identical_text",
    ),
    "sharegpt, one text": (
        "sharegpt", {"conversations": [TURN_Q], "chosen": {"from": "gpt", "value": "a"}, "rejected": {"from": "gpt", "value": "a"}},
        "identical_text",
    ),
    "wrpo, one own text": ("wrpo", {"prompt": "q", "chosen": ["a", "b"], "rejected": ["b"]}, "identical_text"),
    "a group of one text": (
        "simpo", {"prompt": "q", "all_generated_responses": ["a", "a"], "all_rm_scores": [0.1, 0.1]}, "identical_text"
    ),
    "a group whose best is its worst": (
        "simpo", {"prompt": "q", "all_generated_responses": ["a", "b", "a"], "all_rm_scores": [3, 2, 1]}, "identical_text"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WORTHLESS)
def test_what_teaches_nothing_is_no_row(tmp_path, name):
    layout, record, reason = WORTHLESS[name]
    good = next(published for of, published in PUBLISHED.values() if of == layout)
    done = import_rows([write_lines(tmp_path / "w.jsonl", good, record)], layout, tmp_path / "in")
    assert (done.records, done.taken, dict(done.refused)) == (2, 1, {reason: 1})
    assert "\n" not in lines_of(tmp_path / "in/quarantine.jsonl")[0]["detail"]


def test_groups_that_can_be_told_apart_stay_rows(tmp_path):
    """As in the rule response_group: two answers may be one text where the best and the worst are not."""
    group = {"prompt": "q", "all_generated_responses": ["a", "a", "b"], "all_rm_scores": [3, 2, 1]}
    unscored = {"prompt": "r", "all_generated_responses": ["a", "a"]}
    done = import_rows([write_lines(tmp_path / "g.jsonl", group, unscored)], "simpo", tmp_path / "in")
    assert (done.taken, done.rows, done.without_row) == (2, 1, 1)


def test_a_source_answer_to_avoid_that_is_preferred_leaves_the_row(tmp_path, capsys):
    """As in the rule preference_set; it is an answer all the same, of a source."""
    record = {
        "prompt": "q",
        "chosen": ["a", "b"],
        "rejected": ["a", "no", "c"],
        "rejected_models": ["llama", None, None],
    }
    done = import_rows([write_lines(tmp_path / "w.jsonl", record)], "wrpo", tmp_path / "in")
    (row,) = read_rows(tmp_path / "in/rows.parquet")
    assert [held.response.text for held in row.source_rejected] == ["no"] and done.narrowed == 1
    assert ("llama", "other", "a") in [
        (one["model"], one["role"], one["response"]) for one in lines_of(tmp_path / "in/answers.jsonl")
    ]
    assert "1 rows go without an answer to avoid that is also a preferred one" in capsys.readouterr().out


def test_answers_that_come_again_are_counted(tmp_path, capsys):
    pairs = [{"prompt": "q", "chosen": "a", "rejected": worse} for worse in ("b", "c", "b")]
    done = import_rows([write_lines(tmp_path / "p.jsonl", *pairs)], "trl", tmp_path / "in")
    assert (done.answers, done.same_answers) == (3, 3) and done.answers + done.same_answers == 2 * done.taken
    assert "answers.jsonl (3 the same as an earlier one)" in capsys.readouterr().out
    assert json.loads((tmp_path / "in/import.json").read_text())["same_answers"] == 3


def test_only_rows_that_compare_answers_say_which_is_better(tmp_path, capsys):
    sft = import_rows([write_lines(tmp_path / "s.jsonl", {"messages": [Q, A]})], "trl", tmp_path / "sft")
    assert (sft.rows, sft.without_scores) == (1, 0) and "only which answer is better" not in capsys.readouterr().out
    pair = import_rows([write_lines(tmp_path / "p.jsonl", PUBLISHED["TRL, standard"][1])], "trl", tmp_path / "pair")
    assert (pair.rows, pair.without_scores) == (1, 1) and "only which answer is better" in capsys.readouterr().out


NAMES = ["a b", "a/b", "a\nb", "x" * 65, "a\u2028b", "\x1b[2J"]


@pytest.mark.parametrize("domain", NAMES)
def test_domains_are_those_that_a_recipe_can_name(tmp_path, domain):
    record = {"messages": [Q, A]}
    assert not TypeAdapter(DomainName).validator.isinstance_python(domain)
    source = write_lines(tmp_path / "s.jsonl", record, record | {"domain": domain}, record | {"domain": "x" * 64})
    done = import_rows([source], "trl", tmp_path / "in")
    assert (done.taken, dict(done.refused)) == (2, {"bad_field": 1})
    with pytest.raises(
        InputError, match=r"--domain '.+' must be 1 to 64 characters without white space and /"
    ) as caught:
        import_rows([source], "trl", tmp_path / "in", domain=domain)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("model", ["", "a\nb", "x" * 257])
def test_a_model_has_a_name(tmp_path, model):
    source = write_lines(tmp_path / "s.jsonl", {"messages": [Q, A]})
    with pytest.raises(
        InputError, match="--model is empty, longer than 256 characters or holds control characters; name"
    ):
        import_rows([source], "trl", tmp_path / "in", model=model)
    assert not (tmp_path / "in").exists()


def test_records_that_come_again_are_kept_and_counted(tmp_path, capsys):
    pair = {"prompt": "q", "chosen": "a", "rejected": "b"}
    source = write_lines(tmp_path / "p.jsonl", pair, pair | {"rejected": "c"}, pair, pair | {"weight": 0.5})
    done = import_rows([source], "trl", tmp_path / "in")
    assert (done.rows, done.repeated) == (4, 1)
    assert "1 records say the same as an earlier one; they are kept" in capsys.readouterr().out
    done = import_rows([source, source], "trl", tmp_path / "in")
    assert (done.rows, done.repeated, done.prompts) == (8, 5, 1)
    assert json.loads((tmp_path / "in/import.json").read_text())["repeated"] == 5


def test_names_of_what_is_printed_stand_apart(tmp_path, capsys):
    source = write_lines(tmp_path / "p.jsonl", PUBLISHED["TRL, unpaired"][1] | {"completion_score": 1})
    import_rows([source], "trl_unpaired", tmp_path / "in")
    one = {"prompt": "q", "generations": ["a", "b"], "ratings": [1, 0], "generation_verdicts": ["correct", "wrong"]}
    import_rows([write_lines(tmp_path / "d.jsonl", one)], "distilabel", tmp_path / "groups")
    capsys.readouterr()
    export_rows([tmp_path / "groups"], "trl_unpaired", tmp_path / "u.jsonl")
    lines = capsys.readouterr().out.splitlines()
    assert f"trl_unpaired: {tmp_path / 'u.jsonl'}" in lines[2] and lines[1].startswith("examples:   1 examples in")


def test_sets_widen_the_quadruples_before_them(tmp_path):
    quadruple = {"prompt": "q", "chosen": [A, B], "rejected": [C]}
    wide = {"prompt": "r", "chosen": [A, C, B], "rejected": [{"role": "assistant", "content": "no"}, C]}
    source = write_lines(tmp_path / "w.jsonl", quadruple, wide, quadruple | {"prompt": "s"})
    done = import_rows([source], "wrpo", tmp_path / "in")
    assert (done.rows, done.row_type) == (3, "PreferenceSet")
    rows = list(read_rows(tmp_path / "in/rows.parquet"))
    assert [(len(row.source_chosen), len(row.source_rejected)) for row in rows] == [(1, 0), (2, 1), (1, 0)]
    assert {path.name for path in (tmp_path / "in").iterdir()} == {
        "prompts.jsonl", "answers.jsonl", "rows.parquet", "import.json"
    }  # fmt: skip


def test_rows_of_two_types_in_one_file_are_not_mixed(tmp_path):
    source = write_lines(
        tmp_path / "t.jsonl", {"messages": [Q, A]}, {"prompt": "q", "chosen": "a", "rejected": "b"}, {"prompt": "z"}
    )
    done = import_rows([source], "trl", tmp_path / "in")
    assert (done.row_type, done.rows, dict(done.refused), done.prompts) == ("SftExample", 1, {"other_row_type": 1}, 2)


def test_made_up_row_ids_collide_with_nobody(tmp_path):
    pair = {"prompt": "q", "chosen": "a", "rejected": "b"}
    source = write_lines(
        tmp_path / "t.jsonl",
        pair | {"prompt_id": "x"}, pair | {"prompt_id": "x"}, pair | {"prompt_id": "x#2"},
        pair | {"prompt_id": "y#2"}, pair | {"prompt_id": "y"}, pair | {"prompt_id": "y"},
    )  # fmt: skip
    done = import_rows([source], "trl", tmp_path / "in")
    assert [row.row_id for row in read_rows(tmp_path / "in/rows.parquet")] == ["x", "x#2", "y#2", "y"]
    assert dict(done.refused) == {"id_conflict": 2}


def test_a_second_import_replaces_the_first_and_nothing_else(tmp_path):
    pairs = write_lines(tmp_path / "p.jsonl", {"prompt": "q", "chosen": "a", "rejected": "b"}, {"prompt": 3})
    alone = write_lines(tmp_path / "q.jsonl", {"prompt": "q"})
    import_rows([pairs], "trl", tmp_path / "in")
    assert (tmp_path / "in/rows.parquet").exists() and (tmp_path / "in/quarantine.jsonl").exists()
    import_rows([alone], "trl", tmp_path / "in")
    assert {path.name for path in (tmp_path / "in").iterdir()} == {"prompts.jsonl", "answers.jsonl", "import.json"}
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/prompts.jsonl").write_text("precious")
    with pytest.raises(InputError, match="holds something that fuseline import has not written"):
        import_rows([alone], "trl", tmp_path / "mine")
    assert (tmp_path / "mine/prompts.jsonl").read_text() == "precious"
    nothing = write_lines(tmp_path / "x.jsonl", {"x": 1})
    with pytest.raises(InputError, match=r"nothing of layout wrpo in .*x\.jsonl:1: wrong_layout: wrpo needs prompt \+"):
        import_rows([nothing], "wrpo", tmp_path / "new/deeper")
    assert not (tmp_path / "new").exists()  # nothing is left of what came to nothing


def test_prompts_and_answers_of_an_import_are_what_prompt_sets_read(tmp_path):
    import_rows([write_lines(tmp_path / "w.jsonl", PUBLISHED["SimPO, after selection"][1])], "simpo", tmp_path / "in")
    (record,) = lines_of(tmp_path / "in/prompts.jsonl")
    assert to_prompt(record, domain=None) == Prompt(SHA, "general", (Message("user", Q["content"]),))
    read = lines_of(tmp_path / "in/answers.jsonl")
    assert [(a["role"], a["score"]) for a in read] == [("rejected", 0.1), ("other", 0.15), ("chosen", 0.2)]
    source = ExistingAnswers(data=JsonlFile(path=tmp_path / "in/answers.jsonl"), match="id")
    found = [one.answer for one in source.answers()]
    assert [(one.key, one.text) for one in found] == [(SHA, "Tell"), (SHA, "so"), (SHA, "Tell me")]


# ---- training rows in a file ------------------------------------------------------------------


def test_a_file_of_rows_that_is_none_is_refused_with_its_name(tmp_path):
    path = tmp_path / "rows.parquet"
    for content, said in ((None, "is not a file"), (b"PAR1", "is not a readable Parquet file")):
        if content:
            path.write_bytes(content)
        with pytest.raises(InputError, match=said):
            row_type_of(path)
    pq.write_table(pa.table({"prompt": ["q"]}), path)
    with pytest.raises(InputError, match="its schema names no row type"):
        row_type_of(path)
    import_rows(
        [write_lines(tmp_path / "w.jsonl", *({"prompt": f"q{n}", "chosen": "a", "rejected": "b"} for n in range(3)))],
        "trl",
        tmp_path / "in",
    )
    table = pq.read_table(tmp_path / "in/rows.parquet")
    pq.write_table(table.drop_columns(["weight"]), path)
    with pytest.raises(InputError, match=r"rows\.parquet: these rows are not PreferencePair") as caught:
        list(read_rows(path))
    assert "\n" not in str(caught.value)
    rows = table.to_pylist()
    rows[1]["chosen"]["score"] = -1.0
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), path)
    with pytest.raises(InputError, match=r"rows\.parquet:1: row .*chosen score -1.0 is not above rejected score 0.0"):
        list(read_rows(path))


# ---- exports ----------------------------------------------------------------------------------


def test_what_a_layout_cannot_hold_is_quarantined_or_said(tmp_path):
    rows = [row_for(PreferenceQuadruple, f"p{n}") for n in range(3)]
    long = dataclasses.replace(rows[1].prompt, messages=(Message("system", "s"), *rows[1].prompt.messages))
    rows[1] = dataclasses.replace(rows[1], prompt=long)
    _, artifact = store_rows(tmp_path / "store", rows)
    done = export_rows([artifact.path], "wrpo", tmp_path / "w.parquet")
    assert (done.examples, done.written, dict(done.refused)) == (3, 2, {"not_single_turn": 1})
    assert lines_of(tmp_path / "w.parquet.quarantine.jsonl")[0]["row_id"] == "p1"
    with pytest.raises(InputError, match=r"--layout trl has no place for a source's answer .*; these have: wrpo"):
        export_rows([artifact.path], "trl", tmp_path / "t.parquet")
    with pytest.raises(InputError, match="there is no such layout; there are: wrpo, trl"):
        export_rows([artifact.path], "trll", tmp_path / "t.parquet")
    _, bad = store_rows(tmp_path / "bad", [rows[1]])
    with pytest.raises(InputError, match=r"nothing to write to .*not_single_turn 1"):
        export_rows([bad.path], "wrpo", tmp_path / "none.jsonl")
    assert not list(tmp_path.glob("none*")) and not list(tmp_path.glob("t.*"))


def test_an_export_overwrites_its_own_files_only(tmp_path):
    _, artifact = store_rows(tmp_path / "store", [row_for(SftExample, "p")])
    mine = tmp_path / "mine.jsonl"
    mine.write_text("precious")
    with pytest.raises(InputError, match="exists and was not written by fuseline export"):
        export_rows([artifact.path], "trl", mine)
    (tmp_path / "folder").mkdir()
    for out, said in (
        (tmp_path / "folder", "exists and was not written"), (tmp_path / "rows.csv", "must end with"),
        (mine / "x.jsonl", "is not a folder"), (Path(".."), "name a file"), (tmp_path / "store/f.json", None),
    ):  # fmt: skip
        if said:
            with pytest.raises(InputError, match=said):
                export_rows([artifact.path], "trl", out)
        else:
            export_rows([artifact.path], "trl", out)
            export_rows([artifact.path], "trl", out)
    for _ in range(2):
        export_rows([artifact.path], "trl", tmp_path / "new")
    assert mine.read_text() == "precious" and sorted(p.name for p in (tmp_path / "new").iterdir()) == [
        "dataset_dict.json",
        "train",
    ]
    with pytest.raises(InputError, match="has no splits; give a folder"):
        export_rows([artifact.path], "trl", tmp_path / "t.jsonl", test=0.1)


# ---- rows of a recipe -------------------------------------------------------------------------


def small_recipe(root: Path) -> Recipe:
    model = {"repo": "owner/model", "revision": "a" * 40}
    training = {"learning_rate": 1e-3, "global_batch": 4, "max_length": 64}
    (root / "prompts.jsonl").write_text('{"prompt": "q"}\n')
    return Recipe.model_validate(
        {
            "name": "small", "root": str(root / "runs"), "target": model, "sources": {"a": model, "b": model},
            "prompts": [{"type": "jsonl", "path": str(root / "prompts.jsonl"), "domain": "d"}],
            "sampling": {"temperature": 1.0, "max_tokens": 8}, "split": {"sft": 1, "preference": 2},
            "score": {"*": {"type": "python", "function": "jobs.demo.readable:score", "version": 1}},
            "sft": {"select": {"type": "best"}, **training},
            "arms": {"wrpo": {"select": {"type": "quadruple"}, "loss": {"type": "wrpo", "beta": 0.1, "alpha": 0.1}, **training}},
        }
    )  # fmt: skip


def finish(stage: Stage, store: Path, rows: list, **inputs: Artifact) -> Artifact:
    """The artifact of a stage as if it had run, with these rows."""

    def run(ctx: StageContext) -> StageResult:
        for chunk in ctx.plan([str(number) for number in range(len(rows))], chunk_rows=5):
            ctx.commit(chunk, rows[chunk.start : chunk.stop])
        return StageResult(rows_in=len(rows))

    ready = dataclasses.replace(stage, run=run)
    return run_stage(ready, store, inputs=inputs, report=lambda progress: None, resume_command="again")[0]


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, Path]:
    """A recipe file, and a finished run of it: twelve prompts, some of them answered by one source only."""
    from fusion.pipeline import build

    root = tmp_path_factory.mktemp("run")
    recipe = small_recipe(root)
    (root / "recipe.json").write_text(recipe.model_dump_json(by_alias=True))
    graph = build(recipe)
    asked = [prompt(f"p{n}") for n in range(12)]
    best, quadruple = graph.selections["sft"], graph.selections["wrpo"]
    stages = {name: stage for name, stage in quadruple.inputs.items() if isinstance(stage, Stage)}
    ready = {"prompts": finish(stages["prompts"], recipe.store, asked)}
    for name, few in (("source_a", asked), ("source_b", asked[3:9])):
        answered = [scored(name[-1], n / 10, s, prompt_id=p.prompt_id) for n, p in enumerate(few) for s in range(2)]
        ready[name] = finish(stages[name], recipe.store, answered, prompts=ready["prompts"])
    finish(best, recipe.store, [row_for(SftExample, p.prompt_id) for p in asked[:4]], **ready)
    finish(quadruple, recipe.store, [row_for(PreferenceQuadruple, p.prompt_id) for p in asked[4:]], **ready)
    return root / "recipe.json", recipe.store


def test_rows_of_a_recipe_are_found_by_name(finished, tmp_path):
    recipe, store = finished
    for rows, layout, count in (
        ("wrpo", "wrpo", 8),
        ("sft", "fusechat3", 4),
        ("prompts", "trl", 12),
        ("answers", "distilabel", 12),
    ):
        done = export_rows([recipe], layout, tmp_path / f"{rows}.jsonl", rows=rows)
        assert (done.examples, done.records) == (count, {"train": count})
    read = lines_of(tmp_path / "answers.jsonl")
    assert [len(line["generations"]) for line in read] == [2] * 3 + [4] * 6 + [2] * 3
    assert (read[3]["generation_models"], read[3]["ratings"]) == (["a", "a", "b", "b"], [0.3, 0.3, 0.0, 0.0])
    done = import_rows([tmp_path / "answers.jsonl"], "distilabel", tmp_path / "in")
    assert (done.prompts, done.answers, done.rows, done.row_type) == (12, 36, 12, "ResponseGroup")
    (folder,) = store.glob("score/b-*")
    assert export_rows([folder], "simpo", tmp_path / "b.json").examples == 6


def test_rows_that_are_not_there_are_said(finished, tmp_path):
    recipe, store = finished
    for rows, said in (
        (None, "--rows is missing: say which rows of small: sft, wrpo, prompts, answers, own"),
        ("wrpoo", "--rows wrpoo: small has no such rows; it has: sft, wrpo, prompts, answers, own"),
        ("own", f"score/sft of small is not finished; run it first: fuseline run {recipe}"),
    ):
        with pytest.raises(InputError, match=re.escape(said)):
            find_rows([recipe], rows)
    with pytest.raises(InputError, match="is no recipe"):
        find_rows([store / "select"], "sft")
    with pytest.raises(InputError, match=r"has neither a manifest\.json nor a rows\.parquet"):
        find_rows([store], None)
    (folder,) = store.glob("select/quadruple-*")
    part = next(folder.glob("part-*.parquet"))
    whole = part.read_bytes()
    part.write_bytes(whole[:-1] + b"?")
    with pytest.raises(ArtifactError, match="is damaged"):
        find_rows([recipe], "wrpo")
    part.write_bytes(whole)


def fuseline(*args: object) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "jobs.run", *map(str, args)],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_the_commands_themselves(finished, tmp_path):
    """Both directions as they are typed, and a mistake is one line and exit code 2."""
    recipe, _ = finished
    out = tmp_path / "rows.parquet"
    done = fuseline("export", recipe, "--rows", "wrpo", "--layout", "wrpo", "--out", out)
    assert (done.returncode, done.stderr) == (0, "") and "8 examples in = 8 written + 0 quarantined" in done.stdout
    done = fuseline("import", out, "--layout", "trl", "--out", tmp_path / "in")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    assert f"nothing of layout trl in {out}; {out}:0: bad_messages: rejected must be a conversation" in done.stderr


def test_what_a_stranger_wrote_does_not_reach_the_terminal(tmp_path):
    evil = "\x1b[2J\nerror: \x9b"
    for record, said in (
        ({evil: 1}, r"\x1b[2J\nerror"),
        (
            {
                "prompt_id": "a\x9b",
                "prompt": "q",
                "chosen": "a",
                "rejected": "b",
                "chosen_score": 1,
                "rejected_score": 2,
            },
            "row a?: chosen score",
        ),
    ):
        source = write_lines(tmp_path / "x.jsonl", record)
        with pytest.raises(InputError, match=re.escape(said)) as caught:
            import_rows([source], "trl", tmp_path / "in")
        assert str(caught.value).isprintable()


def test_a_wrong_layout_is_told_with_the_right_one(tmp_path):
    source = write_lines(tmp_path / "s.jsonl", PUBLISHED["LLaMA-Factory sharegpt"][1])
    with pytest.raises(InputError, match=r"s\.jsonl:1 is not of layout wrpo, .*as in: --layout .*sharegpt") as caught:
        import_files([source], layout_named("wrpo"), tmp_path / "in")
    assert caught.value.exit_code == 2 and not (tmp_path / "in").exists()
