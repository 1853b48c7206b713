"""What `plan`, `explain`, `status` and `schema` print."""

import json
from typing import Any

from rich.console import Console
from rich.markup import escape

from fusion.artifact import Artifact, write_atomic
from fusion.pipeline import build, unpinned
from fusion.planning import PlannedStage, plan
from fusion.recipe import Recipe

COLOURS = {"hit": "green", "resumable": "yellow", "new": "cyan"}


def print_plan(recipe: Recipe, console: Console) -> None:
    """Print one line per stage and write the resolved recipe beside the results."""
    lines = plan(build(recipe))
    width = max(len(line.stage.label) for line in lines)
    console.print(f"[bold]{'stage':<{width}}  {'key':<12}  {'state':<10}  {'rows in':>8}  asks for[/]", highlight=False)
    for line in lines:
        rows = "?" if line.rows is None else f"{line.rows:,}"
        start = f"{line.stage.label:<{width}}  {line.stage.key:<12}"
        end = f"{rows:>8}  {line.demand}{_progress(line)}"
        console.print(f"{start}  {_coloured(line.state.status)}  {escape(end)}", highlight=False)
    counts = {status: sum(line.state.status == status for line in lines) for status in COLOURS}
    console.print(f"{len(lines)} stages: {counts['hit']} hit, {counts['resumable']} resumable, {counts['new']} new")
    resolved = recipe.result_dir / "recipe.resolved.json"
    write_atomic(resolved, recipe.model_dump_json(indent=1) + "\n")
    console.print(f"resolved recipe: {resolved}", highlight=False)
    if todo := unpinned(recipe):
        console.print(
            f"[yellow]not runnable yet:[/] {len(todo)} revisions are placeholders: {escape(', '.join(todo))}. Set each to "
            "the 40-hex commit of its repository."
        )


def print_explanation(recipe: Recipe, console: Console) -> None:
    """Print per stage its state and why."""
    for line in plan(build(recipe)):
        console.print(f"{line.stage.label} {line.stage.key} {_state(line)}", highlight=False)
        if line.state.status == "new":
            for why in line.state.why:
                console.print(f"    {escape(why)}", highlight=False)


def print_status(recipe: Recipe, console: Console, *, command: str) -> None:
    """Print what is done and what is left."""
    graph = build(recipe)
    lines = plan(graph)
    left = [line for line in lines if line.state.status != "hit"]
    for line in lines:
        if line.state.status == "hit":
            manifest = Artifact.load(line.stage.directory(recipe.store)).manifest
            console.print(
                f"{line.stage.label}: {manifest.rows_in} in = {manifest.rows_out} out + {manifest.num_quarantined} "
                f"quarantined, {manifest.seconds:.1f} s",
                highlight=False,
            )
        elif line.state.status == "resumable":
            console.print(f"{line.stage.label}: {_state(line)}", highlight=False)
    if left:
        console.print(f"{len(lines) - len(left)} of {len(lines)} stages done; go on with: {command}", highlight=False)
    else:
        console.print(f"all {len(lines)} stages done; results in {recipe.result_dir}", highlight=False)


def _coloured(status: str) -> str:
    """The state, padded to its column before colour is added."""
    return f"[{COLOURS[status]}]{status:<10}[/]"


def _progress(line: PlannedStage) -> str:
    """How far a begun stage is."""
    state = line.state
    if state.status != "resumable":
        return ""
    return f"  ({state.done} of {state.total} parts)" if state.total else f"  (checkpoint {', '.join(state.why)})"


def _state(line: PlannedStage) -> str:
    return f"[{COLOURS[line.state.status]}]{line.state.status}[/]{escape(_progress(line))}"


def print_schema(console: Console) -> None:
    """Print the recipe's fields as an indented tree."""
    schema = Recipe.model_json_schema(by_alias=True)
    console.print("recipe: what it is made of (required fields have no default)\n", highlight=False)
    _print_fields(schema, schema.get("$defs", {}), console, depth=0, above=())


def _print_fields(
    node: dict[str, Any], defs: dict[str, Any], console: Console, *, depth: int, above: tuple[str, ...]
) -> None:
    for name, field in node.get("properties", {}).items():
        if "const" in field:
            continue  # what tells a union's member from others, printed above its fields
        default = f" = {json.dumps(field['default'])}" if "default" in field else ""
        default = default if len(default) < 60 else ""
        required = " (required)" if name in node.get("required", []) else ""
        text = (field.get("description") or "").replace("\n", " ")
        console.print(
            f"{'  ' * depth}[bold]{escape(name)}[/]{escape(default)}{required}  [dim]{escape(text)}[/]", highlight=False
        )
        for inner in _models(field, defs):
            title = inner.get("title", "")
            if title in above:
                continue
            fixed = {name: inner.get("properties", {}).get(name, {}).get("const") for name in ("type", "objective")}
            if kind := ", ".join(f"{name}: {value}" for name, value in fixed.items() if value):
                console.print(f"{'  ' * (depth + 1)}{kind}", highlight=False)
            _print_fields(inner, defs, console, depth=depth + 1, above=(*above, title))


def _models(field: Any, defs: dict[str, Any]) -> list[dict[str, Any]]:
    """The models that a field may hold, through unions, maps and lists."""
    if isinstance(field, list):
        return [m for item in field for m in _models(item, defs)]
    if not isinstance(field, dict):
        return []
    if "$ref" in field:
        return [defs[field["$ref"].rsplit("/", 1)[1]]]
    inner = [field.get(k) for k in ("anyOf", "oneOf", "allOf", "items", "additionalProperties", "prefixItems")]
    inner += field.get("patternProperties", {}).values()
    found = [m for item in inner for m in _models(item, defs)]
    return list({m["title"]: m for m in found if "title" in m}.values())
