"""The stages that train: SFT, the reference's log-probabilities, the preference stage."""

from fusion.pipeline.data import slug_of
from fusion.pipeline.graph import Graph, Node
from fusion.placement import Demand
from fusion.recipe import Arm, SftBlock
from fusion.rows import ReferenceLogps
from fusion.stage import Stage
from fusion.stages import prefer, reference, sft
from fusion.training import TrainConfig


class TrainingStages:
    """Adds stages that train to a graph; each method returns the stage, or the equal one that was there."""

    def __init__(self, graph: Graph) -> None:
        self.recipe = graph.recipe
        self.graph = graph

    def sft(self, slug: str, block: SftBlock | Arm, start: Node, taken: Stage) -> Stage:
        """Train on the rows taken, from the model `start`."""
        return self.graph.add(
            Stage(
                kind="sft",
                slug=slug,
                version=sft.VERSION,
                config=sft.SftConfig(train=_train_config(block), chat=self.recipe.target.chat),
                placement=self.recipe.placement.train,
                inputs={"model": start, "rows": taken},
                run=sft.run,
                row_type=None,
                exclusive=True,
                demand=self._train_demand(),
            )
        )

    def arm(self, name: str, arm: Arm, taken: Stage) -> Stage:
        """Train an arm on the rows taken for it, from the model that it names."""
        start = self.graph.models[arm.start]
        if arm.loss.type == "sft":
            return self.sft(name, arm, start, taken)
        inputs: dict[str, Node] = {"model": start, "rows": taken}
        if arm.loss.needs_reference:
            inputs["reference"] = self._reference(arm, start, taken)
        return self.graph.add(
            Stage(
                kind="prefer",
                slug=name,
                version=prefer.VERSION,
                config=prefer.PreferConfig(train=_train_config(arm), chat=self.recipe.target.chat),
                placement=self.recipe.placement.train,
                inputs=inputs,
                run=prefer.run,
                row_type=None,
                exclusive=True,
                demand=self._train_demand(),
            )
        )

    def _reference(self, arm: Arm, start: Node, taken: Stage) -> Stage:
        """Train on the rows taken, from the model `start`."""
        return self.graph.add(
            Stage(
                kind="reference",
                slug=f"{arm.start}-{slug_of(arm.select)}",
                version=reference.VERSION,
                config=reference.ReferenceConfig(
                    chat=self.recipe.target.chat,
                    max_length=arm.max_length,
                    precision=arm.precision,
                ),
                placement=self.recipe.placement.train,
                inputs={"model": start, "rows": taken},
                run=reference.run,
                row_type=ReferenceLogps,
                exclusive=True,
                demand=self._train_demand(),
            )
        )

    def _train_demand(self) -> Demand:
        train = self.recipe.placement.train
        return Demand(train.workers, train.cpus_per_worker, train.gpus_per_worker, train.accelerator)


def _train_config(block: SftBlock | Arm) -> TrainConfig:
    return TrainConfig(**{name: getattr(block, name) for name in TrainConfig.model_fields})
