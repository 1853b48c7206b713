"""The stages that tell and hand out: the comparison on held-out prompts, the served model's folder."""

from collections.abc import Mapping

from fusion.models import PinnedModel
from fusion.pipeline.data import DataStages
from fusion.pipeline.graph import Graph, Node
from fusion.recipe import Evaluate
from fusion.rows import EvaluationItem
from fusion.stage import Stage
from fusion.stages import evaluate, export


def evaluation(data: DataStages, block: Evaluate, held_out: Stage) -> Stage:
    """Every model answers the held-out prompts; the answers are scored and compared."""
    recipe = data.recipe
    asked = [name for name in recipe.used_sources if name in recipe.source_models]
    names = ("target", "sft", *recipe.arms, *asked)
    scored = {}
    for name in names:
        chat = recipe.source_models.get(name, recipe.target).chat
        slug = f"{block.name}-{name}"
        answers = data.generate(name, slug, held_out, block.decodings, chat)
        apart = {"scorers": block.score, "named": "evaluate"} if block.score else {}
        scored[f"scored_{name}"] = data.score(slug, held_out, answers, **apart)
    arms = tuple(recipe.arms)
    usual = [("sft", "target"), *((arm, "sft") for arm in arms)]
    usual += [(b, a) for i, a in enumerate(arms) for b in arms[i + 1 :]]
    return data.graph.add(
        Stage(
            kind="evaluate",
            slug=block.name,
            version=evaluate.VERSION,
            config=evaluate.EvaluateConfig(
                benchmark=block.name,
                models=names,
                num_resamples=block.num_resamples,
                seed=recipe.seed,
                comparisons=block.comparisons or tuple(usual),
            ),
            inputs=scored,
            run=evaluate.run,
            row_type=EvaluationItem,
        )
    )


def exported(graph: Graph, given: Mapping[str, PinnedModel], name: str) -> Stage:
    """The folder of a trained model with its card."""
    recipe = graph.recipe
    inputs: dict[str, Node] = {"model": graph.models[name], "rows": graph.selections[name]}
    inputs |= {
        "target": given["target"],
        **{f"source_{n}": given[n] for n in recipe.used_sources if n in given},
    }
    if graph.evaluation:
        inputs["evaluation"] = graph.evaluation
    return graph.add(
        Stage(
            kind="export",
            slug=name,
            version=export.VERSION,
            config=export.ExportConfig(name=f"{recipe.name}-{name}", chat=recipe.target.chat),
            inputs=inputs,
            run=export.run,
            row_type=None,
            exclusive=True,
        )
    )
