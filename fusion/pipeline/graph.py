"""What a recipe becomes: stages with their inputs, and the names by which one asks for them."""

import dataclasses

from fusion.models import PinnedModel
from fusion.recipe import Recipe
from fusion.stage import Stage

Node = Stage | PinnedModel


@dataclasses.dataclass
class Graph:
    """All stages of a recipe in an order in which they can run."""

    recipe: Recipe
    stages: list[Stage] = dataclasses.field(default_factory=list)
    models: dict[str, Node] = dataclasses.field(default_factory=dict)
    """Name -> the given or trained model."""
    selections: dict[str, Stage] = dataclasses.field(default_factory=dict)
    """`sft` and each arm -> its select stage."""
    evaluation: Stage | None = None
    export: Stage | None = None

    def add(self, stage: Stage) -> Stage:
        """Take the stage in, or return the equal one that is already there."""
        for known in self.stages:
            if (known.kind, known.slug, known.key) == (stage.kind, stage.slug, stage.key):
                return known
        self.stages.append(stage)
        return stage
