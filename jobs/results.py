"""What a finished run leaves for people: summary.json, report.html, the exported model, the table on the screen."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from fusion.artifact import write_atomic, write_json
from fusion.pipeline import Graph
from fusion.report import StageReport, build_summary, render, result_table
from fusion.runner import Done
from fusion.train.metrics import read_metrics


def read_summary(path: Path) -> dict[str, Any]:
    """Return what `write_results` wrote."""
    return json.loads(path.read_text())


def write_results(graph: Graph, done: Sequence[Done], *, total_seconds: float, console: Console) -> Path:
    """Write summary and report, point `model` at the exported folder, print the table; return the summary's path."""
    directory = graph.recipe.result_dir
    path = directory / "summary.json"
    artifacts = {id(d.stage): d.artifact for d in done}
    if all(d.hit for d in done) and path.exists():
        total_seconds = read_summary(path)["total_seconds"]  # of the run that did the work
    summary = build_summary(
        recipe_name=graph.recipe.name,
        stages=[StageReport.of(d.artifact, hit=d.hit) for d in done],
        evaluate=artifacts[id(graph.evaluation)] if graph.evaluation else None,
        total_seconds=total_seconds,
    )
    write_json(path, summary)
    write_atomic(directory / "report.html", render(summary, **_material(graph, done)))
    console.print()
    if summary["models"]:
        console.print(result_table(summary), highlight=False, markup=False)
        console.print()
    console.print(f"report:  {directory / 'report.html'}", highlight=False)
    console.print(f"summary: {path}", highlight=False)
    if graph.export:
        target = artifacts[id(graph.export)].model_folder.resolve()
        _point(directory / "model", target)
        console.print(f"model:   {directory / 'model'} -> {target}", highlight=False)
    return path


def _material(graph: Graph, done: Sequence[Done]) -> dict[str, Any]:
    """Notes and curves that the report draws, from the artifacts of this run."""
    by_stage = {id(d.stage): d.artifact for d in done}
    curves, notices = {}, {}
    for name, node in graph.models.items():
        artifact = by_stage.get(id(node))
        if artifact is not None and (lines := read_metrics(artifact.path)):
            curves[name] = lines
            notes = artifact.manifest.notes
            notices[name] = [*notes.get("alarms", []), *notes.get("warnings", [])]
    return {
        "selections": {name: by_stage[id(stage)].manifest.notes for name, stage in graph.selections.items()},
        "scores": {d.stage.slug: d.artifact.manifest.notes for d in done if d.stage.kind == "score"},
        "curves": curves,
        "notices": notices,
    }


def _point(link: Path, target: Path) -> None:
    """Make `link` a symbolic link to `target`, replacing an older link in one step."""
    new = link.with_name(f".{link.name}.new")
    new.unlink(missing_ok=True)
    new.symlink_to(os.path.relpath(target, link.parent), target_is_directory=True)
    new.replace(link)
