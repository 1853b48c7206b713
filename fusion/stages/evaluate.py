"""Stage evaluate: compare all models on the held-out prompts, with intervals.

It grades nothing; scores come from the score stage. The one idea: the table compares like with like.
Where a model lacks a prompt (its answer was quarantined), that prompt is left out for all models, and
the count is noted; a single difference leaves out only what one of its two sides lacks.
"""

import dataclasses
import logging
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import Field

from fusion.config import Config
from fusion.errors import StageError
from fusion.evaluation import mean_interval, paired_difference, shared_prompts
from fusion.rows import EvaluationItem, Finish, ScoredResponse
from fusion.stage import StageContext, StageResult

log = logging.getLogger(__name__)

VERSION = 1
CHUNK_ROWS = 8192
SAMPLED, GREEDY = "sample", "greedy"
"""Names of the decodings that the table reports."""


class EvaluateConfig(Config):
    """Which models are compared, and the bootstrap."""

    benchmark: str
    """Name of the held-out set in tables."""
    models: tuple[str, ...]
    """Models in the order of the table."""
    num_resamples: int = Field(default=2000, ge=100)
    """Resamples of the bootstrap."""
    seed: int = Field(default=0, ge=0)
    """Seed of the bootstrap."""
    comparisons: tuple[tuple[str, str], ...] = ()
    """Pairs (a, b) whose difference a - b is reported."""


@dataclasses.dataclass(frozen=True, slots=True)
class Metric:
    """One column of the table: a number of each response of one decoding, None where the scorer has none."""

    name: str
    decoding: str
    value: Callable[[ScoredResponse], float | None]


def _reward(row: ScoredResponse) -> float | None:
    return row.score


def _exact(row: ScoredResponse) -> float | None:
    return row.objectives.get("exact")


METRICS = (
    Metric("reward", SAMPLED, _reward),
    Metric("exact", SAMPLED, _exact),
    Metric("greedy_reward", GREEDY, _reward),
    Metric("greedy_exact", GREEDY, _exact),
)


def run(ctx: StageContext) -> StageResult:
    """Inputs: `scored_<model>` for each model. Every scored response becomes one EvaluationItem.

    Raises:
        StageError: no prompt was answered by all models.
    """
    config: EvaluateConfig = ctx.config
    rows = {model: list(ctx.rows(f"scored_{model}", ScoredResponse)) for model in config.models}
    items = [_item(config.benchmark, model, row) for model in config.models for row in rows[model]]
    chunks = ctx.plan([f"{i.model}/{i.prompt_id}/{i.sample}" for i in items], chunk_rows=CHUNK_ROWS)
    ctx.progress.begin(total=len(items))
    for chunk in chunks:
        ctx.progress.advance(ctx.commit(chunk, items[chunk.start : chunk.stop]))
    return StageResult(rows_in=len(items), notes=compare(rows, config))


def compare(rows: Mapping[str, list[ScoredResponse]], config: EvaluateConfig) -> dict[str, Any]:
    """Return the notes of the evaluation: `models`, `differences`, `counts` and `answers`.

    A metric of a model is None where the scorer does not state it, or no response was decoded that way.
    """
    values = {metric.name: {model: _by_prompt(rows[model], metric) for model in config.models} for metric in METRICS}
    table: dict[str, dict[str, Any]] = {model: {} for model in config.models}
    counts: dict[str, Any] = {"prompts": {}, "left_out": {}}
    for metric in METRICS:
        sides = {model: side for model, side in values[metric.name].items() if side}
        shared = shared_prompts(list(sides.values()))
        if sides and not shared:
            few = min(sides, key=lambda model: len(sides[model]))
            raise StageError(
                f"evaluate: no held-out prompt has {metric.name} for all models ({few} has it for {len(sides[few])}); "
                "see the quarantine of its generate and score stages"
            )
        counts["prompts"][metric.name] = len(shared)
        counts["left_out"][metric.name] = {m: n for m, side in sides.items() if (n := len(side) - len(shared))}
        for model in config.models:
            side = {p: v for p, v in values[metric.name][model].items() if p in shared}
            interval = mean_interval(side, seed=config.seed, num_resamples=config.num_resamples) if side else None
            table[model][metric.name] = interval.to_json() if interval else None
    return {
        "benchmark": config.benchmark,
        "models": table,
        "differences": [d for a, b in config.comparisons for d in _differences(a, b, values, config)],
        "counts": counts,
        "answers": {model: _answers(rows[model]) for model in config.models},
    }


def _differences(
    a: str, b: str, values: Mapping[str, Mapping[str, dict[str, list[float]]]], config: EvaluateConfig
) -> list[dict[str, Any]]:
    found = []
    for metric in METRICS:
        side_a, side_b = values[metric.name][a], values[metric.name][b]
        both = shared_prompts([side_a, side_b])
        if not both:
            continue
        interval = paired_difference(
            {p: side_a[p] for p in both},
            {p: side_b[p] for p in both},
            seed=config.seed,
            num_resamples=config.num_resamples,
        )
        found.append({"a": a, "b": b, "metric": metric.name, **interval.to_json(), "num_prompts": len(both)})
    return found


def _by_prompt(rows: list[ScoredResponse], metric: Metric) -> dict[str, list[float]]:
    """The metric's values by prompt; a prompt with a response that lacks it is left out."""
    found: dict[str, list[float | None]] = {}
    for row in rows:
        if row.response.decoding == metric.decoding:
            found.setdefault(row.response.prompt_id, []).append(metric.value(row))
    return {p: [v for v in values if v is not None] for p, values in found.items() if None not in values}


def _answers(rows: list[ScoredResponse]) -> dict[str, dict[str, float]]:
    """Facts about a model's answers per decoding: a length drift or unfinished answers explain many a reward."""
    found = {}
    for decoding in sorted({row.response.decoding for row in rows}):
        answers = [row.response for row in rows if row.response.decoding == decoding]
        found[decoding] = {
            "num_responses": len(answers),
            "num_prompts": len({a.prompt_id for a in answers}),
            "mean_tokens": round(sum(len(a.token_ids) for a in answers) / len(answers), 2),
            "share_finished": round(sum(a.finish_reason is Finish.stop for a in answers) / len(answers), 4),
        }
    return found


def _item(benchmark: str, model: str, row: ScoredResponse) -> EvaluationItem:
    response = row.response
    return EvaluationItem(
        benchmark=benchmark,
        model=model,
        prompt_id=response.prompt_id,
        sample=response.sample,
        decoding=response.decoding,
        text=response.text,
        score=row.score,
        detail=dict(row.objectives),
    )
