"""The sweep: one recipe in several variants, which share every artifact that they have in common.

    fuseline sweep recipe.yaml --vary arms.wrpo.loss.alpha.to=[0.1,0.3,0.5] --vary arms.wrpo.loss.beta=[0.01,0.1]
    fuseline sweep recipe.yaml --variants jobs/recipes/variants/wrpo-sources.yaml

Nothing here says what is shared: a stage's key does. A variant is a recipe like any other, with results of its own under
`{root}/{recipe}-{variant}`; its stages that another variant has made are hits. All variants are checked before the
first one runs, and after any kill the same command goes on. A variant that fails does not end the sweep: the others run,
the table has those that finished, and the exit code is 1, or 2 where no variant finished and all are bad input.
"""

import itertools
import json
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from fusion.artifact import write_json
from fusion.errors import FuselineError, RecipeError
from fusion.loading import merge, parse_yaml, read_layers, validate
from fusion.pipeline import build
from fusion.recipe import Recipe
from fusion.report import result_table
from fusion.stage import Stage
from jobs.entry import RecipeBase, enter_base, stop_cleanly

MOST_VARIANTS = 256
MOST_CHARACTERS = 40
"""Longest name of a combination that is spelled out; longer ones are called by the places of their values, `v1_v3_v2`."""


def command(
    recipe: Annotated[list[Path], typer.Argument(help="Recipe file, then overlays; later ones win.")],
    vary: Annotated[
        list[str] | None, typer.Option(metavar="FIELD=[A,B,...]", help="Values of a field; repeated, all combinations.")
    ] = None,
    variants: Annotated[
        list[Path] | None, typer.Option(help="YAML file of `name: overlay of the recipe`; repeatable.")
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="field.sub=value laid over every variant; repeatable.")
    ] = None,
    arms: Annotated[list[str] | None, typer.Option("--arm", help="Arm in the table; repeatable; default: all.")] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Print what is shared and what would run; run nothing.")] = False,
    address: Annotated[str | None, typer.Option(help="Ray cluster (auto, host:port); default: own.")] = None,
    base: RecipeBase = None,
) -> None:
    """Run variants of a recipe; what they have in common is made once."""
    recipes = expand(recipe, vary or [], variants or [], set_ or [])
    settings = settings_of(vary or [], variants or [])
    shown = _check_arms(arms or [], recipes)
    console = Console(soft_wrap=True)
    enter_base(base, {"root": next(iter(recipes.values())).root})
    print_legend(settings, console)
    print_shared(recipes, console)
    if plan:
        return
    resume = _resume(recipe, vary or [], variants or [], set_ or [], arms or [])
    stop_cleanly(resume)
    summaries, failed = run_variants(recipes, address=address, resume=resume, console=console)
    table = sweep_summary(summaries, shown)
    first = next(iter(recipes.values()))
    path = first.root / f"{_base_name(recipes)}-sweep" / "sweep.json"
    reasons = {name: _reason(error) for name, error in failed.items()}
    summary_files = {name: str(recipes[name].result_dir / "summary.json") for name in summaries}
    write_json(path, {"variants": summary_files, "settings": settings, "failed": reasons, **table})
    console.print()
    if table["models"]:
        console.print(result_table(table), highlight=False, markup=False)
    console.print(f"\nsweep: {path}", highlight=False)
    if failed:
        for name, reason in reasons.items():
            console.print(f"failed: {name}: {reason}", highlight=False, markup=False)
        console.print(
            f"{len(failed)} of {len(recipes)} variants failed; go on with: {resume}", highlight=False, markup=False
        )
        raise typer.Exit(exit_code(summaries, failed))


def run_variants(
    recipes: Mapping[str, Recipe], *, address: str | None, resume: str, console: Console
) -> tuple[dict[str, Any], dict[str, FuselineError]]:
    """Run all variants; return the summaries of those that finished, and the errors of those that did not.

    A variant that fails says nothing of the others, which may have hours of work in common with it.
    """
    from jobs.driver import drive
    from jobs.results import read_summary

    summaries: dict[str, Any] = {}
    failed: dict[str, FuselineError] = {}
    for name, variant in recipes.items():
        console.print(f"\nvariant {name}", highlight=False)
        try:
            summaries[name] = read_summary(drive(variant, address=address, repair=False, resume_command=resume))
        except FuselineError as error:
            failed[name] = error
            print(f"error: variant {name}: {error}", file=sys.stderr)
    return summaries, failed


def exit_code(summaries: Mapping[str, Any], failed: Mapping[str, FuselineError]) -> int:
    """Return 1 where a variant failed, or what all failures have in common (2: bad input) where none finished."""
    codes = {error.exit_code for error in failed.values()}
    return codes.pop() if not summaries and len(codes) == 1 else 1


def _reason(error: FuselineError) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def expand(
    paths: Sequence[Path], vary: Sequence[str], files: Sequence[Path], assignments: Sequence[str]
) -> dict[str, Recipe]:
    """Return the variants by name, all of them valid.

    Raises:
        RecipeError: no variant, two of one name or of one content, too many, or one that is no recipe; the text names the
            variant.
    """
    data = read_layers(paths, assignments, called="recipe")
    overlays = settings_of(vary, files)
    _check_fields(vary, assignments)
    if len(overlays) > MOST_VARIANTS:
        raise RecipeError(f"{len(overlays)} variants are more than {MOST_VARIANTS}; vary fewer fields at once")
    recipes = {}
    for name, overlay in overlays.items():
        merged = merge(data, overlay)
        for assignment in assignments:  # what is set holds for every variant, whatever its overlay says
            merged = merge(merged, read_layers([], [assignment], called="recipe", base=merged))
        if "name" in data:  # without one, validation says so
            merged = {**merged, "name": f"{data['name']}-{name}"}
        recipes[name] = validate(Recipe, merged, where=f"variant {name}")
    _check_different(recipes)
    if len({recipe.root for recipe in recipes.values()}) > 1:
        raise RecipeError("the variants have different roots, and so nothing in common; give all of them one root")
    return recipes


def settings_of(vary: Sequence[str], files: Sequence[Path]) -> dict[str, dict[str, Any]]:
    """Return what each variant lays over the recipe, by name.

    Raises:
        RecipeError: no variant, two of one name, or one that is no overlay.
    """
    overlays = _combinations(vary)
    for file in files:
        for name, overlay in read_layers([file], called="variants file").items():
            if not isinstance(overlay, dict):
                raise RecipeError(f"{file}: {name} holds {type(overlay).__name__}, not an overlay of the recipe")
            if name in overlays:
                raise RecipeError(f"{file}: there is a variant {name!r} already; give it another name")
            if "name" in overlay:
                raise RecipeError(
                    f"{file}: variant {name!r} sets name, which a sweep makes of the variant; leave it out"
                )
            overlays[name] = overlay
    if not overlays:
        raise RecipeError("a sweep needs variants: --vary FIELD=[A,B] or --variants FILE")
    return overlays


def _check_fields(vary: Sequence[str], assignments: Sequence[str]) -> None:
    """Refuse to vary what could not differ: what is set holds for every variant, and the sweep makes the names."""
    given = [text.partition("=")[0].strip() for text in assignments]
    for field in (text.partition("=")[0].strip() for text in vary):
        if field == "name":
            raise RecipeError("--vary name: a sweep makes the name of each variant; vary another field")
        if clash := [other for other in given if _overlap(field, other)]:
            raise RecipeError(f"--vary {field}: --set {clash[0]} holds for every variant; leave one of them out")


def _overlap(field: str, other: str) -> bool:
    return field == other or field.startswith(f"{other}.") or other.startswith(f"{field}.")


def _check_different(recipes: Mapping[str, Recipe]) -> None:
    seen: dict[str, str] = {}
    for name, recipe in recipes.items():
        content = recipe.model_dump_json(by_alias=True, exclude={"name"})
        if content in seen:
            raise RecipeError(
                f"variants {seen[content]!r} and {name!r} are one recipe; give each a value of its own (of two values for a "
                "field the later --vary or --set wins)"
            )
        seen[content] = name


def _combinations(vary: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Every combination of the values of all fields, as overlays by name."""
    fields = []
    for text in vary:
        field, equals, listed = text.partition("=")
        values = parse_yaml(listed, f"--vary {field}") if equals else None
        if not isinstance(values, list) or not values or not all(field.strip().split(".")):
            raise RecipeError(f"--vary {text}: write it as field.sub=[value, value]")
        named = [(f"{_short(field)}-{_word(value, place)}", value) for place, value in enumerate(values)]
        fields.append([(name, _nested(field.strip(), value)) for name, value in named])
    found: dict[str, dict[str, Any]] = {}
    counted = [list(enumerate(values)) for values in fields]
    for numbered in itertools.product(*counted) if fields else ():
        places, choice = zip(*numbered, strict=True)
        name = "_".join(part for part, _ in choice)
        if len(name) > MOST_CHARACTERS:
            name = "_".join(f"v{place + 1}" for place in places)
        if name in found:
            raise RecipeError(f"--vary gives the variant {name!r} twice; each value once")
        overlay: dict[str, Any] = {}
        for _, part in choice:
            overlay = merge(overlay, part)
        found[name] = overlay
    return found


def _short(field: str) -> str:
    return field.strip().removeprefix("arms.")


def _word(value: Any, place: int) -> str:
    """A value as a part of a name; one that is no plain word is called by its place."""
    word = str(value)
    return word if re.fullmatch(r"[A-Za-z0-9._-]{1,24}", word) else f"v{place + 1}"


def _nested(field: str, value: Any) -> dict[str, Any]:
    for key in reversed(field.split(".")):
        value = {key: value}
    return value


def _check_arms(arms: Sequence[str], recipes: Mapping[str, Recipe]) -> tuple[str, ...]:
    known = sorted({arm for recipe in recipes.values() for arm in recipe.arms})
    if unknown := [arm for arm in arms if arm not in known]:
        raise RecipeError(f"--arm {unknown[0]}: no variant has that arm; arms: {', '.join(known)}")
    return tuple(arms or known)


def _base_name(recipes: Mapping[str, Recipe]) -> str:
    name, recipe = next(iter(recipes.items()))
    return recipe.name.removesuffix(f"-{name}")


def _resume(
    recipe: Sequence[Path], vary: Sequence[str], files: Sequence[Path], sets: Sequence[str], arms: Sequence[str]
) -> str:
    options = [
        (flag, str(value))
        for flag, values in (("--vary", vary), ("--variants", files), ("--set", sets), ("--arm", arms))
        for value in values
    ]
    return shlex.join(["fuseline", "sweep", *map(str, recipe), *(word for option in options for word in option)])


# ---- what is shared, and the table ----------------------------------------------------------------


def distinct_stages(recipes: Mapping[str, Recipe]) -> tuple[dict[str, list[Stage]], dict[str, Stage]]:
    """Return the stages of each variant, and all distinct ones by label and key."""
    by_variant = {name: build(recipe).stages for name, recipe in recipes.items()}
    distinct = {f"{s.label}-{s.key}": s for stages in by_variant.values() for s in stages}
    return by_variant, distinct


def print_legend(settings: Mapping[str, Mapping[str, Any]], console: Console) -> None:
    """Print what each variant lays over the recipe; names of combinations need not say it."""
    for name, overlay in settings.items():
        told = ", ".join(f"{field}={json.dumps(value, default=str)}" for field, value in _flat(overlay))
        console.print(f"{name}: {told or 'the recipe as it is'}", highlight=False, markup=False)
    console.print()


def _flat(overlay: Mapping[str, Any], above: str = "") -> list[tuple[str, Any]]:
    found = []
    for key, value in overlay.items():
        inner = _flat(value, f"{above}{key}.") if isinstance(value, Mapping) and value else [(f"{above}{key}", value)]
        found += inner
    return found


def print_shared(recipes: Mapping[str, Recipe], console: Console) -> None:
    """Print how many stages each variant adds to those before it."""
    by_variant, distinct = distinct_stages(recipes)
    seen: set[str] = set()
    width = max(map(len, by_variant))
    for name, stages in by_variant.items():
        mine = {f"{s.label}-{s.key}" for s in stages}
        kinds: dict[str, int] = {}
        for stage in stages:
            if f"{stage.label}-{stage.key}" not in seen:
                kinds[stage.kind] = kinds.get(stage.kind, 0) + 1
        told = ", ".join(f"{n} {kind}" for kind, n in kinds.items()) or "nothing new"
        console.print(
            f"{name:<{width}}  {len(stages):>3} stages, {len(mine - seen):>3} of its own: {told}", highlight=False
        )
        seen |= mine
    total = sum(map(len, by_variant.values()))
    console.print(
        f"{len(recipes)} variants: {total} stages, {len(distinct)} to make, {total - len(distinct)} shared",
        highlight=False,
    )


def sweep_summary(summaries: Mapping[str, Mapping[str, Any]], arms: Sequence[str]) -> dict[str, Any]:
    """Return `models` (`variant/arm` -> metrics, and `target`, once where it is the same in all) and `differences` (none), as `result_table` reads them."""
    models: dict[str, Any] = {}
    targets = {
        name: summary["models"]["target"] for name, summary in summaries.items() if "target" in summary["models"]
    }
    one = len({repr(metrics) for metrics in targets.values()}) == 1
    for name, summary in summaries.items():
        if name in targets:
            models.setdefault("target" if one else f"{name}/target", targets[name])
        models |= {f"{name}/{arm}": summary["models"][arm] for arm in arms if arm in summary["models"]}
    return {"models": models, "differences": []}
