"""A run on disk, read-only: which artifacts it is made of, how far each is, and which rows each arm trains on.

It reads what `fuseline run` leaves: `<run>/history/*.json` names the artifacts of each finished run, and
`<run>/../store/<kind>/<slug>-<key>/manifest.json` vouches for one. The one idea: nothing is cached but
manifests, whose files never change, so a run that is still at work is shown as it is now.
"""

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ValidationError

from fusion.artifact import MANIFEST, Artifact, Manifest
from fusion.errors import ArtifactError, FuselineError
from serving.schemas import ResponseModel

MAX_MANIFESTS = 512
"""Manifests kept in memory; a run has tens."""

Status = Literal["finished", "begun", "damaged", "missing"]
AnyModel = TypeVar("AnyModel", bound=BaseModel)


class StageView(ResponseModel):
    """One stage of the run."""

    stage: str
    """`kind/slug`, e.g. `generate/llama-add`."""
    kind: str
    key: str
    status: Status
    hit: bool | None
    """Whether the last run found it finished; None where no run has ended yet."""
    seconds: float | None
    """Wall time over all attempts."""
    rows_in: int | None
    rows_out: int | None
    quarantined: dict[str, int]
    """Reason -> rows."""
    tokens: int | None
    """Tokens generated or trained on, where the stage counts them."""
    parts_done: int | None = None
    """Of a stage that has begun: parts that are there, of `parts`."""
    parts: int | None = None
    finished: str | None = None
    """When it ended, in UTC."""
    problem: str | None = None


class ArmView(ResponseModel):
    """Training rows that can be looked at."""

    name: str
    """`sft`, the name of an arm, or of a rule whose rows no finished training has read."""
    rule: str
    row_type: str
    rows: int
    dropped: int
    wins: dict[str, int]
    """Source -> rows whose best answer it gave."""


class Measured(ResponseModel):
    """A mean with its confidence interval."""

    mean: float
    low: float
    high: float


class ModelResult(ResponseModel):
    """What the evaluation of the run says of one model."""

    name: str
    reward: Measured | None
    exact: Measured | None


class RunView(ResponseModel):
    """A run for the page."""

    name: str
    status: Literal["finished", "unfinished"]
    finished: str | None
    """When the last run ended, in UTC."""
    total_seconds: float | None
    served_arm: str | None
    benchmark: str | None
    stages: list[StageView]
    arms: list[ArmView]
    results: list[ModelResult]


@dataclasses.dataclass(frozen=True, slots=True)
class Folder:
    """Where one stage of the run lies."""

    kind: str
    slug: str
    key: str
    path: Path
    hit: bool | None


@dataclasses.dataclass(frozen=True)
class Arm:
    """The selection whose rows an arm trains on."""

    name: str
    selection: Artifact

    @property
    def rule(self) -> dict[str, Any]:
        """The fields of the selection rule; `type` names it."""
        return self.selection.manifest.key_payload["config"]["rule"]


class _HistoryEntry(BaseModel):
    hit: bool


class _History(BaseModel):
    """What this module reads of a file of `history`; the rest is ignored."""

    recipe: dict[str, Any]
    total_seconds: float
    artifacts: dict[str, _HistoryEntry]


class _Summary(BaseModel):
    """What this module reads of `summary.json`."""

    benchmark: str | None
    models: dict[str, dict[str, dict[str, float] | None]]
    total_seconds: float


class Run:
    """The run whose results are in `folder`, e.g. `runs/demo`. Safe to use from several threads.

    Methods raise ArtifactError where a file of the run cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder.absolute()
        self._store = self._folder.parent / "store"
        self._manifests: dict[Path, tuple[int, Manifest]] = {}

    @property
    def name(self) -> str:
        return self._folder.name

    def exists(self) -> bool:
        """Whether there is anything to show."""
        return any(True for _ in self._folders(self._history()))

    def view(self) -> RunView:
        """Return the run as it is now."""
        history = self._history()
        summary = self._summary()
        folders = list(self._folders(history))
        finished = self._last_history()
        return RunView(
            name=self.name,
            status="finished" if history else "unfinished",
            finished=_stamp(finished.stem) if finished else None,
            # A run of hits only takes no time; the summary keeps that of the run that did the work.
            total_seconds=summary.total_seconds if summary else history.total_seconds if history else None,
            served_arm=((history.recipe.get("serve") or {}).get("arm")) if history else None,
            benchmark=summary.benchmark if summary else None,
            stages=[self._stage_view(folder) for folder in folders],
            arms=[_arm_view(arm) for arm in self._arms(folders)],
            results=_results(summary),
        )

    def arms(self) -> list[Arm]:
        """Return what is trained on: `sft` and the arms, then selections that no finished training has read."""
        return self._arms(list(self._folders(self._history())))

    def scored(self, prompts_key: str) -> list[tuple[Folder, Artifact]]:
        """Return the scored answers to the prompts of this key, by model; unreadable ones are left out."""
        found = []
        for folder in self._folders(self._history()):
            artifact = self._artifact_or_none(folder) if folder.kind == "score" else None
            if artifact is not None and artifact.manifest.inputs["prompts"].key == prompts_key:
                found.append((folder, artifact))
        return found

    def find(self, kind: str, key: str) -> Artifact | None:
        """Return the artifact of this kind and key, None where it is not there or not whole."""
        for folder in self._folders(self._history()):
            if (folder.kind, folder.key) == (kind, key):
                return self._artifact_or_none(folder)
        return None

    def source_names(self) -> set[str]:
        """Names of the models whose answers some selection reads as those of a source."""
        selections = [self._artifact_or_none(f) for f in self._folders(self._history()) if f.kind == "select"]
        inputs = [name for artifact in selections if artifact for name in artifact.manifest.inputs]
        return {name.removeprefix("source_").partition("@")[0] for name in inputs if name.startswith("source_")}

    # ---- what belongs to the run ---------------------------------------------------------------

    def _last_history(self) -> Path | None:
        return max((self._folder / "history").glob("*.json"), default=None, key=lambda path: path.name)

    def _history(self) -> _History | None:
        path = self._last_history()
        return None if path is None else _read(path, _History)

    def _summary(self) -> _Summary | None:
        path = self._folder / "summary.json"
        return _read(path, _Summary) if path.exists() else None

    def _folders(self, history: _History | None) -> Iterator[Folder]:
        if history is None:
            yield from self._newest()
            return
        for name, entry in history.artifacts.items():
            yield _folder(name, self._store / name, entry.hit)

    def _newest(self) -> Iterator[Folder]:
        """Yield the newest directory of each stage in the store: all that can be said before a run has ended."""
        newest: dict[str, tuple[float, Folder]] = {}
        for path in self._store.glob("*/*"):
            if "-" in path.name and path.is_dir():
                folder = _folder(f"{path.parent.name}/{path.name}", path, None)
                label, changed = f"{folder.kind}/{folder.slug}", path.stat().st_mtime
                if label not in newest or changed > newest[label][0]:
                    newest[label] = (changed, folder)
        yield from (folder for _, folder in sorted(newest.values(), key=lambda item: item[0]))

    # ---- artifacts -----------------------------------------------------------------------------

    def _artifact(self, folder: Folder) -> Artifact:
        """Return the artifact; its manifest is parsed once, its files are looked at every time by those who read."""
        file = folder.path / MANIFEST
        try:
            changed = file.stat().st_mtime_ns
        except FileNotFoundError:
            raise ArtifactError(f"{folder.kind}/{folder.slug} is unfinished or gone") from None
        known = self._manifests.get(file)
        if known is None or known[0] != changed:
            known = (changed, Artifact.load(folder.path).manifest)
            if len(self._manifests) >= MAX_MANIFESTS:
                self._manifests.clear()
            self._manifests[file] = known
        return Artifact(folder.path, known[1])

    def _artifact_or_none(self, folder: Folder) -> Artifact | None:
        try:
            return self._artifact(folder)
        except FuselineError:
            return None  # the stage's own line in `view` says what is wrong with it

    def _arms(self, folders: Iterable[Folder]) -> list[Arm]:
        selections: dict[str, Artifact] = {}
        trained: list[tuple[str, str]] = []
        for folder in folders:
            artifact = self._artifact_or_none(folder)
            if artifact is None:
                continue
            if folder.kind == "select":
                selections[folder.key] = artifact
            elif folder.kind in ("sft", "prefer"):
                trained.append((folder.slug, artifact.manifest.inputs["rows"].key))
        trained.sort(key=lambda item: item[0] != "sft")
        arms = [Arm(name, selections[key]) for name, key in trained if key in selections]
        names, read = {arm.name for arm in arms}, {key for _, key in trained}
        for key, artifact in selections.items():
            if key not in read:
                slug = artifact.manifest.slug
                arms.append(Arm(slug if slug not in names else f"{slug}-{key}", artifact))
        return arms

    def _stage_view(self, folder: Folder) -> StageView:
        common: dict[str, Any] = {
            "stage": f"{folder.kind}/{folder.slug}",
            "kind": folder.kind,
            "key": folder.key,
            "hit": folder.hit,
        }
        try:
            manifest = self._artifact(folder).manifest
        except FuselineError as error:
            return _unfinished(folder, common, problem=self._without_paths(str(error)))
        tokens = manifest.notes.get("tokens", manifest.notes.get("num_tokens"))
        return StageView(
            **common,
            status="finished",
            seconds=manifest.seconds,
            rows_in=manifest.rows_in,
            rows_out=manifest.rows_out,
            quarantined=manifest.quarantined,
            tokens=tokens if isinstance(tokens, int) else None,
            finished=manifest.provenance.get("finished"),
        )

    def _without_paths(self, text: str) -> str:
        """Clients need not know where the run lies on the server."""
        return text.replace(f"{self._store}/", "store/").replace(f"{self._folder}/", f"{self.name}/")

    def problem(self, error: FuselineError) -> str:
        """Return the text of an error of this run for clients."""
        return self._without_paths(str(error))


def _unfinished(folder: Folder, common: dict[str, Any], *, problem: str) -> StageView:
    empty: dict[str, Any] = {"rows_in": None, "rows_out": None, "quarantined": {}, "tokens": None}
    if not folder.path.is_dir():
        return StageView(**common, **empty, status="missing", seconds=None, problem="its directory is gone")
    if (folder.path / MANIFEST).exists():
        return StageView(**common, **empty, status="damaged", seconds=None, problem=problem)
    done = parts = None
    plan = _json(folder.path / "plan.json")
    if isinstance(plan, dict) and isinstance(plan.get("bounds"), list):
        parts = max(0, len(plan["bounds"]) - 1)
        done = sum(1 for _ in folder.path.glob("part-*.parquet"))
        empty["rows_in"] = plan.get("rows")
    seconds = _json(folder.path / "seconds.json")
    return StageView(
        **common,
        **empty,
        status="begun",
        seconds=seconds if isinstance(seconds, float) else None,
        parts_done=done,
        parts=parts,
    )


def _folder(name: str, path: Path, hit: bool | None) -> Folder:
    kind, _, rest = name.partition("/")
    slug, _, key = rest.rpartition("-")
    return Folder(kind, slug, key, path, hit)


def _arm_view(arm: Arm) -> ArmView:
    manifest = arm.selection.manifest
    wins: Mapping[str, Mapping[str, int]] = manifest.notes.get("wins", {})
    return ArmView(
        name=arm.name,
        rule=arm.rule["type"],
        row_type=manifest.row_type or "",
        rows=manifest.rows_out,
        dropped=manifest.num_quarantined,
        wins={source: won["count"] for source, won in wins.items()},
    )


def _results(summary: _Summary | None) -> list[ModelResult]:
    if summary is None:
        return []
    found = []
    for name, metrics in summary.models.items():
        reward, exact = metrics.get("reward"), metrics.get("exact")
        found.append(
            ModelResult(
                name=name,
                reward=Measured(**reward) if reward else None,
                exact=Measured(**exact) if exact else None,
            )
        )
    return found


def _read(path: Path, model: type[AnyModel]) -> AnyModel:
    try:
        return model.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        raise ArtifactError(f"{path} is not what fuseline run writes; run the recipe again") from None


def _json(path: Path) -> Any:
    """Return what a JSON file of a stage at work says, None where it is not there or half written."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _stamp(text: str) -> str | None:
    """Turn the name of a history file, `20261121T120327Z`, into ISO form; None where it is not one."""
    if len(text) != 16:
        return None
    return f"{text[:4]}-{text[4:6]}-{text[6:8]}T{text[9:11]}:{text[11:13]}:{text[13:15]}Z"
