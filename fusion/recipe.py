"""The recipe: what people write, typed. One block is one model; field name = key; defaults live here, once.

Loading is strict and light: a misspelt key fails with its full path and the nearest name, and nothing
heavy is imported, so a recipe can be checked and planned on any machine. There is no wiring in a
recipe; the graph is made from it in `pipeline.py`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from fusion.chat import ChatConfig
from fusion.config import Config, Placement
from fusion.loading import read_layers, validate
from fusion.losses import SftLoss
from fusion.models import ModelRef
from fusion.placement import GeneratePlacement, ScorePlacement
from fusion.promptsets import Clean, ExistingAnswers, PromptSet
from fusion.promptsets.common import DomainName
from fusion.rewards import EVERY_DOMAIN, Canary, Scorer, model_of
from fusion.rows import roles
from fusion.sampling import Decoding, Precision
from fusion.select import AnySplit, ByDomain, Guard, PairSplit, Selection, with_seed
from fusion.training import TrainConfig, TrainPlacement

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
"""Names become directory names and table rows."""

RESERVED = ("target", "sft")


class ModelSpec(ModelRef):
    """A model that answers: a source that the target learns from, or the target itself once it has had its SFT."""

    chat: ChatConfig = ChatConfig()
    """System prompt, pinned date, template override and further stop tokens."""
    sampling: Decoding
    """Merged over the recipe's `sampling`: state only what differs."""


class SourceModel(ModelSpec):
    """A source that is asked."""

    type: Literal["model"] = "model"
    sampling_by_domain: dict[DomainName, Decoding] = {}
    """Merged over `sampling` for the training prompts of single domains, e.g. `code: {num_samples: 8}`."""
    domains: tuple[DomainName, ...] | None = Field(default=None, min_length=1)
    """Domains whose training prompts it answers; null = all. In the evaluation it answers every prompt."""

    @model_validator(mode="after")
    def _domains_are_answered(self) -> Self:
        if self.domains is not None and (unasked := sorted(set(self.sampling_by_domain) - set(self.domains))):
            raise ValueError(f"sampling_by_domain.{unasked[0]}: that domain is not among domains {list(self.domains)}")
        return self


def _with_type(value: Any) -> Any:
    """Read a source that names no type as a model that is asked."""
    return {"type": "model", **value} if isinstance(value, Mapping) and "type" not in value else value


Source = Annotated[
    Annotated[SourceModel | ExistingAnswers, Field(discriminator="type")],
    BeforeValidator(_with_type),
]
"""Where answers come from: a model that is asked, or a data set that has them."""


class SftBlock(TrainConfig):
    """Stage one: supervised fine-tuning of the target on the best source responses."""

    select: Selection
    """Which responses are imitated."""
    guard: Guard | None = None
    """What the rows as a whole must keep to."""


class Arm(TrainConfig):
    """A training run to compare: a preference stage, or a control. Arms share everything above them."""

    select: Selection
    """Which rows it trains on; must make the rows that `loss` reads."""
    guard: Guard | None = None
    """What the rows as a whole must keep to."""
    start: Literal["sft", "target"] = "sft"
    """Model that it starts from; also the reference of losses that need one."""

    @model_validator(mode="after")
    def _rows_fit(self) -> Self:
        if self.select.row_type not in self.loss.row_types:
            raise ValueError(
                f"select {self.select.type} makes {self.select.row_type.__name__} rows but loss {self.loss.type} reads "
                f"{' or '.join(t.__name__ for t in self.loss.row_types)}; choose a rule and a loss that fit"
            )
        return self


class Evaluate(Config):
    """Held-out comparison of target, sources, SFT model and all arms."""

    name: Name = "held_out"
    """Name of the benchmark in tables."""
    prompts: tuple[PromptSet, ...] = Field(min_length=1)
    """Held-out prompts; they are taken out of the training prompts."""
    decodings: tuple[Decoding, ...] = Field(min_length=1)
    """Decodings reported as `reward`/`exact` (name `sample`) and `greedy_reward`/`greedy_exact` (name `greedy`)."""
    score: dict[str, Scorer] | None = Field(default=None, min_length=1)
    """Scorer per domain for the evaluation alone, e.g. verifiers without the reward models that rank training answers;
    null = the recipe's `score`."""
    num_resamples: int = Field(default=2000, ge=100)
    """Resamples of the paired bootstrap."""
    comparisons: tuple[tuple[Name, Name], ...] = ()
    """Pairs (a, b) whose difference a - b is reported."""


class ServedReward(ModelRef):
    """A reward model that is served."""

    canary: Canary | None = None
    """A known pair that it must score in the right order before it serves, and from time to time."""


class Serve(Config):
    """What `fuseline serve` offers."""

    arm: Name
    """Arm that is exported and served."""
    also: tuple[Name, ...] = ()
    """Models served beside it, as they came: `target` (before fusion) and sources, by the recipe's names."""
    rewards: dict[Name, ServedReward] = {}
    """Reward models for `POST /v1/rewards`, by name."""


class Placements(Placement):
    """Where stages run. Changing any of it re-runs nothing."""

    generate: GeneratePlacement = GeneratePlacement()
    """All generate stages."""
    models: dict[str, GeneratePlacement] = {}
    """Own placement of single models, by name; replaces `generate` for them."""
    score: ScorePlacement = ScorePlacement()
    """All score stages."""
    train: TrainPlacement = TrainPlacement()
    """SFT, reference and preference stages."""
    parallel_stages: int = Field(default=1, ge=1)
    """Independent stages that run at once; each needs its own share of the cluster."""


class Recipe(Config):
    """Prompts to served model."""

    name: Name
    """Name of the run; results go to `{root}/{name}/`."""
    seed: int = Field(default=42, ge=0)
    """Seed of split, ties, sampling, training order and bootstrap wherever they do not state their own."""
    root: Path = Path("runs")
    """Directory of artifacts and results; shared storage on a cluster."""
    target: ModelSpec
    """The small model that is trained."""
    sources: dict[Name, Source] = {}
    """What to learn from, by name: models that are asked, and data sets that have their answers. None are needed where all
    training rows are given (`select: {type: rows}`)."""
    prompts: tuple[PromptSet, ...] = Field(min_length=1)
    """Training prompts."""
    clean: Clean = Clean()
    """Near duplicates and evaluation prompts that are taken out of the training prompts."""
    sampling: Decoding
    """How sources answer, and the SFT model for the preference stage, where they do not state their own."""
    dtype: Precision = "bfloat16"
    """Precision of generation."""
    max_model_len: int | None = Field(default=None, ge=1)
    """Context limit of generation; None takes each model's own."""
    score: dict[str, Scorer] = Field(min_length=1)
    """Scorer per domain; `*` is for all domains not named."""
    learn_from: tuple[Name, ...] | None = Field(default=None, min_length=1)
    """Sources whose answers are used, by name; null = all of `sources`. Others cost nothing: neither answers nor scores."""
    split: AnySplit
    """Which prompts are for SFT and which for the preference stage: by shares, or by the pairs that sources give."""
    sft: SftBlock
    """Stage one."""
    arms: dict[Name, Arm] = {}
    """Stage two and its controls, by name."""
    evaluate: Evaluate | None = None
    """Held-out comparison; None leaves it out."""
    serve: Serve | None = None
    """Which arm to export and serve; None leaves it out."""
    max_quarantined: float = Field(default=0.5, ge=0, le=1)
    """Share of rows that a prompts, generate or score stage may refuse before it counts as failed."""
    placement: Placements = Placements()
    """Where and how fast; never part of a key."""

    @model_validator(mode="before")
    @classmethod
    def _spread_defaults(cls, data: Any) -> Any:
        return _spread(data) if isinstance(data, dict) else data

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        names = [*self.sources, *self.arms]
        for name in names:
            if name in RESERVED or names.count(name) > 1:
                raise ValueError(
                    f"the name {name!r} is taken; sources and arms need names of their own, not {RESERVED}"
                )
        if unknown := [name for name in self.learn_from or () if name not in self.sources]:
            raise ValueError(f"learn_from: {unknown[0]!r} is not a source; sources: {', '.join(self.sources)}")
        self._check_selections()
        self._check_domains()
        self._check_sides()
        if self.evaluate is not None:
            known = ("target", "sft", *self.arms, *(n for n in self.used_sources if n in self.source_models))
            for name in [n for pair in self.evaluate.comparisons for n in pair]:
                if name not in known:
                    raise ValueError(f"evaluate.comparisons: {name!r} is not a model; known: {', '.join(known)}")
        if self.serve is not None:
            self._check_serve(self.serve)
        return self

    def _check_selections(self) -> None:
        for where, block in self._blocks:
            select, guard = block.select, block.guard
            if guard is not None and select.type == "rows":
                raise ValueError(f"{where}.guard: given rows are taken as they are; leave it out")
            if guard is not None and guard.max_longer_share is not None and "rejected" not in roles(select.row_type):
                raise ValueError(
                    f"{where}.guard.max_longer_share: {select.row_type.__name__} rows have no rejected side"
                )
            if guard is not None and guard.max_share is not None:
                self._check_max_share(where, select, guard)
            if select.needs_sources and not self.sources:
                raise ValueError(f"{where}.select {select.type} reads the sources' answers, and there are no sources")
        if isinstance(self.split, PairSplit) and not self.sources:
            raise ValueError("split by pairs reads the sources' answers, and there are no sources")
        if self.sft.loss.type != "sft":
            raise ValueError(f"sft.loss must be of type sft, not {self.sft.loss.type}")
        if self.sft.select.row_type not in SftLoss.row_types:
            raise ValueError(
                f"sft.select {self.sft.select.type} makes {self.sft.select.row_type.__name__} rows, not those of SFT"
            )
        if self.sft.select.needs_own:
            raise ValueError("sft.select cannot use the SFT model's own samples: it does not exist yet")

    def _check_max_share(self, where: str, select: Selection, guard: Guard) -> None:
        if not select.needs_sources:
            raise ValueError(f"{where}.guard.max_share: no source wins rows of select {select.type}")
        num = len(self.used_sources)
        if num and _won_by_sources(select) and guard.leaves_nothing(num):
            raise ValueError(
                f"{where}.guard.max_share {guard.max_share:g}: {num} sources with at most that share each are less than all "
                "rows, so none could stay; give a larger share"
            )

    def _check_domains(self) -> None:
        """What a prompt set says of its domain is known now; everything that domains decide must know them."""
        known = {s.domain for s in self.prompts if s.domain is not None}
        asked = {s.domain for s in (self.evaluate.prompts if self.evaluate else ()) if s.domain is not None}
        own = (self.evaluate.score if self.evaluate else None) or {}
        for where, domains, scorers in (
            ("score", known, self.score),
            ("evaluate.score" if own else "score", asked, own or self.score),
        ):
            if missing := sorted(d for d in domains if d not in scorers and EVERY_DOMAIN not in scorers):
                raise ValueError(f"{where} has no scorer for domain {missing[0]!r}; add it, or '*' for all others")
        if isinstance(self.split, PairSplit) and (reason := self.split.lacks(sorted(known))):
            raise ValueError(f"split: {reason}")
        everything = known if all(s.domain is not None for s in self.prompts) else None
        for name, source in self.source_models.items():
            for domain in (*(source.domains or ()), *source.sampling_by_domain):
                if domain not in self.score and EVERY_DOMAIN not in self.score:
                    raise ValueError(f"sources.{name}: score has no scorer for its domain {domain!r}; add it, or '*'")
                if everything is not None and domain not in everything:
                    told = ", ".join(sorted(everything))
                    raise ValueError(f"sources.{name}: no prompts are of its domain {domain!r}; there are: {told}")

    def _check_sides(self) -> None:
        for where, block in self._blocks:
            select = block.select
            if select.side != "all" and not self.split.gives(select.side):
                raise ValueError(
                    f"{where}.select {select.type} takes prompts of side {select.side!r}, and split gives that side none; "
                    "give it a share"
                )

    def _check_serve(self, serve: Serve) -> None:
        if serve.arm not in (*self.arms, "sft"):
            raise ValueError(f"serve.arm {serve.arm!r} is not an arm; arms: {', '.join(self.arms)}, or sft")
        for name in serve.also:
            if name not in ("target", *self.source_models):
                known = ", ".join(("target", *self.source_models))
                raise ValueError(f"serve.also: {name!r} is not a given model; known: {known}")
        names = [serve.arm, *serve.also, *serve.rewards]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"serve names {name!r} twice; clients tell models apart by name")

    @property
    def _blocks(self) -> tuple[tuple[str, SftBlock | Arm], ...]:
        """Everything that trains, by where it stands in the recipe."""
        return ("sft", self.sft), *((f"arms.{name}", arm) for name, arm in self.arms.items())

    @property
    def used_sources(self) -> dict[str, SourceModel | ExistingAnswers]:
        """The sources that the target learns from."""
        return {n: s for n, s in self.sources.items() if self.learn_from is None or n in self.learn_from}

    @property
    def source_models(self) -> dict[str, SourceModel]:
        """The sources that are models: those that can be asked, evaluated and served."""
        return {n: s for n, s in self.sources.items() if isinstance(s, SourceModel)}

    @property
    def scorers(self) -> tuple[Scorer, ...]:
        """All scorers, those of the evaluation included."""
        return (*self.score.values(), *((self.evaluate.score or {}).values() if self.evaluate else ()))

    @property
    def models(self) -> dict[str, ModelRef]:
        """Every given model by name, reward models as `score.<domain>`, `evaluate.<domain>` and `serve.<name>`."""
        scorers = {f"score.{d}": model for d, s in self.score.items() if (model := model_of(s)) is not None}
        of_evaluation = (self.evaluate.score if self.evaluate else None) or {}
        scorers |= {f"evaluate.{d}": model for d, s in of_evaluation.items() if (model := model_of(s)) is not None}
        rewards = {f"serve.{n}": m for n, m in self.serve.rewards.items()} if self.serve else {}
        return {"target": self.target, **self.source_models, **scorers, **rewards}

    @property
    def result_dir(self) -> Path:
        return self.root / self.name

    @property
    def store(self) -> Path:
        return self.root / "store"


def _won_by_sources(select: Selection) -> bool:
    """Whether every row of a rule is won by a source; a rule by domain may have rows of own answers beside them."""
    return (
        all(rule.needs_sources for rule in select.rules.values())
        if isinstance(select, ByDomain)
        else select.needs_sources
    )


def _spread(data: dict[str, Any]) -> dict[str, Any]:
    """Fill what blocks inherit: the recipe's seed, and its sampling under that of the target and each source."""
    data = dict(data)
    seed = data.get("seed", Recipe.model_fields["seed"].default)
    if isinstance(split := data.get("split"), dict):
        data["split"] = {"seed": seed, **split}
        if isinstance(split.get("pair"), dict):
            data["split"]["pair"] = with_seed(split["pair"], seed)
    if isinstance(sampling := data.get("sampling"), dict):
        if "target" in data:
            data["target"] = _spread_sampling(data["target"], sampling)
        if isinstance(data.get("sources"), dict):
            data["sources"] = {name: _spread_sampling(source, sampling) for name, source in data["sources"].items()}
    if isinstance(data.get("sft"), dict):
        data["sft"] = _spread_training({"loss": {"type": "sft"}, **data["sft"]}, seed)
    if isinstance(data.get("arms"), dict):
        data["arms"] = {n: _spread_training(a, seed) if isinstance(a, dict) else a for n, a in data["arms"].items()}
    return data


def _spread_sampling(model: Any, sampling: dict[str, Any]) -> Any:
    if not isinstance(model, dict) or not isinstance(model.get("sampling") or {}, dict):
        return model  # validation names what is wrong with it
    if model.get("type", "model") != "model":
        return model  # answers that are there are not sampled
    own = {**sampling, **(model.get("sampling") or {})}
    spread = {**model, "sampling": own}
    if isinstance(by_domain := model.get("sampling_by_domain"), dict):
        spread["sampling_by_domain"] = {n: {**own, **d} if isinstance(d, dict) else d for n, d in by_domain.items()}
    return spread


def _spread_training(block: dict[str, Any], seed: Any) -> dict[str, Any]:
    block = {"seed": seed, **block}
    if isinstance(block.get("select"), dict):
        block["select"] = with_seed(block["select"], seed)
    if isinstance(block.get("guard"), dict):
        block["guard"] = {"seed": seed, **block["guard"]}
    return block


def load_recipe(paths: list[Path], assignments: list[str] | None = None) -> Recipe:
    """Read recipe files left to right, lay `key.sub=value` assignments over them, and validate.

    Raises:
        RecipeError: one line per mistake, each with file or field and what to do.
    """
    data = read_layers(paths, assignments or [], called="recipe")
    return validate(Recipe, data, where=", ".join(map(str, paths)))
