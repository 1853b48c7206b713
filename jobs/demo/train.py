"""Teaching a tiny model to write like somebody: texts, token ids, and a plain seeded loop.

World-building, not the product: the trainer that fusion uses is in `fusion.train`. The one idea is speed on
one core: examples are tokenised in one batch (and compared with `fusion.chat` on a sample), batches hold
examples of nearly equal length, and no attention mask is needed since padding is on the right.
"""

import dataclasses
import math
import random
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from fusion.chat import Chat
from fusion.rows import Message

IGNORED = -100
"""Label of a position that is not trained."""


@dataclasses.dataclass(frozen=True, slots=True)
class Example:
    """Token ids of a conversation; the first `num_prompt` are given, the rest is to be learnt."""

    ids: tuple[int, ...]
    num_prompt: int


@dataclasses.dataclass(frozen=True, slots=True)
class FitSettings:
    """One training run."""

    learning_rate: float
    batch: int
    warmup: float = 0.1
    """Share of the steps with a rising learning rate; a cosine to zero follows."""
    weight_decay: float = 0.01
    clip: float = 1.0


def encode(folder: Path, pairs: Sequence[tuple[str, str]]) -> list[Example]:
    """Return the ids of (prompt, answer) pairs under the chat of the model in `folder`.

    The template is rendered once around a stand-in, not once per pair (15 times faster). A sample of the
    result must equal what `fusion.chat.Chat` gives, or this is a bug.
    """
    chat = Chat.load(folder)
    conversation = [
        {"role": "user", "content": "Qprompt"},
        {"role": "assistant", "content": "Qanswer"},
    ]
    render = chat.tokenizer.apply_chat_template
    given = str(render(conversation[:1], add_generation_prompt=True, tokenize=False))
    whole = str(render(conversation, tokenize=False))
    assert whole.startswith(given), folder
    before, after = given.split("Qprompt")
    between = whole[len(given) : whole.index("Qanswer")]
    prompts = [f"{before}{prompt}{after}" for prompt, _ in pairs]
    wholes = [f"{text}{between}{answer}" for text, (_, answer) in zip(prompts, pairs, strict=True)]
    backend = chat.tokenizer.backend_tokenizer
    prompt_ids = backend.encode_batch_fast(prompts, add_special_tokens=False)
    whole_ids = backend.encode_batch_fast(wholes, add_special_tokens=False)
    examples = [
        Example((*whole.ids, chat.end_of_turn_id), len(prompt))
        for prompt, whole in zip(prompt_ids, whole_ids, strict=True)
    ]
    for index in random.Random(0).sample(range(len(pairs)), min(64, len(pairs))):
        messages = [Message("user", pairs[index][0])]
        expected = chat.encode_prompt(messages)
        assert examples[index].num_prompt == len(expected), pairs[index]
        assert examples[index].ids == (
            *expected,
            *chat.encode_response(messages, pairs[index][1]),
        ), pairs[index]
    return examples


def fit(
    model: PreTrainedModel,
    examples: Sequence[Example],
    *,
    settings: FitSettings,
    seed: int,
) -> dict[str, float]:
    """Train `model` in place for one epoch on the answers of `examples`.

    Returns:
        `loss` (mean over the last 50 steps, nats per token), `steps`, `cpu_s`.
    """
    started = time.process_time()
    batches = list(_batches(examples, batch=settings.batch, seed=seed))
    model.train()
    losses: list[float] = []
    optimizer = make_optimizer(model, settings)
    for step, batch in enumerate(batches):
        set_learning_rate(optimizer, settings, step=step, num_steps=len(batches))
        ids_BT, labels_BT = _collate(batch)
        # The last position predicts nothing.
        logits_BTV = model(input_ids=ids_BT[:, :-1], use_cache=False).logits
        loss = functional.cross_entropy(logits_BTV.flatten(0, 1), labels_BT[:, 1:].flatten(), ignore_index=IGNORED)
        take_step(model, optimizer, loss, settings)
        losses.append(loss.detach().item())
    model.eval()
    return account(losses, started=started)


def account(losses: Sequence[float], *, started: float) -> dict[str, float]:
    """What a training loop says at its end; `started` is the process's CPU time at its beginning."""
    tail = losses[-50:]
    return {"loss": sum(tail) / len(tail), "steps": len(losses), "cpu_s": time.process_time() - started}


def make_optimizer(model: PreTrainedModel, settings: FitSettings) -> torch.optim.Optimizer:
    """Return a fused AdamW over all parameters of `model`."""
    return torch.optim.AdamW(
        model.parameters(),
        lr=settings.learning_rate,
        betas=(0.9, 0.95),
        weight_decay=settings.weight_decay,
        fused=True,
    )


def set_learning_rate(
    optimizer: torch.optim.Optimizer,
    settings: FitSettings,
    *,
    step: int,
    num_steps: int,
) -> None:
    """Set the rate of `step` (from 0): linear warm-up, then a cosine to zero."""
    num_warmup = max(1, round(settings.warmup * num_steps))
    rising = (step + 1) / num_warmup
    falling = 0.5 * (1 + math.cos(math.pi * max(0, step - num_warmup) / max(1, num_steps - num_warmup)))
    for group in optimizer.param_groups:
        group["lr"] = settings.learning_rate * min(rising, falling)


def take_step(
    model: PreTrainedModel,
    optimizer: torch.optim.Optimizer,
    loss: Tensor,
    settings: FitSettings,
) -> None:
    """Do one clipped update."""
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def by_length(lengths: Sequence[int], *, batch: int, seed: int) -> list[list[int]]:
    """Return index batches in random order whose members have nearly equal lengths (under 3 % padding)."""
    rng = random.Random(seed)
    order = list(range(len(lengths)))
    rng.shuffle(order)
    pool = 40 * batch
    batches: list[list[int]] = []
    for start in range(0, len(order), pool):
        near = sorted(order[start : start + pool], key=lambda index: lengths[index])
        batches += [near[i : i + batch] for i in range(0, len(near), batch)]
    rng.shuffle(batches)
    return batches


def _batches(examples: Sequence[Example], *, batch: int, seed: int) -> Iterator[list[Example]]:
    for indices in by_length([len(example.ids) for example in examples], batch=batch, seed=seed):
        yield [examples[index] for index in indices]


def _collate(batch: Sequence[Example]) -> tuple[Tensor, Tensor]:
    """Return ids_BT and labels_BT, padded on the right; padded ids are 0, which no answer position sees."""
    width = max(len(example.ids) for example in batch)
    ids_BT = torch.zeros(len(batch), width, dtype=torch.long)
    labels_BT = torch.full((len(batch), width), IGNORED)
    for row, example in enumerate(batch):
        ids_BT[row, : len(example.ids)] = torch.tensor(example.ids)
        labels_BT[row, example.num_prompt : len(example.ids)] = torch.tensor(example.ids[example.num_prompt :])
    return ids_BT, labels_BT
