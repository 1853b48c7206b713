"""Adapters: off they are the start model bit for bit, merged they are the trained one, and the head has none."""

import copy

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("peft")

import tiny_causal  # noqa: E402
from fusion.errors import ModelError  # noqa: E402
from fusion.train.lora import add_adapters, merged  # noqa: E402
from fusion.train.packing import Layout, pack  # noqa: E402
from fusion.train.policy import PolicyModel, choose_layout  # noqa: E402
from fusion.training import Lora  # noqa: E402

LORA = Lora(rank=3, alpha=6.0)
BATCH = pack(
    tiny_causal.random_rows(sizes=[(5, (4, 7, 1)), (1, (1, 2, 3))]),
    layout=Layout.shared,
    group_roles=frozenset({"responses"}),
)


def logps(policy: PolicyModel) -> torch.Tensor:
    with torch.no_grad():
        return policy(BATCH)[1]


def trained(family: str) -> tuple[PolicyModel, PolicyModel]:
    """The start, and the same with adapters after three steps of plain gradient descent."""
    start = PolicyModel(tiny_causal.make(family))
    policy = PolicyModel(copy.deepcopy(start.model))
    add_adapters(policy.model, LORA, seed=1)
    parameters = [p for p in policy.model.parameters() if p.requires_grad]
    for _ in range(3):
        loss, _ = policy(BATCH, lambda logps_S, start, stop: -logps_S.sum())
        for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            parameter.data -= 0.05 * gradient
    return start, policy


@pytest.mark.parametrize("family", tiny_causal.PROMISED)
def test_at_the_start_adapters_change_nothing(family: str) -> None:
    start = PolicyModel(tiny_causal.make(family))
    policy = PolicyModel(copy.deepcopy(start.model))
    count = add_adapters(policy.model, LORA, seed=1)
    assert torch.equal(logps(policy), logps(start))
    names = [name for name, parameter in policy.model.named_parameters() if parameter.requires_grad]
    assert names and all("lora_" in name for name in names) and not any("lm_head" in name for name in names)
    assert count == sum(p.numel() for p in policy.model.parameters() if p.requires_grad)
    assert choose_layout(policy, name=family).layout is Layout.shared


@pytest.mark.parametrize("family", tiny_causal.PROMISED)
def test_off_is_the_reference_and_merged_is_the_policy(family: str) -> None:
    from peft.tuners.tuners_utils import BaseTunerLayer

    start, policy = trained(family)
    with_adapters = logps(policy)
    assert (with_adapters - logps(start)).abs().max() > 1
    layers = [module for module in policy.model.modules() if isinstance(module, BaseTunerLayer)]
    for layer in layers:
        layer.enable_adapters(False)
    assert torch.equal(logps(policy), logps(start))
    for layer in layers:
        layer.enable_adapters(True)

    weights = merged({name: p.detach() for name, p in policy.model.named_parameters()}, LORA)
    whole = PolicyModel(tiny_causal.make(family))
    missing, unexpected = whole.model.load_state_dict(weights, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}  # tied in some families
    torch.testing.assert_close(logps(whole), with_adapters, rtol=1e-5, atol=0)


def test_merging_gives_what_peft_gives() -> None:
    _, policy = trained("llama")
    weights = merged({name: p.detach() for name, p in policy.model.named_parameters()}, LORA)
    for name, module in list(policy.model.named_modules()):
        if hasattr(module, "merge") and hasattr(module, "base_layer"):
            module.merge()
            torch.testing.assert_close(weights[f"{name}.weight"], module.base_layer.weight, rtol=1e-6, atol=1e-7)


def test_only_named_layers_get_one() -> None:
    model = tiny_causal.make("llama")
    add_adapters(model, Lora(rank=2, alpha=2.0, targets=("q_proj", "v_proj")), seed=0)
    with_adapters = {
        name.split(".lora_")[0].rpartition(".")[2] for name, _ in model.named_parameters() if "lora_" in name
    }
    assert with_adapters == {"q_proj", "v_proj"}


def test_the_seed_alone_decides_the_start() -> None:
    starts = []
    for noise in (0, 1):
        torch.manual_seed(noise)
        model = tiny_causal.make("llama", seed=noise)
        add_adapters(model, LORA, seed=5)
        starts.append([p.detach() for n, p in model.named_parameters() if "lora_" in n])
    assert all(torch.equal(a, b) for a, b in zip(*starts, strict=True))


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (("lm_head",), r"names the head \(lm_head\)"),
        (("q_proj", "lm_head"), r"names the head"),
        (("query",), r"query are not in LlamaForCausalLM; its linear layers are down_proj, gate_proj, k_proj, lm_head"),
    ],
)
def test_wrong_targets_are_refused(targets: tuple[str, ...], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        add_adapters(tiny_causal.make("llama"), Lora(rank=2, alpha=2.0, targets=targets), seed=0)
