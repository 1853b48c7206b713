"""Chunks over a pool of Ray Data actors: what generate and score have in common.

One Arrow table, one Ray Data row, one call of an actor and one part file are all the same chunk. The
actor writes the part itself and returns only a receipt; the driver counts receipts. So nothing large
flows back, the finished parts are the only state, and a call that Ray repeats after a death does no harm.

What an actor is: any class with `run_chunk(index, table) -> Receipt`, made once per process with keyword
arguments. Ray restarts a dead actor and repeats its calls without limit; an actor that must not try
for ever says so by raising, in its constructor or in `run_chunk`, and the stage fails with that text.
"""

import dataclasses
import logging
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pyarrow as pa

from fusion.errors import FuselineError, StageError
from fusion.placement import Accelerator
from fusion.row_tables import from_table, to_table
from fusion.stage import Chunk, StageContext

if TYPE_CHECKING:
    import ray.data

log = logging.getLogger(__name__)

ABANDONED_AFTER_S = 3600.0
"""Age at which a temporary file cannot belong to a living writer any more."""


@dataclasses.dataclass(frozen=True, slots=True)
class Receipt:
    """What an actor says of a chunk whose part it has written."""

    chunk: int
    rows: int
    """Rows in the part."""
    quarantined: int
    tokens: int = 0
    """Tokens of model work in it, for the rate that people see."""
    failure: str | None = None
    """Set instead of a written part: one line that ends the stage."""


class ChunkActor(Protocol):
    """The class behind a pool; it is made in the worker process."""

    def run_chunk(self, index: int, table: pa.Table) -> Receipt:
        """Write the part of chunk `index` and say what is in it. Called from several threads at once."""
        ...


def map_chunks(
    ctx: StageContext,
    chunks: Sequence[Chunk],
    tables: Iterable[pa.Table],
    actor_class: type[ChunkActor],
    actor_kwargs: dict[str, Any],
    *,
    replicas: int = 1,
    concurrent: int = 1,
    num_cpus: float = 1.0,
    num_gpus: float = 0.0,
) -> Iterator[Receipt]:
    """Run `actor_class` over the missing chunks, one table for each of `chunks`, and yield receipts as they come.

    The caller has begun `ctx.progress`; it is advanced here. `replicas` actors run side by side, each
    with up to `concurrent` chunks at once in threads of one process. Ray must be initialised; its defaults for
    actors of Ray Data are to restart and to retry without limit, which is what is wanted here.

    Raises:
        StageError: an actor could not be made, refused to go on, or failed in a chunk.
    """
    if not chunks:
        return
    import ray  # here and below, not above: a recipe is planned without Ray
    import ray.data

    remove_abandoned(ctx.path)
    refs: list[Any] = [ray.put(_packed(chunk, table)) for chunk, table in zip(chunks, tables, strict=True)]
    replicas = min(replicas, len(refs))
    dataset = ray.data.from_arrow_refs(refs)
    # Settings of this data set only: two stages may run at once in two threads of one driver.
    dataset.context.enable_progress_bars = False
    dataset.context.print_on_execution_start = False
    receipts = dataset.map_batches(
        _Worker,
        fn_constructor_args=(actor_class, actor_kwargs),
        batch_size=1,  # a batch is a row is a chunk
        batch_format="pyarrow",
        zero_copy_batch=True,
        compute=ray.data.ActorPoolStrategy(
            size=replicas,
            max_tasks_in_flight_per_actor=concurrent,
            max_concurrent_calls_per_actor=concurrent,
            enable_true_multi_threading=True,
        ),
        num_cpus=num_cpus,
        num_gpus=num_gpus or None,
    )
    where = f"{ctx.stage.label} in {ctx.path}"
    done: set[int] = set()
    for receipt in _receipts(receipts, where):
        if receipt.failure is not None:
            raise StageError(f"{where}: {receipt.failure}")
        if receipt.chunk in done:
            continue
        done.add(receipt.chunk)
        ctx.progress.advance(receipt.rows + receipt.quarantined, tokens=receipt.tokens)
        yield receipt
    if lost := sorted({chunk.index for chunk in chunks} - done):
        raise StageError(f"{where}: no receipt came for chunk {lost[0]} ({len(lost)} in all)")


def wants_gpu(accelerator: Accelerator) -> bool:
    """Whether an actor asks Ray for GPUs: as told, or for `auto` where the cluster has any."""
    import ray

    return accelerator == "gpu" or (accelerator == "auto" and ray.cluster_resources().get("GPU", 0) > 0)


def remove_abandoned(directory: Path) -> None:
    """Remove temporary files that a killed writer left; young ones may belong to another living driver."""
    oldest = time.time() - ABANDONED_AFTER_S
    for file in directory.glob(".part-*.tmp"):
        try:
            if file.stat().st_mtime < oldest:
                file.unlink()
        except FileNotFoundError:
            continue  # its writer renamed or removed it just now


class _Worker:
    """The Ray Data side of an actor: a table in, a receipt out, and failures as receipts.

    A failure travels as data because an exception out of Ray Data arrives as pages of its own inside;
    the traceback goes to the worker's log.
    """

    def __init__(self, actor_class: type[ChunkActor], actor_kwargs: dict[str, Any]) -> None:
        logging.basicConfig(level=os.environ.get("FUSELINE_LOG", "WARNING"))
        self._failure: str | None = None
        try:
            self._actor = actor_class(**actor_kwargs)
        except Exception as error:
            self._failure = _one_line(error)

    def __call__(self, packed: pa.Table) -> pa.Table:
        index, table = _unpacked(packed)
        if self._failure is not None:
            receipt = Receipt(index, 0, 0, failure=self._failure)
        else:
            try:
                receipt = self._actor.run_chunk(index, table)
            except Exception as error:
                receipt = Receipt(index, 0, 0, failure=_one_line(error))
        return to_table([receipt], Receipt)


def _one_line(error: Exception) -> str:
    """The text of an expected error; for any other the type as well, and its traceback into the log."""
    if isinstance(error, FuselineError):
        return str(error)
    log.exception("an actor failed")
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else '(no text)'}"


def _packed(chunk: Chunk, table: pa.Table) -> pa.Table:
    """A table of one row that holds the chunk's table whole, so that nothing on the way can split it."""
    stream = pa.BufferOutputStream()
    with pa.ipc.new_stream(stream, table.schema) as writer:
        writer.write_table(table)
    return pa.table({"chunk": [chunk.index], "rows": pa.array([stream.getvalue().to_pybytes()], pa.large_binary())})


def _unpacked(packed: pa.Table) -> tuple[int, pa.Table]:
    rows = packed["rows"][0].as_buffer()
    return packed["chunk"][0].as_py(), pa.ipc.open_stream(rows).read_all()


def _receipts(dataset: "ray.data.Dataset", where: str) -> Iterator[Receipt]:
    import ray.exceptions

    try:
        for table in dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            yield from from_table(table, Receipt)
    except ray.exceptions.RayError as error:
        lines = str(error).strip().splitlines()
        log.debug("Ray Data failed", exc_info=error)
        raise StageError(f"{where}: Ray ended the work: {lines[-1] if lines else type(error).__name__}") from error
