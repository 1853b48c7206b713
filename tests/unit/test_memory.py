"""The memory estimate: worked sizes, what moves them, and what is said when they do not fit."""

import dataclasses
import json
from pathlib import Path

import pytest

np = pytest.importorskip("numpy")
pytest.importorskip("safetensors")

from safetensors.numpy import save_file  # noqa: E402

from fusion.losses import SftLoss  # noqa: E402
from fusion.train.memory import GIB, LIBRARIES, HeadLimits, ModelSize, estimate, model_size, too_large  # noqa: E402
from fusion.training import Lora, TrainConfig, TrainPlacement  # noqa: E402

SIZE = ModelSize(num_parameters=1000, num_layers=2, hidden=8, intermediate=16, kv_hidden=4, vocab=50)
CONFIG = TrainConfig(loss=SftLoss(), learning_rate=1e-3, global_batch=4, max_length=64)


def need(size: ModelSize = SIZE, config: TrainConfig = CONFIG, **placement):
    how = TrainPlacement(**{"workers": 2, "zero_stage": 2, **placement})
    return estimate(size, config, how, pass_tokens=100, row_tokens=40)


def test_a_folder_is_read_without_loading_it(tmp_path: Path) -> None:
    save_file({"a": np.zeros((3, 4), np.float32), "b": np.zeros(5, np.float16)}, tmp_path / "m-1.safetensors")
    save_file({"c": np.zeros((2, 2, 2), np.float32)}, tmp_path / "m-2.safetensors")
    facts = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    facts |= {"intermediate_size": 16, "vocab_size": 50}
    (tmp_path / "config.json").write_text(json.dumps(facts))
    assert model_size(tmp_path) == ModelSize(12 + 5 + 8, 2, 8, 16, 4, 50)
    (tmp_path / "config.json").write_text(json.dumps({"text_config": facts}))
    assert model_size(tmp_path).vocab == 50


def test_worked_sizes() -> None:
    """1000 parameters over 2 workers in fp32; a layer saves 8*8 + 4*4 + 4*16 = 144 numbers per token."""
    found = need()
    assert (found.weights, found.gradients, found.optimizer) == (4000, 2000 + 8000, 6000)
    assert found.activations == 100 * 2 * 144 * 4
    assert found.head == 100 * 50 * 4 + 50 * 8 * 4  # logits of the pass, and the weight's gradient
    assert found.total == 4000 + 10000 + 6000 + 115200 + 21600 + LIBRARIES
    assert (need(zero_stage=1).gradients, need(zero_stage=3).weights) == (8000, 2000 + 4000)
    half = need(config=CONFIG.model_copy(update={"precision": "bf16"}))
    assert (half.weights, half.optimizer, half.head) == (2000, 6000, 21600)
    assert need(gradient_checkpointing=True).activations == 100 * (2 * 8 * 4 + 144 * 4)


def test_logits_of_a_large_vocabulary_are_bounded() -> None:
    """A row of 40 response tokens is 40 * 4 bytes per token of vocabulary: 320 MB whole, 400 MB whole, 640 MB in groups."""
    limits = HeadLimits()
    for vocab, logits in ((2_000_000, 320_000_000), (2_500_000, 400_000_000), (4_000_000, limits.group)):
        found = need(dataclasses.replace(SIZE, vocab=vocab)).head - 4 * vocab * SIZE.hidden
        assert abs(found - logits) <= 4 * vocab  # whole tokens
    # Many short rows are put together up to the size of a group.
    assert need(dataclasses.replace(SIZE, vocab=500_000)).head == limits.group + 500_000 * 8 * 4


def test_adapters_have_the_only_gradients_and_optimizer_state() -> None:
    """Rank 3 on a layer of q and o (8 to 8), k and v (8 to 4) and three of 8 and 16: 3 * (32 + 24 + 72) = 384, twice."""
    found = need(config=CONFIG.model_copy(update={"lora": Lora(rank=3, alpha=6)}))
    assert (found.weights, found.gradients) == (4000, 384 * 4 + 2 * 768 * 4)
    assert (found.optimizer, found.head) == (12 * 384, 100 * 50 * 4)


def test_an_8b_model_on_one_gpu_is_too_much_and_on_eight_it_fits() -> None:
    llama = ModelSize(8_030_000_000, 32, 4096, 14336, 1024, 128_256)
    config = CONFIG.model_copy(update={"precision": "bf16"})

    def on(workers: int) -> str | None:
        how = TrainPlacement(workers=workers, zero_stage=3, gradient_checkpointing=True)
        found = estimate(llama, config, how, pass_tokens=4096, row_tokens=3072)
        return too_large(found, 80 * GIB, workers_here=1, where="host (cuda:0)")

    assert on(8) is None
    text = on(1)
    assert text is not None and "which has 80.00 GiB available: use more workers" in text


def test_the_advice_is_about_the_larger_part() -> None:
    text = too_large(need(), 1000, workers_here=2, where="here")
    assert text is not None and "2 of them on here" in text and "tokens_per_micro_batch" in text
    assert too_large(need(), 2 * need().total, workers_here=2, where="here") is None
    assert too_large(need(), 2 * need().total - 1, workers_here=2, where="here") is not None
