"""summary.json: the results of a run as one plain mapping, for machines and for the report.

It measures nothing; every number comes from a manifest. The shape is a promise: names here are read by
scripts of others.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Self

from fusion.artifact import Artifact

METRICS = ("reward", "exact", "greedy_reward", "greedy_exact")
"""Metrics of a model, in the order of tables: mean over samples, then over greedy answers."""


@dataclasses.dataclass(frozen=True, slots=True)
class StageReport:
    """What the summary says of one stage."""

    label: str
    """`kind/slug`, e.g. `generate/wrpo`."""
    kind: str
    slug: str
    key: str
    seconds: float
    """Wall time that making the artifact took, over all attempts."""
    rows_in: int
    rows_out: int
    quarantined: Mapping[str, int]
    """Reason -> rows."""
    hit: bool
    """True when this run found it finished."""

    @classmethod
    def of(cls, artifact: Artifact, *, hit: bool) -> Self:
        """The report of a finished stage, from its manifest."""
        manifest = artifact.manifest
        return cls(
            label=f"{manifest.stage}/{manifest.slug}",
            kind=manifest.stage,
            slug=manifest.slug,
            key=manifest.key,
            seconds=manifest.seconds,
            rows_in=manifest.rows_in,
            rows_out=manifest.rows_out,
            quarantined=manifest.quarantined,
            hit=hit,
        )


def build_summary(
    *,
    recipe_name: str,
    stages: Sequence[StageReport],
    evaluate: Artifact | None,
    total_seconds: float,
) -> dict[str, Any]:
    """Return the summary of a run.

    Keys: `recipe`, `benchmark`, `models.{name}.{reward,exact,greedy_reward,greedy_exact}.{mean,low,high}` (a metric
    is None where the scorer does not state it), `differences` (a, b, metric, mean, low, high), `answers` and
    `counts` of the evaluation, `stages` and `total_seconds` (wall time of this run).
    """
    notes: Mapping[str, Any] = evaluate.manifest.notes if evaluate is not None else {}
    models = {name: {m: metrics.get(m) for m in METRICS} for name, metrics in notes.get("models", {}).items()}
    fields = ("a", "b", "metric", "mean", "low", "high")
    return {
        "recipe": recipe_name,
        "benchmark": notes.get("benchmark"),
        "models": models,
        "differences": [{name: d[name] for name in fields} for d in notes.get("differences", [])],
        "answers": notes.get("answers", {}),
        "counts": notes.get("counts", {}),
        "stages": [_stage(stage) for stage in stages],
        "total_seconds": round(total_seconds, 3),
    }


def _stage(stage: StageReport) -> dict[str, Any]:
    return {
        "stage": stage.label,
        "key": stage.key,
        "seconds": round(stage.seconds, 3),
        "rows_in": stage.rows_in,
        "rows_out": stage.rows_out,
        "quarantined": sum(stage.quarantined.values()),
        "reasons": dict(stage.quarantined),
        "hit": stage.hit,
    }
