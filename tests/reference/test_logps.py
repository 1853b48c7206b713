"""Log-probabilities of responses against the plain full-logits computation, for each architecture."""

from collections.abc import Callable

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from fusion.errors import ModelError  # noqa: E402
from fusion.train.batches import pad_batch  # noqa: E402
from fusion.train.encode import EncodedRow  # noqa: E402
from fusion.train.logps import by_role, check_head, load_model, sequence_logps  # noqa: E402

SIZES = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,
    "pad_token_id": 0,
}
MODELS: dict[str, Callable] = {
    "llama": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES)),
    "qwen2": lambda: transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**SIZES, tie_word_embeddings=True)),
    "qwen3": lambda: transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**SIZES)),
    "gemma2": lambda: transformers.Gemma2ForCausalLM(
        transformers.Gemma2Config(
            **SIZES, sliding_window=6, final_logit_softcapping=2.0, attn_logit_softcapping=3.0, query_pre_attn_scalar=32
        )
    ),
    "mistral": lambda: transformers.MistralForCausalLM(transformers.MistralConfig(**SIZES, sliding_window=6)),
    "granite": lambda: transformers.GraniteForCausalLM(transformers.GraniteConfig(**SIZES, logits_scaling=4.0)),
}


@pytest.fixture(params=sorted(MODELS))
def folder(request, tmp_path):
    torch.manual_seed(0)
    MODELS[request.param]().save_pretrained(tmp_path)
    return tmp_path


def rows() -> list[EncodedRow]:
    generator = np.random.default_rng(1)

    def ids(length: int) -> np.ndarray:
        return generator.integers(1, 96, length)

    sizes = [(1, 1, 9), (12, 5, 1), (7, 3, 3)]  # a prompt of one token, responses of one token
    return [
        EncodedRow(str(n), 1.0, ids(p), {"chosen": ids(c), "rejected": ids(r)}) for n, (p, c, r) in enumerate(sizes)
    ]


def plain(model, prompt_ids: np.ndarray, response_ids: np.ndarray) -> torch.Tensor:
    """One sequence alone, no padding, log-softmax over everything."""
    ids_1T = torch.from_numpy(np.concatenate([prompt_ids, response_ids]))[None]
    logps_TV = torch.log_softmax(model(input_ids=ids_1T, use_cache=False).logits[0], -1)
    start = len(prompt_ids)
    return logps_TV[start - 1 : -1].gather(-1, ids_1T[0, start:, None]).sum()


def widest(model) -> tuple:
    """float64 and its tolerance, or float32 where attention is eager: its softmax is fp32 whatever the weights are."""
    return (torch.float32, 1e-5) if model.config._attn_implementation == "eager" else (torch.float64, 1e-12)


@pytest.mark.parametrize("double", [False, True])
def test_values_and_gradients_equal_the_plain_computation(folder, double) -> None:
    model = load_model(folder, dtype=torch.float32).train()
    dtype, tolerance = widest(model) if double else (torch.float32, 1e-5)
    model = model.to(dtype)
    batch = pad_batch(rows(), pad_id=0)
    found = by_role(sequence_logps(model, batch), batch)
    expected = {
        role: torch.stack([plain(model, r.prompt_ids, r.responses[role]) for r in rows()]) for role in batch.roles
    }
    for role in batch.roles:
        torch.testing.assert_close(found[role], expected[role], rtol=tolerance, atol=0)
        assert found.num_tokens[role].tolist() == [len(r.responses[role]) for r in rows()]
    ours = torch.autograd.grad((found["chosen"] - found["rejected"]).sum(), list(model.parameters()))
    theirs = torch.autograd.grad((expected["chosen"] - expected["rejected"]).sum(), list(model.parameters()))
    for (name, _), a, b in zip(model.named_parameters(), ours, theirs, strict=True):
        assert (a - b).norm() <= 10 * tolerance * b.norm(), name


def test_padding_does_not_matter(folder) -> None:
    model = load_model(folder, dtype=torch.float32)
    dtype, tolerance = widest(model)
    model = model.to(dtype)
    with torch.no_grad():
        one, other = (sequence_logps(model, pad_batch(rows(), pad_id=pad)) for pad in (0, 95))
        alone = torch.cat([sequence_logps(model, pad_batch([row], pad_id=0)).view(2, 1) for row in rows()], 1).flatten()
    torch.testing.assert_close(one, other, rtol=0, atol=0)
    torch.testing.assert_close(one, alone, rtol=tolerance, atol=0)


def test_dropout_is_off(tmp_path) -> None:
    config = transformers.LlamaConfig(**SIZES, attention_dropout=0.5)
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path)
    model = load_model(tmp_path, dtype=torch.float32).train()
    batch = pad_batch(rows(), pad_id=0)
    assert torch.equal(sequence_logps(model, batch), sequence_logps(model, batch))


def test_the_head_of_every_family_passes_its_check_and_an_unknown_one_does_not(folder) -> None:
    model = load_model(folder, dtype=torch.float32)
    check_head(model, name="tiny")
    decoder = model.get_decoder()
    handle = model.register_forward_hook(lambda m, i, out: out.__setitem__("logits", out.logits * 3) or out)
    with pytest.raises(ModelError, match="does something to its logits"):
        check_head(model, name="tiny")
    handle.remove()
    assert decoder is model.get_decoder()
