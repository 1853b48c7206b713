"""Who writes in the demo world, and the texts that each tiny model learns from.

The one idea: a source knows one skill (2.5 % mistakes against 55 %) and has good manners; the target has
seen a careful writer and, more often, a sloppy one, so that it can answer well but seldom does. Preference
training can bring such latent ability out; it could not make it.
"""

import random
from collections.abc import Collection

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


def source_writer(skill: Skill) -> Writer:
    """Return who teaches the source that knows `skill`."""
    wrong = dict.fromkeys(Skill, 0.55) | {skill: 0.025}
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

_SKILLS = tuple(Skill)


def source_pairs(tiny: TinyModel, num: int, *, rng: random.Random, exclude: Collection[Problem]) -> list[Pair]:
    """Return `num` pairs for a source: half of its own skill, the rest spread over the others."""
    assert tiny.skill is not None, tiny.name
    writer = source_writer(tiny.skill)
    others = [skill for skill in _SKILLS if skill is not tiny.skill]
    return [
        _pair(
            tiny.skill if rng.random() < 0.5 else rng.choice(others),
            writer,
            rng=rng,
            exclude=exclude,
        )
        for _ in range(num)
    ]


def target_pairs(num: int, *, rng: random.Random, exclude: Collection[Problem]) -> list[Pair]:
    """Return `num` pairs for the target's first stage: 40 % careful, 60 % sloppy, all skills alike."""
    return [
        _pair(
            rng.choice(_SKILLS),
            CAREFUL if rng.random() < CAREFUL_SHARE else SLOPPY,
            rng=rng,
            exclude=exclude,
        )
        for _ in range(num)
    ]


def sloppy_pairs(num: int, *, rng: random.Random, exclude: Collection[Problem]) -> list[Pair]:
    """Return `num` pairs for the target's second stage, where it gets its habits."""
    return [_pair(rng.choice(_SKILLS), SLOPPY, rng=rng, exclude=exclude) for _ in range(num)]


def tokenizer_texts(num: int, *, rng: random.Random, exclude: Collection[Problem]) -> list[str]:
    """Return prompts and answers of `num` problems, to train tokenizers on."""
    texts: list[str] = []
    for _ in range(num):
        texts += _pair(rng.choice(_SKILLS), CAREFUL, rng=rng, exclude=exclude)
    return texts


def _pair(skill: Skill, writer: Writer, *, rng: random.Random, exclude: Collection[Problem]) -> Pair:
    problem = make_problem(skill, rng)
    while problem in exclude:
        problem = make_problem(skill, rng)
    return prompt_text(problem, rng), write(problem, writer, rng)
