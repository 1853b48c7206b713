"""The driver of one run: check, connect, run the graph, write the results."""

import sys
import time
from pathlib import Path

from rich.console import Console

from fusion.artifact import write_json
from fusion.errors import RecipeError
from fusion.explain import state_of
from fusion.pipeline import Graph, build, unpinned
from fusion.recipe import Recipe
from fusion.rewards import function_of
from fusion.runner import Done, run_graph
from jobs.entry import enter_base
from jobs.progress import Display
from jobs.results import write_results


def enter(recipe: Recipe, base: Path | None) -> None:
    """Go to the directory that relative paths start from; in a Ray job one is needed, see `enter_base`."""
    enter_base(base, {"root": recipe.root})


def drive(recipe: Recipe, *, address: str | None, repair: bool, resume_command: str) -> Path:
    """Run a recipe to its end and return the path of its summary.

    Raises:
        FuselineError: bad input, a cluster that does not fit, or a failed stage.
    """
    console = Console(soft_wrap=True)
    started = time.monotonic()
    if todo := unpinned(recipe):
        raise RecipeError(
            f"{len(todo)} revisions are placeholders: {', '.join(todo)}; set each to the 40-hex commit shown under "
            "'History' on its page, then run again"
        )
    for scorer in recipe.scorers:
        if (function := function_of(scorer)) is not None:
            function.load()  # a wrong name shall fail now, not after hours of sampling
    graph = build(recipe)
    todo_stages = [s for s in graph.stages if state_of(s, recipe.store).status != "hit"]
    console.print(
        f"{recipe.name}: {len(graph.stages)} stages, {len(graph.stages) - len(todo_stages)} finished before; "
        f"results go to {recipe.result_dir}",
        highlight=False,
    )
    if todo_stages or repair:
        _connect(graph, address)
    with Display(console) as display:
        done = run_graph(
            graph, report=display.progress, finished=display.finished, resume_command=resume_command, repair=repair
        )
    total = time.monotonic() - started
    _record(recipe, done, total)
    return write_results(graph, list(done.values()), total_seconds=total, console=console)


def _connect(graph: Graph, address: str | None) -> None:
    from cluster.connect import check, connect, nodes  # Ray takes seconds to import; a run of hits needs none

    connect(address)
    demands = {s.label: s.demand for s in graph.stages if s.demand.count}
    check(demands, nodes(), parallel=graph.recipe.placement.parallel_stages)


def _record(recipe: Recipe, done: dict[str, Done], total_seconds: float) -> None:
    """Write which artifacts this run used, and the resolved recipe, under the time of the run."""
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    write_json(
        recipe.result_dir / "history" / f"{stamp}.json",
        {
            "recipe": recipe.model_dump(mode="json", by_alias=True),
            "argv": sys.argv,
            "total_seconds": round(total_seconds, 3),
            "artifacts": {
                name: {"path": str(d.artifact.path), "digest": d.artifact.manifest.digest, "hit": d.hit}
                for name, d in done.items()
            },
        },
    )
