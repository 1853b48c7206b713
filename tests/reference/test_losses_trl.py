"""DPO, length-normalised DPO, IPO and SimPO against the numbers of TRL's own trainers on tiny random models.

TRL renders, tokenises, pads and runs the model; from the very batch that its trainer saw, the log-probabilities are
taken again with a plain log-softmax and given to our losses. What is compared is the trainer's loss and its metrics,
all of them means over the batch.
"""

import functools
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("trl", reason="trl is not installed (extra `dev`), so nothing was compared with TRL's own losses")

import transformers  # noqa: E402
from datasets import Dataset  # noqa: E402

from fusion.losses import DpoLoss, IpoLoss, LnDpoLoss, SequenceLogps, SimpoLoss  # noqa: E402
from loss_inputs import given  # noqa: E402
from tiny_models import save_tokenizer  # noqa: E402

ROWS = [
    {"prompt": "2+2?", "chosen": " four", "rejected": " it is five, I think"},
    {"prompt": "the capital of France?", "chosen": " Paris, on the Seine", "rejected": " Rome"},
    {"prompt": "say hello", "chosen": " hello", "rejected": " no, never"},
]
SETTINGS: dict[str, Any] = {
    "report_to": "none",
    "use_cpu": True,
    "bf16": False,
    "per_device_train_batch_size": len(ROWS),
    "max_length": 64,
    "disable_tqdm": True,
    "seed": 0,
}


@functools.cache
def model(seed: int) -> transformers.Qwen2ForCausalLM:
    """A random model whose weights are wide enough that policy and reference differ by nats."""
    torch.manual_seed(seed)
    config = transformers.Qwen2Config(
        vocab_size=272, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.3, pad_token_id=256, eos_token_id=258,
    )  # fmt: skip
    return transformers.Qwen2ForCausalLM(config).eval()


def sums_of(of: transformers.Qwen2ForCausalLM, ids_BT, attention_BT, response_BT):
    """(B,) summed log-probabilities and numbers of the tokens marked in `response_BT`."""
    with torch.no_grad():
        logps_BTV = of(input_ids=ids_BT, attention_mask=attention_BT).logits.double().log_softmax(-1)
    taken_BT = logps_BTV[:, :-1].gather(-1, ids_BT[:, 1:, None]).squeeze(-1) * response_BT[:, 1:]
    return taken_BT.sum(1), response_BT.sum(1)


def as_pairs(of: transformers.Qwen2ForCausalLM, ids_BT, attention_BT, response_BT) -> SequenceLogps:
    """Pairs of a batch whose first half are the chosen and whose second half the rejected sequences."""
    sums, tokens = sums_of(of, ids_BT, attention_BT, response_BT.long())
    names = ("chosen", "rejected")
    return SequenceLogps(dict(zip(names, sums.chunk(2), strict=True)), dict(zip(names, tokens.chunk(2), strict=True)))


def trl_dpo(folder: Path, **settings) -> tuple[float, dict[str, float], SequenceLogps, SequenceLogps]:
    """Loss and metrics of TRL's DPOTrainer, and the log-probabilities of policy and reference on its batch."""
    from trl import DPOConfig, DPOTrainer

    trainer = DPOTrainer(
        model(1),
        model(2),
        args=DPOConfig(output_dir=str(folder), **SETTINGS, **settings),
        train_dataset=Dataset.from_list(ROWS),
        processing_class=save_tokenizer(folder / "tokenizer"),
    )
    batch = next(iter(trainer.get_train_dataloader()))
    loss = trainer.compute_loss(trainer.model, dict(batch)).item()
    metrics = {
        name: values[-1] for name, values in trainer._metrics["train" if trainer.model.training else "eval"].items()
    }
    given_ = (batch["input_ids"], batch["attention_mask"], batch["completion_mask"])
    return loss, metrics, as_pairs(model(1), *given_), as_pairs(model(2), *given_)


@pytest.mark.parametrize(
    ("settings", "ours"),
    [
        ({"loss_type": "sigmoid", "beta": 0.3}, DpoLoss(beta=0.3)),
        ({"loss_type": "sigmoid_norm", "beta": 3.0}, LnDpoLoss(beta=3.0)),
        ({"loss_type": "ipo", "beta": 0.4}, IpoLoss(tau=0.4, log_ratios="averaged")),
    ],
    ids=["dpo", "ln_dpo", "ipo"],
)
def test_losses_with_a_reference_are_those_of_the_dpo_trainer(tmp_path, settings, ours) -> None:
    """TRL averages log-ratios over tokens for IPO and calls tau beta; `log_ratios: averaged` is that convention.

    Its reward metrics are beta times the summed log-ratio whatever the loss, so they are compared for DPO only.
    """
    loss, metrics, policy, reference = trl_dpo(tmp_path, **settings)
    out = ours(given(policy, reference))
    assert out.losses_B.mean().item() == pytest.approx(loss, rel=2e-5)
    assert (policy["chosen"] - reference["chosen"]).abs().min() > 0.5, "the models must differ for this to say anything"
    assert len(set(policy.num_tokens["chosen"].tolist())) > 1
    names = ["logps/chosen", "logps/rejected"]
    if ours.type == "dpo":
        names += ["rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies"]
    for name in names:
        assert out.metrics[name].mean().item() == pytest.approx(metrics[name], rel=2e-5), name
    if ours.type == "ipo":
        summed = IpoLoss(tau=0.4)(given(policy, reference)).losses_B.mean().item()
        assert summed != pytest.approx(loss, rel=0.1), "summed and averaged must be told apart by this batch"


def test_simpo_is_that_of_the_cpo_trainer(tmp_path) -> None:
    """TRL has SimPO in its CPOTrainer with `cpo_alpha=0`; its gamma, like ours, is not divided by beta in the end.

    Its reward metrics, like ours, are beta times the mean log-probability per token, without gamma.
    """
    from trl.experimental.cpo import CPOConfig, CPOTrainer

    config = CPOConfig(
        output_dir=str(tmp_path),
        loss_type="simpo",
        beta=2.0,
        simpo_gamma=0.7,
        cpo_alpha=0.0,
        label_smoothing=0.1,
        **SETTINGS,
    )
    trainer = CPOTrainer(
        model(1),
        args=config,
        train_dataset=Dataset.from_list(ROWS),
        processing_class=save_tokenizer(tmp_path / "tokenizer"),
    )
    batch = next(iter(trainer.get_train_dataloader()))
    loss, metrics = trainer.get_batch_loss_metrics(trainer.model, batch)
    joined = trainer.concatenated_inputs(batch, padding_value=256)
    labels_BT = joined["concatenated_labels"]
    policy = as_pairs(
        model(1), joined["concatenated_input_ids"], joined["concatenated_attention_mask"], labels_BT != -100
    )
    out = SimpoLoss(beta=2.0, gamma=0.7, label_smoothing=0.1)(given(policy))
    assert out.losses_B.mean().item() == pytest.approx(loss.item(), rel=2e-5)
    for name in ("rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies"):
        assert out.metrics[name].mean().item() == pytest.approx(metrics[name], rel=2e-5), name
