"""The command: plan, run, explain, status, schema, serve, score, export, import, submit, sweep.

`fuseline run recipe.yaml` and `python -m jobs.run run recipe.yaml` are the same. Exit codes: 0 done, 1
failed, 2 bad input, 75 another driver holds the work. A user's mistake is one clear line, never a
traceback; anything else that escapes is a bug and shows its traceback.
"""

import logging
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.logging import RichHandler

from fusion.recipe import load_recipe
from jobs import layouts, score, sweep
from jobs.entry import RecipeBase, enter_base, run_command, stop_cleanly

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Implicit LLM fusion: recipes in, a served model out.",
)
Recipes = Annotated[list[Path], typer.Argument(help="Recipe file, then overlays; later ones win.")]
Sets = Annotated[list[str] | None, typer.Option("--set", help="field.sub=value laid over the recipe; repeatable.")]


@app.command()
def plan(recipe: Recipes, set_: Sets = None, base: RecipeBase = None) -> None:
    """Print stages, keys, hits, row counts and demands. Needs neither Ray nor a GPU."""
    from jobs.look import print_plan

    loaded = load_recipe(recipe, set_)
    enter_base(base, {})
    print_plan(loaded, Console(soft_wrap=True))


@app.command()
def explain(recipe: Recipes, set_: Sets = None) -> None:
    """Say for every stage why it is a hit, resumable or new, naming the fields that changed."""
    from jobs.look import print_explanation

    print_explanation(load_recipe(recipe, set_), Console(soft_wrap=True))


@app.command()
def status(recipe: Recipes, set_: Sets = None) -> None:
    """Say how far a run is, and which command goes on with it."""
    from jobs.look import print_status

    print_status(load_recipe(recipe, set_), Console(soft_wrap=True), command=_command("run", recipe, set_))


@app.command()
def schema() -> None:
    """Print every field of a recipe with its type, default and meaning."""
    from jobs.look import print_schema

    print_schema(Console(soft_wrap=True))


@app.command()
def run(
    recipe: Recipes,
    set_: Sets = None,
    address: Annotated[
        str | None, typer.Option(help="Ray cluster (auto, host:port); default: this job's, else own.")
    ] = None,
    repair: Annotated[bool, typer.Option("--repair", help="Make damaged or outdated artifacts anew.")] = False,
    base: RecipeBase = None,
) -> None:
    """Run a recipe; what is finished is not run again, what was begun is resumed."""
    from jobs.driver import drive, enter

    loaded = load_recipe(recipe, set_)
    resume = _command("run", recipe, set_)
    stop_cleanly(resume)
    enter(loaded, base)
    drive(loaded, address=address, repair=repair, resume_command=resume)


@app.command()
def serve(
    files: Annotated[list[Path], typer.Argument(help="Recipe or serve config, then overlays; later ones win.")],
    set_: Sets = None,
    host: Annotated[str | None, typer.Option(help="Address to bind to; default: the config's, 127.0.0.1.")] = None,
    port: Annotated[int | None, typer.Option(help="Port of the HTTP service; default: the config's, 8000.")] = None,
    keys_file: Annotated[Path | None, typer.Option(help="Hashed API keys, made with `python -m jobs.keys`.")] = None,
    keys_env: Annotated[
        str | None, typer.Option(metavar="NAME", help="Environment variable that holds plain API keys.")
    ] = None,
    public: Annotated[
        bool, typer.Option("--public", help="Allow a --host that other machines reach; needs keys.")
    ] = False,
    address: Annotated[str | None, typer.Option(help="Ray cluster (auto, host:port); default: own.")] = None,
    swap: Annotated[
        bool, typer.Option("--swap", help="Put these models in the place of those of the running service.")
    ] = False,
    write: Annotated[
        Path | None, typer.Option(help="Write the file for `serve deploy` on a cluster; nothing is started.")
    ] = None,
) -> None:
    """Serve the models of a finished run or of a serve config, on this machine or a cluster."""
    from jobs.serve import serve_files
    from jobs.serve_config import given_security

    security = given_security(keys_file=keys_file, keys_env=keys_env, public=public)
    serve_files(files, set_ or [], host=host, port=port, security=security, address=address, swap=swap, write=write)


@app.command()
def submit(
    recipe: Recipes,
    set_: Sets = None,
    address: Annotated[str, typer.Option(help="Ray Jobs address.")] = "http://127.0.0.1:8265",
    working_dir: Annotated[Path, typer.Option(help="Directory that is uploaded.")] = Path(),
    wait: Annotated[bool, typer.Option(help="Follow the job to its end.")] = True,
) -> None:
    """Submit a recipe as a Ray job, once: a running job is attached to, a finished one is not repeated."""
    from jobs.submit import submit_recipe

    submit_recipe(
        recipe, set_ or [], address=address, working_dir=working_dir, wait=wait, console=Console(soft_wrap=True)
    )


app.command("score")(score.command)
app.command("export")(layouts.export)
app.command("import")(layouts.import_)
app.command("sweep")(sweep.command)


def _command(verb: str, recipes: list[Path], sets: list[str] | None) -> str:
    return shlex.join(["fuseline", verb, *map(str, recipes), *(a for s in sets or [] for a in ("--set", s))])


def main() -> None:
    """Entry point of the `fuseline` command."""
    sys.path.insert(0, str(Path.cwd()))  # scorers beside a recipe, named as package.module:name
    logging.basicConfig(
        level=logging.WARNING,
        format="%(message)s",
        handlers=[RichHandler(console=Console(stderr=True), show_path=False, show_time=False)],
    )
    run_command(app)


if __name__ == "__main__":
    main()
