"""What a row of any layout says, whatever the names of its columns: a prompt, and answers with a role each.

Both directions pass through here: our rows become examples and then records of a layout, records become examples and
then our rows. A layout knows nothing of our row types, and our row types know nothing of layouts. The one idea: what
a layout does not say stays None in an example, so that nothing is made up before a row of ours needs it.
"""

import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping
from enum import StrEnum
from typing import Any

from fusion.rows import (
    Finish,
    PreferencePair,
    PreferenceQuadruple,
    PreferenceSet,
    Prompt,
    Response,
    ResponseGroup,
    ScoredResponse,
    SftExample,
    Verdict,
    WeightedGroups,
    WeightedPairs,
    WeightedResponses,
)

ORDER_SCORER = "imported_order"
"""Scorer of answers of which a layout says only which is better: 1.0 for chosen ones, 0.0 for rejected ones."""
SCORER = "imported"
"""Scorer of answers whose layout has scores and does not say whose."""
SOURCE_MODEL, OWN_MODEL, OTHER_MODEL = "source", "sft", "imported"
"""Models of answers whose layout names none: of WRPO's source answers, of its own samples, of all others."""


class Kind(StrEnum):
    """What an example is for."""

    prompt = "prompt"
    """A prompt alone."""
    answers = "answers"
    """One or more answers that are not set against each other."""
    sft = "sft"
    """An answer to imitate."""
    pair = "pair"
    """A chosen and a rejected answer."""
    wrpo = "wrpo"
    """Chosen source answers, the target's own best and worst, and perhaps rejected source answers."""


ROLES: Mapping[Kind, tuple[str, ...]] = {
    Kind.prompt: (),
    Kind.answers: ("responses",),
    Kind.sft: ("response",),
    Kind.pair: ("chosen", "rejected"),
    Kind.wrpo: ("source_chosen", "target_chosen", "source_rejected", "rejected"),
}
OTHER = "other"
"""Role of an answer that is no part of the row, such as one that is neither side of its record's pair."""


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    """One answer. Example: `Answer("chosen", "4", model="llama", score=0.7)`."""

    role: str
    """A role of `ROLES`, or `other`."""
    text: str
    model: str | None = None
    score: float | None = None
    scorer: str | None = None
    verdict: Verdict | None = None
    verdict_reason: str | None = None
    finish_reason: Finish | None = None
    sample: int | None = None


FACTS = ("model", "score", "scorer", "verdict", "verdict_reason", "finish_reason", "sample")
"""Fields of an answer beside its role and its text."""


@dataclasses.dataclass(frozen=True, slots=True)
class Example:
    """A prompt and answers to it, in the order of `ROLES`."""

    kind: Kind
    prompt: Prompt
    answers: tuple[Answer, ...] = ()
    weight: float = 1.0

    def of(self, role: str) -> tuple[Answer, ...]:
        return tuple(answer for answer in self.answers if answer.role == role)


KINDS: Mapping[type, Kind] = {
    Prompt: Kind.prompt,
    ScoredResponse: Kind.answers,
    ResponseGroup: Kind.answers,
    WeightedGroups: Kind.answers,
    SftExample: Kind.sft,
    WeightedResponses: Kind.sft,
    PreferencePair: Kind.pair,
    WeightedPairs: Kind.pair,
    PreferenceQuadruple: Kind.wrpo,
    PreferenceSet: Kind.wrpo,
}
"""Row type -> kind of its examples."""


# ---- from our rows ----------------------------------------------------------------------------


def examples_of(row: Any) -> Iterator[Example]:
    """Yield what a row says; a row of FuseRL is one example per answer, pair or group, with its share as weight.

    Example: `WeightedPairs(x, (a, b), (c, d), weights=(0.75, 0.25), weight=2.0)` gives the pairs (a, c) of weight 1.5
    and (b, d) of weight 0.5.
    """
    match row:
        case Prompt():
            yield Example(Kind.prompt, row)
        case ResponseGroup():
            yield _example(row.prompt, row.weight, responses=row.responses)
        case WeightedGroups():
            for number, share in enumerate(row.weights):
                members = tuple(r for r, group in zip(row.responses, row.groups, strict=True) if group == number)
                yield _example(row.prompt, row.weight * share, responses=members)
        case SftExample():
            yield _example(row.prompt, row.weight, response=(row.response,))
        case WeightedResponses():
            for response, share in zip(row.responses, row.weights, strict=True):
                yield _example(row.prompt, row.weight * share, response=(response,))
        case PreferencePair():
            yield _example(row.prompt, row.weight, chosen=(row.chosen,), rejected=(row.rejected,))
        case WeightedPairs():
            for chosen, rejected, share in zip(row.chosen, row.rejected, row.weights, strict=True):
                yield _example(row.prompt, row.weight * share, chosen=(chosen,), rejected=(rejected,))
        case PreferenceQuadruple() | PreferenceSet():
            held = row if isinstance(row, PreferenceSet) else as_set(row)
            yield _example(
                held.prompt,
                held.weight,
                source_chosen=held.source_chosen,
                target_chosen=(held.target_chosen,),
                source_rejected=held.source_rejected,
                rejected=(held.rejected,),
            )
        case _:
            raise TypeError(f"{type(row).__name__} rows have no example")


def answers_to(prompt: Prompt, scored: tuple[ScoredResponse, ...]) -> Example:
    """Return all scored answers to a prompt as one example."""
    return _example(prompt, 1.0, responses=scored)


def as_set(row: PreferenceQuadruple) -> PreferenceSet:
    """Return the preference set that says what a quadruple says."""
    return PreferenceSet(row.prompt, (row.source_chosen,), row.target_chosen, (), row.rejected, row.weight)


def _example(prompt: Prompt, weight: float, **roles: tuple[ScoredResponse, ...]) -> Example:
    kind = next(kind for kind, names in ROLES.items() if set(roles) == set(names))
    answers = tuple(_answer(role, scored) for role in ROLES[kind] for scored in roles[role])
    return Example(kind, prompt, answers, weight)


def _answer(role: str, scored: ScoredResponse) -> Answer:
    made_up = scored.scorer == ORDER_SCORER  # such a score came from no scorer and goes out to nobody
    response = scored.response
    return Answer(
        role,
        response.text,
        response.model,
        None if made_up else scored.score,
        None if made_up else scored.scorer,
        scored.verdict,
        scored.verdict_reason,
        response.finish_reason,
        response.sample,
    )


# ---- to our rows ------------------------------------------------------------------------------


def row_of(example: Example) -> Any | None:
    """Return the training row that an example is, or None: a prompt alone, fewer than two answers, or no scores.

    Where a layout says only which answer is better, chosen ones get score 1.0, rejected ones 0.0 and both the scorer
    `imported_order`: the order of a pair is all that a loss reads of it. Groups without scores are no row, because
    RLOO reads the scores themselves.

    Raises:
        ValueError: what the example says cannot be a row, e.g. a chosen score that is not above the rejected one.
    """
    if example.kind is Kind.prompt:
        return None
    if example.kind is Kind.answers and not is_scored(example):
        return None
    held = {role: tuple(s for a, s in _scored(example) if a.role == role) for role in ROLES[example.kind]}
    for role in ("response", "chosen", "target_chosen", "rejected"):
        if role in held and len(held[role]) != 1:
            raise ValueError(f"row {example.prompt.prompt_id}: {len(held[role])} answers in the role {role}, not 1")
    prompt, weight = example.prompt, example.weight
    match example.kind:
        case Kind.answers:
            return ResponseGroup(prompt, held["responses"], weight)
        case Kind.sft:
            return SftExample(prompt, held["response"][0], weight)
        case Kind.pair:
            return PreferencePair(prompt, held["chosen"][0], held["rejected"][0], weight)
    sources, avoided = held["source_chosen"], held["source_rejected"]
    own, rejected = held["target_chosen"][0], held["rejected"][0]
    if len(sources) == 1 and not avoided:
        return PreferenceQuadruple(prompt, sources[0], own, rejected, weight)
    return PreferenceSet(prompt, sources, own, avoided, rejected, weight)


def is_scored(example: Example) -> bool:
    """Whether an example is answers that their scores compare: two or more, and every one has a score."""
    return (
        example.kind is Kind.answers
        and len(example.answers) > 1
        and all(answer.score is not None for answer in example.answers)
    )


def model_of(answer: Answer, kind: Kind) -> str:
    """Return the answer's model, or the name that stands for it where the layout has none."""
    if answer.model is not None:
        return answer.model
    if kind is not Kind.wrpo:
        return OTHER_MODEL
    return SOURCE_MODEL if answer.role.startswith("source_") else OWN_MODEL


def _scored(example: Example) -> Iterator[tuple[Answer, ScoredResponse]]:
    """Yield each answer with the response that a row of ours holds for it.

    The responses have text and no tokens: training encodes them anew, with an end of turn unless the layout says
    that they were cut at the token limit.
    """
    known = all(answer.score is not None for answer in example.answers if answer.role != OTHER)
    seen: Counter[str] = Counter()
    for answer in example.answers:
        if answer.role == OTHER:
            continue
        model = model_of(answer, example.kind)
        response = Response(
            prompt_id=example.prompt.prompt_id,
            model=model,
            sample=seen[model] if answer.sample is None else answer.sample,
            decoding="imported",
            text=answer.text,
            token_ids=(),
            finish_reason=answer.finish_reason or Finish.stop,
            seed=0,
            num_prompt_tokens=0,
            tokenizer="",
        )
        seen[model] += 1
        if known and answer.score is not None:
            score, scorer = answer.score, SCORER if answer.scorer is None else answer.scorer
        else:
            score, scorer = 0.0 if answer.role.endswith("rejected") else 1.0, ORDER_SCORER
        yield answer, ScoredResponse(response, score, scorer, {}, answer.verdict, answer.verdict_reason)
