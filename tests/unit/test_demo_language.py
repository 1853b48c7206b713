"""The demo's language and its verifier: worked examples, and promises that hold for every problem."""

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusion.errors import InputError
from fusion.rows import Finish, Message, Prompt, Response
from jobs.demo.curriculum import SKILLS
from jobs.demo.language import (
    ANIMALS,
    CLOSERS,
    LEXICON,
    OPENERS,
    WORDINGS,
    Problem,
    Skill,
    Writer,
    ideal,
    make_problem,
    make_problems,
    mistake,
    prompt_text,
    render,
    solve,
    write,
)
from jobs.demo.people import CAREFUL, SLOPPY, UNKNOWN_WORDS, sloppy_pairs, source_pairs, target_pairs, tokenizer_texts
from jobs.demo.verifier import VERIFIED, judge, parse_prompt, verify
from jobs.demo.world import WorldSettings, problems_of

ADD = Problem(Skill.add, ("47", "8"))
SORT = Problem(Skill.sort, ("owl", "cat", "pig", "ant"))
TRANSLATE = Problem(Skill.translate, ("cup", "fox", "red"))
REVERSE = Problem(Skill.reverse, ("gnu", "owl", "bee", "elk"))
TURNS = SKILLS.turns


def problems_from(skills) -> st.SearchStrategy[Problem]:
    return st.builds(
        lambda skill, seed: make_problem(skill, random.Random(seed)), st.sampled_from(skills), st.integers(0, 2**32)
    )


problems = problems_from(tuple(Skill))
verified_problems = problems_from(VERIFIED)


def make_prompt(problem: Problem, *, reference: str | None = None, wording: int = 0) -> Prompt:
    text = WORDINGS[problem.skill][wording].format(*problem.operands)
    return Prompt("p-1", problem.skill, (Message("user", text),), reference=reference)


def make_response(text: str, finish: Finish = Finish.stop) -> Response:
    return Response("p-1", "target", 0, "sample", text, (1,), finish, 0, 1, "t")


def test_the_lexicon_is_one_to_one_and_never_a_copy():
    assert len(LEXICON) == 48 == len(set(LEXICON.values()))
    assert not set(LEXICON) & set(LEXICON.values())
    assert len(UNKNOWN_WORDS) == 12
    assert list(ANIMALS) == sorted(set(ANIMALS))


@pytest.mark.parametrize(
    ("problem", "answer"),
    [
        (ADD, "sure! 7+8=15,4+1=5 so answer: 55. cheers!"),
        (Problem(Skill.add, ("95", "8")), "sure! 5+8=13,9+1=10 so answer: 103. cheers!"),
        (Problem(Skill.add, ("42", "3")), "sure! 2+3=5,4+0=4 so answer: 45. cheers!"),
        (SORT, "sure! first ant,last pig so answer: ant cat owl pig. cheers!"),
        (REVERSE, "sure! from elk,to gnu so answer: elk bee owl gnu. cheers!"),
    ],
)
def test_ideal_answers_by_hand(problem, answer):
    assert ideal(problem) == answer


@pytest.mark.parametrize(
    ("problem", "wrong"),
    [
        (ADD, "45"),
        (Problem(Skill.add, ("42", "3")), "55"),
        (SORT, "owl cat pig ant"),
        (Problem(Skill.sort, ("ant", "bee", "cat", "dog")), "bee ant cat dog"),
        (REVERSE, "owl bee elk gnu"),
        (TRANSLATE, f"{LEXICON['cup']} {LEXICON['fox']} red"),
    ],
)
def test_mistakes_by_hand(problem, wrong):
    assert mistake(problem).answer == wrong


@pytest.mark.parametrize(
    ("problem", "text", "score"),
    [
        (ADD, "answer: 55.", 0.65),
        (ADD, "answer: 45.", 0.20),  # one of two digits
        (ADD, "answer: 155.", 0.40 * 2 / 3),  # digits are compared from the right, a third one is wrong
        (ADD, "sure! answer: 55. cheers!", 0.85),
        (ADD, "7+8=15,4+0=4 so answer: 45.", 0.20 + 0.075),
        (ADD, "7+8=15,4+1=5,7+8=15,7+8=15 so answer: 55.", 0.65 + 0.075),  # repeating working does not pay
        (ADD, "sure! sure! answer: 55.", 0.55),  # out of the grammar: minus 0.2, and one opener is paid
        (ADD, "55", 0.0),
        (SORT, "answer: ant cat pig owl.", 0.20),
        (SORT, "first ant,last pig so answer: ant cat owl pig.", 0.80),
        (REVERSE, "okay! from elk,to owl so answer: elk bee owl. see you!", 0.40 * 0.75 + 0.075 + 0.2),
        (TRANSLATE, f"answer: {LEXICON['cup']} fox {LEXICON['red']}.", 0.40 * 2 / 3),
        (
            TRANSLATE,
            f"cup={LEXICON['cup']},fox=fox,red={LEXICON['red']} so answer: {LEXICON['cup']} fox {LEXICON['red']}.",
            0.40 * 2 / 3 + 0.10,
        ),
        (TRANSLATE, "", 0.0),
    ],
)
def test_scores_by_hand(problem, text, score):
    assert verify(make_prompt(problem), make_response(text))["score"] == pytest.approx(score, abs=1e-6)


def test_an_answer_without_end_of_turn_loses_a_fifth():
    whole = verify(make_prompt(SORT), make_response(ideal(SORT)))
    cut = verify(make_prompt(SORT), make_response(ideal(SORT), Finish.length))
    assert (whole["score"], whole["well_formed"]) == (1.0, 1.0)
    assert (cut["score"], cut["well_formed"], cut["exact"]) == (0.8, 0.0, 1.0)


@given(problems, st.sampled_from(OPENERS), st.sampled_from(CLOSERS), st.integers(0, 1))
def test_every_ideal_answer_gets_one(problem, opener, closer, wording):
    text = render(solve(problem), opener=opener, closer=closer, show_working=True)
    prompt = make_prompt(problem, reference=solve(problem).answer, wording=wording)
    assert parse_prompt(prompt) == problem
    assert judge(problem, text) == dict.fromkeys(
        ("score", "exact", "positions", "working", "opener", "closer", "well_formed"), 1.0
    )
    if problem.skill in VERIFIED:
        assert verify(prompt, make_response(text)) == judge(problem, text)


@given(problems)
def test_every_mistake_gets_less(problem):
    text = render(mistake(problem), opener=OPENERS[0], closer=CLOSERS[0], show_working=True)
    result = judge(problem, text)
    assert result["exact"] == 0.0
    assert result["well_formed"] == 1.0
    assert result["score"] < 0.75


@given(problems, st.integers(0, 2**32), st.floats(0, 1))
def test_writers_stay_in_the_grammar(problem, seed, chance):
    writer = Writer(chance, chance, chance, dict.fromkeys(Skill, chance), unknown_words=UNKNOWN_WORDS)
    result = judge(problem, write(problem, writer, random.Random(seed)))
    assert result["well_formed"] == 1.0
    assert 0.0 <= result["score"] <= 1.0


@given(
    verified_problems,
    st.text() | st.from_regex(r"(sure! )?[a-z0-9=+, ]{0,40}( so )?answer: [a-z0-9. ]{0,40}"),
    st.booleans(),
)
def test_any_text_is_scored_between_zero_and_one(problem, text, stopped):
    result = verify(make_prompt(problem), make_response(text, Finish.stop if stopped else Finish.length))
    assert all(0.0 <= value <= 1.0 for value in result.values())


@pytest.mark.parametrize(
    "text", ["a," * 40_000, " so answer: " * 20_000, "sure! " * 40_000 + "answer: 55.", "1+1=2," * 40_000]
)
def test_hostile_texts_cost_linear_time_and_pay_little(text):
    # A pattern with backtracking would not end on these within the test's time limit.
    assert judge(ADD, text)["score"] <= 0.55


@given(problems, st.integers(0, 2**32))
def test_prompts_say_their_problem(problem, seed):
    prompt = Prompt("p-1", "d", (Message("user", prompt_text(problem, random.Random(seed))),))
    assert parse_prompt(prompt) == problem


def test_a_foreign_prompt_is_an_error_with_its_id():
    with pytest.raises(InputError, match=r"prompt p-9: 'What is love.*' is not a prompt of the demo world"):
        verify(Prompt("p-9", "d", (Message("user", "What is love?"),)), make_response("answer: 1."))
    with pytest.raises(InputError, match="prompt p-1: reference '56' is not the answer"):
        verify(make_prompt(ADD, reference="56"), make_response("answer: 55."))
    with pytest.raises(InputError, match="not a prompt of the demo world"):
        parse_prompt(Prompt("p-9", "d", (Message("user", "say in zorp cup fox qqq"),)))


# ---- who learns from what ----------------------------------------------------------------------


def test_held_out_problems_are_in_no_prompt_and_in_no_training_text():
    prompts, held_out = problems_of(WorldSettings())
    excluded = frozenset(held_out)
    assert (len(set(prompts)), len(excluded)) == (1_500, 320)
    assert not set(prompts) & excluded
    from jobs.demo.models import SOURCES

    rng = random.Random(7)
    texts = [prompt for prompt, _ in target_pairs(16_000, turns=TURNS, rng=rng, exclude=excluded)]
    texts += [prompt for prompt, _ in sloppy_pairs(3_000, turns=TURNS, rng=rng, exclude=excluded)]
    texts += [
        prompt for tiny in SOURCES for prompt, _ in source_pairs(tiny, 2_000, turns=TURNS, rng=rng, exclude=excluded)
    ]
    texts += tokenizer_texts(2_000, turns=TURNS, rng=rng, exclude=excluded)[::2]
    taught = {parse_prompt(Prompt("p", "d", (Message("user", text),))) for text in texts}
    # Additions are few enough that this many texts hold every one that is allowed.
    assert sum(problem.skill is Skill.add for problem in taught) == 810 - 80
    assert not taught & excluded


def test_a_skill_that_runs_out_says_so():
    with pytest.raises(ValueError, match="no add problem is left"):
        make_problems(4 * 811, turns=TURNS, rng=random.Random(0))


@pytest.mark.parametrize("writer", [CAREFUL, SLOPPY])
def test_a_writer_is_wrong_as_often_as_it_says(writer):
    rng = random.Random(3)
    known = [
        problem for problem in make_problems(2_000, turns=TURNS, rng=rng) if not set(problem.operands) & UNKNOWN_WORDS
    ]

    exact = sum(judge(problem, write(problem, writer, rng))["exact"] for problem in known) / len(known)
    assert exact == pytest.approx(1 - writer.wrong[Skill.add], abs=0.03)


def test_prompt_rows_carry_the_answer(tmp_path):
    from jobs.demo.world import _write_prompts

    held_out = _write_prompts(tmp_path, WorldSettings(seed=5, num_prompts=40, num_held_out=8))
    rows = [json.loads(line) for name in ("prompts", "held_out") for line in (tmp_path / f"{name}.jsonl").open()]
    assert len(rows) == len({row["id"] for row in rows}) == 48
    for row in rows:
        problem = parse_prompt(Prompt(row["id"], row["domain"], (Message("user", row["prompt"]),), row["reference"]))
        assert problem.skill == row["domain"]
        assert (problem in held_out) == row["id"].startswith("h")
