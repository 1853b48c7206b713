"""The stages that make rows: prompts, answers, scores, the split and the selections."""

from collections.abc import Mapping, Sequence

from fusion.chat import ChatConfig
from fusion.config import fingerprint
from fusion.models import PinnedModel
from fusion.pipeline.graph import Graph, Node
from fusion.placement import Demand, GeneratePlacement
from fusion.promptsets import Clean, ExistingAnswers, PromptSet
from fusion.recipe import Arm, SftBlock, SourceModel
from fusion.rewards import EVERY_DOMAIN, Scorer, model_of
from fusion.rows import Assignment, Prompt, Response, ScoredResponse
from fusion.sampling import Decoding
from fusion.select import ByDomain, GivenRows, PairSplit, Selection, Side, Split
from fusion.stage import Stage
from fusion.stages import existing, generate, prompts, rows, score, select, split


class DataStages:
    """Adds stages that make rows to a graph; each method returns the stage, or the equal one that was there."""

    def __init__(self, graph: Graph, given: Mapping[str, PinnedModel]) -> None:
        """
        Args:
            given: the recipe's models by name, reward models too.
        """
        self.recipe = graph.recipe
        self.graph = graph
        self.given = given
        self.split: Stage | None = None

    def prompts(
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

    def source(self, name: str, source: SourceModel, training: Stage) -> dict[str, Stage]:
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
            answers = self.generate(
                name, f"{name}{mark}", training, (decoding,), source.chat, domains=domains, without=without
            )
            scored[f"{name}{mark}"] = self.score(f"{name}{mark}", training, answers, domains=domains)
        return scored

    def existing(self, name: str, source: ExistingAnswers, training: Stage) -> Stage:
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

    def split_by_pairs(self, rule: PairSplit, training: Stage, sources: Mapping[str, Stage]) -> None:
        """Make the split an artifact, which each later stage that asks for a side reads."""
        self.split = self.graph.add(
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

    def generate(
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
        """Let a model answer prompts.

        Args:
            side: of the split, where only its prompts are asked.
            domains, without: only the prompts of these domains; None = all; all but those.
        """
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

    def score(
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

    def select(self, block: SftBlock | Arm, training: Stage, sources: Mapping[str, Stage], own: Stage | None) -> Stage:
        """Take the rows that a block trains on; `own` are the scored answers of the SFT model."""
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
                slug=slug_of(block.select),
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


def slug_of(rule: Selection) -> str:
    """The name of a selection among the stages."""
    return rule.slug if isinstance(rule, ByDomain) else rule.type


def _engine_demand(placement: GeneratePlacement) -> Demand:
    return Demand(placement.replicas, placement.cpus, placement.gpus_per_engine, placement.accelerator)
