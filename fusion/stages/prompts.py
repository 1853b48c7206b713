"""Stage prompts: read the prompt sets, check every record, and take out what must not be trained on.

Runs in the driver without Ray. Every record of every file is a prompt in the output or a quarantined row with its file and
line: one that could not be read, one that a filter drops, a duplicate or near duplicate, or one that an evaluation set holds.
"""

import json
import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from fusion.artifact import Quarantined, write_atomic
from fusion.config import Config, Placement
from fusion.errors import InputError
from fusion.promptsets import PromptSet
from fusion.promptsets.decontamination import EvaluationRow, Evaluations, Leak, Overlap
from fusion.promptsets.filters import REASONS
from fusion.promptsets.near_duplicates import NearDuplicates
from fusion.promptsets.reading import DUPLICATE_PROMPT, HELD_OUT, Candidate, read_sets
from fusion.promptsets.records import content_digest
from fusion.rows import Prompt
from fusion.stage import StageContext, StageResult

log = logging.getLogger(__name__)

VERSION = 3
CHUNK_ROWS = 8192
NEAR_DUPLICATE, CONTAMINATED = "near_duplicate", "contaminated"
ON_PURPOSE = (*REASONS, DUPLICATE_PROMPT, NEAR_DUPLICATE, HELD_OUT, CONTAMINATED)
"""Reasons of rows that are left out as they should be; they are no failures."""

LEAKS = "decontamination.jsonl"
"""Report of the prompts that evaluation sets hold, one object a line."""


class PromptsConfig(Config):
    """Identity of the prompts: what the files hold, not where they are."""

    sets: tuple[dict[str, Any], ...]
    """Identity of each prompt set, in order."""
    near_duplicates: float | None = None
    """Similarity from which prompts are near duplicates; null leaves them in."""
    overlap: Overlap | None = None
    """What may not be shared with evaluation sets; null compares with `held_out` for equality only."""
    against: tuple[dict[str, Any], ...] = ()
    """Identity of each evaluation set besides `held_out`."""


class PromptsPlacement(Placement):
    """Where the files are, in the order of `PromptsConfig`."""

    sets: tuple[PromptSet, ...]
    against: tuple[PromptSet, ...] = ()


def run(ctx: StageContext) -> StageResult:
    """Inputs: optionally `held_out`, prompts that must not be trained on.

    Raises:
        InputError: a file that cannot be read, no record, or no prompt left.
    """
    config: PromptsConfig = ctx.config
    held_out = list(ctx.rows("held_out", Prompt)) if "held_out" in ctx.inputs else []
    reading = read_sets(ctx.placement.sets, held_out={content_digest(p.messages) for p in held_out})
    candidates = reading.candidates
    if not candidates:
        raise InputError(f"{ctx.stage.label}: the prompt sets hold no record; give at least one prompt")
    if config.near_duplicates is not None:
        candidates = _without_near_duplicates(candidates, config.near_duplicates)
    notes: dict[str, Any] = {}
    if config.overlap is not None:
        candidates, notes["decontamination"] = _decontaminated(ctx, candidates, held_out)
    _write(ctx, candidates)
    notes |= _counts(candidates)
    if reading.not_taken:
        notes["not_taken"] = reading.not_taken
    if not notes["domains"]:
        why = ", ".join(f"{reason} {n}" for reason, n in _refused(candidates).most_common(4))
        raise InputError(
            f"{ctx.stage.label}: none of {len(candidates)} records is left as a prompt ({why}); see the quarantine files"
        )
    return StageResult(rows_in=len(candidates), notes=notes, expected=ON_PURPOSE)


def _write(ctx: StageContext, candidates: Sequence[Candidate]) -> None:
    ctx.progress.begin(total=len(candidates))
    for chunk in ctx.plan([c.row_id for c in candidates], chunk_rows=CHUNK_ROWS):
        part = [candidate.row for candidate in candidates[chunk.start : chunk.stop]]
        prompts = [row for row in part if isinstance(row, Prompt)]
        ctx.commit(chunk, prompts, quarantined=[row for row in part if isinstance(row, Quarantined)])
        ctx.progress.advance(len(part))


def _without_near_duplicates(candidates: Sequence[Candidate], threshold: float) -> list[Candidate]:
    seen = NearDuplicates(threshold)

    def checked(candidate: Candidate) -> Candidate:
        if not isinstance(candidate.row, Prompt):
            return candidate
        text = "\n".join(message.content for message in candidate.row.messages)
        match = seen.see(candidate.place, text)
        if match is None:
            return candidate
        return candidate.refused(NEAR_DUPLICATE, f"{match.similarity:.2f} the same as {match.name}")

    return [checked(candidate) for candidate in candidates]


def _decontaminated(
    ctx: StageContext, candidates: Sequence[Candidate], held_out: Sequence[Prompt]
) -> tuple[list[Candidate], dict[str, Any]]:
    """Return the candidates without those that an evaluation set holds, and the notes on it; write the report."""
    config: PromptsConfig = ctx.config
    assert config.overlap is not None
    evaluations = Evaluations(config.overlap)
    sizes: Counter[str] = Counter()
    for prompt in held_out:
        _add(evaluations, EvaluationRow(HELD_OUT, prompt.prompt_id), prompt, sizes)
    unreadable: Counter[str] = Counter()
    first: dict[str, Quarantined] = {}
    for other in read_sets(ctx.placement.against, evaluation=True).candidates:
        if isinstance(other.row, Prompt):
            _add(evaluations, EvaluationRow(other.dataset, other.place), other.row, sizes)
        elif other.row.reason not in ON_PURPOSE:
            unreadable[other.dataset] += 1
            first.setdefault(other.dataset, other.row)
    for name, row in first.items():
        log.warning(
            "%s: of evaluation set %s, %d rows are no prompts and are compared with nothing; the first: %s (%s)",
            ctx.stage.label, name, unreadable[name], row.reason, row.detail,
        )  # fmt: skip
    evaluations.count(c.row for c in candidates if isinstance(c.row, Prompt))
    out, leaks = [], []
    for candidate in candidates:
        leak = evaluations.find(candidate.row) if isinstance(candidate.row, Prompt) else None
        if leak is None:
            out.append(candidate)
            continue
        leaks.append((candidate, leak))
        detail = f"shares {_short(leak.shared)!r} with {leak.row.evaluation} ({leak.row.place})"
        out.append(candidate.refused(CONTAMINATED, detail))
    _report(ctx.path / LEAKS, leaks)
    notes = {
        "evaluation_rows": dict(sizes),
        "unreadable_evaluation_rows": dict(unreadable),
        "removed_by_evaluation": dict(Counter(leak.row.evaluation for _, leak in leaks)),
        "removed_by_dataset": dict(Counter(candidate.dataset for candidate, _ in leaks)),
    }
    return out, notes


def _add(evaluations: Evaluations, row: EvaluationRow, prompt: Prompt, sizes: Counter[str]) -> None:
    evaluations.add(row, prompt)
    sizes[row.evaluation] += 1


def _report(path: Path, leaks: Iterable[tuple[Candidate, Leak]]) -> None:
    lines = []
    for candidate, leak in leaks:
        assert isinstance(candidate.row, Prompt)
        lines.append(
            {
                "prompt_id": candidate.row.prompt_id,
                "place": candidate.place,
                "dataset": candidate.dataset,
                "evaluation": leak.row.evaluation,
                "evaluation_row": leak.row.place,
                "shared": leak.shared,
                "overlap": round(leak.overlap, 4),
            }
        )
    write_atomic(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


def _counts(candidates: Sequence[Candidate]) -> dict[str, Any]:
    """Return how many prompts each domain has, and what became of the records of each set."""
    domains: Counter[str] = Counter()
    datasets: dict[str, Counter[str]] = {}
    for candidate in candidates:
        counts = datasets.setdefault(candidate.dataset, Counter(records=0, prompts=0))
        counts["records"] += 1
        if isinstance(candidate.row, Prompt):
            counts["prompts"] += 1
            domains[candidate.row.domain] += 1
        else:
            counts[candidate.row.reason] += 1
    return {"domains": dict(domains), "datasets": {name: dict(counts) for name, counts in datasets.items()}}


def _refused(candidates: Iterable[Candidate]) -> Counter[str]:
    return Counter(c.row.reason for c in candidates if isinstance(c.row, Quarantined))


def _short(text: str) -> str:
    return text if len(text) <= 200 else f"{text[:199]}…"
