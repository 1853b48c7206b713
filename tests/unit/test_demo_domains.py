"""The second demo world: programs and subtractions, whose answers the code and the math verifier judge."""

import hashlib
import json
import random
from pathlib import Path

import pytest

from fusion.artifact import file_sha256
from fusion.chat import Chat
from fusion.errors import InputError
from fusion.promptsets.records import to_prompt
from fusion.rows import Finish, Message, Prompt, Response, Verdict
from fusion.verifiers.code import CodeVerifier
from fusion.verifiers.math import MathVerifier
from jobs.demo.curriculum import DOMAINS, SKILLS
from jobs.demo.language import Problem, Skill, Solution, ideal, make_problem, mistake, render, solve
from jobs.demo.models import DOMAIN_SOURCES, SOURCES, TARGET
from jobs.demo.people import sloppy_pairs, source_pairs, target_pairs, tokenizer_texts
from jobs.demo.programs import asserts_of, make_operands, program, wrong_program
from jobs.demo.reward import REWARD, scored_answers
from jobs.demo.settings import DOMAIN_SETTINGS, WorldSettings
from jobs.demo.students import train_folder
from jobs.demo.verifier import judge, parse_prompt, verify
from jobs.demo.world import _write_prompts, problems_of, prompt_row, world_key

TINY = WorldSettings(
    domains=True,
    source_examples=64,
    target_examples=64,
    sloppy_examples=32,
    reward_examples=64,
    num_prompts=7,
    num_held_out=7,
)
TAKE = Problem(Skill.take, ("8", "47"))
CODE = Problem(Skill.code, ("f", "add", "3", "times", "2"))


def all_programs() -> list[tuple[str, ...]]:
    rng = random.Random(0)
    return sorted({make_operands(rng) for _ in range(20_000)})


def make_prompt(problem: Problem) -> Prompt:
    """As the pipeline reads it from the world's prompts file."""
    domain = DOMAINS.domains[problem.skill]
    row = prompt_row(problem, number="p0001", domain=domain, rng=random.Random(0))
    return to_prompt(json.loads(json.dumps(row)), domain=None)


# ---- the skills --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("operands", "right", "wrong"),
    [
        (("f", "add", "3", "times", "2"), "(x+3)*2", "def f(x):\n return x+3*2"),
        (("g", "take", "1", "times", "9"), "(x-1)*9", "def g(x):\n return (x+1)*9"),
        (("h", "times", "4", "add", "7"), "x*4+7", "def h(x):\n return x*7+4"),
        (("f", "times", "4", "take", "7"), "x*4-7", "def f(x)\n return x*4-7"),
    ],
)
def test_programs_and_their_mistakes_by_hand(operands, right, wrong):
    assert program(operands) == f"def {operands[0]}(x):\n return {right}"
    assert wrong_program(operands) == wrong


def test_tests_by_hand():
    assert asserts_of(CODE.operands) == ("assert f(0) == 6\nassert f(2) == 10\nassert f(7) == 20",)
    assert asserts_of(("g", "times", "2", "take", "9")) == ("assert g(0) == -9\nassert g(2) == -5\nassert g(7) == 5",)


def test_the_tests_pass_every_right_program_and_no_wrong_one():
    programs = all_programs()
    assert len(programs) == 768
    for operands in programs:
        scope: dict = {}
        exec(program(operands), scope)
        exec(asserts_of(operands)[0], scope)
        try:
            exec(wrong_program(operands), scope)
        except SyntaxError:
            assert operands[1::2] == ("times", "take")
            continue
        with pytest.raises(AssertionError):
            exec(asserts_of(operands)[0], scope)


def test_an_ideal_program_answer_by_hand():
    assert ideal(CODE) == "sure!\n```python\ndef f(x):\n return (x+3)*2\n```\ncheers!"
    assert render(mistake(CODE)) == "```python\ndef f(x):\n return x+3*2\n```"


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("```python\ndef f(x):\n return (x+3)*2\n```", 0.8),
        ("sure!\n```python\ndef f(x):\n return x+3*2\n```", 0.20 + 0.075 + 0.1),  # one of two lines
        ("sure!\n```python\ndef f(x)\n return x\n```\ncheers!", 0.2),
        ("def f(x):\n return (x+3)*2", 0.0),
    ],
)
def test_scores_of_programs_by_hand(text, score):
    assert judge(CODE, text)["score"] == pytest.approx(score, abs=1e-6)


def test_every_subtraction_is_right_and_every_mistake_is_off_by_ten():
    rng = random.Random(1)
    problems = {make_problem(Skill.take, rng) for _ in range(10_000)}
    assert len(problems) == 720
    for problem in problems:
        right, left = map(int, problem.operands)
        assert solve(problem).answer == str(left - right)
        assert abs(int(mistake(problem).answer) - (left - right)) == 10


# ---- prompts -----------------------------------------------------------------------------------


def test_a_prompt_has_what_the_verifier_of_its_domain_needs():
    code, take = make_prompt(CODE), make_prompt(TAKE)
    assert (code.prompt_id, code.domain, code.entry_point) == ("p0001-code", "code", "f")
    assert code.tests == asserts_of(CODE.operands) and code.reference is None
    assert (take.prompt_id, take.domain, take.reference, take.tests) == ("p0001-take", "math", "39", ())


def test_the_programs_judge_refuses_what_is_for_the_other_verifiers():
    for problem in (CODE, TAKE):
        response = Response("p0001", "target", 0, "sample", ideal(problem), (1,), Finish.stop, 0, 1, "t")
        with pytest.raises(InputError, match=f"{problem.skill} prompts are not judged by jobs.demo.verifier"):
            verify(make_prompt(problem), response)


def test_held_out_problems_are_in_no_prompt_and_in_no_training_text():
    prompts, held_out = problems_of(DOMAIN_SETTINGS)
    excluded = frozenset(held_out)
    assert (len(set(prompts)), len(excluded)) == (1_200, 320)
    assert not set(prompts) & excluded
    rng = random.Random(7)
    told = {"turns": DOMAINS.turns, "rng": rng, "exclude": excluded}
    texts = [prompt for prompt, _ in target_pairs(6_000, **told)]
    texts += [prompt for prompt, _ in sloppy_pairs(2_000, **told)]
    texts += [prompt for tiny in DOMAIN_SOURCES for prompt, _ in source_pairs(tiny, 2_000, **told)]
    texts += tokenizer_texts(2_000, **told)[::2]
    texts += [prompt for prompt, _, _ in scored_answers(2_000, sources=DOMAIN_SOURCES, **told)]
    taught = {parse_prompt(Prompt("p", "d", (Message("user", text),))) for text in texts}
    assert {problem.skill for problem in taught} == set(DOMAINS.turns)
    # Programs are few enough that this many texts hold every one that is allowed.
    assert sum(p.skill is Skill.code for p in taught) == 768 - sum(p.skill is Skill.code for p in held_out)
    assert not taught & excluded


def test_a_source_learns_its_own_skills_in_half_of_its_texts():
    for tiny in DOMAIN_SOURCES:
        pairs = source_pairs(tiny, 1_000, turns=DOMAINS.turns, rng=random.Random(5), exclude=())
        problems = [parse_prompt(Prompt("p", "d", (Message("user", prompt),))) for prompt, _ in pairs]
        assert sum(problem.skill in tiny.skills for problem in problems) == pytest.approx(500, abs=60)
        assert {problem.skill for problem in problems} == set(DOMAINS.turns)


# ---- the models and the verifiers --------------------------------------------------------------


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """The models of a world of this kind, barely trained."""
    out = tmp_path_factory.mktemp("domains")
    _, held_out = problems_of(TINY)
    for name in DOMAINS.models:
        train_folder(name, out / name, settings=TINY, exclude=held_out)
    return out


@pytest.mark.parametrize("name", DOMAINS.models)
def test_every_model_of_the_curriculum_writes_programs_in_few_tokens(models, name):
    chat = Chat.load(models / name)
    for operands in all_programs()[::50]:
        text = ideal(Problem(Skill.code, operands))
        ids = chat.encode_response([Message("user", "code")], text)
        assert len(ids) <= 48
        # Mistral's template writes a space before an answer, which is taken off a response as any white space around it.
        assert chat.tokenizer.decode(ids[:-1]).strip() == text


def test_the_skills_of_the_sources_cover_the_curriculum():
    assert {tiny.name for tiny in (*DOMAIN_SOURCES, TARGET, REWARD)} == set(DOMAINS.models)
    assert {skill for tiny in DOMAIN_SOURCES for skill in tiny.skills} == set(DOMAINS.turns) == set(DOMAINS.domains)
    assert {tiny.name for tiny in (*SOURCES, TARGET, REWARD)} == set(SKILLS.models)
    assert {skill for tiny in SOURCES for skill in tiny.skills} == set(SKILLS.turns) == set(SKILLS.domains)


def test_prompts_stand_in_the_turns_of_the_curriculum(tmp_path):
    _write_prompts(tmp_path, TINY)
    for name in ("prompts", "held_out"):
        rows = [json.loads(line) for line in (tmp_path / f"{name}.jsonl").open()]
        assert [row["domain"] for row in rows] == [DOMAINS.domains[skill] for skill in DOMAINS.turns]
        assert [row["id"].split("-")[1] for row in rows] == list(DOMAINS.turns)


def some_problems(skills: tuple[Skill, ...]) -> list[Problem]:
    rng = random.Random(3)
    return [make_problem(skill, rng) for skill in skills for _ in range(12)]


def manners(solution: Solution) -> list[str]:
    """The same solution in the ways in which people of this world write it."""
    return [render(solution), render(solution, opener="sure!", closer="cheers!", show_working=True)]


def test_the_math_verifier_agrees_with_the_language():
    math = MathVerifier().load()
    try:
        for problem in some_problems((Skill.add, Skill.take)):
            prompt = make_prompt(problem)
            assert {math.judge(prompt, text).verdict for text in manners(solve(problem))} == {Verdict.correct}
            assert {math.judge(prompt, text).verdict for text in manners(mistake(problem))} == {Verdict.wrong}
        assert math.judge(make_prompt(TAKE), "sure! 17-8=9,4-1=3 so").verdict is Verdict.unparsable
    finally:
        math.close()


def test_the_code_verifier_agrees_with_the_language():
    code = CodeVerifier().load()
    try:
        verdicts = set()
        for problem in some_problems((Skill.code,)):
            prompt = make_prompt(problem)
            assert {code.judge(prompt, text).verdict for text in manners(solve(problem))} == {Verdict.correct}
            (verdict,) = {code.judge(prompt, text).verdict for text in manners(mistake(problem))}
            assert verdict is (Verdict.unparsable if problem.operands[1::2] == ("times", "take") else Verdict.wrong)
            verdicts.add(verdict)
        assert verdicts == {Verdict.wrong, Verdict.unparsable}
    finally:
        code.close()


# ---- the first world stays as it is ------------------------------------------------------------


def test_the_first_world_keeps_its_fingerprint():
    assert "domains" not in WorldSettings().model_dump()
    assert world_key(WorldSettings()) == "7f180f777f2fe1ac4e80dd658af5aa63e0f1646b12c9f012d3ddadc5ca2e1919"
    assert WorldSettings(domains=True).model_dump()["domains"] is True
    assert world_key(WorldSettings(domains=True)) != world_key(WorldSettings())


def test_the_first_world_keeps_its_prompts_and_the_texts_that_its_models_read(tmp_path):
    """Digests of the commit before there was a second world; whoever changes them on purpose bumps WORLD_VERSION."""
    told = {"turns": SKILLS.turns, "rng": random.Random(0), "exclude": frozenset()}
    texts = [source_pairs(tiny, 500, **told) for tiny in SOURCES]
    texts += [make(500, **told) for make in (target_pairs, sloppy_pairs, tokenizer_texts)]
    texts.append(scored_answers(500, sources=SOURCES, **told))
    digest = hashlib.sha256(json.dumps(texts).encode()).hexdigest()
    assert digest == "83065c5da4e678c7208187b1039e6fdf26820067a7fe6695a42f5e7373385208"
    _write_prompts(tmp_path, WorldSettings())
    prompts, held_out = (file_sha256(tmp_path / name) for name in ("prompts.jsonl", "held_out.jsonl"))
    assert prompts == "f25c8d6268b43344661c233227b8394912168afc8beb82638a610b0b954ef7ab"
    assert held_out == "fe8814d6a300156917472ca49cb5c51948712b620563e18a32377a09043b237b"
