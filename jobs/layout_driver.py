"""What `fuseline export` and `fuseline import` do: find the rows, hand them to `fusion.layouts`, say what became of them."""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

from rich.console import Console

from fusion.artifact import MANIFEST, Artifact
from fusion.errors import InputError
from fusion.layouts import layout_named
from fusion.layouts.example import KINDS, Example, Kind, examples_of
from fusion.layouts.exporting import Exported, export_examples, grouped
from fusion.layouts.importing import ANSWERS, PROMPTS, QUARANTINE, ROWS, Imported, import_files
from fusion.layouts.writing import Target
from fusion.pipeline import build
from fusion.recipe import Recipe, load_recipe
from fusion.row_files import count_rows, read_rows, row_type_of
from fusion.rows import Prompt, ScoredResponse
from fusion.stage import Stage

PROMPTS_OF, ANSWERS_OF, OWN_OF = "prompts", "answers", "own"
"""What `--rows` may name beside `sft` and the arms: prompts, the sources' scored answers, those of the SFT model."""


@dataclasses.dataclass(frozen=True)
class Rows:
    """Rows that are there, as examples."""

    kind: Kind
    place: Path
    num_rows: int
    examples: Callable[[], Iterator[Example]]


def export_rows(
    source: list[Path],
    layout: str,
    out: Path,
    *,
    rows: str | None = None,
    sets: list[str] | None = None,
    plain: bool = False,
    test: float = 0.0,
) -> Exported:
    """Write the rows that a command line names and print what was written. Raises as `find_rows` and `export_examples`."""
    wanted, target = layout_named(layout), Target(out)
    found = find_rows(source, rows, sets)
    done = export_examples(found.examples(), found.kind, wanted, target, plain=plain, test=test)
    _print_export(Console(soft_wrap=True), found, done, target, plain=plain)
    return done


def import_rows(
    files: list[Path],
    layout: str,
    out: Path,
    *,
    domain: str = "general",
    model: str | None = None,
    split: str | None = None,
) -> Imported:
    """Read published files into a folder and print what was taken. Raises as `import_files` does."""
    done = import_files(files, layout_named(layout), out, domain=domain, model=model, split=split)
    _print_import(Console(soft_wrap=True), done)
    return done


# ---- finding rows -----------------------------------------------------------------------------


def find_rows(source: list[Path], rows: str | None, sets: list[str] | None = None) -> Rows:
    """Return the rows that a command line names.

    Raises:
        InputError: there are no such rows, or they are not finished.
        ArtifactError: they are damaged.
    """
    path = source[0]
    if not path.is_dir() and path.suffix.lower() != ".parquet":
        return _of_recipe(load_recipe(source, sets), source, rows)
    if len(source) > 1 or rows or sets:
        raise InputError(f"{path} is no recipe; --rows, --set and further files go with one")
    if not path.is_dir():
        return _of_file(path)
    if (path / MANIFEST).exists():
        return _of_artifact(Artifact.load(path))
    if (path / ROWS).exists():
        return _of_file(path / ROWS)
    raise InputError(f"{path} has neither a {MANIFEST} nor a {ROWS}; name an artifact's folder or an import's")


def _of_file(path: Path) -> Rows:
    return Rows(KINDS[row_type_of(path)], path, count_rows(path), lambda: _examples(read_rows(path)))


def _examples(rows: Iterator[object]) -> Iterator[Example]:
    for row in rows:
        yield from examples_of(row)


def _of_artifact(artifact: Artifact) -> Rows:
    types = {row_type.__name__: row_type for row_type in KINDS}
    row_type = types.get(artifact.manifest.row_type or "")
    if row_type is None:
        raise InputError(f"{artifact.path} holds {artifact.manifest.row_type or 'no'} rows, which no layout has")
    artifact.verify()  # what is about to become a file of the user's
    if row_type is not ScoredResponse:
        rows = artifact.manifest.rows_out
        return Rows(KINDS[row_type], artifact.path, rows, lambda: _examples(artifact.rows(row_type)))
    asked = artifact.manifest.inputs["prompts"].key
    found = sorted((artifact.path.parent.parent / "prompts").glob(f"*-{asked}"))
    if not found:
        raise InputError(f"{artifact.path}: its prompts ({asked}) are not in the store beside it; name the recipe")
    return _of_answers(Artifact.load(found[0]), [artifact])


def _of_answers(prompts: Artifact, scored: list[Artifact]) -> Rows:
    rows = sum(artifact.manifest.rows_out for artifact in scored)
    return Rows(
        Kind.answers,
        scored[0].path if len(scored) == 1 else scored[0].path.parent,
        rows,
        lambda: grouped(prompts.rows(Prompt), {a.path: a.rows(ScoredResponse) for a in scored}),
    )


def _of_recipe(recipe: Recipe, files: list[Path], rows: str | None) -> Rows:
    graph = build(recipe)
    offered = [*graph.selections, PROMPTS_OF, ANSWERS_OF, OWN_OF]
    if rows is None:
        raise InputError(f"--rows is missing: say which rows of {recipe.name}: {', '.join(offered)}")

    def load(stage: object) -> Artifact:
        assert isinstance(stage, Stage)
        folder = stage.directory(recipe.store)
        if not (folder / MANIFEST).exists():
            run = " ".join(map(str, files))
            raise InputError(f"{stage.label} of {recipe.name} is not finished; run it first: fuseline run {run}")
        return Artifact.load(folder)

    selection = graph.selections.get(rows)
    if selection is not None:
        return _of_artifact(load(selection))
    inputs = {name: node for chosen in graph.selections.values() for name, node in chosen.inputs.items()}
    sources = [node for name, node in sorted(inputs.items()) if name.startswith("source_")]
    if rows == PROMPTS_OF and PROMPTS_OF in inputs:
        return _of_artifact(load(inputs["prompts"]))
    scored = {ANSWERS_OF: sources, OWN_OF: [inputs[OWN_OF]] if OWN_OF in inputs else []}.get(rows)
    if not scored:
        raise InputError(f"--rows {rows}: {recipe.name} has no such rows; it has: {', '.join(offered)}")
    artifacts = [load(stage) for stage in scored]
    for artifact in artifacts:
        artifact.verify()
    return _of_answers(load(inputs["prompts"]), artifacts)


# ---- what is printed --------------------------------------------------------------------------


def _counted(called: str, total: int, done: int, how: str, refused: dict[str, int]) -> str:
    reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(refused.items()))
    return f"{total} {called} in = {done} {how} + {sum(refused.values())} quarantined" + (
        f" ({reasons})" * bool(reasons)
    )


def _print_export(console: Console, found: Rows, done: Exported, target: Target, *, plain: bool) -> None:
    splits = ", ".join(f"{name} {count}" for name, count in done.records.items())
    _line(console, "rows", f"{found.num_rows} of {found.place}")
    _line(console, "examples", _counted("examples", done.examples, done.written, "written", dict(done.refused)))
    _line(console, done.layout, f"{target.path} ({target.format}; records: {splits})")
    if done.refused:
        _line(console, "quarantine", str(target.quarantine))
    if plain and done.weighted:
        _line(console, "note", f"{done.weighted} examples have another weight than 1, which --plain leaves out")


def _print_import(console: Console, done: Imported) -> None:
    _line(console, "records", _counted("records", done.records, done.taken, "taken", dict(done.refused)))
    _line(console, "prompts", f"{done.prompts} -> {done.folder / PROMPTS}")
    same = f" ({done.same_answers} the same as an earlier one)" if done.same_answers else ""
    _line(console, "answers", f"{done.answers} -> {done.folder / ANSWERS}{same}")
    if done.rows:
        _line(console, "rows", f"{done.rows} {done.row_type} -> {done.folder / ROWS}")
        if done.without_row:
            _line(
                console,
                "note",
                f"{done.without_row} records gave no row: prompts alone, or answers that no score compares",
            )
    else:
        _line(console, "rows", "none: this layout sets no answer against another, or gives no score for each")
    if done.without_scores:
        _line(console, "note", f"{done.without_scores} rows say only which answer is better; their scores are 1 and 0")
    if done.repeated:
        _line(console, "note", f"{done.repeated} records say the same as an earlier one; they are kept")
    if done.narrowed:
        _line(console, "note", f"{done.narrowed} rows go without an answer to avoid that is also a preferred one")
    if done.refused:
        _line(console, "quarantine", str(done.folder / QUARANTINE))


def _line(console: Console, name: str, text: str) -> None:
    console.print(f"{name + ':':<11} {text}", highlight=False, markup=False)
