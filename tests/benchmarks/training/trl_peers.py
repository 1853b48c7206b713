"""TRL's DPOTrainer with three responses per prompt instead of two.

The one idea: as little as possible is ours. The trainer is built by `DPOTrainer.__init__` (so policy and reference get
TRL's fused head), batches are padded by TRL's `pad`, and a step runs `Trainer.training_step`, which prepares inputs,
calls `compute_loss` and sends the loss backward through Accelerate. Overridden is what knows of two responses:
the collator, the split of the log-probabilities, and the loss. Not run: the loop around the step (data loader,
callbacks, scheduler); the optimizer is the one that all contenders have. TRL's per-batch log of entropies, logit means,
accuracies and rewards is kept in the plain variant, because TRL has no switch for it.

`TrlThreeWay` is that and nothing else, reference in the loop. Its head skips nothing on CPUs: TRL scores every position
where it has no Triton, and recomputes the logits in the backward pass.
`TrlRows` is the best that TRL's parts give: reference log-probabilities before the policy's graph exists, the head on
response positions only, TRL's `selective_log_softmax` on their logits, no log.
`TrlRowsChunked` is the same with TRL's chunked head, which recomputes and needs less memory.

Legend: S = 3 * B sequences in the order source x B, target x B, rejected x B; T padded length; N response tokens;
H hidden size.
"""

from __future__ import annotations

import dataclasses
import os
import tempfile
from typing import Any

# Read when TRL is imported: a benchmark on random weights has nothing to tell or to fetch.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast
from trl.kernels import ChunkedLogProbFunction
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DataCollatorForPreference, DPOTrainer
from trl.trainer.utils import pad, selective_log_softmax

from benchmarks.training.contender import BETA, Contender, Learner, wrpo_loss_from_sums
from benchmarks.training.flops import Layout, Passes, padded_layout, passes
from benchmarks.training.shapes import PAD_ID, WRPO_ROLES, Batch

HEAD_CHUNK = 32_768
"""Columns of a tile of TRL's chunked head, its own default."""


@dataclasses.dataclass
class ThreeWayCollator(DataCollatorForPreference):
    """Pads [source x B | target x B | rejected x B] with the masks that TRL's trainer expects."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        pairs = [(example["prompt_ids"], example[role]) for role in WRPO_ROLES for example in examples]
        columns = {
            "input_ids": [torch.tensor([*prompt, *response]) for prompt, response in pairs],
            "attention_mask": [torch.ones(len(prompt) + len(response), dtype=torch.long) for prompt, response in pairs],
            "completion_mask": [torch.tensor([0] * len(prompt) + [1] * len(response)) for prompt, response in pairs],
        }
        return {
            name: pad(values, padding_value=self.pad_token_id if name == "input_ids" else 0, padding_side="right")
            for name, values in columns.items()
        }


class ThreeWayTrainer(DPOTrainer):
    """DPOTrainer whose batches have three responses per prompt and whose loss is WRPO."""

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset  # rows come as ids, through the collator

    def _compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool) -> torch.Tensor:
        outputs = self._fused(model, inputs)
        with torch.no_grad():
            reference_S = self._fused(self.ref_model, inputs).log_probs.sum(1)
        policy_S = outputs.log_probs.sum(1)
        self._log(outputs, inputs["completion_mask"][:, 1:].bool(), inputs["attention_mask"])
        self._log_rewards(policy_S.detach(), reference_S)
        return wrpo_loss_from_sums(policy_S, reference_S)

    @staticmethod
    def _fused(model: Any, inputs: dict[str, Any]) -> Any:
        labels_ST = inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, -100)
        return model(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            labels=labels_ST,
            use_cache=False,
            fused_lm_head=True,
        )

    def _log(self, outputs: Any, scored_ST: torch.Tensor, attention_mask_ST: torch.Tensor) -> None:
        metrics = self._metrics["train"]
        gather: Any = self.accelerator.gather_for_metrics  # annotated as containers of tensors; here tensors
        entropy = gather((outputs.entropy.detach() * scored_ST).sum()).sum() / gather(scored_ST.sum()).sum()
        metrics["entropy"].append(entropy.item())
        self._total_train_tokens += gather(attention_mask_ST.sum()).sum().item()
        thirds = zip(
            outputs.mean_logits.chunk(3), outputs.is_top1.chunk(3), scored_ST.chunk(3), WRPO_ROLES, strict=True
        )
        for mean_logits_BT, is_top1_BT, mask_BT, role in thirds:
            metrics[f"logits/{role}"].append(gather(mean_logits_BT[mask_BT].mean()).mean().item())
            metrics[f"accuracy/{role}"].append(gather(is_top1_BT[mask_BT].float().mean()).mean().item())

    def _log_rewards(self, policy_S: torch.Tensor, reference_S: torch.Tensor) -> None:
        gather: Any = self.accelerator.gather
        rewards = (self.beta * (policy_S - reference_S)).chunk(3)
        for role, rewards_B, logps_B in zip(WRPO_ROLES, rewards, policy_S.chunk(3), strict=True):
            self._metrics["train"][f"rewards/{role}"].append(gather(rewards_B).mean().item())
            self._metrics["train"][f"logps/{role}"].append(gather(logps_B).mean().item())


class RowsTrainer(ThreeWayTrainer):
    """Scores response positions only and reads reference log-probabilities from the batch."""

    chunked = False

    def _compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool) -> torch.Tensor:
        return wrpo_loss_from_sums(self.sums(model, inputs), inputs["reference_logps"])

    def sums(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        """Return (S,) sums of response log-probabilities."""
        hidden_STH = model.base_model(
            input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False
        ).last_hidden_state
        scored_ST = inputs["completion_mask"][:, 1:].bool()
        hidden_NH, target_N = hidden_STH[:, :-1][scored_ST], inputs["input_ids"][:, 1:][scored_ST]
        head = model.get_output_embeddings()
        if self.chunked:
            logps_N, *_ = ChunkedLogProbFunction.apply(
                hidden_NH, head.weight, head.bias, target_N, 1.0, HEAD_CHUNK, None, 1.0, ("log_probs",)
            )
        else:
            # One block of N rows: the function loops over its first dimension.
            logps_N = selective_log_softmax(head(hidden_NH).unsqueeze(0), target_N.unsqueeze(0)).squeeze(0)
        logps_ST = logps_N.new_zeros(scored_ST.shape).masked_scatter(scored_ST, logps_N)
        return logps_ST.sum(1)


class ChunkedRowsTrainer(RowsTrainer):
    chunked = True


class TrlThreeWay(Contender):
    """DPOTrainer as it is, with three responses."""

    task = "wrpo"
    trainer_class: type[ThreeWayTrainer] = ThreeWayTrainer

    def __init__(self, learner: Learner, *, checkpointing: bool = False) -> None:
        super().__init__(learner, checkpointing=checkpointing)
        self._folder = tempfile.TemporaryDirectory(prefix="trl-")
        args = DPOConfig(
            output_dir=self._folder.name,
            use_cpu=self.device.type == "cpu",
            bf16=False,  # on GPUs the weights are bf16 themselves
            gradient_checkpointing=False,  # `prepare` switches it
            beta=BETA,
            max_length=None,
            max_grad_norm=0.0,
            remove_unused_columns=False,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
        )
        self.trainer: Any = self.trainer_class(
            model=self.policy,
            ref_model=self.reference,
            args=args,
            data_collator=ThreeWayCollator(pad_token_id=PAD_ID),
            train_dataset=Dataset.from_dict({"prompt_ids": [[1]]}),  # required; never read
            processing_class=_tokenizer(),
        )
        self.trainer.current_gradient_accumulation_steps = 1  # what the loop around the step would set

    def backward(self, batch: Batch) -> torch.Tensor:
        return self.trainer.training_step(self.policy, self._inputs(batch)).detach()

    def _inputs(self, batch: Batch) -> dict[str, Any]:
        examples = [
            {"prompt_ids": row.prompt_ids.tolist()} | {r: i.tolist() for r, i in row.responses.items()} for row in batch
        ]
        return self.trainer.data_collator(examples)

    def layout(self, batch: Batch) -> Layout:
        lengths = [row.lengths[0] + response for row in batch for response in row.lengths[1]]
        on_rows = self.device.type == "cuda"  # where TRL has Triton, its head leaves out what is not scored
        head_rows = sum(sum(row.lengths[1]) for row in batch) if on_rows else len(lengths) * (max(lengths) - 1)
        return padded_layout(lengths, head_rows=head_rows)

    def passes(self) -> Passes:
        return passes(self.task, checkpointing=self.checkpointing, head_recomputed=True)


class TrlRows(TrlThreeWay):
    """Reference log-probabilities precomputed, head on response rows."""

    trainer_class = RowsTrainer

    def backward(self, batch: Batch) -> torch.Tensor:
        inputs = self._inputs(batch)
        with torch.no_grad():
            reference_S = self.trainer.sums(self.reference, self.trainer._prepare_inputs(inputs))
        return self.trainer.training_step(self.policy, inputs | {"reference_logps": reference_S}).detach()

    def layout(self, batch: Batch) -> Layout:
        lengths = [row.lengths[0] + response for row in batch for response in row.lengths[1]]
        return padded_layout(lengths, head_rows=sum(sum(row.lengths[1]) for row in batch))

    def passes(self) -> Passes:
        return passes(self.task, checkpointing=self.checkpointing)


class TrlRowsChunked(TrlRows):
    """The same with TRL's chunked head."""

    trainer_class = ChunkedRowsTrainer

    def passes(self) -> Passes:
        return passes(self.task, checkpointing=self.checkpointing, head_recomputed=True)


def _tokenizer() -> PreTrainedTokenizerFast:
    """Return the least tokenizer that the trainer accepts; no text is ever encoded."""
    words = Tokenizer(models.WordLevel({"<pad>": PAD_ID, "<eos>": 1}, unk_token="<pad>"))
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>")
