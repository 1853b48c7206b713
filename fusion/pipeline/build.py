"""The graph: from a recipe to stages with their inputs. The one place where the wiring is written.

    prompts -> generate(source) -> score -> [split] -> select -> sft -> generate(sft) -> score
                                                      |                        |
                                                      +-> select -> reference -> prefer (per arm) -> export
    held-out prompts -> generate(every model) -> score -> evaluate

Equal stages are one stage: two arms with the same selection share it, and what follows from it.
"""

from collections.abc import Mapping

from fusion.models import PinnedModel
from fusion.pipeline.data import DataStages
from fusion.pipeline.graph import Graph
from fusion.pipeline.results import evaluation, exported
from fusion.pipeline.training import TrainingStages
from fusion.promptsets import ExistingAnswers
from fusion.recipe import Recipe, SourceModel
from fusion.select import PairSplit
from fusion.stage import Stage


def build(recipe: Recipe) -> Graph:
    """Return the graph of a recipe. Reads local files to key them by content; runs nothing.

    Raises:
        InputError: a local prompts file or model folder that cannot be read.
    """
    graph = Graph(recipe)
    given = {name: PinnedModel(name, ref, recipe.root / ".digests.json") for name, ref in recipe.models.items()}
    data, trainings = DataStages(graph, given), TrainingStages(graph)

    held_out = data.prompts("held-out", recipe.evaluate.prompts, {}) if recipe.evaluate else None
    training = data.prompts("train", recipe.prompts, {"held_out": held_out} if held_out else {}, recipe.clean)
    graph.models["target"] = given["target"]
    graph.models |= {name: given[name] for name in recipe.used_sources if name in recipe.source_models}
    sources: dict[str, Stage] = {}
    for name, source in recipe.used_sources.items() if _sources_are_read(recipe) else ():
        if isinstance(source, SourceModel):
            sources |= data.source(name, source, training)
        else:
            sources[name] = data.score(name, training, data.existing(name, source, training))
    if isinstance(recipe.split, PairSplit):
        data.split_by_pairs(recipe.split, training, sources)

    graph.selections["sft"] = data.select(recipe.sft, training, sources, None)
    early = _early_selections(recipe, data, training, sources)
    graph.models["sft"] = trainings.sft("sft", recipe.sft, given["target"], graph.selections["sft"])
    own = None
    if any(arm.select.needs_own for arm in recipe.arms.values()):
        target = recipe.target
        answers = data.generate("sft", "sft", training, (target.sampling,), target.chat, side="preference")
        own = data.score("sft", training, answers)
    for name, arm in recipe.arms.items():
        graph.selections[name] = early[name] if name in early else data.select(arm, training, sources, own)
        graph.models[name] = trainings.arm(name, arm, graph.selections[name])

    if recipe.evaluate and held_out:
        graph.evaluation = evaluation(data, recipe.evaluate, held_out)
    if recipe.serve:
        graph.export = exported(graph, given, recipe.serve.arm)
    return graph


def _early_selections(
    recipe: Recipe, data: DataStages, training: Stage, sources: Mapping[str, Stage]
) -> dict[str, Stage]:
    """The selections of arms that need no own samples; stages run in the order of the graph, so a rule that leaves
    nothing ends the run before the SFT model is trained and not after."""
    arms = {name: arm for name, arm in recipe.arms.items() if not arm.select.needs_own}
    return {name: data.select(arm, training, sources, None) for name, arm in arms.items()}


def _sources_are_read(recipe: Recipe) -> bool:
    """Whether any selection or the split looks at the sources' answers; where all rows are given, none does."""
    blocks = (recipe.sft, *recipe.arms.values())
    return isinstance(recipe.split, PairSplit) or any(block.select.needs_sources for block in blocks)


def unpinned(recipe: Recipe) -> list[str]:
    """Say which models and prompt sets still have a placeholder for a revision."""
    unused = {*recipe.source_models} - {*recipe.used_sources} - {*(recipe.serve.also if recipe.serve else ())}
    models = [f"{n} ({ref.repo})" for n, ref in recipe.models.items() if not ref.pinned and n not in unused]
    sets = [*recipe.prompts, *(recipe.evaluate.prompts if recipe.evaluate else ())]
    sets += recipe.clean.decontaminate.against if recipe.clean.decontaminate else ()
    found = [("prompts", records) for records in sets]
    found += [(n, source.data) for n, source in recipe.used_sources.items() if isinstance(source, ExistingAnswers)]
    return models + [f"{name} ({r.repo})" for name, r in found if r.type == "hub" and not r.pinned]
