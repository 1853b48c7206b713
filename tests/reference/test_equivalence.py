"""Packed, shared and fused against plain forward passes: loss and every parameter's gradient, for each family."""

import itertools

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from transformers.models.llama.modeling_llama import LlamaDecoderLayer  # noqa: E402

import tiny_causal  # noqa: E402
from fusion.train import policy as policy_module  # noqa: E402
from fusion.train.encode import EncodedRow  # noqa: E402
from fusion.train.memory import HeadLimits  # noqa: E402
from fusion.train.packing import Layout, pack  # noqa: E402
from fusion.train.policy import PolicyModel, choose_layout  # noqa: E402

GROUP = frozenset({"responses"})
LIMIT = 1e-5
ROW_BYTES = 4 * tiny_causal.VOCABULARY
"""Logits of one token in fp32."""


def row_loss(logps: torch.Tensor) -> torch.Tensor:
    """A loss that ties all responses of a row together: the first against the weighted rest, as preferences do."""
    rest = logps[1:] * torch.arange(1, len(logps), dtype=logps.dtype) / max(1, len(logps) - 1) ** 2
    return -torch.nn.functional.logsigmoid(0.1 * (logps[0] - rest.sum()))


def fused(policy: PolicyModel, rows: list[EncodedRow]) -> tuple[torch.Tensor, list[torch.Tensor], torch.Tensor]:
    batch = pack(rows, layout=policy.layout, group_roles=GROUP)
    starts = batch.response_starts()

    def objective(logps_S: torch.Tensor, start: int, stop: int) -> torch.Tensor:
        cuts = (starts[start : stop + 1] - starts[start]).tolist()
        parts = [row_loss(logps_S[a:b]) for a, b in itertools.pairwise(cuts)]
        return torch.stack(parts).sum()

    loss, logps_S = policy(batch, objective)
    return loss, list(torch.autograd.grad(loss, list(policy.model.parameters()))), logps_S


def plain(policy: PolicyModel, rows: list[EncodedRow]) -> tuple[torch.Tensor, list[torch.Tensor], torch.Tensor]:
    layout = policy.layout
    policy.use(Layout.padded)  # the model's own attention
    logps = [
        torch.stack([tiny_causal.plain_logp(policy.model, row.prompt_ids, ids) for ids in row.responses["responses"]])
        for row in rows
    ]
    loss = torch.stack([row_loss(one) for one in logps]).sum()
    gradients = list(torch.autograd.grad(loss, list(policy.model.parameters())))
    policy.use(layout)
    return loss, gradients, torch.cat(logps)


def assert_equal(policy: PolicyModel, rows: list[EncodedRow]) -> None:
    (loss, gradients, logps), (expected, wanted, plain_logps) = fused(policy, rows), plain(policy, rows)
    assert abs(loss - expected) <= LIMIT * abs(expected)
    torch.testing.assert_close(logps, plain_logps.double(), rtol=LIMIT, atol=0)
    # A prompt and a response of one token leave queries no choice: their gradient is 0, and rounding on both sides.
    nothing = 1e-6 * torch.stack([gradient.norm() for gradient in wanted]).norm()
    for (name, _), ours, theirs in zip(policy.model.named_parameters(), gradients, wanted, strict=True):
        assert (ours - theirs).norm() <= LIMIT * max(theirs.norm(), nothing), name


def sizes_of(num_responses: int) -> list[tuple[int, tuple[int, ...]]]:
    """A prompt of one token, responses of one token, a response longer than the window, equal lengths."""
    lengths = (9, 1, 4, 4, 12)
    return [
        (1, lengths[:num_responses]),
        (12, lengths[::-1][:num_responses]),
        (7, (3,) * num_responses),
        (2, (1,) * num_responses),
    ]


@pytest.mark.parametrize("num_responses", [1, 2, 3, 5])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("family", tiny_causal.CONFIGS)
def test_shared_and_packed_equal_plain_passes(family: str, dtype: torch.dtype, num_responses: int) -> None:
    policy = PolicyModel(tiny_causal.make(family, dtype=dtype))
    rows = tiny_causal.random_rows(sizes=sizes_of(num_responses), seed=num_responses)
    for layout in (Layout.shared, Layout.packed):
        policy.use(layout)
        assert_equal(policy, rows)


@pytest.mark.parametrize("family", [*tiny_causal.PROMISED, *tiny_causal.EXPERTS])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_equal_under_gradient_checkpointing(family: str, dtype: torch.dtype) -> None:
    model = tiny_causal.make(family, dtype=dtype)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    assert_equal(PolicyModel(model), tiny_causal.random_rows(sizes=sizes_of(3)))


@pytest.mark.parametrize("family", tiny_causal.PROMISED)
def test_padded_layout_equals_plain_passes(family: str) -> None:
    """In float32: transformers' eager attention makes NaN of padding in float64."""
    policy = PolicyModel(tiny_causal.make(family), layout=Layout.padded)
    assert_equal(policy, tiny_causal.random_rows(sizes=sizes_of(3)))


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.lists(
        st.tuples(st.integers(1, 20), st.lists(st.integers(1, 20), min_size=1, max_size=5).map(tuple)),
        min_size=1,
        max_size=5,
    ),
    family=st.sampled_from(["llama", "gemma2", "mistral"]),
    group_tokens=st.integers(1, 60),
    row_tokens=st.integers(0, 60),
)
def test_any_lengths_and_any_head_groups(sizes, family: str, group_tokens: int, row_tokens: int) -> None:
    """float64; from one buffer for all rows, over rows held whole, down to many blocks a row (the recompute path)."""
    limits = HeadLimits(group_tokens * ROW_BYTES, row_tokens * ROW_BYTES)
    policy = PolicyModel(tiny_causal.make(family, dtype=torch.float64), limits=limits)
    assert_equal(policy, tiny_causal.random_rows(sizes=sizes))


@pytest.mark.parametrize("family", tiny_causal.PROMISED)
def test_a_rows_numbers_do_not_depend_on_its_neighbours(family: str) -> None:
    """Bit for bit, so that a reference made in larger passes gives r = 0 exactly before the first step."""
    rows = tiny_causal.random_rows(sizes=[*sizes_of(3), (19, (20, 2, 11)), (1, (1, 1, 1))])
    policy = PolicyModel(tiny_causal.make(family))
    with torch.no_grad():
        _, together = policy(pack(rows, layout=Layout.shared, group_roles=GROUP))
        alone = [policy(pack([row], layout=Layout.shared, group_roles=GROUP))[1] for row in rows]
        policy.limits = HeadLimits(5 * ROW_BYTES, row=0)  # other blocks of the head
        _, in_blocks = policy(pack(rows[::-1], layout=Layout.shared, group_roles=GROUP))
    assert torch.equal(torch.cat(alone), together)
    assert torch.equal(fused(policy, rows)[2], together)
    assert torch.equal(torch.cat(list(in_blocks.split(3))[::-1]), together)


def test_frozen_weights_get_no_gradient_and_cost_no_product() -> None:
    """With a frozen head (as under LoRA) the hidden states' gradient stays what it was."""
    rows = tiny_causal.random_rows(sizes=sizes_of(3))
    policy = PolicyModel(tiny_causal.make("llama", dtype=torch.float64))
    expected = dict(zip((n for n, _ in policy.model.named_parameters()), fused(policy, rows)[1], strict=True))
    policy.model.lm_head.weight.requires_grad_(False)
    batch = pack(rows, layout=Layout.shared, group_roles=GROUP)
    starts = batch.response_starts()
    loss, _ = policy(
        batch,
        lambda logps, a, b: torch.stack(
            [row_loss(logps[starts[r] - starts[a] : starts[r + 1] - starts[a]]) for r in range(a, b)]
        ).sum(),
    )
    loss.backward()
    assert policy.model.lm_head.weight.grad is None
    for name, parameter in policy.model.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-12, atol=1e-14)


# ---- the probe --------------------------------------------------------------------------------


@pytest.mark.parametrize("family", tiny_causal.CONFIGS)
def test_the_probe_finds_that_known_families_share(family: str) -> None:
    probe = choose_layout(PolicyModel(tiny_causal.make(family)), name=family)
    assert probe.layout is Layout.shared and probe.refused == ()


def test_the_probe_falls_back_when_attention_is_not_what_it_seems(caplog) -> None:
    """A model that adds something to its attention that packed passes do not know: padded passes are taken, and said."""
    model = tiny_causal.make("llama")
    attention = model.model.layers[0].self_attn
    own = attention.forward

    def mixing(hidden_states, *arguments, **keywords):
        out, weights = own(hidden_states, *arguments, **keywords)
        return out + 0.1 * hidden_states.cumsum(1), weights  # a recurrence: it runs across packed sequences

    attention.forward = mixing
    probe = choose_layout(PolicyModel(model), name="hybrid")
    assert probe.layout is Layout.padded
    assert len(probe.refused) == 2 and "shared is not used: a log-probability of" in probe.refused[0]
    assert "hybrid: layout packed is not used" in caplog.text


class Routed(torch.nn.Module):
    """A feed-forward block that gives its router's logits too, as those of GPT-OSS do."""

    def __init__(self, mlp: torch.nn.Module) -> None:
        super().__init__()
        self.mlp = mlp
        self.router = torch.nn.Linear(64, 2, bias=False)

    def forward(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits = self.router(hidden_states)
        return self.mlp(hidden_states) * logits.softmax(-1)[..., :1], logits


class RoutedLayer(LlamaDecoderLayer):
    def forward(self, hidden_states: torch.Tensor, **keywords) -> torch.Tensor:
        hidden_states = hidden_states + self.self_attn(self.input_layernorm(hidden_states), **keywords)[0]
        return hidden_states + self.feed(self.post_attention_layernorm(hidden_states))

    def feed(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.mlp(hidden_states)[0]


class KeywordLayer(RoutedLayer):
    def feed(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.mlp(hidden_states=hidden_states)[0]


@pytest.mark.parametrize("layer_type", [RoutedLayer, KeywordLayer])
def test_a_block_that_gives_a_tuple_costs_the_shortcut_and_not_the_layout(layer_type, caplog) -> None:
    model = tiny_causal.make("llama")
    for layer in model.model.layers:
        layer.mlp, layer.__class__ = Routed(layer.mlp), layer_type
    policy = PolicyModel(model.to(torch.float64))
    probe = choose_layout(policy, name="routed")
    assert probe.layout is policy.layout is Layout.shared
    (reason,) = probe.refused
    assert reason.startswith("the last feed-forward block runs on every token: TypeError: ")
    assert f"routed: {reason}" in caplog.text
    assert_equal(policy, tiny_causal.random_rows(sizes=sizes_of(3)))


def test_the_probe_falls_back_when_a_family_takes_no_keywords() -> None:
    model = tiny_causal.make("llama")
    own = model.model.forward

    def strict(*arguments, **keywords):
        if "trees" in keywords:
            raise TypeError("forward() got an unexpected keyword argument 'trees'")
        return own(*arguments, **keywords)

    model.model.forward = strict
    probe = choose_layout(PolicyModel(model), name="strict")
    assert probe.layout is Layout.padded and "unexpected keyword argument 'trees'" in probe.refused[0]


def test_an_unknown_head_is_refused() -> None:
    model = tiny_causal.make("llama")
    model.register_forward_hook(lambda m, i, out: out.__setitem__("logits", out.logits * 3) or out)
    with pytest.raises(policy_module.ModelError, match="does something to its logits"):
        choose_layout(PolicyModel(model), name="tiny")


@pytest.mark.parametrize(("family", "noise"), [("llama", "attention_dropout"), ("mixtral", "router_jitter_noise")])
def test_dropout_and_router_noise_are_off(tmp_path, family: str, noise: str) -> None:
    model = tiny_causal.make(family)
    setattr(model.config, noise, 0.5)
    model.save_pretrained(tmp_path)
    policy = PolicyModel(policy_module.load_model(tmp_path, dtype=torch.float32).train())
    batch = pack(tiny_causal.random_rows(sizes=sizes_of(2)), layout=Layout.shared, group_roles=GROUP)
    assert torch.equal(policy(batch)[1], policy(batch)[1])


def test_bf16_stays_near_fp32() -> None:
    """Weights and activations in bf16 (8 bits of mantissa, 0.4 %); softmax, loss and sums in fp32 or wider."""
    rows = tiny_causal.random_rows(sizes=sizes_of(3))
    policy = PolicyModel(tiny_causal.make("llama"))
    loss, gradients, logps = fused(policy, rows)
    policy.to(torch.bfloat16)
    narrow_loss, narrow, narrow_logps = fused(policy, rows)
    assert narrow_logps.dtype == torch.float64
    torch.testing.assert_close(narrow_logps, logps, rtol=5e-3, atol=0)
    torch.testing.assert_close(narrow_loss, loss, rtol=5e-3, atol=0)
    for (name, _), a, b in zip(policy.model.named_parameters(), narrow, gradients, strict=True):
        assert a.dtype == torch.bfloat16
        assert (a.float() - b).norm() <= 0.05 * b.norm(), name


def test_head_gradients_in_bf16_are_rounded_once() -> None:
    """The weight's gradient adds up in fp32 over all groups: many small groups give what one gives, but for rounding."""
    rows = tiny_causal.random_rows(sizes=sizes_of(3) * 6)
    policy = PolicyModel(tiny_causal.make("llama", dtype=torch.bfloat16))
    names = [n for n, _ in policy.model.named_parameters()]
    whole = dict(zip(names, fused(policy, rows)[1], strict=True))["lm_head.weight"]
    policy.limits = HeadLimits(8 * ROW_BYTES, row=0)
    cut = dict(zip(names, fused(policy, rows)[1], strict=True))["lm_head.weight"]
    assert (whole.float() - cut.float()).norm() <= 2**-8 * whole.float().norm()


def test_positions_and_tokens_by_hand() -> None:
    """Prompt 1 2, responses 3 | 4 5 6 | 7 8: the longest first, positions start again at 2."""
    row = EncodedRow(
        "a",
        1.0,
        np.array([1, 2]),
        {"chosen": (np.array([3]),), "rejected": (np.array([4, 5, 6]), np.array([7, 8]))},
        {},
    )
    batch = pack([row], layout=Layout.shared, group_roles=frozenset({"rejected"}))
    assert batch.ids_WT.tolist() == [[1, 2, 4, 5, 6, 7, 8, 3]]
    assert batch.positions_WT.tolist() == [[0, 1, 2, 3, 4, 2, 3, 2]]
    assert batch.predict_N.tolist() == [1, 1, 2, 3, 1, 5]  # 3 | 4 5 6 | 7 8
    assert batch.target_N.tolist() == [3, 4, 5, 6, 7, 8]
    assert batch.num_tokens_S == (1, 3, 2) and batch.responses_B == (3,)
    assert batch.index["chosen"].tolist() == [0] and batch.index["rejected"].tolist() == [[1, 2]]
    by_role = batch.by_role(torch.tensor([-1.0, -2.0, -3.0]))
    assert by_role["rejected"].tolist() == [[-2.0, -3.0]] and by_role.num_tokens["rejected"].tolist() == [[3, 2]]
    padded = pack([row], layout=Layout.padded, group_roles=frozenset({"rejected"}))
    assert padded.ids_WT.tolist() == [[1, 2, 3, 0, 0], [1, 2, 4, 5, 6], [1, 2, 7, 8, 0]]
    assert padded.predict_N.tolist() == [1, 6, 7, 8, 11, 12]


def test_groups_of_unequal_size_are_filled() -> None:
    rows = tiny_causal.random_rows(sizes=[(3, (2, 4)), (2, (1, 5, 2))])
    batch = pack(rows, layout=Layout.shared, group_roles=GROUP)
    found = batch.by_role(torch.tensor([-1.0, -2.0, -3.0, -4.0, -5.0]))
    assert found["responses"].tolist() == [[-1, -2, 0], [-3, -4, -5]]
    assert found.num_tokens["responses"].tolist() == batch.num_tokens["responses"].tolist() == [[2, 4, 0], [1, 5, 2]]
    second = batch.by_role(torch.tensor([-3.0, -4.0, -5.0]), 1, 2)
    assert second["responses"].tolist() == [[-3, -4, -5]] and second.num_tokens["responses"].tolist() == [[1, 5, 2]]
