"""Stage select for rows that are given: the rows of a file, checked, counted and kept like selected ones.

Runs in the driver without Ray. A file that cannot be read, or a row that cannot be one, ends it with the row's place.
"""

from fusion.config import Config, Placement
from fusion.errors import InputError
from fusion.row_files import read_rows, row_type_of
from fusion.rows import responses_of, roles
from fusion.select import PromptGroup
from fusion.select.given_rows import GivenContent, GivenRows
from fusion.stage import StageContext, StageResult
from fusion.stages.tally import Tally

VERSION = 1
CHUNK_ROWS = 4096


class RowsConfig(Config):
    """Which rows: what is in the file, not where it is."""

    rule: GivenContent


class RowsPlacement(Placement):
    """Where the file is."""

    given: GivenRows


def run(ctx: StageContext) -> StageResult:
    """No inputs. Output: the rows of the file.

    Raises:
        InputError: the file holds rows of another type, none, or one that cannot be.
    """
    given: GivenRows = ctx.placement.given
    held = row_type_of(given.path)
    if held is not given.row_type:
        raise InputError(f"{given.path} holds {held.__name__} rows, the recipe says holds: {given.holds}")
    rows = list(read_rows(given.path))
    if not rows:
        raise InputError(f"{given.path} holds no row")
    models = {s.response.model for row in rows for role in roles(held) for s in responses_of(row, role)}
    tally = Tally(held, sources=tuple(sorted(models)))
    chunks = ctx.plan([row.row_id for row in rows], chunk_rows=CHUNK_ROWS)
    missing = {chunk.index for chunk in ctx.missing(chunks)}
    ctx.progress.begin(total=len(rows))
    for chunk in chunks:
        part = rows[chunk.start : chunk.stop]
        for row in part:
            answers = tuple(scored for role in roles(held) for scored in responses_of(row, role))
            tally.add(PromptGroup(row.prompt, source=answers), row)
        if chunk.index in missing:
            ctx.commit(chunk, part)
        ctx.progress.advance(len(part))
    return StageResult(rows_in=len(rows), notes={"rule": "rows", **tally.notes()})
