"""All answers to one prompt at a time, read from several artifacts side by side; for the stages select and split.

Every input lists its rows in the order of the prompts, so only the answers to one prompt are held.
"""

from collections.abc import Iterator, Mapping, Sequence

from fusion.artifact import Artifact
from fusion.errors import ArtifactError
from fusion.rows import Assignment, Prompt, ScoredResponse
from fusion.select import PromptGroup, Split
from fusion.stage import StageContext

SOURCE = "source_"
"""Inputs with the answers of sources: `source_<name>`, or `source_<name>@<n>` where a source has several artifacts."""


def source_names(ctx: StageContext) -> tuple[str, ...]:
    """Return the names of the sources among the inputs, sorted."""
    return tuple(sorted({name.partition("@")[0] for name in ctx.named(SOURCE)}))


def sides_of(ctx: StageContext, split: Split | None, prompts: Sequence[Prompt]) -> dict[str, str]:
    """Return the side of each prompt that has one: of the split by ratio, or of the input `split`."""
    if split is not None:
        return dict(split.assign(p.prompt_id for p in prompts))
    return {row.prompt_id: row.side for row in ctx.rows("split", Assignment)}


def groups(ctx: StageContext, prompts: Sequence[Prompt], asked: set[str]) -> Iterator[PromptGroup]:
    """Yield the group of each asked prompt, in order, reading all inputs side by side.

    Args:
        prompts: all prompts of the input `prompts`, in its order.
        asked: ids of those to yield.

    Raises:
        ArtifactError: an input's rows are not in the order of the prompts.
    """
    sources = _cursors(ctx.named(SOURCE))
    own = _Cursor(ctx.artifact("own")) if "own" in ctx.inputs else None
    for prompt in prompts:
        # Answers to prompts that nobody asks for are read past, so that every cursor stands at the next prompt.
        source = tuple(row for cursor in sources for row in cursor.take(prompt.prompt_id))
        mine = own.take(prompt.prompt_id) if own else ()
        if prompt.prompt_id in asked:
            yield PromptGroup(prompt, source=source, own=mine)
    for cursor in [*sources, *([own] if own else [])]:
        cursor.check_end()


def _cursors(artifacts: Mapping[str, Artifact]) -> list["_Cursor"]:
    return [_Cursor(artifact) for _, artifact in sorted(artifacts.items())]


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
