"""Score a file of new data: `fuseline score rows.jsonl --model FOLDER --out scores.jsonl`.

`python -m jobs.score` is the same, e.g. under `ray job submit`. Here is the command line alone; what it does is in
`jobs.score_driver`, which is imported when it is called.
"""

import logging
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.logging import RichHandler

from jobs.entry import enter_base, run_command, stop_cleanly


def command(
    source: Annotated[Path, typer.Argument(metavar="INPUT", help="Rows: .jsonl or .parquet.", show_default=False)],
    model: Annotated[Path, typer.Option(help="Folder of the reward model.", show_default=False)],
    out: Annotated[Path, typer.Option(help="scores.jsonl, scores.parquet, or a folder.", show_default=False)],
    work: Annotated[Path, typer.Option(help="Where unfinished and finished work is kept.")] = Path("runs/scores"),
    name: Annotated[str | None, typer.Option(help="Name of the model in the output; default: its folder's.")] = None,
    max_length: Annotated[int | None, typer.Option(help="Most tokens of a conversation; default: the model's.")] = None,
    truncation: Annotated[str, typer.Option(help="Longer ones: error (quarantined), left or right.")] = "error",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    allow_empty: Annotated[bool, typer.Option("--allow-empty", help="Score empty responses too.")] = False,
    normalize: Annotated[str | None, typer.Option(help="sigmoid maps scores to 0..1.")] = None,
    objectives: Annotated[bool, typer.Option("--objectives", help="Keep the named parts of each score.")] = False,
    objective: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=WEIGHT", help="Of a model with several outputs: what makes the score; repeatable."),
    ] = None,
    replicas: Annotated[int, typer.Option(help="Copies of the model side by side.")] = 1,
    accelerator: Annotated[str, typer.Option(help="auto, cpu or gpu.")] = "auto",
    chunk_rows: Annotated[int, typer.Option(help="Rows in one part: the work that a kill can cost.")] = 1024,
    address: Annotated[
        str | None, typer.Option(help="Ray cluster (auto, host:port); default: this job's, else own.")
    ] = None,
    repair: Annotated[bool, typer.Option("--repair", help="Make damaged work anew.")] = False,
    base: Annotated[Path | None, typer.Option(help="Directory that relative paths start from.")] = None,
) -> None:
    """Score every response of a file with a reward model; what is done is kept, what was begun goes on."""
    from jobs.score_driver import Request, score_file

    resume = shlex.join(["fuseline", *_arguments()])
    stop_cleanly(resume)
    enter_base(base, {"input": source, "--model": model, "--out": out, "--work": work})
    request = Request(
        source, model, out, work, name, max_length, truncation, dtype, allow_empty, normalize, objectives,
        tuple(objective or ()), replicas, accelerator, chunk_rows, address, repair,
    )  # fmt: skip
    score_file(request, command=resume)


def _arguments() -> list[str]:
    """The command line as `fuseline` takes it, however this process was started."""
    given = sys.argv[1:]
    return given if given[:1] == ["score"] else ["score", *given]


def main() -> None:
    """Entry point of `python -m jobs.score`; a user's mistake is one line and exit code 2."""
    logging.basicConfig(
        level=logging.WARNING,
        format="%(message)s",
        handlers=[RichHandler(console=Console(stderr=True), show_path=False, show_time=False)],
    )
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(command)
    run_command(app)


if __name__ == "__main__":
    main()
