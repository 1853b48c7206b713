"""Stage select: scored answers of all models become training rows, one prompt at a time.

Runs in the driver without Ray and holds the answers to one prompt only: every input lists its rows in the
order of the prompts, so they are read side by side. Every prompt of the rule's side is a row or a quarantined
row with its reason.
"""

from collections.abc import Iterator

from fusion.artifact import Artifact, Quarantined
from fusion.config import Config
from fusion.errors import ArtifactError, InputError
from fusion.rows import Prompt, ScoredResponse
from fusion.select import Drop, PromptGroup, Rule, Split
from fusion.stage import StageContext, StageResult
from fusion.stages.tally import Tally

VERSION = 1
CHUNK_ROWS = 4096


class SelectConfig(Config):
    """Which rows are made of which prompts."""

    rule: Rule
    """What is taken of the answers to one prompt."""
    split: Split
    """Which prompts are on the rule's side."""


def run(ctx: StageContext) -> StageResult:
    """Inputs: `prompts`, `source_<name>` of each source, and `own` for rules that need it (all ScoredResponse).

    Raises:
        InputError: the rule's side has no prompt.
        ArtifactError: an input's rows are not in the order of the prompts.
    """
    config: SelectConfig = ctx.config
    prompts = list(ctx.rows("prompts", Prompt))
    sides = config.split.assign(p.prompt_id for p in prompts)
    asked = [p for p in prompts if config.rule.side in ("all", sides[p.prompt_id])]
    if not asked:
        raise InputError(
            f"{ctx.stage.label}: no prompt of {len(prompts)} is on side {config.rule.side!r} of the split "
            f"{config.split.sft}:{config.split.preference}; give more prompts or another split"
        )
    chunks = ctx.plan([p.prompt_id for p in asked], chunk_rows=CHUNK_ROWS)
    ctx.progress.begin(total=len(asked))
    groups = _groups(ctx, prompts, {p.prompt_id for p in asked})
    tally = Tally(config.rule.row_type, sources=tuple(sorted(ctx.named("source_"))))
    missing = {chunk.index for chunk in ctx.missing(chunks)}
    for chunk in chunks:
        rows, dropped = [], []
        for _ in range(chunk.start, chunk.stop):
            group = next(groups)
            outcome = config.rule(group)
            tally.add(group, outcome)
            if isinstance(outcome, Drop):
                dropped.append(Quarantined(group.prompt.prompt_id, str(outcome.reason), outcome.detail))
            else:
                rows.append(outcome)
        if chunk.index in missing:
            ctx.commit(chunk, rows, quarantined=dropped)
        ctx.progress.advance(chunk.stop - chunk.start)
    for _ in groups:
        raise AssertionError("more groups than prompts")
    return StageResult(rows_in=len(asked), notes={"rule": config.rule.type, **tally.notes()})


def _groups(ctx: StageContext, prompts: list[Prompt], asked: set[str]) -> Iterator[PromptGroup]:
    """Yield the group of each asked prompt, in order, reading all inputs side by side."""
    sources = {name: _Cursor(artifact) for name, artifact in sorted(ctx.named("source_").items())}
    own = _Cursor(ctx.artifact("own")) if "own" in ctx.inputs else None
    for prompt in prompts:
        # Answers to prompts of the other side are read past, so that every cursor stands at the next prompt.
        source = tuple(row for cursor in sources.values() for row in cursor.take(prompt.prompt_id))
        mine = own.take(prompt.prompt_id) if own else ()
        if prompt.prompt_id in asked:
            yield PromptGroup(prompt, source=source, own=mine)
    for cursor in [*sources.values(), *([own] if own else [])]:
        cursor.check_end()


class _Cursor:
    """Reads a scored artifact prompt by prompt."""

    def __init__(self, artifact: Artifact) -> None:
        self._path = artifact.path
        self._rows: Iterator[ScoredResponse] = artifact.rows(ScoredResponse)
        self._head = next(self._rows, None)

    def take(self, prompt_id: str) -> tuple[ScoredResponse, ...]:
        """Return the answers to this prompt, and stand behind them."""
        taken = []
        while self._head is not None and self._head.response.prompt_id == prompt_id:
            taken.append(self._head)
            self._head = next(self._rows, None)
        return tuple(taken)

    def check_end(self) -> None:
        if self._head is not None:
            raise ArtifactError(
                f"{self._path}: {self._head.response.row_id} answers no prompt of the prompts artifact, or stands out "
                "of the order of the prompts; run again with --repair"
            )
