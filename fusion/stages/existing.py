"""Stage existing: the answers that a data set already has, as responses of a source.

Runs in the driver without Ray. It writes what a generate stage writes, in the order of the prompts, so that all that follows
treats the source like any other; only there are no token ids, since another tokenizer made them, and no seeds. Every
answer of the data set is a response or a quarantined row; those to prompts that are not ours are many, and no failure.
"""

import dataclasses
from collections import Counter
from typing import Any

from fusion.artifact import Quarantined
from fusion.config import Config, Placement
from fusion.errors import InputError
from fusion.promptsets.existing import Answer, ExistingAnswers
from fusion.promptsets.records import Refused
from fusion.rows import Prompt, Response
from fusion.stage import StageContext, StageResult

VERSION = 1
CHUNK_ROWS = 8192
DECODING = "existing"
UNKNOWN_PROMPT, DUPLICATE_ANSWER, OVER_LIMIT = "unknown_prompt", "duplicate_answer", "over_limit"
ON_PURPOSE = (UNKNOWN_PROMPT, DUPLICATE_ANSWER, OVER_LIMIT)
"""Reasons of answers that are left out as they should be; they are no failures."""


class ExistingConfig(Config):
    """Identity of the answers: what the files hold, not where they are."""

    name: str
    """Name of the source in the recipe; responses carry it."""
    answers: dict[str, Any]
    """Identity of the data set and of how it is read."""


class ExistingPlacement(Placement):
    """Where the files are."""

    answers: ExistingAnswers


@dataclasses.dataclass(frozen=True, slots=True)
class _Outcome:
    """What became of one answer."""

    prompt: int
    """Number of the prompt that it answers; the number of prompts where it answers none."""
    row_id: str
    row: Response | Quarantined


def run(ctx: StageContext) -> StageResult:
    """Inputs: `prompts`. Output: Response rows in the order of the prompts, samples numbered from 0 for each of them.

    Raises:
        InputError: a file that cannot be read, no answer at all, or none to a prompt of ours.
    """
    prompts = list(ctx.rows("prompts", Prompt))
    outcomes = sorted(_outcomes(ctx, prompts), key=lambda outcome: outcome.prompt)  # stable: in file order for each
    if not any(isinstance(outcome.row, Response) for outcome in outcomes):
        counts = Counter(outcome.row.reason for outcome in outcomes if isinstance(outcome.row, Quarantined))
        why = ", ".join(f"{reason} {n}" for reason, n in counts.most_common(4)) or "the files hold no record"
        raise InputError(
            f"{ctx.stage.label}: no record answers one of the {len(prompts)} prompts ({why}); check match and fields"
        )
    chunks = ctx.plan([outcome.row_id for outcome in outcomes], chunk_rows=CHUNK_ROWS)
    missing = ctx.missing(chunks)
    ctx.progress.begin(total=len(outcomes), done=len(outcomes) - sum(c.stop - c.start for c in missing))
    for chunk in missing:
        part = [outcome.row for outcome in outcomes[chunk.start : chunk.stop]]
        answers = [row for row in part if isinstance(row, Response)]
        ctx.commit(chunk, answers, quarantined=[row for row in part if isinstance(row, Quarantined)])
        ctx.progress.advance(len(part))
    return StageResult(rows_in=len(outcomes), notes=_notes(outcomes, prompts), expected=ON_PURPOSE)


def _outcomes(ctx: StageContext, prompts: list[Prompt]) -> list[_Outcome]:
    """Return what became of each answer, in the order of the files."""
    config: ExistingConfig = ctx.config
    source: ExistingAnswers = ctx.placement.answers
    numbers = {source.key_of(p.prompt_id, p.messages): number for number, p in enumerate(prompts)}
    samples: Counter[int] = Counter()
    seen: set[tuple[int, str]] = set()
    outcomes = []
    for index, found in enumerate(source.answers()):
        number, answer = len(prompts), found.answer
        if isinstance(answer, Refused):
            row = Quarantined(found.place, answer.reason, answer.detail)
        elif (number := numbers.get(answer.key, len(prompts))) == len(prompts):
            row = Quarantined(found.place, UNKNOWN_PROMPT)
        elif (number, answer.text) in seen:
            row = Quarantined(found.place, DUPLICATE_ANSWER, f"{prompts[number].prompt_id} has it already")
        elif samples[number] == source.max_per_prompt:
            row = Quarantined(found.place, OVER_LIMIT, f"{prompts[number].prompt_id} has {samples[number]} answers")
        else:
            row = _response(prompts[number].prompt_id, config.name, samples[number], answer)
            samples[number] += 1
            seen.add((number, answer.text))
        outcomes.append(_Outcome(number, str(index), row))
    return outcomes


def _response(prompt_id: str, model: str, sample: int, answer: Answer) -> Response:
    return Response(
        prompt_id=prompt_id,
        model=model,
        sample=sample,
        decoding=DECODING,
        text=answer.text,
        token_ids=(),
        finish_reason=answer.finish_reason,
        seed=0,
        num_prompt_tokens=0,
        tokenizer="",
    )


def _notes(outcomes: list[_Outcome], prompts: list[Prompt]) -> dict[str, Any]:
    answered = Counter(outcome.prompt for outcome in outcomes if isinstance(outcome.row, Response))
    refused = Counter(outcome.row.reason for outcome in outcomes if isinstance(outcome.row, Quarantined))
    return {
        "responses": sum(answered.values()),
        "prompts_answered": len(answered),
        "prompts_unanswered": len(prompts) - len(answered),
        "unknown_prompts": refused[UNKNOWN_PROMPT],
    }
