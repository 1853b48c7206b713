"""Stage split: which side each prompt is on, where that depends on the answers of the sources (select/pair_split.py).

Runs in the driver without Ray. Every prompt has a side or is a quarantined row with the reason why it has no pair. A
split by ratio needs no stage: it is a function of the prompt ids alone.
"""

from collections import Counter

from fusion.artifact import Quarantined
from fusion.config import Config
from fusion.errors import InputError
from fusion.rows import Assignment, Prompt
from fusion.select import Drop, PairSplit
from fusion.stage import StageContext, StageResult
from fusion.stages.groups import groups

VERSION = 1
CHUNK_ROWS = 8192


class SplitConfig(Config):
    """Identity of the sides, given prompts and scored answers."""

    split: PairSplit
    """The rule and the shares."""


def run(ctx: StageContext) -> StageResult:
    """Inputs: `prompts` and `source_<name>` of each source (ScoredResponse). Output: Assignment rows.

    Raises:
        InputError: the split says nothing of a domain.
        ArtifactError: an input's rows are not in the order of the prompts.
    """
    split: PairSplit = ctx.config.split
    prompts = list(ctx.rows("prompts", Prompt))
    chunks = ctx.plan([p.prompt_id for p in prompts], chunk_rows=CHUNK_ROWS)
    ctx.progress.begin(total=len(prompts))
    found = []
    for group in groups(ctx, prompts, {p.prompt_id for p in prompts}):
        outcome = split.pair(group)
        found.append((group.prompt, outcome if isinstance(outcome, Drop) else None))
    try:
        sides = split.assign(found)
    except ValueError as error:
        raise InputError(f"{ctx.stage.label}: {error}") from None
    for chunk in chunks:
        part = range(chunk.start, chunk.stop)
        ctx.commit(
            chunk,
            [s for i in part if isinstance(s := sides[i], Assignment)],
            quarantined=[
                Quarantined(prompts[i].prompt_id, str(s.reason), s.detail)
                for i in part
                if isinstance(s := sides[i], Drop)
            ],
        )
        ctx.progress.advance(len(part))
    return StageResult(rows_in=len(prompts), notes={"domains": _counts(prompts, sides)})


def _counts(prompts: list[Prompt], sides: list[Assignment | Drop]) -> dict[str, dict[str, int]]:
    """Prompts per domain (`domain` or `domain/dataset`) and side; `no_side` for those without."""
    found: dict[str, Counter[str]] = {}
    for prompt, side in zip(prompts, sides, strict=True):
        name = prompt.domain if prompt.dataset is None else f"{prompt.domain}/{prompt.dataset}"
        found.setdefault(name, Counter())[side.side if isinstance(side, Assignment) else "no_side"] += 1
    return {name: dict(sorted(counts.items())) for name, counts in sorted(found.items())}
