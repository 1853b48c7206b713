"""A tiny sequence-classification reward model, for the reward endpoint and for batch scoring.

Not the demo's judge: a learned model of this size sees style better than correctness and would be hacked
(`jobs.demo.verifier` judges). The one idea: regress the verifier's reward on answers of all the world's
writers, among them right answers to other problems.
"""

import random
import time
from collections.abc import Collection, Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForSequenceClassification, PreTrainedModel

from fusion.chat import Chat
from fusion.rows import Message
from jobs.demo.language import Problem, Skill, make_problem, prompt_text, write
from jobs.demo.models import TinyModel, common_config, make_tokenizer, save
from jobs.demo.people import CAREFUL, SLOPPY, source_writer
from jobs.demo.tokenizers import FAMILIES
from jobs.demo.train import (
    FitSettings,
    account,
    by_length,
    make_optimizer,
    set_learning_rate,
    take_step,
)
from jobs.demo.verifier import judge

REWARD = TinyModel("reward", "llama", FAMILIES["llama"], 360)
SETTINGS = FitSettings(learning_rate=3e-3, batch=32)
ASTRAY_SHARE = 0.10
"""Share of answers that belong to another problem of the same skill."""

Scored = tuple[str, str, float]
"""A prompt, an answer and its reward."""


def scored_answers(
    num: int,
    *,
    turns: Sequence[Skill],
    sources: Sequence[TinyModel],
    rng: random.Random,
    exclude: Collection[Problem],
) -> list[Scored]:
    """Return `num` answers of all kinds of writers with their rewards."""
    writers = (CAREFUL, SLOPPY, *map(source_writer, sources))
    rows: list[Scored] = []
    while len(rows) < num:
        problem = make_problem(rng.choice(turns), rng)
        if problem in exclude:
            continue
        answered = make_problem(problem.skill, rng) if rng.random() < ASTRAY_SHARE else problem
        text = write(answered, rng.choice(writers), rng)
        rows.append((prompt_text(problem, rng), text, judge(problem, text)["score"]))
    return rows


def make_reward_model(
    tiny: TinyModel, *, texts: Sequence[str], folder: Path, seed: int, all_bytes: bool = False, max_length: int = 1024
) -> PreTrainedModel:
    """Return an untrained reward model with one label and write it, with its tokenizer, to `folder`."""
    tokenizer = make_tokenizer(tiny, texts=texts, all_bytes=all_bytes, max_length=max_length)
    settings = common_config(tokenizer, family=tiny.family, max_length=max_length)
    config = LlamaConfig(**{**settings, "num_labels": 1})
    torch.manual_seed(seed)
    model = LlamaForSequenceClassification(config).float()
    save(model, tokenizer, folder)
    return model


def fit_reward(model: PreTrainedModel, folder: Path, rows: Sequence[Scored], *, seed: int) -> dict[str, float]:
    """Train `model` in place for one epoch to give the reward of a whole conversation.

    Returns:
        `loss` (mean squared error over the last 50 steps), `steps`, `cpu_s`.
    """
    started = time.process_time()
    ids, pad_id = _encode(folder, rows)
    goals = [reward for _, _, reward in rows]
    batches = by_length([len(row) for row in ids], batch=SETTINGS.batch, seed=seed)
    optimizer = make_optimizer(model, SETTINGS)
    losses: list[float] = []
    model.train()
    for step, batch in enumerate(batches):
        set_learning_rate(optimizer, SETTINGS, step=step, num_steps=len(batches))
        score_B = model(input_ids=_pad([ids[i] for i in batch], pad_id), use_cache=False).logits[:, 0]
        loss = (score_B - torch.tensor([goals[i] for i in batch])).square().mean()
        take_step(model, optimizer, loss, SETTINGS)
        losses.append(loss.detach().item())
    model.eval()
    return account(losses, started=started)


def _encode(folder: Path, rows: Sequence[Scored]) -> tuple[list[list[int]], int]:
    """Return the ids of whole conversations, rendered once around a stand-in, and the padding id."""
    chat = Chat.load(folder)
    probe = [
        {"role": "user", "content": "Qprompt"},
        {"role": "assistant", "content": "Qanswer"},
    ]
    frame = str(chat.tokenizer.apply_chat_template(probe, tokenize=False))
    texts = [frame.replace("Qprompt", prompt).replace("Qanswer", answer) for prompt, answer, _ in rows]
    encodings = chat.tokenizer.backend_tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    ids = [encoding.ids for encoding in encodings]
    for index in random.Random(0).sample(range(len(rows)), min(64, len(rows))):
        prompt, answer, _ = rows[index]
        expected, _ = chat.encode_conversation([Message("user", prompt), Message("assistant", answer)])
        assert tuple(ids[index]) == expected, rows[index]
    return ids, chat.pad_id


def _pad(ids: Sequence[Sequence[int]], pad_id: int) -> Tensor:
    """Return ids_BT, padded on the right: the model reads the score at the last id that is not padding."""
    width = max(len(row) for row in ids)
    return torch.tensor([[*row, *[pad_id] * (width - len(row))] for row in ids])
