"""Filters of prompt sets: what each keeps and drops, and what they do on the real prompts of the four domains."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from fusion.errors import InputError
from fusion.promptsets.filters import REASONS, DropCode, DropMath, Filter, HasTests, Language, Length
from fusion.promptsets.languages import languages_of
from fusion.promptsets.topics import CODE, MATHS, MAX_CHARS, cues_of
from fusion.rows import Message, Prompt
from prompt_runs import kept, load, prompt_set, refused

DATA = Path(__file__).parents[3] / "shared" / "data"
FILTERS = TypeAdapter(tuple[Filter, ...])


def prompt(text: str, **more) -> Prompt:
    return Prompt("p", "d", (Message("user", text),), **more)


IS_CODE = [
    "Write a Python function that adds two numbers.",
    "write a function to check whether a number is prime",
    "Fix this:\n```js\nlet x = 1\n```",
    "def f(x):\n    return x\nWhat does this print?",
    "How do I merge two branches with git?",
    "SELECT name FROM users WHERE id = 3 is slow, why?",
    "How do I reverse a list in Rust?",
    "请用Python写一个快速排序程序",
    "解释这段代码的作用",
    "写一个匹配邮箱的正则表达式",
]
NOT_CODE = [
    "Write a poem about the sea.",
    "What is the dress code for a wedding in June?",
    "Write a script for a two-minute video about bees.",
    "Plan a training program for a marathon.",
    "How do flowers make seeds? Explain the function of each part.",
    "Where on Java island can I see volcanoes?",
    "这只股票代码是多少",
    "写一个短视频脚本，主题是春天",
    "请介绍一下四则运算法则的历史",
]
IS_MATH = [
    "What is the derivative of sin(x)?",
    "Solve for x: 2x + 3 = 7",
    r"Evaluate $\frac{1}{2} + \frac{1}{3}$.",
    "Tom has 3 apples and buys 4 more. How many apples does he have?",
    "What's the average of 3, 5 and 10?",
    "Prove that the square root of 2 is irrational.",
    "小明有3个苹果，又买了4个，一共有多少个苹果？",
    "求函数f(x)=x^2的导数",
    "计算矩阵 [[1,2],[3,4]] 的行列式。",
]
NOT_MATH = [
    "Who wrote Hamlet?",
    "How many people live in Paris?",
    "Summarise the plot of 1984 in 3 sentences.",
    "Give me 5 ideas for a birthday party.",
    "写一篇500字的作文，主题是春天",
    "请你做一下自我介绍。要求:\n1.用文言文\n2.不少于3句话",
    "李白是哪个朝代的诗人？",
]


@pytest.mark.parametrize("text", IS_CODE)
def test_code_is_dropped_with_its_cues(text):
    assert DropCode().refuses(prompt(text)) == ", ".join(cues_of(text, CODE)) != ""


@pytest.mark.parametrize("text", NOT_CODE)
def test_what_is_not_code_stays(text):
    assert DropCode().refuses(prompt(text)) is None


@pytest.mark.parametrize("text", IS_MATH)
def test_mathematics_is_dropped_with_its_cues(text):
    assert DropMath().refuses(prompt(text)) == ", ".join(cues_of(text, MATHS)) != ""


@pytest.mark.parametrize("text", NOT_MATH)
def test_what_is_not_mathematics_stays(text):
    assert DropMath().refuses(prompt(text)) is None


def test_points_add_up_and_addresses_do_not_count():
    assert cues_of("Sort it: given an array", CODE) == ()  # one point
    found = cues_of("Given an array, find the longest subarray", CODE)
    assert set(found) == {"word of code", "statement of a coding task"}  # one and one
    assert cues_of("Summarise https://example.com/python/page.html please", CODE) == ()
    assert cues_of("x" * MAX_CHARS + "\nimport os", CODE) == ()


def test_every_turn_of_the_user_counts_and_no_other():
    turns = (Message("system", "Write python code."), Message("user", "Hi"), Message("assistant", "import os"))
    assert DropCode().refuses(Prompt("p", "d", (*turns, Message("user", "Thanks!")))) is None
    assert DropCode().refuses(Prompt("p", "d", (*turns, Message("user", "Write a python class")))) is not None


def test_code_prompts_need_tests_and_the_name_that_asserts_call():
    rule, asserts = HasTests(), ("assert f(1) == 2",)
    assert rule.refuses(prompt("x")) == "no tests"
    assert rule.refuses(prompt("x", tests=(" \n",))) == "no tests"
    assert "entry_point" in str(rule.refuses(prompt("x", tests=asserts)))
    assert rule.refuses(prompt("x", tests=asserts, entry_point="f")) is None
    assert rule.refuses(prompt("x", tests=('{"input": "1", "output": "2"}',))) is None


LANGUAGES = {
    "Please explain to me how a steam engine works.": {"en"},
    "请解释蒸汽机是如何工作的": {"zh"},
    "木头和硅胶哪个耐高温？": {"zh"},  # py3langid alone says wuu
    "蒸気機関はどのように動くのですか": {"ja"},
    "증기 기관은 어떻게 작동합니까": {"ko"},
    "Пожалуйста, объясните, как работает паровая машина": {"ru"},
    "привет": {"ru"},  # short, and its script says enough
    "Bitte erkläre mir, wie eine Dampfmaschine funktioniert.": {"de"},
    "Create a triangle": set(),  # short, in the script of many languages
    "2 + 2 = ?": set(),
    "": set(),
}


@pytest.mark.parametrize(("text", "found"), LANGUAGES.items())
def test_languages_of_texts(text, found):
    assert languages_of(text, min_confidence=0.0 if found == {"ru"} else 0.5) == found


def test_a_text_of_two_languages_is_kept_for_either():
    text = "请把下面的句子翻译成中文：The quick brown fox jumps over the lazy dog again and again, every single day."
    assert languages_of(text, min_confidence=0.5) == {"zh", "en"}
    for keep in ("en", "zh"):
        assert Language(keep=(keep,)).refuses(prompt(text)) is None
    assert Language(keep=("de",)).refuses(prompt(text)) == "in en and zh, not de"


def test_a_language_that_cannot_be_told_is_refused():
    rule = Language(keep=("xx",))
    with pytest.raises(InputError, match=r"keep has 'xx', which cannot be told; known codes: .*en"):
        rule.refuses(prompt("Please explain to me how a steam engine works."))
    with pytest.raises(ValidationError):
        Language(keep=("English",))


def test_length_counts_all_turns():
    rule = Length(min_characters=3, max_characters=5)
    assert [rule.refuses(prompt(text)) for text in ("ab ", "abc", "abcde", "abcdef")] == [
        "2 characters, at least 3",
        None,
        None,
        "6 characters, at most 5",
    ]
    with pytest.raises(ValidationError, match="none could pass"):
        Length(min_characters=6, max_characters=5)


def test_a_dropped_prompt_is_a_row_with_its_reason_and_no_failure(tmp_path):
    texts = ["Write a python script.", "Was ist der Unterschied zwischen Birnen und Quitten?", "Who wrote Faust?"]
    rules = FILTERS.validate_python([{"type": "drop_code"}, {"type": "language", "keep": ["en"]}])
    artifact = load(tmp_path, prompt_set(tmp_path / "a.jsonl", texts, filters=rules))
    assert artifact.manifest.quarantined == {"filter_code": 1, "language": 1}  # 2 of 3, and the stage allows half
    assert kept(artifact) == ["a-2"]
    assert refused(artifact)["a-0"] == ("filter_code", f"{tmp_path / 'a.jsonl'}:1: language name")
    assert artifact.manifest.notes["datasets"] == {
        "a.jsonl": {"records": 3, "prompts": 1, "filter_code": 1, "language": 1}
    }


ANY_TEXT = st.text(max_size=300) | st.sampled_from([*IS_CODE, *NOT_CODE, *IS_MATH, *NOT_MATH])
RULES = (DropCode(), DropMath(), HasTests(), Language(keep=("en",)), Length(min_characters=2, max_characters=200))


@given(st.lists(ANY_TEXT, max_size=8), st.sampled_from(RULES))
@settings(max_examples=60, deadline=None)
def test_filtering_twice_is_filtering_once(texts, rule):
    def passed(prompts):
        return [p for p in prompts if rule.refuses(p) is None]

    once = passed([prompt(text) for text in texts])
    assert passed(once) == once
    assert rule.reason in REASONS


# ---- real prompts -----------------------------------------------------------------------------


def real(name: str) -> list[dict]:
    file = DATA / f"{name}.jsonl"
    if not file.exists():
        pytest.skip(f"{file} is not there: the real prompts are not part of the repository")
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_code_and_mathematics_are_recognised_in_real_prompts():
    """Counts of this rule on this data; a change of the cues that moves them is seen here."""
    code, maths = real("code"), real("math")
    bare = [row["prompt"].split("\nassert")[0] for row in code]  # MBPP without the line that gives it away
    assert sum(bool(cues_of(row["prompt"], CODE)) for row in code) == 399
    assert sum(bool(cues_of(text, CODE)) for text in bare) == 398
    assert sum(bool(cues_of(row["prompt"], MATHS)) for row in maths) == 496
    assert sum(bool(cues_of(row["prompt"], CODE)) for row in maths) == 0


def test_what_is_taken_out_of_real_instructions_and_chinese_prompts():
    def taken(rows):
        return [row for row in rows if cues_of(row["prompt"], CODE) or cues_of(row["prompt"], MATHS)]

    instruction, chinese = real("instruction"), real("chinese")
    sums = [row for row in chinese if row["topic"] == "数学计算"]
    others = [row for row in chinese if row["topic"] not in ("数学计算", "逻辑推理", "专业能力")]
    assert (len(taken(instruction)), len(instruction)) == (292, 500)  # Arena-Hard is mostly about software
    assert (len(taken(sums)), len(sums)) == (92, 112)
    assert (len(taken(others)), len(others)) == (15, 355)


def test_real_prompts_are_in_the_languages_that_they_are_in():
    rule = {"en": Language(keep=("en",)), "zh": Language(keep=("zh",))}
    wrong = {
        name: [row["id"] for row in real(name) if rule[language].refuses(prompt(row["prompt"]))]
        for name, language in (("instruction", "en"), ("math", "en"), ("code", "en"), ("chinese", "zh"))
    }
    assert {name: len(ids) for name, ids in wrong.items()} == {"instruction": 1, "math": 0, "code": 0, "chinese": 0}
