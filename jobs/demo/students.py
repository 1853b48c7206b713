"""Trains one model of the demo world from nothing into a Hugging Face folder.

The one idea: everything a model learns from follows from (world seed, model name), so each can be made
alone, in any order and in any process, with the same bytes.
"""

import random
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

from jobs.demo.curriculum import curriculum_of
from jobs.demo.language import Problem
from jobs.demo.models import DOMAIN_SOURCES, SOURCES, TARGET, TinyModel, make_model, make_tokenizer, save, save_weights
from jobs.demo.people import sloppy_pairs, source_pairs, target_pairs, tokenizer_texts
from jobs.demo.reward import REWARD, fit_reward, make_reward_model, scored_answers
from jobs.demo.train import FitSettings, encode, fit

if TYPE_CHECKING:
    from jobs.demo.settings import WorldSettings

SOURCE_FIT = FitSettings(learning_rate=3e-3, batch=32)
TARGET_FIT = FitSettings(learning_rate=3e-3, batch=32)
SLOPPY_FIT = FitSettings(learning_rate=6e-4, batch=32)

NUM_TOKENIZER_PROBLEMS = 2_000
MAX_LENGTH = 1024


def train_folder(
    name: str, folder: Path, *, settings: "WorldSettings", exclude: Collection[Problem]
) -> dict[str, float]:
    """Train model `name` and write it to `folder`; no text holds a problem of `exclude`.

    Returns:
        Final loss, number of steps and CPU seconds of the (last) training stage.
    """
    # One bar per file of 1.5 MB is noise.
    transformers_logging.disable_progress_bar()
    rng = random.Random(f"{name}/{settings.seed}")
    seed = rng.getrandbits(31)
    turns = curriculum_of(settings).turns
    sources = DOMAIN_SOURCES if settings.domains else SOURCES
    texts = tokenizer_texts(NUM_TOKENIZER_PROBLEMS, turns=turns, rng=rng, exclude=exclude)
    if name == REWARD.name:
        model = make_reward_model(REWARD, texts=texts, folder=folder, seed=seed, max_length=MAX_LENGTH)
        rows = scored_answers(settings.reward_examples, turns=turns, sources=sources, rng=rng, exclude=exclude)
        facts = fit_reward(model, folder, rows, seed=seed)
        save_weights(model, folder)
        return facts
    tiny = next(tiny for tiny in (*sources, TARGET) if tiny.name == name)
    tokenizer = make_tokenizer(tiny, texts=texts, max_length=MAX_LENGTH)
    model = make_model(tiny, tokenizer, seed=seed, max_length=MAX_LENGTH)
    # The chat that renders the training text is read from the folder, like anyone else's.
    save(model, tokenizer, folder)
    facts = _teach(tiny, model, folder, settings=settings, rng=rng, seed=seed, exclude=exclude)
    save_weights(model, folder)
    return facts


def _teach(
    tiny: TinyModel,
    model: PreTrainedModel,
    folder: Path,
    *,
    settings: "WorldSettings",
    rng: random.Random,
    seed: int,
    exclude: Collection[Problem],
) -> dict[str, float]:
    turns = curriculum_of(settings).turns
    if tiny.skills:
        pairs = source_pairs(tiny, settings.source_examples, turns=turns, rng=rng, exclude=exclude)
        return fit(model, encode(folder, pairs), settings=SOURCE_FIT, seed=seed)
    pairs = target_pairs(settings.target_examples, turns=turns, rng=rng, exclude=exclude)
    first = fit(model, encode(folder, pairs), settings=TARGET_FIT, seed=seed)
    habits = sloppy_pairs(settings.sloppy_examples, turns=turns, rng=rng, exclude=exclude)
    last = fit(model, encode(folder, habits), settings=SLOPPY_FIT, seed=seed + 1)
    return {
        "loss": last["loss"],
        "steps": first["steps"] + last["steps"],
        "cpu_s": first["cpu_s"] + last["cpu_s"],
    }
