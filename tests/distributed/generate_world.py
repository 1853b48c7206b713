"""A tiny random model, prompts, and generate stages over them; also a driver to be killed.

Run as a program it is that driver: `generate_world.py ADDRESS ROOT MODEL NUM_PROMPTS`.
"""

import dataclasses
import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fusion.artifact import Artifact
from fusion.chat import ChatConfig
from fusion.config import Config
from fusion.models import ModelRef, PinnedModel
from fusion.placement import GeneratePlacement
from fusion.rows import Message, Prompt, Response
from fusion.sampling import Decoding
from fusion.stage import Progress, Stage, StageContext, StageResult, run_stage
from fusion.stages import generate
from fusion.stages.sampler import Sampler

DECODINGS = (
    Decoding(num_samples=2, max_tokens=24, top_p=0.95),
    Decoding(name="greedy", temperature=0.0, max_tokens=16),
)
NUM_SAMPLES = 3
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_model(folder: Path, *, hidden_size: int = 64, max_length: int = 512, seed: int = 0) -> Path:
    """Save a random Qwen3 with a byte-level tokenizer; head_dim 32 is the least that vLLM runs on CPUs."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    vocab = {token: i for i, token in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    fast.chat_template = TEMPLATE
    fast.save_pretrained(folder)
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=272,
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=max_length,
        eos_token_id=258,
        tie_word_embeddings=True,
    )
    Qwen3ForCausalLM(config).save_pretrained(folder)
    return folder


class _Count(Config):
    ids: tuple[str, ...]


def _write_prompts(ctx: StageContext) -> StageResult:
    ids = ctx.config.ids
    for chunk in ctx.plan(ids, chunk_rows=1000):
        ctx.commit(chunk, [Prompt(i, "words", messages(i)) for i in ids[chunk.start : chunk.stop]])
    return StageResult(rows_in=len(ids))


def messages(prompt_id: str) -> tuple[Message, ...]:
    """The conversation of a prompt: its id says what is wrong with it, if anything."""
    kind = prompt_id.split("/")[0]
    if kind == "long":
        return (Message("user", "x" * 1000),)
    if kind == "wide":
        return (Message("user", prompt_id + "x" * 400),)
    if kind == "answered":
        return (Message("user", "q"), Message("assistant", "a"))
    return (Message("user", f"Say {prompt_id}, please."),)


@dataclasses.dataclass
class World:
    """Prompts and a model under one root."""

    root: Path
    model: Path
    prompt_ids: tuple[str, ...]

    def generate(
        self,
        name: str,
        *,
        sampler: type[Sampler] = Sampler,
        report: Callable[[Progress], None] = lambda progress: None,
        seed: int = 3,
        **placement: Any,
    ) -> Artifact:
        """Run (or resume) the generate stage `name` and return its artifact."""
        prompts = Stage("prompts", "words", 1, _Count(ids=self.prompt_ids), {}, _write_prompts, Prompt)
        model = PinnedModel("tiny", ModelRef(path=self.model), self.root / "digests.json")
        stage = Stage(
            kind="generate",
            slug=name,
            version=generate.VERSION,
            config=generate.GenerateConfig(
                name=name, chat=ChatConfig(), decodings=DECODINGS, seed=seed, dtype="float32"
            ),
            inputs={"prompts": prompts, "model": model},
            run=functools.partial(generate.run, sampler=sampler),
            row_type=Response,
            placement=GeneratePlacement(**{"kv_cache_gib": 0.1, "chunk_rows": 16, "accelerator": "cpu", **placement}),
        )
        asked, _ = run_stage(prompts, self.root, inputs={}, report=report, resume_command="again")
        inputs = {"prompts": asked, "model": model}
        return run_stage(stage, self.root, inputs=inputs, report=report, resume_command="again")[0]

    def directory(self, name: str) -> Path:
        (found,) = (self.root / "generate").glob(f"{name}-*")
        return found


def main() -> None:
    import ray

    address, root, model, num_prompts = sys.argv[1:]
    ray.init(address=address, log_to_driver=False)
    World(Path(root), Path(model), tuple(f"p{i}" for i in range(int(num_prompts)))).generate("killed")


if __name__ == "__main__":
    main()
