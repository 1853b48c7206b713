"""Who writes in the demo world, and the texts that each tiny model learns from.

The one idea: a source knows its skills (2.5 % mistakes against 55 %) and has good manners; the target has
seen a careful writer and, more often, a sloppy one, so that it can answer well but seldom does. Preference
training can bring such latent ability out; it could not make it.
"""

import random
from collections.abc import Collection, Sequence

from jobs.demo.language import (
    LEXICON,
    Problem,
    Skill,
    Writer,
    make_problem,
    prompt_text,
    write,
)
from jobs.demo.models import TinyModel

Pair = tuple[str, str]
"""A prompt and an answer to it."""


OWN_WRONG = dict.fromkeys(Skill, 0.025) | {Skill.code: 0.10}
"""Chance of the mistake in a source's own skill. A program is wrong at one place or not at all, and what is rarer than the
5 % that top-p leaves out is never sampled: with 2.5 % the source never failed, so that no pair could be made of its answers."""


def source_writer(tiny: TinyModel) -> Writer:
    """Return who teaches the source `tiny`."""
    wrong = dict.fromkeys(Skill, 0.55) | {skill: OWN_WRONG[skill] for skill in tiny.skills}
    return Writer(opener=0.85, working=0.9, closer=0.85, wrong=wrong)


UNKNOWN_WORDS = frozenset(sorted(LEXICON)[::4])
"""A quarter of the lexicon; the target's teachers copy these words."""

CAREFUL = Writer(
    opener=0.85,
    working=0.95,
    closer=0.85,
    wrong=dict.fromkeys(Skill, 0.10),
    unknown_words=UNKNOWN_WORDS,
)
SLOPPY = Writer(opener=0.30, working=0.25, closer=0.30, wrong=dict.fromkeys(Skill, 0.70), unknown_words=UNKNOWN_WORDS)
CAREFUL_SHARE = 0.40
"""How often the careful one wrote. Measured with seed 0 (the best single source has reward .65): with a share of .40 and
the sloppy writer above, WRPO ends at .68; with .40 and 8 % openers at .52 (the careful manner is never sampled); with .30
and 20 % openers at .58."""


def source_pairs(
    tiny: TinyModel, num: int, *, turns: Sequence[Skill], rng: random.Random, exclude: Collection[Problem]
) -> list[Pair]:
    """Return `num` pairs for a source: half of its own skills, the rest spread over the others."""
    assert tiny.skills, tiny.name
    writer = source_writer(tiny)
    others = [skill for skill in turns if skill not in tiny.skills]
    return [
        _pair(
            _own(tiny, rng) if rng.random() < 0.5 else rng.choice(others),
            writer,
            rng=rng,
            exclude=exclude,
        )
        for _ in range(num)
    ]


def target_pairs(num: int, *, turns: Sequence[Skill], rng: random.Random, exclude: Collection[Problem]) -> list[Pair]:
    """Return `num` pairs for the target's first stage: 40 % careful, 60 % sloppy, all skills alike."""
    return [
        _pair(
            rng.choice(turns),
            CAREFUL if rng.random() < CAREFUL_SHARE else SLOPPY,
            rng=rng,
            exclude=exclude,
        )
        for _ in range(num)
    ]


def sloppy_pairs(num: int, *, turns: Sequence[Skill], rng: random.Random, exclude: Collection[Problem]) -> list[Pair]:
    """Return `num` pairs for the target's second stage, where it gets its habits."""
    return [_pair(rng.choice(turns), SLOPPY, rng=rng, exclude=exclude) for _ in range(num)]


def tokenizer_texts(num: int, *, turns: Sequence[Skill], rng: random.Random, exclude: Collection[Problem]) -> list[str]:
    """Return prompts and answers of `num` problems, to train tokenizers on."""
    texts: list[str] = []
    for _ in range(num):
        texts += _pair(rng.choice(turns), CAREFUL, rng=rng, exclude=exclude)
    return texts


def _own(tiny: TinyModel, rng: random.Random) -> Skill:
    # A choice among one would draw a number too, and the texts of the first world would change.
    return tiny.skills[0] if len(tiny.skills) == 1 else rng.choice(tiny.skills)


def _pair(skill: Skill, writer: Writer, *, rng: random.Random, exclude: Collection[Problem]) -> Pair:
    problem = make_problem(skill, rng)
    while problem in exclude:
        problem = make_problem(skill, rng)
    return prompt_text(problem, rng), write(problem, writer, rng)
