"""The little language of the demo world: problems, prompts, ideal answers and the people who write answers.

Not a benchmark and not part of the library: a world in which a few skills can be learnt by a model of
0.4M parameters, so that fusion can be seen on two CPU cores. The one idea: an answer is
`[opener] [working] so answer: X. [closer]` (for code a fenced block between opener and closer), and a *writer* is a set of probabilities of leaving a
part out or making a mistake. Mistakes follow a rule (a forgotten carry, not a random digit): random
mistakes have no mode of their own, so greedy decoding would repair them all.
"""

import dataclasses
import random
from collections.abc import Collection, Sequence
from enum import StrEnum

from jobs.demo.programs import make_operands, program, wrong_program


class Skill(StrEnum):
    """What a prompt asks for. `jobs.demo.curriculum` says which of them a world has, and their domains."""

    add = "add"
    sort = "sort"
    translate = "translate"  # pyright: ignore[reportAssignmentType]  # a member; nobody calls str.translate on it
    reverse = "reverse"
    take = "take"
    code = "code"


OPENERS = ("sure!", "okay!", "of course!")
CLOSERS = ("cheers!", "take care!", "see you!")

_ANIMALS = "ant ape bat bee boa cat cow cub dog eel elk emu ewe fox gnu hen hog owl pig pup ram rat sow yak"
_THINGS = "bag bed box bus cap car cup egg fan gem hat ice jam jar key map net oak pen pie red sky sun tea"

ANIMALS = tuple(_ANIMALS.split())
"""Words of the sort and reverse skills, in alphabetical order."""

_SYLLABLES = ("vo", "na", "ki", "lu", "zo", "re", "pa", "tu", "mi", "go", "sha", "fe")


def _make_lexicon() -> dict[str, str]:
    """Return 48 words and their translations: two syllables each, all different, the same for ever."""
    pairs = [first + second for first in _SYLLABLES for second in _SYLLABLES if first != second]
    # A fixed shuffle, so that neighbours in the alphabet do not share a first syllable.
    random.Random("zorp").shuffle(pairs)
    return dict(zip(sorted([*ANIMALS, *_THINGS.split()]), pairs, strict=False))


LEXICON = _make_lexicon()
"""English word -> zorp word."""

_WORDS = tuple(LEXICON)


@dataclasses.dataclass(frozen=True, slots=True)
class Problem:
    """One thing to solve, without its wording. Example: `Problem(Skill.add, ("47", "8"))`."""

    skill: Skill
    operands: tuple[str, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Solution:
    """An answer and the working that leads to it, right or wrong."""

    working: tuple[str, ...]
    answer: str
    is_code: bool = False
    """True for a program, which is written as a fenced block and has no working."""


WORDINGS: dict[Skill, tuple[str, str]] = {
    Skill.add: ("add {} and {}", "what is {} plus {}?"),
    Skill.sort: ("put in order {} {} {} {}", "sort these: {} {} {} {}"),
    Skill.translate: ("say in zorp {} {} {}", "in zorp please: {} {} {}"),
    Skill.reverse: ("say backwards {} {} {} {}", "turn around: {} {} {} {}"),
    Skill.take: ("take {} from {}", "subtract {} from {}"),
    Skill.code: ("code {}: {} {} then {} {}", "write {} in python: {} {}, then {} {}"),
}


def make_problem(skill: Skill, rng: random.Random) -> Problem:
    """Return a random problem of `skill`: 810 additions, 255,024 orders of animals, 103,776 phrases, 720 subtractions,
    768 programs."""
    if skill is Skill.add:
        return Problem(skill, (str(rng.randint(10, 99)), str(rng.randint(1, 9))))
    if skill is Skill.translate:
        return Problem(skill, tuple(rng.sample(_WORDS, 3)))
    if skill is Skill.take:
        return Problem(skill, (str(rng.randint(1, 9)), str(rng.randint(20, 99))))
    if skill is Skill.code:
        return Problem(skill, make_operands(rng))
    return Problem(skill, tuple(rng.sample(ANIMALS, 4)))


def make_problems(
    num: int, *, turns: Sequence[Skill], rng: random.Random, exclude: Collection[Problem] = ()
) -> list[Problem]:
    """Return `num` different problems, the skills in their turns, none of them in `exclude`.

    Raises:
        ValueError: one skill has not enough problems left (there are only 810 additions).
    """
    seen = set(exclude)
    made: list[Problem] = []
    for index in range(num):
        skill = turns[index % len(turns)]
        for _ in range(10_000):
            problem = make_problem(skill, rng)
            if problem not in seen:
                break
        else:
            raise ValueError(f"no {skill} problem is left after {len(seen)}; ask for fewer than {num}")
        seen.add(problem)
        made.append(problem)
    return made


def prompt_text(problem: Problem, rng: random.Random) -> str:
    """Return `problem` in one of the two wordings of its skill."""
    return rng.choice(WORDINGS[problem.skill]).format(*problem.operands)


def solve(problem: Problem) -> Solution:
    """Return the right answer and its working.

    Example: `solve(Problem(Skill.add, ("47", "8"))) == Solution(("7+8=15", "4+1=5"), "55")`.
    """
    match problem.skill:
        case Skill.add:
            return _add(problem, carry=_carry(problem))
        case Skill.sort:
            return _in_order(tuple(sorted(problem.operands)))
        case Skill.reverse:
            return _backwards(problem.operands[::-1])
        case Skill.translate:
            return _translate(problem, copied=())
        case Skill.take:
            return _take(problem, borrowed=_borrowed(problem))
        case Skill.code:
            return Solution((), program(problem.operands), is_code=True)


def mistake(problem: Problem) -> Solution:
    """Return the one wrong answer that people of this world give, with the working that leads to it.

    add, take: what is carried or borrowed is forgotten (or made up where there is none); sort: left as it stands;
    reverse: rotated by one; translate: the last word is copied; code: see `wrong_program`. Never equal to
    `solve(problem)`.
    """
    match problem.skill:
        case Skill.add:
            return _add(problem, carry=1 - _carry(problem))
        case Skill.sort:
            words = problem.operands
            if list(words) == sorted(words):
                words = (words[1], words[0], *words[2:])
            return _in_order(words)
        case Skill.reverse:
            return _backwards((*problem.operands[1:], problem.operands[0]))
        case Skill.translate:
            return _translate(problem, copied=problem.operands[-1:])
        case Skill.take:
            return _take(problem, borrowed=1 - _borrowed(problem))
        case Skill.code:
            return Solution((), wrong_program(problem.operands), is_code=True)


@dataclasses.dataclass(frozen=True, slots=True)
class Writer:
    """How somebody answers: each field is a probability, and the parts are independent."""

    opener: float
    working: float
    closer: float
    wrong: dict[Skill, float]
    """Chance of the mistake, per skill."""
    unknown_words: frozenset[str] = frozenset()
    """Words whose translation this writer does not know; they are copied."""


def write(problem: Problem, writer: Writer, rng: random.Random) -> str:
    """Return one answer of `writer`."""
    solution = mistake(problem) if rng.random() < writer.wrong[problem.skill] else solve(problem)
    if problem.skill is Skill.translate and writer.unknown_words:
        solution = _forget(problem, solution, writer.unknown_words)
    return render(
        solution,
        opener=rng.choice(OPENERS) if rng.random() < writer.opener else "",
        closer=rng.choice(CLOSERS) if rng.random() < writer.closer else "",
        show_working=rng.random() < writer.working,
    )


def render(
    solution: Solution,
    *,
    opener: str = "",
    closer: str = "",
    show_working: bool = False,
) -> str:
    """Return the text of an answer. Example: `sure! 7+8=15,4+1=5 so answer: 55. cheers!`."""
    if solution.is_code:
        return "\n".join(part for part in (opener, f"```python\n{solution.answer}\n```", closer) if part)
    working = ",".join(solution.working) + " so" if show_working else ""
    return " ".join(part for part in (opener, working, f"answer: {solution.answer}.", closer) if part)


def ideal(problem: Problem) -> str:
    """Return an answer with every part right; the verifier gives it 1.0."""
    return render(solve(problem), opener=OPENERS[0], closer=CLOSERS[0], show_working=True)


# ---- the skills --------------------------------------------------------------------------------


def _carry(problem: Problem) -> int:
    left, right = problem.operands
    return (int(left[1]) + int(right)) // 10


def _add(problem: Problem, *, carry: int) -> Solution:
    (tens, units), right = problem.operands[0], problem.operands[1]
    low, high = int(units) + int(right), int(tens) + carry
    return Solution((f"{units}+{right}={low}", f"{tens}+{carry}={high}"), f"{high}{low % 10}")


def _borrowed(problem: Problem) -> int:
    right, left = problem.operands
    return int(int(left[1]) < int(right))


def _take(problem: Problem, *, borrowed: int) -> Solution:
    """Both numbers of a step stand before its result: a tiny model learns to copy two digits and look a third one up, but
    not to find it before they are written (8+9=17 for 17-8 came to 8 % right, 17-8=9 to 91 %)."""
    right, (tens, units) = problem.operands[0], problem.operands[1]
    from_units = int(units) + 10 * _borrowed(problem)
    low, high = from_units - int(right), int(tens) - borrowed
    return Solution((f"{from_units}-{right}={low}", f"{tens}-{borrowed}={high}"), f"{high}{low}")


def _in_order(words: tuple[str, ...]) -> Solution:
    return Solution((f"first {words[0]}", f"last {words[-1]}"), " ".join(words))


def _backwards(words: tuple[str, ...]) -> Solution:
    return Solution((f"from {words[0]}", f"to {words[-1]}"), " ".join(words))


def _translate(problem: Problem, *, copied: Collection[str]) -> Solution:
    spoken = {word: word if word in copied else LEXICON[word] for word in problem.operands}
    return Solution(
        tuple(f"{word}={zorp}" for word, zorp in spoken.items()),
        " ".join(spoken.values()),
    )


def _forget(problem: Problem, solution: Solution, unknown: Collection[str]) -> Solution:
    said = solution.answer.split(" ")
    copied = {word for word, zorp in zip(problem.operands, said, strict=True) if word == zorp or word in unknown}
    return _translate(problem, copied=copied)
