"""The graph: from a recipe to stages with their inputs. The one place where the wiring is written.

    prompts -> generate(source) -> score -> [split] -> select -> sft -> generate(sft) -> score
                                                      |                        |
                                                      +-> select -> reference -> prefer (per arm) -> export
    held-out prompts -> generate(every model) -> score -> evaluate

Equal stages are one stage: two arms with the same selection share it, and what follows from it.
"""

import dataclasses
from collections.abc import Mapping, Sequence

from fusion.chat import ChatConfig
from fusion.config import fingerprint
from fusion.models import PinnedModel
from fusion.placement import Demand, GeneratePlacement
from fusion.promptsets import Clean, ExistingAnswers, PromptSet
from fusion.recipe import Arm, Recipe, SftBlock, SourceModel
from fusion.rewards import EVERY_DOMAIN, Scorer, model_of
from fusion.rows import Assignment, EvaluationItem, Prompt, ReferenceLogps, Response, ScoredResponse
from fusion.sampling import Decoding
from fusion.select import ByDomain, GivenRows, PairSplit, Selection, Side, Split
from fusion.stage import Stage
from fusion.stages import (
    evaluate,
    existing,
    export,
    generate,
    prefer,
    prompts,
    reference,
    rows,
    score,
    select,
    sft,
    split,
)
from fusion.training import TrainConfig

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


def build(recipe: Recipe) -> Graph:
    """Return the graph of a recipe. Reads local files to key them by content; runs nothing.

    Raises:
        InputError: a local prompts file or model folder that cannot be read.
    """
    return _Builder(recipe).build()


class _Builder:
    """Walks the recipe once, from the prompts to the export."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.graph = Graph(recipe)
        self.given = {
            name: PinnedModel(name, ref, recipe.root / ".digests.json") for name, ref in recipe.models.items()
        }
        self.split: Stage | None = None

    def build(self) -> Graph:
        recipe, graph = self.recipe, self.graph
        held_out = self._prompts("held-out", recipe.evaluate.prompts, {}) if recipe.evaluate else None
        training = self._prompts("train", recipe.prompts, {"held_out": held_out} if held_out else {}, recipe.clean)
        graph.models["target"] = self.given["target"]
        graph.models |= {name: self.given[name] for name in recipe.used_sources if name in recipe.source_models}
        sources = {}
        for name, source in recipe.used_sources.items() if self._sources_are_read else ():
            if isinstance(source, SourceModel):
                sources |= self._source(name, source, training)
            else:
                sources[name] = self._score(name, training, self._existing(name, source, training))
        if isinstance(recipe.split, PairSplit):
            self.split = self._split(recipe.split, training, sources)
        graph.selections["sft"] = self._select(recipe.sft, training, sources, None)
        graph.models["sft"] = self._sft("sft", recipe.sft, self.given["target"], graph.selections["sft"])
        own = None
        if any(arm.select.needs_own for arm in recipe.arms.values()):
            target = recipe.target
            answers = self._generate("sft", "sft", training, (target.sampling,), target.chat, side="preference")
            own = self._score("sft", training, answers)
        for name, arm in recipe.arms.items():
            self._arm(name, arm, training, sources, own)
        if recipe.evaluate and held_out:
            graph.evaluation = self._evaluate(held_out)
        if recipe.serve:
            graph.export = self._export(recipe.serve.arm)
        return graph

    @property
    def _sources_are_read(self) -> bool:
        """Whether any selection or the split looks at the sources' answers; where all rows are given, none does."""
        blocks = (self.recipe.sft, *self.recipe.arms.values())
        return isinstance(self.recipe.split, PairSplit) or any(block.select.needs_sources for block in blocks)

    # ---- data ------------------------------------------------------------------------------

    def _source(self, name: str, source: SourceModel, training: Stage) -> dict[str, Stage]:
        """The scored answers of a source: one artifact, and one more for each way of sampling of its own that domains have."""
        special: dict[str, tuple[Decoding, list[str]]] = {}
        for domain, decoding in sorted(source.sampling_by_domain.items()):
            if decoding != source.sampling:
                special.setdefault(fingerprint(decoding), (decoding, []))[1].append(domain)
        apart = tuple(sorted(domain for _, domains in special.values() for domain in domains))
        asked = source.domains
        if asked is None and all(s.domain is not None for s in self.recipe.prompts):
            asked = tuple(str(s.domain) for s in self.recipe.prompts)
        rest = None if asked is None else tuple(sorted({domain for domain in asked if domain not in apart}))
        parts: list[tuple[Decoding, tuple[str, ...] | None, tuple[str, ...]]] = []
        if source.domains is None and (rest is None or rest):
            parts.append((source.sampling, None, apart))
        elif rest:
            parts.append((source.sampling, rest, ()))
        parts += [(decoding, tuple(domains), ()) for decoding, domains in special.values()]
        scored = {}
        for number, (decoding, domains, without) in enumerate(parts):
            mark = "" if number == 0 else f"@{number}"  # names have no such sign, so no two slugs are alike
            answers = self._generate(
                name, f"{name}{mark}", training, (decoding,), source.chat, domains=domains, without=without
            )
            scored[f"{name}{mark}"] = self._score(f"{name}{mark}", training, answers, domains=domains)
        return scored

    def _existing(self, name: str, source: ExistingAnswers, training: Stage) -> Stage:
        """The answers that a data set has; those to prompts that are not ours are no failures."""
        return self.graph.add(
            Stage(
                kind="existing",
                slug=name,
                version=existing.VERSION,
                config=existing.ExistingConfig(name=name, answers=source.identity),
                placement=existing.ExistingPlacement(answers=source),
                inputs={"prompts": training},
                run=existing.run,
                row_type=Response,
                max_quarantined=self.recipe.max_quarantined,
            )
        )

    def _split(self, rule: PairSplit, training: Stage, sources: Mapping[str, Stage]) -> Stage:
        return self.graph.add(
            Stage(
                kind="split",
                slug="pairs",
                version=split.VERSION,
                config=split.SplitConfig(split=rule),
                inputs={"prompts": training, **{f"source_{n}": s for n, s in sources.items()}},
                run=split.run,
                row_type=Assignment,
            )
        )

    def _prompts(
        self, slug: str, sets: Sequence[PromptSet], inputs: Mapping[str, Stage], clean: Clean | None = None
    ) -> Stage:
        """The prompts of some sets; without `clean` only exact duplicates go, as an evaluation set must stay whole."""
        overlap = clean.decontaminate if clean else None
        against = overlap.against if overlap else ()
        return self.graph.add(
            Stage(
                kind="prompts",
                slug=slug,
                version=prompts.VERSION,
                config=prompts.PromptsConfig(
                    sets=tuple(s.identity for s in sets),
                    near_duplicates=clean.near_duplicates if clean else None,
                    overlap=overlap.rule if overlap else None,
                    against=tuple(s.identity for s in against),
                ),
                placement=prompts.PromptsPlacement(sets=tuple(sets), against=against),
                inputs=inputs,
                run=prompts.run,
                row_type=Prompt,
                max_quarantined=self.recipe.max_quarantined,
            )
        )

    def _generate(
        self,
        model: str,
        slug: str,
        asked: Stage,
        decodings: tuple[Decoding, ...],
        chat: ChatConfig,
        *,
        side: Side | None = None,
        domains: tuple[str, ...] | None = None,
        without: tuple[str, ...] = (),
    ) -> Stage:
        recipe = self.recipe
        placement = recipe.placement.models.get(model, recipe.placement.generate)
        return self.graph.add(
            Stage(
                kind="generate",
                slug=slug,
                version=generate.VERSION,
                config=generate.GenerateConfig(
                    name=model,
                    chat=chat,
                    decodings=decodings,
                    seed=recipe.seed,
                    dtype=recipe.dtype,
                    max_model_len=recipe.max_model_len,
                    split=self._ratio if side else None,
                    side=side,
                    domains=domains,
                    without=without,
                ),
                placement=placement,
                inputs={"prompts": asked, "model": self.graph.models[model], **(self._sides if side else {})},
                run=generate.run,
                row_type=Response,
                max_quarantined=recipe.max_quarantined,
                demand=_engine_demand(placement),
            )
        )

    def _score(
        self,
        slug: str,
        asked: Stage,
        answers: Stage,
        *,
        scorers: Mapping[str, Scorer] | None = None,
        named: str = "score",
        domains: tuple[str, ...] | None = None,
    ) -> Stage:
        """Score answers.

        Args:
            scorers: by domain; None = the recipe's.
            named: the block of the recipe that they stand in.
            domains: of the answers, where they are of some only: other scorers then are no part of the key.
        """
        scorers = scorers or self.recipe.score
        if domains is not None:
            asked_for = {domain if domain in scorers else EVERY_DOMAIN for domain in domains}
            scorers = {domain: scorer for domain, scorer in scorers.items() if domain in asked_for}
        placement = self.recipe.placement.score
        rewards = {
            f"reward_{domain}": self.given[f"{named}.{domain}"]
            for domain, scorer in scorers.items()
            if model_of(scorer) is not None
        }
        return self.graph.add(
            Stage(
                kind="score",
                slug=slug,
                version=score.VERSION,
                config=score.ScoreConfig.of(scorers),
                placement=placement,
                inputs={"prompts": asked, "responses": answers, **rewards},
                run=score.run,
                row_type=ScoredResponse,
                max_quarantined=self.recipe.max_quarantined,
                demand=Demand(placement.replicas, placement.cpus, 1.0 if rewards else 0.0, placement.accelerator),
            )
        )

    def _select(self, block: SftBlock | Arm, training: Stage, sources: Mapping[str, Stage], own: Stage | None) -> Stage:
        if isinstance(block.select, GivenRows):
            return self._given_rows(block.select)
        inputs: dict[str, Node] = {"prompts": training, **{f"source_{n}": s for n, s in sources.items()}}
        if block.select.needs_own:
            assert own is not None
            inputs["own"] = own
        if not block.select.needs_sources:
            inputs = {n: node for n, node in inputs.items() if not n.startswith("source_")}
        if block.select.side != "all":
            inputs |= self._sides
        return self.graph.add(
            Stage(
                kind="select",
                slug=_slug(block.select),
                version=select.VERSION,
                config=select.SelectConfig(
                    rule=block.select,
                    split=None if block.select.side == "all" else self._ratio,
                    guard=block.guard,
                ),
                inputs=inputs,
                run=select.run,
                row_type=block.select.row_type,
            )
        )

    def _given_rows(self, given: GivenRows) -> Stage:
        return self.graph.add(
            Stage(
                kind="select",
                slug=given.type,
                version=rows.VERSION,
                config=rows.RowsConfig(rule=given.identity),
                placement=rows.RowsPlacement(given=given),
                inputs={},
                run=rows.run,
                row_type=given.row_type,
            )
        )

    @property
    def _ratio(self) -> Split | None:
        """The split where it is by ratio, and so part of the config of each stage that asks for a side."""
        return self.recipe.split if isinstance(self.recipe.split, Split) else None

    @property
    def _sides(self) -> dict[str, Node]:
        """The input of stages that ask for a side, where the sides are an artifact."""
        return {"split": self.split} if self.split else {}

    # ---- training ---------------------------------------------------------------------------

    def _sft(self, slug: str, block: SftBlock | Arm, start: Node, taken: Stage) -> Stage:
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

    def _arm(self, name: str, arm: Arm, training: Stage, sources: Mapping[str, Stage], own: Stage | None) -> None:
        graph = self.graph
        start = graph.models[arm.start]
        taken = graph.selections[name] = self._select(arm, training, sources, own)
        if arm.loss.type == "sft":
            graph.models[name] = self._sft(name, arm, start, taken)
            return
        inputs: dict[str, Node] = {"model": start, "rows": taken}
        if arm.loss.needs_reference:
            inputs["reference"] = self._reference(arm, start, taken)
        graph.models[name] = graph.add(
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
        return self.graph.add(
            Stage(
                kind="reference",
                slug=f"{arm.start}-{_slug(arm.select)}",
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

    # ---- results ----------------------------------------------------------------------------

    def _evaluate(self, held_out: Stage) -> Stage:
        block = self.recipe.evaluate
        assert block is not None
        asked = [name for name in self.recipe.used_sources if name in self.recipe.source_models]
        names = ("target", "sft", *self.recipe.arms, *asked)
        scored = {}
        for name in names:
            chat = self.recipe.source_models.get(name, self.recipe.target).chat
            slug = f"{block.name}-{name}"
            answers = self._generate(name, slug, held_out, block.decodings, chat)
            apart = {"scorers": block.score, "named": "evaluate"} if block.score else {}
            scored[f"scored_{name}"] = self._score(slug, held_out, answers, **apart)
        arms = tuple(self.recipe.arms)
        usual = [("sft", "target"), *((arm, "sft") for arm in arms)]
        usual += [(b, a) for i, a in enumerate(arms) for b in arms[i + 1 :]]
        return self.graph.add(
            Stage(
                kind="evaluate",
                slug=block.name,
                version=evaluate.VERSION,
                config=evaluate.EvaluateConfig(
                    benchmark=block.name,
                    models=names,
                    num_resamples=block.num_resamples,
                    seed=self.recipe.seed,
                    comparisons=block.comparisons or tuple(usual),
                ),
                inputs=scored,
                run=evaluate.run,
                row_type=EvaluationItem,
            )
        )

    def _export(self, name: str) -> Stage:
        inputs: dict[str, Node] = {"model": self.graph.models[name], "rows": self.graph.selections[name]}
        inputs |= {
            "target": self.given["target"],
            **{f"source_{n}": self.given[n] for n in self.recipe.used_sources if n in self.given},
        }
        if self.graph.evaluation:
            inputs["evaluation"] = self.graph.evaluation
        return self.graph.add(
            Stage(
                kind="export",
                slug=name,
                version=export.VERSION,
                config=export.ExportConfig(name=f"{self.recipe.name}-{name}", chat=self.recipe.target.chat),
                inputs=inputs,
                run=export.run,
                row_type=None,
                exclusive=True,
            )
        )


def _slug(rule: Selection) -> str:
    return rule.slug if isinstance(rule, ByDomain) else rule.type


def _train_config(block: SftBlock | Arm) -> TrainConfig:
    return TrainConfig(**{name: getattr(block, name) for name in TrainConfig.model_fields})


def _engine_demand(placement: GeneratePlacement) -> Demand:
    return Demand(placement.replicas, placement.cpus, placement.gpus_per_engine, placement.accelerator)


def unpinned(recipe: Recipe) -> list[str]:
    """Say which models and prompt sets still have a placeholder for a revision."""
    unused = {*recipe.source_models} - {*recipe.used_sources} - {*(recipe.serve.also if recipe.serve else ())}
    models = [f"{n} ({ref.repo})" for n, ref in recipe.models.items() if not ref.pinned and n not in unused]
    sets = [*recipe.prompts, *(recipe.evaluate.prompts if recipe.evaluate else ())]
    sets += recipe.clean.decontaminate.against if recipe.clean.decontaminate else ()
    found = [("prompts", records) for records in sets]
    found += [(n, source.data) for n, source in recipe.used_sources.items() if isinstance(source, ExistingAnswers)]
    return models + [f"{name} ({r.repo})" for name, r in found if r.type == "hub" and not r.pinned]
