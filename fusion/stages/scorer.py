"""The worker side of stage score: an actor that scores one chunk and writes its part.

It is made in a Ray worker process and knows nothing of Ray. Each row goes to the scorer of its prompt's
domain; what has no score becomes a quarantined row with the scorer's code as its reason.
"""

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa

from fusion.artifact import Quarantined, commit_part
from fusion.errors import InputError
from fusion.rewards import ClassifierSettings, ModelSettings, PythonReward, PythonScorer, RewardFn, RewardScore
from fusion.rows import Message, Prompt, Response, ScoredResponse, from_table
from fusion.stages.chunks import Receipt

log = logging.getLogger(__name__)

EVERY_DOMAIN = "*"

StageScorer = ModelSettings | PythonScorer


@dataclasses.dataclass(frozen=True, slots=True)
class Work:
    """A response to score with the prompt that it answers."""

    prompt: Prompt
    response: Response


@dataclasses.dataclass(frozen=True)
class ScorerSettings:
    """What an actor is made of; travels from the driver."""

    directory: Path
    scorers: Mapping[str, StageScorer]
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
        if settings.folders:
            import torch  # only where a reward model runs; importing it takes seconds

            torch.set_num_threads(settings.num_threads)

    def run_chunk(self, index: int, table: pa.Table) -> Receipt:
        """Score the rows of a chunk and write its part and its quarantined rows, in the order of the input."""
        work: list[Work] = list(from_table(table, Work))
        places: dict[str | None, list[int]] = {}
        for place, row in enumerate(work):
            places.setdefault(domain_key(row.prompt.domain, self._settings.scorers), []).append(place)
        scores: dict[int, RewardScore] = {}
        for key, chosen in places.items():
            rows = [work[place] for place in chosen]
            scores.update(zip(chosen, self._score(key, rows), strict=True))
        out, refused = [], []
        for place, row in enumerate(work):
            key, score = domain_key(row.prompt.domain, self._settings.scorers), scores[place]
            if key is None or score.score is None:
                refused.append(Quarantined(row.response.row_id, score.error_code or "", score.error_message or ""))
            else:
                label = self._settings.scorers[key].label
                out.append(
                    ScoredResponse(row.response, score.score, label, score.objectives, truncated=score.truncated)
                )
        commit_part(self._settings.directory, index, out, ScoredResponse, quarantined=refused)
        tokens = sum(score.num_tokens for score in scores.values())
        return Receipt(index, len(out), len(refused), tokens=tokens)

    def _score(self, key: str | None, rows: list[Work]) -> list[RewardScore]:
        if key is None:
            return [
                RewardScore.failed("no_scorer", f"no scorer for domain {row.prompt.domain!r}; add it, or '*'")
                for row in rows
            ]
        scorer = self._settings.scorers[key]
        if isinstance(scorer, PythonScorer):
            function = self._function(key, scorer)
            return [function.score(row.prompt, row.response) for row in rows]
        conversations = [(*row.prompt.messages, Message("assistant", row.response.text)) for row in rows]
        return self._model(key, scorer).score(
            conversations, truncation="error" if scorer.truncation == "quarantine" else scorer.truncation
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


def domain_key(domain: str, scorers: Mapping[str, StageScorer]) -> str | None:
    """Return the key of the scorer for a domain: its own, else `*`, else None."""
    return domain if domain in scorers else EVERY_DOMAIN if EVERY_DOMAIN in scorers else None
