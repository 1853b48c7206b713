"""Run a graph: every stage once its inputs are there, a few at a time, stopping at the first failure.

The runner knows nothing of Ray. A stage that is finished is loaded and counted as a hit; the rest is
`stage.run_stage`. Threads are enough: the work itself is done by Ray's processes.
"""

import concurrent.futures as futures
import dataclasses
import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from fusion.artifact import Artifact
from fusion.models import PinnedModel
from fusion.pipeline import Graph
from fusion.stage import Progress, Stage, run_stage

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Done:
    """A finished stage: its artifact, whether it was there already, and the seconds it took in this run."""

    stage: Stage
    artifact: Artifact
    hit: bool
    seconds: float


def run_graph(
    graph: Graph,
    *,
    report: Callable[[Progress], None],
    finished: Callable[[Done], None],
    resume_command: str,
    repair: bool = False,
) -> dict[str, Done]:
    """Run all stages and return what was done, by stage label and key.

    Args:
        report: called with the progress of a running stage, from several threads.
        finished: called once per stage, when it is done.
        resume_command: command that goes on after a failure, named in errors.
        repair: make damaged artifacts anew instead of stopping at them.

    Raises:
        FuselineError: of the first stage that failed; stages at work are waited for, none is started.
    """
    store = graph.recipe.store
    done: dict[int, Done] = {}
    waiting = list(graph.stages)
    failure: BaseException | None = None
    with futures.ThreadPoolExecutor(graph.recipe.placement.parallel_stages, thread_name_prefix="stage") as pool:
        running: dict[futures.Future, Stage] = {}
        while waiting or running:
            for stage in [s for s in waiting if failure is None and _ready(s, done)]:
                if len(running) >= graph.recipe.placement.parallel_stages:
                    break
                waiting.remove(stage)
                inputs = _inputs(stage, done)
                running[pool.submit(_run, stage, store, inputs, report, resume_command, repair)] = stage
            if not running:
                break
            ended, _ = futures.wait(running, return_when=futures.FIRST_COMPLETED)
            for future in ended:
                stage = running.pop(future)
                error = future.exception()
                if error is None:
                    done[id(stage)] = future.result()
                    finished(done[id(stage)])
                elif failure is None:
                    failure = error
                    if running:
                        log.warning("%s failed; waiting for %d other stage(s) at work", stage.label, len(running))
                else:
                    log.error("%s failed too: %s", stage.label, error)
    if failure is not None:
        raise failure
    return {f"{d.stage.label}-{d.stage.key}": d for d in done.values()}


def _ready(stage: Stage, done: Mapping[int, Done]) -> bool:
    return all(id(node) in done for node in stage.inputs.values() if isinstance(node, Stage))


def _inputs(stage: Stage, done: Mapping[int, Done]) -> dict[str, Artifact | PinnedModel]:
    return {name: done[id(node)].artifact if isinstance(node, Stage) else node for name, node in stage.inputs.items()}


def _run(
    stage: Stage,
    store: Path,
    inputs: Mapping[str, Artifact | PinnedModel],
    report: Callable[[Progress], None],
    resume_command: str,
    repair: bool,
) -> Done:
    started = time.monotonic()
    artifact, hit = run_stage(stage, store, inputs=inputs, report=report, resume_command=resume_command, repair=repair)
    return Done(stage, artifact, hit, time.monotonic() - started)
