"""Stage prompts: read the prompt sets, check every record, take out duplicates and held-out prompts.

Runs in the driver without Ray. Every record of every file is a prompt in the output or a quarantined row
with its file and line.
"""

import hashlib
from collections.abc import Iterator
from typing import Any

from fusion.artifact import Quarantined
from fusion.config import Config, Placement
from fusion.errors import InputError
from fusion.promptsets import PromptSet
from fusion.promptsets.records import Refused, content_digest, to_prompt
from fusion.rows import Prompt
from fusion.stage import StageContext, StageResult

VERSION = 1
CHUNK_ROWS = 8192


class PromptsConfig(Config):
    """Identity of the prompts: what the files hold, not where they are."""

    sets: tuple[dict[str, Any], ...]
    """Identity of each prompt set, in order."""


class PromptsPlacement(Placement):
    """Where the files of each set are, in the order of `PromptsConfig.sets`."""

    sets: tuple[PromptSet, ...]


def run(ctx: StageContext) -> StageResult:
    """Inputs: optionally `held_out`, prompts that must not be trained on."""
    held_out = set()
    if "held_out" in ctx.inputs:
        held_out = {content_digest(p.messages) for p in ctx.rows("held_out", Prompt)}
    outcomes = list(_outcomes(ctx.placement.sets, held_out))
    if not outcomes:
        raise InputError(f"{ctx.stage.label}: the prompt sets hold no record; give at least one prompt")
    chunks = ctx.plan([place for place, _ in outcomes], chunk_rows=CHUNK_ROWS)
    ctx.progress.begin(total=len(outcomes))
    for chunk in chunks:
        part = [outcome for _, outcome in outcomes[chunk.start : chunk.stop]]
        ctx.commit(
            chunk,
            [o for o in part if isinstance(o, Prompt)],
            quarantined=[o for o in part if isinstance(o, Quarantined)],
        )
        ctx.progress.advance(len(part))
    domains: dict[str, int] = {}
    for _, outcome in outcomes:
        if isinstance(outcome, Prompt):
            domains[outcome.domain] = domains.get(outcome.domain, 0) + 1
    return StageResult(rows_in=len(outcomes), notes={"domains": domains})


def _outcomes(sets: tuple[PromptSet, ...], held_out: set[str]) -> Iterator[tuple[str, Prompt | Quarantined]]:
    """Yield (row id, prompt or refusal) for every record of every set; the id does not hold the path."""
    seen_ids: dict[str, str] = {}
    seen_texts: dict[str, str] = {}
    for number, prompt_set in enumerate(sets):
        for index, (place, outcome) in enumerate(_limited(prompt_set)):
            row_id = f"{number}:{index}"
            if isinstance(outcome, Quarantined):
                yield row_id, outcome
                continue
            digest = content_digest(outcome.messages)
            if outcome.prompt_id in seen_ids:
                also = seen_ids[outcome.prompt_id]
                yield row_id, Quarantined(outcome.prompt_id, "duplicate_id", f"{place}: also {also}")
            elif digest in seen_texts:
                same = seen_texts[digest]
                yield row_id, Quarantined(outcome.prompt_id, "duplicate_prompt", f"{place}: same as {same}")
            elif digest in held_out:
                yield row_id, Quarantined(outcome.prompt_id, "held_out", f"{place}: a held-out prompt")
            else:
                seen_ids[outcome.prompt_id] = seen_texts[digest] = place
                yield row_id, outcome


def _limited(prompt_set: PromptSet) -> Iterator[tuple[str, Prompt | Quarantined]]:
    outcomes = []
    for place, record in prompt_set.records():
        try:
            outcomes.append((place, to_prompt(record, domain=prompt_set.domain)))
        except Refused as refused:
            outcomes.append((place, Quarantined(place, refused.reason, f"{place}: {refused.detail}")))
    if prompt_set.limit is None or len(outcomes) <= prompt_set.limit:
        return iter(outcomes)
    ranked = sorted(range(len(outcomes)), key=lambda i: hashlib.sha256(_name(outcomes[i]).encode()).digest())
    return iter(outcomes[i] for i in sorted(ranked[: prompt_set.limit]))


def _name(outcome: tuple[str, Prompt | Quarantined]) -> str:
    place, row = outcome
    return row.prompt_id if isinstance(row, Prompt) else place
