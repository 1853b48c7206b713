"""Stage select: scored answers of all models become training rows, one prompt at a time.

Runs in the driver without Ray. Every prompt of the rule's side is a row or a quarantined row with its reason; where a
guard (select/guard.py) looks at the selection as a whole, its rows are held until all are there.
"""

from collections.abc import Iterator
from typing import Any

from fusion.artifact import Quarantined
from fusion.config import Config
from fusion.errors import InputError
from fusion.rows import Prompt
from fusion.select import Drop, Guard, PromptGroup, Rule, Split
from fusion.stage import StageContext, StageResult
from fusion.stages.groups import groups, sides_of, source_names
from fusion.stages.tally import Tally

VERSION = 2
CHUNK_ROWS = 4096
TOP_REASONS = 4
"""Reasons that are named where a selection leaves nothing."""


class SelectConfig(Config):
    """Which rows are made of which prompts."""

    rule: Rule
    """What is taken of the answers to one prompt."""
    split: Split | None
    """Which prompts are on the rule's side; None where the input `split` says it."""
    guard: Guard | None = None
    """What the selection as a whole must keep to."""


def run(ctx: StageContext) -> StageResult:
    """Inputs: `prompts`, `source_<name>` of each source, `own` for rules that need it (all ScoredResponse), and `split`.

    Raises:
        InputError: the rule's side has no prompt, or the rule or the guard leaves no row.
        ArtifactError: an input's rows are not in the order of the prompts.
    """
    config: SelectConfig = ctx.config
    prompts = list(ctx.rows("prompts", Prompt))
    asked = prompts
    if config.rule.side != "all":
        sides = sides_of(ctx, config.split, prompts)
        asked = [p for p in prompts if sides.get(p.prompt_id) == config.rule.side]
    if not asked:
        shares = f" {config.split.sft}:{config.split.preference}" if config.split else " by pairs"
        raise InputError(
            f"{ctx.stage.label}: no prompt of {len(prompts)} is on side {config.rule.side!r} of the split{shares}; "
            "give more prompts or another split"
        )
    chunks = ctx.plan([p.prompt_id for p in asked], chunk_rows=CHUNK_ROWS)
    ctx.progress.begin(total=len(asked))
    sources = source_names(ctx)
    outcomes = _outcomes(ctx, prompts, {p.prompt_id for p in asked}, sources)
    tally = Tally(config.rule.row_type, sources=sources)
    missing = {chunk.index for chunk in ctx.missing(chunks)}
    for chunk in chunks:
        rows, dropped = [], []
        for _ in range(chunk.start, chunk.stop):
            group, outcome = next(outcomes)
            tally.add(group, outcome)
            if isinstance(outcome, Drop):
                dropped.append(Quarantined(group.prompt.prompt_id, str(outcome.reason), outcome.detail))
            else:
                rows.append(outcome)
        if chunk.index in missing:
            ctx.commit(chunk, rows, quarantined=dropped)
        ctx.progress.advance(chunk.stop - chunk.start)
    for _ in outcomes:
        raise AssertionError("more groups than prompts")
    if tally.num_rows == 0:
        raise InputError(_nothing_left(ctx, len(asked), tally))
    return StageResult(rows_in=len(asked), notes={"rule": config.rule.type, **tally.notes()})


def _nothing_left(ctx: StageContext, asked: int, tally: Tally) -> str:
    reasons = ", ".join(f"{reason} {count}" for reason, count in tally.drops().most_common(TOP_REASONS))
    return (
        f"{ctx.stage.label}: the rule leaves no row of {asked} prompts ({reasons}); loosen it; its "
        "part-*.quarantine.jsonl have the reason of each prompt"
    )


def _outcomes(
    ctx: StageContext, prompts: list[Prompt], asked: set[str], sources: tuple[str, ...]
) -> Iterator[tuple[PromptGroup, Any]]:
    """Yield each asked prompt's group with its row or Drop, the guard's drops included."""
    config: SelectConfig = ctx.config
    found = ((group, config.rule(group)) for group in groups(ctx, prompts, asked))
    if config.guard is None:
        yield from found
        return
    held = list(found)
    places = [place for place, (_, outcome) in enumerate(held) if not isinstance(outcome, Drop)]
    out = config.guard.left_out([held[place][1] for place in places], sources=sources)
    if places and len(out) == len(places):
        drop = next(iter(out.values()))
        raise InputError(f"{ctx.stage.label}: the guard leaves none of {len(places)} rows ({drop.detail}); loosen it")
    drops = {places[number]: drop for number, drop in out.items()}
    for place, (group, outcome) in enumerate(held):
        yield group, drops.get(place, outcome)
