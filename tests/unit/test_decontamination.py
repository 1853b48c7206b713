"""Prompts that evaluation sets hold: which are found, what is reported, and that nothing of them is left."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion.promptsets import Clean, Decontaminate
from fusion.promptsets.decontamination import EvaluationRow, Evaluations, Overlap
from fusion.promptsets.files import JsonlPrompts
from fusion.promptsets.filters import user_text
from fusion.promptsets.tokens import ngrams, words
from fusion.rows import Message, Prompt
from prompt_runs import kept, load, prompt_set, refused, write

LEAKED = "A baker sells three kinds of bread on Monday and five kinds on Friday, and every loaf costs four euros."
"""20 words, of which 13 in a row occur in a longer prompt below."""


def evaluations(rule: Overlap, *texts: str, reference: str | None = None) -> Evaluations:
    found = Evaluations(rule)
    for number, text in enumerate(texts):
        found.add(EvaluationRow("test", str(number)), asked(text, reference))
    return found


def asked(text: str, reference: str | None = None) -> Prompt:
    return Prompt("p", "d", (Message("user", text),), reference=reference)


def chat(*turns: str, system: str | None = None) -> Prompt:
    """A conversation whose turns are the user's and the assistant's by turns."""
    first = () if system is None else (Message("system", system),)
    roles = ("user", "assistant")
    return Prompt("p", "d", (*first, *(Message(roles[i % 2], text) for i, text in enumerate(turns))))


def clean(*against, **rule) -> Clean:
    return Clean(near_duplicates=None, decontaminate=Decontaminate(against=against, **rule))


def test_a_shared_run_by_hand():
    known = evaluations(Overlap(n=3), "Who wrote the song?")  # runs: "who wrote the", "wrote the song"
    leak = known.find(asked("Please say: WHO wrote the old song"))
    assert leak is not None
    assert (leak.row, leak.shared, leak.overlap) == (EvaluationRow("test", "0"), "who wrote the", 0.5)
    assert known.find(asked("who wrote some song")) is None
    whole = known.find(asked("who wrote the song"))
    assert whole is not None and (whole.shared, whole.overlap) == ("who wrote the song", 1.0)


def test_the_row_with_most_in_common_is_named():
    known = evaluations(Overlap(n=2), "a b c d", "b c d e", "x y")
    leak = known.find(asked("b c d e f"))
    assert leak is not None and (leak.row.place, leak.shared, leak.overlap) == ("1", "b c", 1.0)


def test_short_prompts_are_compared_as_a_whole():
    known = evaluations(Overlap(), "What is 2 + 2?", "Who wrote Hamlet?")
    assert known.find(asked("what is  2+2")) is not None
    assert known.find(asked("What is 2 - 2?")) is None  # signs matter where a prompt is a formula
    assert known.find(asked("Tell me, who wrote Hamlet, and when?")) is None  # a few common words are no leak


def test_min_overlap_wants_more_than_one_run():
    texts = ("one two three four five six", "one two three four")
    assert evaluations(Overlap(n=2, min_overlap=0.6), texts[0]).find(asked(texts[1])) is not None  # 3 of 5 runs
    assert evaluations(Overlap(n=2, min_overlap=0.7), texts[0]).find(asked(texts[1])) is None


def test_boilerplate_that_many_prompts_share_is_no_leak():
    template = "Answer the following question step by step and give the final number in a box: "
    prompts = [f"{template}what is {i} plus {i}" for i in range(12)]
    known = evaluations(Overlap(common=10), template + "what is 30 plus 4", prompts[0])
    known.count(map(asked, prompts))
    assert [known.find(asked(text)) is not None for text in prompts] == [True] + [
        False
    ] * 11  # the first is a row as a whole
    all_of_them = evaluations(Overlap(common=None), template + "what is 30 plus 4")
    all_of_them.count(map(asked, prompts))
    assert all(all_of_them.find(asked(text)) for text in prompts)


def test_references_are_compared_only_where_the_rule_says_so():
    prompt = "Is it true that the treaty was signed in the old town hall of the city on a rainy day in May?"
    answer = "The treaty was signed in the old town hall of the city on a rainy day."
    assert evaluations(Overlap(), "When was it?", reference=answer).find(asked(prompt)) is None
    leak = evaluations(Overlap(references=True), "When was it?", reference=answer).find(asked(prompt))
    assert leak is not None and leak.shared == "the treaty was signed in the old town hall of the city on"


def test_leaks_are_taken_out_and_reported(tmp_path):
    against = prompt_set(tmp_path / "test.jsonl", ["Who wrote Hamlet?", LEAKED], name="bakery")
    longer = f"Here is a riddle. {LEAKED[:-1]}; how much is all of it?"
    rows = prompt_set(tmp_path / "a.jsonl", ["Who wrote Faust?", longer, "who wrote hamlet"], name="mine")
    artifact = load(tmp_path, rows, clean=clean(against))
    place, other = tmp_path / "a.jsonl", tmp_path / "test.jsonl"
    run = "a baker sells three kinds of bread on monday and five kinds on"
    assert kept(artifact) == ["a-0"]
    assert refused(artifact) == {
        "a-1": ("contaminated", f"{place}:2: shares '{run}' with bakery ({other}:2)"),
        "a-2": ("contaminated", f"{place}:3: shares 'who wrote hamlet' with bakery ({other}:1)"),
    }
    assert artifact.manifest.notes["decontamination"] == {
        "evaluation_rows": {"bakery": 2},
        "unreadable_evaluation_rows": {},
        "removed_by_evaluation": {"bakery": 2},
        "removed_by_dataset": {"mine": 2},
    }
    first = json.loads((artifact.path / "decontamination.jsonl").read_text().splitlines()[0])
    assert first == {
        "prompt_id": "a-1",
        "place": f"{place}:2",
        "dataset": "mine",
        "evaluation": "bakery",
        "evaluation_row": f"{other}:2",
        "shared": run,
        "overlap": 1.0,
    }


def test_held_out_prompts_are_an_evaluation_set_without_being_named(tmp_path):
    held = prompt_set(tmp_path / "held.jsonl", [LEAKED, "Who wrote Hamlet?"])
    rows = prompt_set(
        tmp_path / "a.jsonl", [LEAKED, LEAKED.replace("Monday", "Sunday") + " Why?", "WHO wrote Hamlet", "x"]
    )
    artifact = load(tmp_path, rows, clean=clean(n=8), held_out=held)
    assert {row: reason for row, (reason, _) in refused(artifact).items()} == {
        "a-0": "held_out",  # exactly the same
        "a-1": "contaminated",
        "a-2": "contaminated",
    }
    assert refused(artifact)["a-2"][1].endswith("shares 'WHO wrote Hamlet' with held_out (held-1)")
    off = load(tmp_path, rows, clean=Clean(near_duplicates=None, decontaminate=None), held_out=held)
    assert kept(off) == ["a-1", "a-2", "a-3"]


def test_chinese_characters_count_as_words(tmp_path):
    question = "高音单簧管和高音萨克斯的调性相同吗"
    against = prompt_set(tmp_path / "test.jsonl", [question + "？请说出他们的调性"])
    rows = prompt_set(tmp_path / "a.jsonl", [f"请问，{question}？", "高音单簧管是什么？"])
    artifact = load(tmp_path, rows, clean=clean(against))
    assert kept(artifact) == ["a-1"]
    assert "shares '高 音 单 簧 管 和 高 音 萨 克 斯 的 调'" in refused(artifact)["a-0"][1]


def test_evaluation_rows_that_cannot_be_read_are_counted(tmp_path):
    against = JsonlPrompts(path=write(tmp_path / "t.jsonl", [{"prompt": "Who?"}, {"prompt": ""}]), domain="d", name="t")
    rows = prompt_set(tmp_path / "a.jsonl", ["Why?"])
    artifact = load(tmp_path, rows, clean=clean(against))
    notes = artifact.manifest.notes["decontamination"]
    assert (notes["evaluation_rows"], notes["unreadable_evaluation_rows"]) == ({"t": 1}, {"t": 1})


def test_another_rule_or_evaluation_set_is_another_key(tmp_path):
    from prompt_runs import stage_of

    one, two = (prompt_set(tmp_path / f"{name}.jsonl", [name]) for name in ("one", "two"))
    rows = prompt_set(tmp_path / "a.jsonl", ["x"])
    kinds = [clean(), clean(one), clean(two), clean(one, two), clean(one, n=8), clean(one, common=None), Clean()]
    keys = {stage_of("train", (rows,), {}, kind).key for kind in kinds}
    assert len(keys) == len(kinds)


TEXTS = st.lists(st.lists(st.sampled_from("abcdef我你"), min_size=1, max_size=9).map(" ".join), max_size=6)


@given(TEXTS, TEXTS, st.integers(2, 4))
@settings(max_examples=25, deadline=None)
def test_what_is_left_shares_no_run_with_an_evaluation_set(tmp_path_factory, mine, theirs, n):
    root = tmp_path_factory.mktemp("runs")
    safe = "zzz"  # one prompt must be left
    against = prompt_set(root / "test.jsonl", [*theirs, "q"])
    artifact = load(root, prompt_set(root / "a.jsonl", [*mine, safe]), clean=clean(against, n=n, common=None))
    runs = {run for text in theirs for run in ngrams(words(text), n)}
    left = [user_text(p) for p in artifact.rows(Prompt)]
    assert not any(run in runs for text in left for run in ngrams(words(text), n))
    assert not set(left) & set(theirs)
    manifest = artifact.manifest
    assert manifest.rows_in == manifest.rows_out + manifest.num_quarantined == len(mine) + 1
    gone = {text for text in mine if text not in left}
    assert all(text in theirs or set(ngrams(words(text), n)) & runs for text in gone)  # and nothing else is taken out


def test_a_run_shorter_than_two_words_is_refused():
    with pytest.raises(ValueError, match="greater than or equal to 2"):
        Overlap(n=1)


def test_rows_of_evaluation_sets_may_have_any_ids(tmp_path):
    """Two sets count their rows from 1, and one repeats an id: every row is compared all the same."""
    files = {
        "a": [{"id": 1, "prompt": "Who wrote Hamlet?"}],
        "b": [{"id": 1, "prompt": "Who wrote Faust?"}, {"id": 1, "prompt": "Who wrote Emma?"}],
    }
    sets = [JsonlPrompts(path=write(tmp_path / f"{n}.jsonl", rows), domain="d", name=n) for n, rows in files.items()]
    rows = prompt_set(
        tmp_path / "mine.jsonl", ["Who wrote Hamlet?", "who wrote Faust", "Who wrote EMMA?", "Who wrote it?"]
    )
    artifact = load(tmp_path, rows, clean=clean(*sets))
    assert kept(artifact) == ["mine-3"]
    assert artifact.manifest.notes["decontamination"]["evaluation_rows"] == {"a": 1, "b": 2}
    assert artifact.manifest.notes["decontamination"]["unreadable_evaluation_rows"] == {}


def test_every_message_of_a_conversation_is_compared(tmp_path):
    short = "Who wrote Hamlet?"
    against = prompt_set(tmp_path / "test.jsonl", [LEAKED, short])
    chats = [
        [("system", LEAKED), ("user", "Go on.")],
        [("user", "Tell me."), ("assistant", f"Well: {LEAKED}"), ("user", "Why?")],
        [("user", short), ("assistant", "Shakespeare."), ("user", "When?")],
        [("user", "Who?"), ("assistant", "Me."), ("user", "When?")],
    ]
    rows = [
        {"id": f"c{n}", "messages": [{"role": role, "content": text} for role, text in chat]}
        for n, chat in enumerate(chats)
    ]
    mine = JsonlPrompts(path=write(tmp_path / "mine.jsonl", rows), domain="d")
    assert kept(load(tmp_path, mine, clean=clean(against))) == ["c3"]


def test_evaluation_rows_that_cannot_be_compared_are_said(tmp_path, caplog):
    rows = [{"prompt": "Who?"}, {"prompt": ""}, {"text": "What?"}]
    against = JsonlPrompts(path=write(tmp_path / "t.jsonl", rows), domain="d", name="t")
    load(tmp_path, prompt_set(tmp_path / "a.jsonl", ["Why?"]), clean=clean(against))
    (line,) = [record.getMessage() for record in caplog.records]
    said = "prompts/train: of evaluation set t, 2 rows are no prompts and are compared with nothing; the first: empty_prompt"
    assert line == f"{said} ({tmp_path}/t.jsonl:2: the last user turn is empty)"


def test_of_evaluation_rows_only_what_they_say_matters(tmp_path):
    """No domain, ids that are none, answers and tests of other kinds; the second of two equal rows has its own reference."""
    rows = [
        {"id": 1.5, "prompt": "Who wrote Hamlet?"},
        {"prompt": "Who wrote Faust?", "answer": {"value": "Goethe", "aliases": []}, "tests": 3},
        {"prompt": "Who wrote Emma?", "answer": "a"},
        {"prompt": "Who wrote Emma?", "answer": "she finished it in one long winter by the sea"},
    ]
    against = JsonlPrompts(path=write(tmp_path / "t.jsonl", rows), name="t")
    texts = ["Who wrote Hamlet?", "Who wrote Faust?", "Say that she finished it in one long winter by the sea.", "x"]
    artifact = load(tmp_path, prompt_set(tmp_path / "a.jsonl", texts), clean=clean(against, n=8, references=True))
    assert kept(artifact) == ["a-3"]
    assert artifact.manifest.notes["decontamination"]["evaluation_rows"] == {"t": 4}


def test_conversations_of_evaluation_sets_are_compared_turn_by_turn():
    known = Evaluations(Overlap(n=4))
    known.add(
        EvaluationRow("bench", "0"),
        chat("Name a river.", "The Rhine.", "And its source?", system="be as brief as you can"),
    )
    for same in (chat("name a river"), chat("Hi", "Hi.", "And its source"), chat("Name a river.\nAnd its source?")):
        leak = known.find(same)
        assert leak is not None and (leak.row.place, leak.overlap) == ("0", 1.0)
    by_run = known.find(chat("x", "Be as brief as I am.", "y"))
    assert by_run is not None and (by_run.shared, by_run.overlap) == ("be as brief as", 1 / 3)
    assert known.find(chat("Hi", "Name a river.", "Why?")) is None  # a short text that the assistant says is no prompt
    assert known.find(chat("", "Hi.", "Why?", system="")) is None


def test_turns_and_runs_that_many_conversations_share_are_boilerplate():
    known = evaluations(Overlap(n=4, common=2), "Go on.", "one two three four")
    chats = [chat(f"Tell {i}", "Once.", "go on", "Twice, one two three four.", "one two", system="") for i in range(3)]
    known.count(chats[:2])
    assert all(known.find(each) for each in chats)
    known.count(chats[2:])
    assert not any(known.find(each) for each in chats)
    assert known.find(asked("go on")) is not None  # a prompt that is a row as a whole is one however common it is
    across = evaluations(Overlap(n=4, common=2), "say one two three four times")
    split = [chat(f"{i} one two", "Yes?", "three four") for i in range(3)]  # the run is in what the user says
    assert across.find(split[0]) is not None
    across.count(split)
    assert not any(across.find(each) for each in split)


def test_a_text_without_words_is_that_text():
    known = evaluations(Overlap(), "...")
    assert known.find(asked("...")) is not None
    assert known.find(asked("?!")) is None
    assert known.find(chat("", "Yes?", "Why?")) is None
