"""The worker side of stage score: an actor that scores one chunk and writes its part.

It is made in a Ray worker process and knows nothing of Ray. Each row goes to what judges its prompt's domain: first the
verifier, then the scorer, which is not asked about rows that the verifier failed on. What has no score becomes a
quarantined row with a code as its reason.
"""

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa

from fusion.artifact import Quarantined, commit_part, write_json
from fusion.errors import InputError
from fusion.rewards import (
    EVERY_DOMAIN,
    ClassifierSettings,
    DomainScorer,
    ModelSettings,
    PythonReward,
    PythonScorer,
    RewardFn,
    RewardScore,
    Unscored,
)
from fusion.row_tables import from_table
from fusion.rows import Message, Prompt, Response, ScoredResponse, Verdict
from fusion.stages.chunks import Receipt
from fusion.stages.judging import SANDBOX, Bench
from fusion.verifiers import Judgement

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True)
class Work:
    """A response to score with the prompt that it answers."""

    prompt: Prompt
    response: Response


@dataclasses.dataclass(frozen=True)
class ScorerSettings:
    """What an actor is made of; travels from the driver."""

    directory: Path
    scorers: Mapping[str, DomainScorer]
    """By domain, `*` for the rest."""
    folders: Mapping[str, Path]
    """Folder of the reward model of each domain that has one."""
    device: str
    num_threads: int


class ScoreActor:
    """Scores chunks. Models are loaded when the first row needs them, and one model once."""

    def __init__(self, *, settings: ScorerSettings) -> None:
        self._settings = settings
        self._models: dict[tuple[Path, str], RewardFn] = {}
        self._functions: dict[str, PythonReward] = {}
        self._benches: dict[str, Bench] = {}
        if settings.folders:
            import torch  # only where a reward model runs; importing it takes seconds

            torch.set_num_threads(settings.num_threads)

    def run_chunk(self, index: int, table: pa.Table) -> Receipt:
        """Score the rows of a chunk and write its part and its quarantined rows, in the order of the input."""
        work: list[Work] = list(from_table(table, Work))
        places: dict[str | None, list[int]] = {}
        for place, row in enumerate(work):
            places.setdefault(domain_key(row.prompt.domain, self._settings.scorers), []).append(place)
        results: dict[int, ScoredResponse | Quarantined] = {}
        tokens = 0
        for key, chosen in places.items():
            rows = [work[place] for place in chosen]
            found, read = self._results(key, rows)
            results.update(zip(chosen, found, strict=True))
            tokens += read
        ordered = [results[place] for place in range(len(work))]
        out = [row for row in ordered if isinstance(row, ScoredResponse)]
        refused = [row for row in ordered if isinstance(row, Quarantined)]
        commit_part(self._settings.directory, index, out, ScoredResponse, quarantined=refused)
        return Receipt(index, len(out), len(refused), tokens=tokens)

    def _results(self, key: str | None, rows: list[Work]) -> tuple[list[ScoredResponse | Quarantined], int]:
        """Return what becomes of rows of one domain, in order, and how many tokens a reward model has read."""
        if key is None:
            return [_no_scorer(row) for row in rows], 0
        scorer = self._settings.scorers[key]
        said = self._judged(key, scorer, rows)
        asked = [place for place, one in enumerate(said) if one is None or one.verdict is not Verdict.error]
        scores = dict(
            zip(asked, self._scores(key, scorer, [rows[p] for p in asked], [said[p] for p in asked]), strict=True)
        )
        found = [
            _outcome(row, one, scores.get(place), scorer)
            for place, (row, one) in enumerate(zip(rows, said, strict=True))
        ]
        return found, sum(score.num_tokens for score in scores.values())

    def _judged(self, key: str, scorer: DomainScorer, rows: list[Work]) -> list[Judgement | None]:
        if scorer.verifier is None:
            return [None] * len(rows)
        if key not in self._benches:
            bench = self._benches[key] = Bench(scorer.verifier.load, size=self._settings.num_threads)
            if bench.level is not None:
                write_json(self._settings.directory / f"{SANDBOX}{bench.level}.json", {"level": bench.level})
        return list(self._benches[key].judge([(row.prompt, row.response.text) for row in rows]))

    def _scores(
        self, key: str, scorer: DomainScorer, rows: list[Work], said: list[Judgement | None]
    ) -> list[RewardScore]:
        reward = scorer.reward
        if reward is None:
            return [RewardScore(1.0 if one and one.verdict is Verdict.correct else 0.0) for one in said]
        if isinstance(reward, Unscored):
            return [RewardScore(0.0)] * len(rows)
        if isinstance(reward, PythonScorer):
            function = self._function(key, reward)
            return [function.score(row.prompt, row.response) for row in rows]
        if not rows:
            return []
        conversations = [(*row.prompt.messages, Message("assistant", row.response.text)) for row in rows]
        return self._model(key, reward).score(
            conversations, truncation="error" if reward.truncation == "quarantine" else reward.truncation
        )

    def _function(self, key: str, scorer: PythonScorer) -> PythonReward:
        if key not in self._functions:
            self._functions[key] = scorer.load()
        return self._functions[key]

    def _model(self, key: str, scorer: ModelSettings) -> RewardFn:
        folder = self._settings.folders.get(key)
        if folder is None:
            raise InputError(f"the reward model of domain {key!r} is not among the inputs of the stage")
        name = (folder, scorer.model_dump_json())
        if name not in self._models:
            self._models[name] = self._load(scorer, folder)
        return self._models[name]

    def _load(self, scorer: ModelSettings, folder: Path) -> RewardFn:
        if not isinstance(scorer, ClassifierSettings) or scorer.backend == "transformers":
            return scorer.load(folder, device=self._settings.device)
        from fusion.stages.classify_vllm import load_with_vllm  # brings vLLM with it

        return load_with_vllm(scorer, folder, num_threads=self._settings.num_threads)


def _no_scorer(row: Work) -> Quarantined:
    return Quarantined(row.response.row_id, "no_scorer", f"no scorer for domain {row.prompt.domain!r}; add it, or '*'")


def _outcome(
    row: Work, said: Judgement | None, score: RewardScore | None, scorer: DomainScorer
) -> ScoredResponse | Quarantined:
    """Return the scored row, or the quarantined one where the verifier or the scorer has failed."""
    if score is None:
        assert said is not None and scorer.verifier is not None
        return Quarantined(row.response.row_id, f"{scorer.verifier.label}_{said.reason or 'error'}", said.detail)
    if score.score is None:
        return Quarantined(row.response.row_id, score.error_code or "", score.error_message or "")
    objectives, value = score.objectives, score.score
    if said is not None:
        correct = said.verdict is Verdict.correct
        objectives = {**objectives, "exact": 1.0 if correct else 0.0}
        value += scorer.correct_bonus if correct else 0.0
    return ScoredResponse(
        row.response,
        value,
        scorer.label,
        objectives,
        verdict=said.verdict if said else None,
        verdict_reason=(said.reason or None) if said else None,
        truncated=score.truncated,
    )


def domain_key(domain: str, scorers: Mapping[str, DomainScorer]) -> str | None:
    """Return the key of the scorer for a domain: its own, else `*`, else None."""
    return domain if domain in scorers else EVERY_DOMAIN if EVERY_DOMAIN in scorers else None
