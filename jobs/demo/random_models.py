"""Untrained models of the demo's architectures that take any text: for running the pipeline on real prompts.

    python -m jobs.demo.random_models --out runs/real-prompts/models [--seed 0]

They say nothing sensible and are not meant to; the run proves that prompts in any language, with code and
control characters, pass through every stage. The one idea: the same families as in `jobs.demo.models`, but
with all 256 bytes in the vocabulary and a long context.
"""

import argparse
import dataclasses
import os
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from transformers.utils import logging as transformers_logging

from jobs.demo.models import SOURCES, TARGET, make_model, make_tokenizer, save
from jobs.demo.reward import REWARD, make_reward_model

NAMES = {
    "llama-add": "llama",
    "qwen2-sort": "qwen2",
    "gemma2-translate": "gemma2",
    "mistral-reverse": "mistral",
    "target": "target",
}
"""Name in the demo world -> folder name here."""

VOCAB_SIZE = 640
MAX_LENGTH = 16_384
"""Longest conversation in tokens; a token is about two characters of English and one byte of Chinese."""

_TEXTS = (
    "Write a function that returns the sum of all even numbers in the list, and explain how it works.",
    "How many apples does she have left if she gives half of them to her brother and eats three more?",
    "What are the main differences between the two approaches, and which one would you recommend for this problem?",
    'def solve(numbers: list[int]) -> int:\n    """Return the answer."""\n    return sum(n for n in numbers if n % 2)\n',
    "Please translate the following sentence, then give a short summary of the text in your own words.",
    "The time, the year, the people, the first, the other, the same, there, their, they, then, this, that, with, from.",
    "You are given a string. Print the number of words in it that start with a vowel; the order does not matter.",
    "In order to answer the question, we need to find out what the total cost of the items was: it is $12.50.",
)


def build(out: Path, *, seed: int) -> list[Path]:
    """Write the four sources, the target and `reward` into `out` and return their folders.

    A folder is renamed into place when it is whole; one that is there is kept, so the same call twice changes nothing.
    """
    transformers_logging.disable_progress_bar()
    out.mkdir(parents=True, exist_ok=True)
    folders = []
    for offset, tiny in enumerate((*SOURCES, TARGET, REWARD)):
        folder = out / NAMES.get(tiny.name, tiny.name)
        folders.append(folder)
        if folder.is_dir():
            continue
        temporary = out / f".{folder.name}.{os.getpid()}.tmp"
        large = dataclasses.replace(tiny, vocab_size=VOCAB_SIZE)
        if tiny is REWARD:
            make_reward_model(
                large, texts=_TEXTS, folder=temporary, seed=seed + offset, all_bytes=True, max_length=MAX_LENGTH
            )
        else:
            tokenizer = make_tokenizer(large, texts=_TEXTS, all_bytes=True, max_length=MAX_LENGTH)
            save(make_model(large, tokenizer, seed=seed + offset, max_length=MAX_LENGTH), tokenizer, temporary)
        shutil.rmtree(folder, ignore_errors=True)
        temporary.replace(folder)
    return folders


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m jobs.demo.random_models", description="Write untrained models that take any text."
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the model folders")
    parser.add_argument("--seed", type=int, default=0, help="seed of the weights (default 0)")
    given = parser.parse_args(arguments)
    started = time.monotonic()
    folders = build(given.out, seed=given.seed)
    print(f"{', '.join(folder.name for folder in folders)} in {given.out} after {time.monotonic() - started:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
