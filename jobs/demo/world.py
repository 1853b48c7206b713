"""Builds a demo world: prompts, four sources, the target and a reward model, all made here and seeded.

    python -m jobs.demo.world --out runs/demo-world [--domains] [--seed 0]

The one idea: a model folder is trained under a temporary name and renamed, and `world.json` is written
last with the sha256 of every file. So a second call only verifies, a killed one goes on where it was,
and a damaged file costs only its own model. Held-out problems are set aside first and are in no text.
"""

import argparse
import concurrent.futures
import contextlib
import dataclasses
import fcntl
import json
import multiprocessing
import os
import random
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from fusion.artifact import file_sha256, write_atomic, write_json
from fusion.config import fingerprint
from fusion.errors import FuselineError, StageError
from jobs.demo.curriculum import curriculum_of
from jobs.demo.language import Problem, Skill, make_problems, prompt_text, solve
from jobs.demo.programs import asserts_of
from jobs.demo.settings import DOMAIN_SETTINGS, WorldSettings

WORLD_VERSION = 2
"""Bumped when the world means something else: the language, the writers, the models or their training."""

MANIFEST = "world.json"
STARTED = "started.json"
"""What a world under construction is built from."""


@dataclasses.dataclass(frozen=True, slots=True)
class World:
    """A built world: where it is, and how many models this call had to train."""

    path: Path
    num_trained: int


def build(out: Path, *, settings: WorldSettings | None = None, workers: int = 2) -> World:
    """Make or complete the world in `out`, or only verify it.

    Raises:
        StageError: a training process died; calling again resumes.
    """
    settings = settings or WorldSettings()
    models = curriculum_of(settings).models
    key = world_key(settings)
    started = time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    with _only_builder(out):
        _clear_other_world(out, key)
        if _finished(out, key):
            _say(f"{out}: complete, all files verified in {time.monotonic() - started:.1f} s")
            return World(out, 0)
        write_json(out / STARTED, {"fingerprint": key})
        shutil.rmtree(out / "tmp", ignore_errors=True)
        (out / "models").mkdir(exist_ok=True)
        held_out = _write_prompts(out, settings)
        missing = [name for name in models if not (out / "models" / name).is_dir()]
        _train_all(out, settings, held_out, missing, workers=workers)
        shutil.rmtree(out / "tmp", ignore_errors=True)
        files = {str(file.relative_to(out)): file_sha256(file) for file in _content(out)}
        manifest = {
            "fingerprint": key,
            "version": WORLD_VERSION,
            "settings": settings.model_dump(),
            "files": files,
        }
        write_json(out / MANIFEST, manifest)
        (out / STARTED).unlink()
    _say(f"{out}: {len(models)} models, {len(files)} files in {time.monotonic() - started:.1f} s")
    return World(out, len(missing))


def world_key(settings: WorldSettings) -> str:
    """Return the fingerprint of what a world is built from."""
    return fingerprint({"version": WORLD_VERSION, "settings": settings})


def problems_of(settings: WorldSettings) -> tuple[list[Problem], list[Problem]]:
    """Return the problems of the pipeline's prompts and the held-out ones; they share none."""
    turns = curriculum_of(settings).turns
    held_out = make_problems(settings.num_held_out, turns=turns, rng=random.Random(f"held-out/{settings.seed}"))
    rng = random.Random(f"prompts/{settings.seed}")
    return make_problems(settings.num_prompts, turns=turns, rng=rng, exclude=held_out), held_out


def prompt_row(problem: Problem, *, number: str, domain: str, rng: random.Random) -> dict[str, Any]:
    """Return a line of a prompts file: what the verifier of its domain needs is in it, and only that.

    Args:
        number: id without the skill, e.g. `p0007`.
    """
    row = {"id": f"{number}-{problem.skill}", "domain": domain, "prompt": prompt_text(problem, rng)}
    if problem.skill is Skill.code:
        return row | {"entry_point": problem.operands[0], "tests": asserts_of(problem.operands)}
    return row | {"reference": solve(problem).answer}


# ---- what is there -----------------------------------------------------------------------------


@contextlib.contextmanager
def _only_builder(out: Path) -> Iterator[None]:
    """Wait until no other process builds in `out`; the lock dies with its holder."""
    with (out / ".lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _clear_other_world(out: Path, key: str) -> None:
    """Remove a world, finished or not, that was built from something else."""
    for name in (MANIFEST, STARTED):
        if (out / name).exists() and _read(out / name).get("fingerprint") != key:
            _say(f"{out}: {name} is of other settings or another version; building anew")
            for leftover in (MANIFEST, STARTED, "prompts.jsonl", "held_out.jsonl"):
                (out / leftover).unlink(missing_ok=True)
            shutil.rmtree(out / "models", ignore_errors=True)
            return


def _finished(out: Path, key: str) -> bool:
    """Say whether the manifest vouches for every file; what is damaged is removed, to be made again."""
    if not (out / MANIFEST).exists():
        return False
    manifest = _read(out / MANIFEST)
    assert manifest["fingerprint"] == key
    found = {str(file.relative_to(out)): file_sha256(file) for file in _content(out)}
    files: dict[str, str] = manifest["files"]
    damaged = sorted(name for name in files.keys() | found.keys() if files.get(name) != found.get(name))
    for name in damaged:
        _say(f"{out / name}: changed or missing; making it anew")
        parts = Path(name).parts
        if parts[0] == "models":
            shutil.rmtree(out / "models" / parts[1], ignore_errors=True)
        else:
            (out / name).unlink(missing_ok=True)
    if damaged:
        (out / MANIFEST).unlink()
    return not damaged


def _read(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _content(out: Path) -> list[Path]:
    """Return the world's files: the prompts and everything under models/."""
    files = [file for file in (out / "models").rglob("*") if file.is_file()]
    return sorted(
        [
            *files,
            *(out / name for name in ("prompts.jsonl", "held_out.jsonl") if (out / name).exists()),
        ]
    )


# ---- prompts -----------------------------------------------------------------------------------


def _write_prompts(out: Path, settings: WorldSettings) -> frozenset[Problem]:
    """Write prompts.jsonl and held_out.jsonl; return the held-out problems."""
    started = time.monotonic()
    domains = curriculum_of(settings).domains
    prompts, held_out = problems_of(settings)
    assert not set(prompts) & set(held_out)
    for name, problems, prefix in (
        ("prompts", prompts, "p"),
        ("held_out", held_out, "h"),
    ):
        rng = random.Random(f"wording/{name}/{settings.seed}")
        rows = [
            prompt_row(problem, number=f"{prefix}{index:04d}", domain=domains[problem.skill], rng=rng)
            for index, problem in enumerate(problems)
        ]
        write_atomic(out / f"{name}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    _say(f"prompts           {time.monotonic() - started:6.1f} s  {len(prompts)} prompts, {len(held_out)} held out")
    return frozenset(held_out)


# ---- models ------------------------------------------------------------------------------------


def _train_all(
    out: Path,
    settings: WorldSettings,
    held_out: frozenset[Problem],
    names: Sequence[str],
    *,
    workers: int,
) -> None:
    """Train `names` in `workers` processes of one thread each; two threads of one process gain nothing at this size."""
    if not names:
        return
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(workers, mp_context=context, initializer=_one_thread) as pool:
        futures = [pool.submit(_train_one, name, out, settings, held_out) for name in names]
        try:
            for future in concurrent.futures.as_completed(futures):
                _say(future.result())
        except BrokenProcessPool:
            raise StageError(
                f"{out}: a process that trained a model was killed (out of memory?); run the same command again, "
                "finished models are kept"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)


def _one_thread() -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    import torch  # here, so that verifying a finished world does not load it

    torch.set_num_threads(1)


def _train_one(name: str, out: Path, settings: WorldSettings, held_out: frozenset[Problem]) -> str:
    """Train one model into its folder and return the line to show."""
    from jobs.demo.students import (
        train_folder,
    )  # loads torch and transformers, only in the training processes

    started = time.monotonic()
    folder = out / "tmp" / name
    facts = train_folder(name, folder, settings=settings, exclude=held_out)
    folder.replace(out / "models" / name)
    shown = "  ".join(f"{fact} {value:.4g}" for fact, value in facts.items())
    return f"{name:17s} {time.monotonic() - started:6.1f} s  {shown}"


def _say(line: str) -> None:
    print(line, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m jobs.demo.world", description="Build or verify a demo world.")
    parser.add_argument("--out", type=Path, required=True, help="folder of the world")
    parser.add_argument(
        "--domains",
        action="store_true",
        help="the world of the domains instruction, math and code, not the first demo's",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of everything in it (default 0)")
    parser.add_argument(
        "--workers",
        type=int,
        default=2,
        help="training processes, one core each (default 2)",
    )
    given = parser.parse_args(arguments)
    try:
        settings = DOMAIN_SETTINGS if given.domains else WorldSettings()
        build(given.out, settings=settings.model_copy(update={"seed": given.seed}), workers=given.workers)
    except FuselineError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
