"""Looking ahead: how many rows each stage will see and where it stands, without running anything."""

import dataclasses
from pathlib import Path
from typing import Any

from fusion.artifact import Artifact
from fusion.explain import State, state_of
from fusion.pipeline import Graph
from fusion.placement import Demand
from fusion.promptsets import PromptSet
from fusion.row_files import count_rows
from fusion.select import Split
from fusion.stage import Stage
from fusion.stages.rows import RowsPlacement


@dataclasses.dataclass(frozen=True)
class PlannedStage:
    """A line of the plan."""

    stage: Stage
    state: State
    rows: int | None
    """Rows that come in; exact for finished stages, expected for others, None where it cannot be known yet."""
    demand: Demand


def plan(graph: Graph) -> list[PlannedStage]:
    """Return a line per stage in running order."""
    store, rows = graph.recipe.store, {}
    lines = []
    for stage in graph.stages:
        state = state_of(stage, store)
        rows[id(stage)] = _rows_in(stage, state, store, rows, graph)
        lines.append(PlannedStage(stage, state, rows[id(stage)], stage.demand))
    return lines


def _rows_in(stage: Stage, state: State, store: Path, rows: dict[int, int | None], graph: Graph) -> int | None:
    if state.status == "hit":
        return Artifact.load(stage.directory(store)).manifest.rows_in
    inputs = {name: rows[id(node)] for name, node in stage.inputs.items() if isinstance(node, Stage)}
    config: Any = stage.config  # each kind has its own
    placement: Any = stage.placement
    match stage.kind:
        case "prompts":
            counts = [_count(prompt_set) for prompt_set in placement.sets]
            return None if None in counts else sum(c for c in counts if c is not None)
        case "generate":
            if config.domains or config.without:
                return None  # how many prompts a domain has is known when they have been read
            side = _side(inputs["prompts"], config.side, graph)
            return None if side is None else side * sum(d.num_samples for d in config.decodings)
        case "existing":
            return None  # a data set is not read just to be counted
        case "score":
            return inputs["responses"]
        case "split":
            return inputs["prompts"]
        case "select" if isinstance(placement, RowsPlacement):
            return count_rows(placement.given.path)
        case "select":
            return _side(inputs["prompts"], config.rule.side, graph)
        case "evaluate":
            known = [n for n in inputs.values() if n is not None]
            return sum(known) if len(known) == len(inputs) else None
        case "export":
            return None
        case _:
            assert stage.kind in ("sft", "reference", "prefer"), f"{stage.kind} is missing here"
            return inputs["rows"]


def _side(num_prompts: int | None, side: str | None, graph: Graph) -> int | None:
    if num_prompts is None or side in (None, "all"):
        return num_prompts
    if not isinstance(graph.recipe.split, Split):
        return None  # the sides depend on answers
    chosen = graph.recipe.split.assign([str(i) for i in range(num_prompts)]).values()
    return sum(s == side for s in chosen)


def _count(prompt_set: PromptSet) -> int | None:
    """Records of a local set; a hub set is not downloaded just to be counted."""
    if prompt_set.type == "hub":
        return prompt_set.limit
    found = sum(1 for _ in prompt_set.records())
    return found if prompt_set.limit is None else min(found, prompt_set.limit)
