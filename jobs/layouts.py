"""`fuseline export` and `fuseline import`: rows of a run into a layout that others read, and files of one into rows.

Here is the command line alone; what a layout is stands in `fusion.layouts`, and what the commands do is in
`jobs.layout_driver`, which is imported when they are called. Neither needs Ray or a GPU.
"""

from pathlib import Path
from typing import Annotated

import typer

from fusion.layouts import LAYOUTS
from jobs.entry import enter_base

Layout = Annotated[str, typer.Option(help=f"{', '.join(LAYOUTS)}.", show_default=False)]
Base = Annotated[Path | None, typer.Option(help="Directory that relative paths start from.")]


def export(
    source: Annotated[
        list[Path],
        typer.Argument(
            help="Recipe (then overlays), an artifact's folder, a folder of `fuseline import`, or its rows.parquet.",
            show_default=False,
        ),
    ],
    layout: Layout,
    out: Annotated[Path, typer.Option(help="rows.parquet, rows.jsonl, rows.json, or a folder.", show_default=False)],
    rows: Annotated[
        str | None,
        typer.Option(help="Of a recipe: sft, an arm, prompts, answers (the sources') or own (the SFT model's)."),
    ] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="field.sub=value laid over the recipe.")] = None,
    plain: Annotated[
        bool, typer.Option("--plain", help="Only the published columns: no scores, models, verdicts, weights.")
    ] = False,
    test: Annotated[float, typer.Option(min=0.0, max=0.5, help="Share of the prompts for a split `test`.")] = 0.0,
    base: Base = None,
) -> None:
    """Write the rows of a run in a layout that other trainers read."""
    from jobs.layout_driver import export_rows

    enter_base(base, {"input": source[0], "--out": out})
    export_rows(source, layout, out, rows=rows, sets=set_, plain=plain, test=test)


def import_(
    files: Annotated[
        list[Path],
        typer.Argument(help=".jsonl, .json, .parquet, .arrow, or a folder of save_to_disk.", show_default=False),
    ],
    layout: Layout,
    out: Annotated[Path, typer.Option(help="Folder for prompts, answers and rows.", show_default=False)],
    domain: Annotated[str, typer.Option(help="Domain of prompts whose record names none.")] = "general",
    model: Annotated[str | None, typer.Option(help="Model of answers whose record names none.")] = None,
    split: Annotated[str | None, typer.Option(help="Split of a folder that has several; default: train.")] = None,
    base: Base = None,
) -> None:
    """Read a published data set: prompts, answers to reuse, and rows to train on."""
    from jobs.layout_driver import import_rows

    enter_base(base, {"input": files[0], "--out": out})
    import_rows(files, layout, out, domain=domain, model=model, split=split)
