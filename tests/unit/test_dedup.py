"""Duplicates: exact ones always go, near ones by a threshold that an exact comparison decides; the first stays."""

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion.promptsets import Clean
from fusion.promptsets.files import JsonlPrompts
from fusion.promptsets.near_duplicates import RECALL, NearDuplicates, bands, jaccard, shingles
from fusion.promptsets.tokens import ngrams, spelled, words, words_and_signs
from fusion.rows import Prompt
from prompt_runs import kept, load, prompt_set, refused, write

NEAR = Clean(near_duplicates=0.85, decontaminate=None)
LONG = " ".join(f"word{i}" for i in range(100))
"""100 different words: 96 shingles of 5."""


def test_words_of_texts():
    assert words("Don't PANIC, 你好！ Ｆｕｌｌ x_1") == ["don", "t", "panic", "你", "好", "full", "x", "1"]
    assert words_and_signs("x^2 = 4.5") == ["x", "^", "2", "=", "4", ".", "5"]
    assert spelled("What is 2+2 ?") == spelled("what is  2 + 2") == "what is 2 + 2"
    assert spelled("2 + 2") != spelled("2 - 2")
    assert ngrams(["a", "b", "c"], 2) == ["a b", "b c"] and ngrams(["a"], 2) == []


def test_jaccard_of_shingles_by_hand():
    assert jaccard(frozenset("abc"), frozenset("bcd")) == 2 / 4
    assert shingles("one two three four five six") == {"one two three four five", "two three four five six"}
    assert shingles("Hi there") == {"hi there"}
    changed = LONG.replace("word99", "other")  # the last word is in one shingle only
    assert jaccard(shingles(LONG), shingles(changed)) == 95 / 97
    middle = LONG.replace("word50", "other")  # a word in the middle is in five
    assert jaccard(shingles(LONG), shingles(middle)) == 91 / 101


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.85, 0.95, 1.0])
def test_bands_find_nearly_every_pair_at_the_threshold(threshold):
    num_bands, rows = bands(threshold)
    assert num_bands * rows <= 128
    assert 1 - (1 - threshold**rows) ** num_bands >= RECALL
    more = rows + 1  # no coarser index would do
    assert more > 64 or 1 - (1 - threshold**more) ** (128 // more) < RECALL
    assert bands(0.85) == (18, 7)


def test_near_duplicates_are_found_and_the_first_stays(tmp_path):
    texts = [LONG, LONG.replace("word99", "other"), "short one", LONG.upper() + "!", "Short  ONE"]
    artifact = load(tmp_path, prompt_set(tmp_path / "a.jsonl", texts), clean=NEAR)
    assert kept(artifact) == ["a-0", "a-2"]
    place = f"{tmp_path / 'a.jsonl'}"
    assert refused(artifact)["a-1"] == ("near_duplicate", f"{place}:2: 0.98 the same as {place}:1")
    assert refused(artifact)["a-4"] == ("near_duplicate", f"{place}:5: 1.00 the same as {place}:3")
    assert artifact.manifest.quarantined == {"near_duplicate": 3}  # 3 of 5 and no failure: they went on purpose


def test_what_is_below_the_threshold_stays(tmp_path):
    texts = [LONG, " ".join(f"word{i}" for i in range(9, 109))]  # 87 of 105 shingles: 0.83
    assert jaccard(shingles(texts[0]), shingles(texts[1])) == 87 / 105
    sets = prompt_set(tmp_path / "a.jsonl", texts)
    assert kept(load(tmp_path, sets, clean=NEAR)) == ["a-0", "a-1"]
    lower = Clean(near_duplicates=0.8, decontaminate=None)
    assert kept(load(tmp_path, sets, clean=lower)) == ["a-0"]


def test_short_prompts_are_the_same_only_when_every_token_is(tmp_path):
    texts = ["add 47 and 8", "add 47 and 9", "47 + 8", "47 - 8", "x^2 + 3x = 0", "x^2 - 3x = 0", "你好吗", "你好啊"]
    assert len(kept(load(tmp_path, prompt_set(tmp_path / "a.jsonl", texts), clean=NEAR))) == len(texts)


def test_chinese_characters_are_tokens(tmp_path):
    story = "".join(chr(0x4E00 + 7 * i) for i in range(100))
    artifact = load(tmp_path, prompt_set(tmp_path / "a.jsonl", [story, story[:-1] + "书"]), clean=NEAR)
    assert refused(artifact)["a-1"][0] == "near_duplicate"


def test_duplicates_are_found_across_sets_and_can_be_left_in(tmp_path):
    near = LONG.replace("word50", "other")
    sets = [
        prompt_set(tmp_path / "a.jsonl", [LONG, "same text"], name="first"),
        prompt_set(tmp_path / "b.jsonl", ["same  text", near, "mine"], name="second"),
    ]
    artifact = load(tmp_path, *sets, clean=NEAR)
    assert kept(artifact) == ["a-0", "a-1", "b-2"]
    assert artifact.manifest.notes["datasets"] == {
        "first": {"records": 2, "prompts": 2},
        "second": {"records": 3, "prompts": 1, "duplicate_prompt": 1, "near_duplicate": 1},
    }
    assert [p.dataset for p in artifact.rows(Prompt)] == ["first", "first", "second"]
    exact = load(tmp_path, *sets)
    assert kept(exact) == ["a-0", "a-1", "b-1", "b-2"]
    backwards = load(tmp_path, *sets[::-1], clean=NEAR)
    assert kept(backwards) == ["b-0", "b-1", "b-2"]


def test_other_system_prompts_make_other_prompts(tmp_path):
    def turns(system):
        return [{"role": "system", "content": system}, {"role": "user", "content": "Hello you over there!"}]

    rows = [{"prompt": turns(system)} for system in ("You are a pirate.", "You are a nurse.", "you are a NURSE.")]
    artifact = load(tmp_path, JsonlPrompts(path=write(tmp_path / "a.jsonl", rows), domain="d"), clean=NEAR)
    assert artifact.manifest.quarantined == {"near_duplicate": 1}


def test_a_record_for_each_answer_is_one_prompt_and_no_failure(tmp_path):
    rows = [{"prompt": f"problem {i // 10}"} for i in range(50)]  # ten solutions to each, as in OpenMathInstruct-2
    artifact = load(tmp_path, JsonlPrompts(path=write(tmp_path / "a.jsonl", rows), domain="math"))
    assert artifact.manifest.rows_out == 5
    assert artifact.manifest.quarantined == {"duplicate_prompt": 45}


WORDS = st.lists(st.sampled_from(["a", "b", "c", "d", "e", "+", "-", "我"]), min_size=1, max_size=14).map(" ".join)


@given(st.lists(WORDS, max_size=12), st.sampled_from([0.5, 0.7, 0.85, 1.0]))
@settings(max_examples=60, deadline=None)
def test_what_is_dropped_has_an_earlier_one_that_is_near_and_stays(texts, threshold):
    seen = NearDuplicates(threshold)
    stay: dict[str, str] = {}
    for number, text in enumerate(texts):
        match = seen.see(str(number), text)
        if match is None:
            # LSH may miss a pair near the threshold, but never one with the same shingles.
            assert all(shingles(text) != shingles(other) for other in stay.values())
            stay[str(number)] = text
        else:
            assert match.similarity == jaccard(shingles(text), shingles(stay[match.name])) >= threshold
    classes = {shingles(text) for text in texts}
    assert len({shingles(text) for text in stay.values()}) == len(stay) <= len(classes)


@given(st.lists(st.tuples(st.sampled_from(["x", "y", "z", "x "]), st.booleans()), min_size=1, max_size=10))
@settings(max_examples=20, deadline=None)
def test_exactly_one_of_each_exact_class_stays(tmp_path_factory, rows):
    root = tmp_path_factory.mktemp("exact")
    one, two = ([text for text, first in rows if first is side] for side in (True, False))
    sets = [prompt_set(root / f"{name}.jsonl", texts) for name, texts in (("a", one), ("b", two)) if texts]
    artifact = load(root, *sets)
    texts = [p.messages[0].content for p in artifact.rows(Prompt)]
    assert sorted(" ".join(text.split()) for text in texts) == sorted({text.strip() for text, _ in rows})
    manifest = artifact.manifest
    assert manifest.rows_in == manifest.rows_out + manifest.num_quarantined == len(rows)


def test_nearly_all_pairs_at_the_threshold_are_found():
    """400 pairs of other words each, 91 of 101 shingles shared or 87 of 105: all of the first, none of the second."""
    rng = random.Random(0)
    vocabulary = [f"{a}{b}{c}" for a, b, c in itertools.product("bcdfghjk", "aeiou", "lmnprst")]
    above = below = 0
    for _ in range(400):
        chosen = [f"{rng.choice(vocabulary)}{i}" for i in range(109)]
        near, far = [*chosen[:50], "other", *chosen[51:100]], chosen[9:109]
        for other in (near, far):
            seen = NearDuplicates(0.85)
            assert seen.see("first", " ".join(chosen[:100])) is None
            found = seen.see("second", " ".join(other)) is not None
            above += found and other is near
            below += found and other is far
    assert (above, below) == (400, 0)
