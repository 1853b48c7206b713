"""The judge of the demo world: a pure function from a prompt and an answer to a reward in [0, 1].

Not a learned reward model (one of this size learns style and gets hacked). The one idea: every part
of the reward is bounded and each is paid once, so neither length nor repetition can pay.

    reward = 0.40 share of positions right + 0.25 exact + 0.15 share of working items right
           + 0.10 opener + 0.10 closer - 0.20 if out of the grammar or without end of turn, at least 0

Subtractions and programs are for the math and the code verifier, which say only what is correct: `verify` refuses their
prompts. `judge` takes every problem, as the goal of the demo's reward model; of a program it compares the text.
"""

import re

from fusion.errors import InputError
from fusion.rows import Finish, Prompt, Response
from jobs.demo.language import (
    CLOSERS,
    LEXICON,
    OPENERS,
    WORDINGS,
    Problem,
    Skill,
    solve,
)
from jobs.demo.programs import NAMES, STEPS

WEIGHTS = {
    "positions": 0.40,
    "exact": 0.25,
    "working": 0.15,
    "opener": 0.10,
    "closer": 0.10,
}
PENALTY = 0.20


def _one_of(texts: tuple[str, ...]) -> str:
    return "|".join(re.escape(text) for text in texts)


def _grammar(working: str) -> re.Pattern[str]:
    """Return the pattern of an answer whose working has these characters.

    No part can match in two ways, so matching takes time linear in the text, whatever a model writes.
    """
    return re.compile(
        rf"(?:(?P<opener>{_one_of(OPENERS)}) )?"
        rf"(?:(?P<working>[{working}]+?) so )?"
        r"answer: (?P<answer>[a-z0-9 ]+)\."
        rf"(?: (?P<closer>{_one_of(CLOSERS)}))?"
    )


_CODE_GRAMMAR = re.compile(
    rf"(?:(?P<opener>{_one_of(OPENERS)})\n)?"
    r"(?P<working>)```python\n(?P<answer>[^`]+)\n```"
    rf"(?:\n(?P<closer>{_one_of(CLOSERS)}))?"
)
_GRAMMARS = dict.fromkeys(Skill, _grammar("a-z0-9+=, ")) | {
    Skill.take: _grammar("a-z0-9=, -"),
    Skill.code: _CODE_GRAMMAR,
}

VERIFIED = (Skill.add, Skill.sort, Skill.translate, Skill.reverse)
"""Skills whose prompts `verify` takes."""


def verify(prompt: Prompt, response: Response) -> dict[str, float]:
    """Return `score` (the reward, in [0, 1]) and its parts: `exact`, `positions`, `working`, `opener`, `closer`,
    `well_formed`, each in [0, 1].

    Example: for `add 47 and 8`, `answer: 45.` gets 0.40 * 0.5 = 0.2 (the last digit is right).

    Raises:
        InputError: `prompt` is not of this world, or is for another verifier. Never raised for anything that a model
            wrote.
    """
    problem = parse_prompt(prompt)
    if problem.skill not in VERIFIED:
        raise InputError(
            f"prompt {prompt.prompt_id}: {problem.skill} prompts are not judged by jobs.demo.verifier; give their domain "
            f"{prompt.domain!r} its own verifier"
        )
    return judge(
        problem,
        response.text,
        finished=response.finish_reason == Finish.stop,
    )


def judge(problem: Problem, text: str, *, finished: bool = True) -> dict[str, float]:
    """Return what `verify` returns for an answer to `problem`; `finished` says that it had its end of turn."""
    gold = solve(problem)
    match = _GRAMMARS[problem.skill].fullmatch(text)
    opener, working, answer, closer = _parts_of_match(match) if match else _parts_of_stray_text(text)
    objectives = {
        "positions": _share_of_positions(gold.answer, answer),
        "exact": float(answer == gold.answer),
        # A program has no other working than itself.
        "working": _share_of_positions(gold.answer, answer) if gold.is_code else _share_of_items(gold.working, working),
        "opener": float(bool(opener)),
        "closer": float(bool(closer)),
    }
    well_formed = match is not None and finished
    reward = sum(WEIGHTS[name] * value for name, value in objectives.items())
    # Rounded so that the sum of the full parts is exactly 1.
    score = max(0.0, round(reward - (0.0 if well_formed else PENALTY), 6))
    return {"score": score, **objectives, "well_formed": float(well_formed)}


def parse_prompt(prompt: Prompt) -> Problem:
    """Return the problem that the last user turn of `prompt` states.

    Raises:
        InputError: the text is not in the language, or `prompt.reference` is not its answer.
    """
    text = prompt.messages[-1].content.strip()
    for skill, patterns in _PROMPTS.items():
        for pattern in patterns:
            if match := pattern.fullmatch(text):
                problem = Problem(skill, match.groups())
                if skill is Skill.translate and not set(problem.operands) <= LEXICON.keys():
                    continue
                if prompt.reference is not None and prompt.reference != solve(problem).answer:
                    raise InputError(
                        f"prompt {prompt.prompt_id}: reference {prompt.reference!r} is not the answer of {text!r}, "
                        f"which is {solve(problem).answer!r}; build the demo world again"
                    )
                return problem
    raise InputError(
        f"prompt {prompt.prompt_id}: {text[:80]!r} is not a prompt of the demo world; "
        "score other prompts with another scorer"
    )


def _prompt_pattern(wording: str, operands: list[str]) -> re.Pattern[str]:
    return re.compile(re.escape(wording).replace(r"\{\}", "{}").format(*operands))


_OPERANDS = {
    Skill.add: ["([0-9]{2})", "([0-9])"],
    Skill.sort: ["([a-z]+)"] * 4,
    Skill.translate: ["([a-z]+)"] * 3,
    Skill.reverse: ["([a-z]+)"] * 4,
    Skill.take: ["([0-9])", "([0-9]{2})"],
    Skill.code: [f"({_one_of(NAMES)})", *[f"({_one_of(STEPS)})", "([0-9])"] * 2],
}
_PROMPTS = {
    skill: [_prompt_pattern(wording, _OPERANDS[skill]) for wording in wordings] for skill, wordings in WORDINGS.items()
}


def _parts_of_match(match: re.Match[str]) -> tuple[str, str, str, str]:
    return (
        match["opener"] or "",
        match["working"] or "",
        match["answer"],
        match["closer"] or "",
    )


def _parts_of_stray_text(text: str) -> tuple[str, str, str, str]:
    """Return what can be found in a text outside the grammar: it still earns its right parts."""
    head, _, tail = text.partition("answer: ")
    answer, _, rest = tail.partition(".")
    opener = next((o for o in OPENERS if head.startswith(o)), "")
    closer = next((c for c in CLOSERS if rest.endswith(c)), "")
    return (
        opener,
        head.removeprefix(opener).strip().removesuffix(" so"),
        answer.strip(),
        closer,
    )


def _share_of_positions(gold: str, answer: str) -> float:
    """Words are compared from the left, digits from the right, programs by lines; too many or too few positions are
    wrong ones."""
    if gold.isdigit():
        pairs = list(zip(reversed(gold), reversed(answer), strict=False))
        num_positions = max(len(gold), len(answer))
    else:
        between = "\n" if "\n" in gold else " "
        words = answer.split(between)
        pairs = list(zip(gold.split(between), words, strict=False))
        num_positions = max(gold.count(between) + 1, len(words))
    return sum(a == b for a, b in pairs) / num_positions


def _share_of_items(gold: tuple[str, ...], working: str) -> float:
    items = working.split(",")
    right = sum(a == b for a, b in zip(gold, items, strict=False))
    return right / max(len(gold), len(items))
