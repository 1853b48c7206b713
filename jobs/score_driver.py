"""The driver of `fuseline score`: check, run the stage score_file, write rows and summary.

Every response of the file gets the score that `POST /v1/rewards` gives it, bit for bit, or a line in the quarantine
file that says why not. The work is one stage: after any kill the same command goes on, and a second run scores
nothing. The output is written anew each time, from the stage's parts.
"""

import contextlib
import dataclasses
import json
import math
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast, get_args

from pydantic import BaseModel, ValidationError
from rich.console import Console

from fusion.artifact import MANIFEST, file_sha256, try_writing, write_json
from fusion.errors import InputError, ModelError, StageError
from fusion.explain import state_of
from fusion.models import ModelRef, PinnedModel, check_folder
from fusion.placement import Demand
from fusion.rewards import ModelSettings, RewardModelSettings, Truncation
from fusion.rewards.family import settings_for
from fusion.rewards.items import Normalize
from fusion.runner import Done
from fusion.stage import Stage, run_stage
from fusion.stages import score_file as stages
from fusion.stages.file_scorer import ItemScore
from fusion.stages.score_columns import Stamp
from fusion.stages.score_index import index_of
from fusion.stages.score_input import RowFile, open_rows
from fusion.stages.score_output import SUMMARY_KIND, Output, write_output
from jobs.entry import stop_cleanly
from jobs.progress import Display
from serving.cards import reward_card
from serving.config import RewardModel
from serving.schemas import ModelCard

AnyModel = TypeVar("AnyModel", bound=BaseModel)


@dataclasses.dataclass(frozen=True)
class Request:
    """What was asked for on the command line."""

    source: Path
    model: Path
    out: Path
    work: Path
    name: str | None
    max_length: int | None
    truncation: str
    dtype: str
    allow_empty: bool
    normalize: str | None
    objectives: bool
    weights: tuple[str, ...]
    """NAME=WEIGHT of each output that makes the score."""
    replicas: int
    accelerator: str
    chunk_rows: int
    address: str | None
    repair: bool


def score_file(request: Request, *, command: str) -> Path:
    """Score a file and return the path of the summary.

    Args:
        command: what a person types to do the same, and to go on after a failure.

    Raises:
        InputError: an option, the input, the model or the output cannot be used.
        StageError: the work failed, or not one response could be scored.
    """
    _check_choices(request)
    given = _validated(
        RewardModelSettings,
        max_length=request.max_length,
        truncation="quarantine" if request.truncation == "error" else request.truncation,
        dtype=request.dtype,
        objectives=parse_weights(request.weights) or None,
    )
    source = open_rows(request.source)
    source = dataclasses.replace(source, path=source.path.absolute())  # workers stand elsewhere
    _check_length(request)
    output = Output(request.out)
    with _writable("--out", request.out):
        output.check(source)
        try_writing(output.quarantine)  # the longest of the three names
    name = request.name or request.model.resolve().name
    card = reward_card(name, RewardModel(folder=request.model, settings=given))
    settings = settings_for(request.model, given)
    console = Console(soft_wrap=True)
    stage = _stage(request, source, settings, name=name)
    with _writable("--work", request.work):
        request.work.mkdir(parents=True, exist_ok=True)
        unfinished = request.repair or state_of(stage, request.work).status != "hit"
        if unfinished:  # finished work is only read, e.g. that of another person
            try_writing(stage.directory(request.work) / MANIFEST)
    if unfinished:
        _connect(request.address, {stage.label: stage.demand}, command)
    with Display(console) as display:
        started = time.monotonic()
        artifact, hit = run_stage(
            stage,
            request.work,
            inputs={"reward": cast(PinnedModel, stage.inputs["reward"])},
            report=display.progress,
            resume_command=command,
            repair=request.repair,
        )
        done = Done(stage, artifact, hit, time.monotonic() - started)
        display.finished(done)
    artifact.verify()  # what is about to become the user's file
    index = index_of(source, artifact.path, slice_rows=request.chunk_rows)
    normalize = cast("Normalize | None", request.normalize)
    stamp = Stamp(card.id, card.revision, objectives=request.objectives, normalize=normalize)
    write_output(output, artifact, source, index, stamp)
    write_json(output.summary, _summary(request, output, done, card, command))
    for what, path in (("scores", output.path), ("quarantine", output.quarantine), ("summary", output.summary)):
        console.print(f"{what + ':':<12}{path}", highlight=False, markup=False)
    if not artifact.manifest.rows_out:
        raise StageError(
            f"not one of the {artifact.manifest.rows_in} responses of {request.source} could be scored; "
            f"the reasons are in {output.quarantine}"
        )
    return output.summary


def _stage(request: Request, source: RowFile, settings: ModelSettings, *, name: str) -> Stage:
    config = stages.ScoreFileConfig(
        content=file_sha256(source.path), format=source.format, scorer=settings, allow_empty=request.allow_empty
    )
    placement = _validated(
        stages.ScoreFilePlacement,
        source=source,
        replicas=request.replicas,
        accelerator=request.accelerator,
        chunk_rows=request.chunk_rows,
    )
    return Stage(
        stages.KIND,
        re.sub(r"[^A-Za-z0-9._-]", "-", name)[:64],
        stages.VERSION,
        config,
        {"reward": PinnedModel("reward", ModelRef(path=request.model), request.work / ".digests.json")},
        stages.run,
        ItemScore,
        placement=placement,
        demand=Demand(request.replicas, cpus=placement.cpus, gpus=1.0, accelerator=placement.accelerator),
    )


def _connect(address: str | None, demands: Mapping[str, Demand], command: str) -> None:
    from cluster.connect import check, connect, nodes  # Ray takes seconds to import; a hit needs none

    connect(address)
    stop_cleanly(command)
    check(demands, nodes())


def _summary(request: Request, output: Output, done: Done, card: ModelCard, command: str) -> dict[str, Any]:
    manifest, config = done.artifact.manifest, cast(stages.ScoreFileConfig, done.stage.config)
    notes, seconds = manifest.notes, max(manifest.seconds, 1e-6)
    return {
        "kind": SUMMARY_KIND,
        "finished": True,
        "command": command,
        "input": {"path": str(request.source), "sha256": config.content, "format": config.format},
        "output": {
            "path": str(output.path),
            "format": output.kind,
            "sha256": file_sha256(output.path) if output.path.is_file() else None,
            "quarantine": str(output.quarantine),
        },
        "counts": {
            "rows": notes["rows"],
            "responses": manifest.rows_in,
            "scored": manifest.rows_out,
            "quarantined": manifest.num_quarantined,
            "reasons": dict(sorted(manifest.quarantined.items())),
            "truncated": notes["truncated"],
            "tokens": notes["tokens"],
        },
        "scores": notes["scores"],
        "model": card.model_dump(mode="json", exclude={"object", "created", "owned_by"}),
        "settings": {
            **config.scorer.model_dump(mode="json"),
            "truncation": request.truncation,
            "allow_empty": config.allow_empty,
            "normalize": request.normalize,
        },
        "seconds": manifest.seconds,
        "responses_per_s": round(manifest.rows_in / seconds, 3),
        "tokens_per_s": round(notes["tokens"] / seconds, 3),
        "artifact": {"path": str(done.artifact.path), "digest": manifest.digest},
        "versions": manifest.provenance["versions"],
        "commit": manifest.provenance["commit"],
    }


def _check_choices(request: Request) -> None:
    for option, value, choices in (
        ("--truncation", request.truncation, get_args(Truncation)),
        ("--normalize", request.normalize, (None, *get_args(Normalize))),
    ):
        if value not in choices:
            raise InputError(f"{option} {value}: use {' or '.join(c for c in choices if c)}")


def parse_weights(given: Sequence[str]) -> dict[str, float]:
    """Return the weights that `--objective NAME=WEIGHT` gives, by name. Raises InputError for a bad or repeated one."""
    weights: dict[str, float] = {}
    for text in given:
        name, _, number = text.rpartition("=")  # the last one: a name may hold one too
        try:
            weight = float(number)
        except ValueError:
            weight = math.nan
        if not name or not math.isfinite(weight):
            raise InputError(f"--objective {text}: write it as NAME=WEIGHT, e.g. helpful=1.0")
        if name in weights:
            raise InputError(f"--objective names {name} twice")
        weights[name] = weight
    return weights


@contextlib.contextmanager
def _writable(option: str, path: Path) -> Iterator[None]:
    """Turn what the system says of a path that cannot be written into an InputError, before hours of work are lost."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{option} {path} cannot be written ({error.strerror}); name another place") from None


def _check_length(request: Request) -> None:
    """Raise ModelError where more tokens are asked for than the model has positions, before any actor starts."""
    file = check_folder(request.model) / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    most = (config.get("text_config") or config).get("max_position_embeddings")
    if request.max_length is not None and isinstance(most, int) and request.max_length > most:
        raise ModelError(f"--max-length {request.max_length} is above the {most} positions of {file}; lower it")


def _validated(model: type[AnyModel], **fields: Any) -> AnyModel:
    """Return the config; the first thing wrong becomes an InputError that names the option."""
    try:
        return model(**fields)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        option = "--" + str(problem["loc"][0]).replace("_", "-")
        raise InputError(f"{option}: {problem['msg'][0].lower()}{problem['msg'][1:]}") from None
