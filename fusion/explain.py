"""Where a stage stands and why: finished, begun, or new, and which declared field makes it new."""

import dataclasses
import json
from pathlib import Path
from typing import Any, Literal

from fusion import artifact as files
from fusion.stage import PLAN, Stage, read_plan


@dataclasses.dataclass(frozen=True)
class State:
    """Where a stage stands: `hit`, `resumable` (some parts are there) or `new`, and why."""

    status: Literal["hit", "resumable", "new"]
    done: int = 0
    total: int = 0
    why: tuple[str, ...] = ()


def state_of(stage: Stage, store: Path) -> State:
    """Say whether the stage is finished, begun or new; for a new one, which fields differ from the nearest."""
    path = stage.directory(store)
    if (path / files.MANIFEST).exists():
        return State("hit", why=(f"key {stage.key}",))
    if path.exists():
        total = len(read_plan(path / PLAN)["bounds"]) - 1 if (path / PLAN).exists() else 0
        done = sum((path / files.part_name(i)).exists() for i in range(total))
        steps = sorted(p.name for p in (path / "checkpoints").glob("step_*") if (p / "meta.json").exists())
        if done or steps or total:
            return State("resumable", done, total, tuple(steps[-1:]))
    return State("new", why=_differences(stage, path.parent))


def _differences(stage: Stage, siblings: Path) -> tuple[str, ...]:
    """Fields in which the stage's key differs from that of the nearest finished artifact of its kind."""
    mine, best = _flatten(stage.key_payload), None
    for file in siblings.glob(f"{stage.slug}-*/{files.MANIFEST}"):
        try:
            other = _flatten(json.loads(file.read_text())["key_payload"])
        except (ValueError, KeyError):
            continue  # an unreadable manifest cannot be a neighbour; loading it as an input says so loudly
        changed = [name for name in {**mine, **other} if mine.get(name) != other.get(name)]
        if best is None or len(changed) < len(best[0]):
            best = (changed, other)
    if best is None:
        return ("no artifact of this name yet",)
    changed, other = best
    return tuple(f"{name}: {other.get(name, '(absent)')} -> {mine.get(name, '(absent)')}" for name in changed)


def _flatten(value: Any, name: str = "") -> dict[str, Any]:
    if isinstance(value, dict):
        return {
            k: v for key, inner in value.items() for k, v in _flatten(inner, f"{name}.{key}" if name else key).items()
        }
    if isinstance(value, list):
        return {k: v for i, inner in enumerate(value) for k, v in _flatten(inner, f"{name}[{i}]").items()}
    return {name: value}
