"""From a causal language model to one log-probability per response; policy and reference share every line.

The one idea: the vocabulary is touched only where a response token is predicted. The trunk runs over whole
sequences; hidden states at response positions are gathered, and the head runs on those rows alone. The
head is called as a module, because that is where ZeRO-3 gathers its weights.

Not here: the loss, the batch plan. `head_logps` is the seam for a fused head, `PaddedBatch` for packing.

Legend: S sequences, T padded length, N response tokens of all sequences, V vocabulary, H hidden size, B rows.
"""

from pathlib import Path

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from fusion.errors import ModelError
from fusion.losses import SequenceLogps
from fusion.train.batches import PaddedBatch


def load_model(folder: Path, *, dtype: torch.dtype) -> PreTrainedModel:
    """Load a causal language model for training: all dropout off, no cache, local files only.

    Softcapped attention (Gemma-2) runs eagerly: PyTorch's scaled dot product has no softcap.
    """
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    facts = config.to_dict()
    # Log-ratios need policy and reference to differ only by weights, so nothing is dropped at random.
    off = {name: 0.0 for name, value in facts.items() if name.endswith(("dropout", "_pdrop")) and value}
    model = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=dtype,
        attn_implementation="eager" if facts.get("attn_logit_softcapping") else "sdpa",
        local_files_only=True,
        use_safetensors=True,
        **off,
    )
    model.config.use_cache = False
    return model


def cast_parameters(model: nn.Module, dtype: torch.dtype) -> None:
    """Cast parameters and leave buffers alone, as DeepSpeed does, so that policy and reference compute alike."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)


class PolicyModel(nn.Module):
    """The model as a module whose forward gives log-probabilities, so that DeepSpeed wraps one call."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: PaddedBatch) -> torch.Tensor:
        """Return (S,) fp32 (or wider) sums of log-probabilities, see `sequence_logps`."""
        return sequence_logps(self.model, batch)


def sequence_logps(model: PreTrainedModel, batch: PaddedBatch) -> torch.Tensor:
    """Return (S,) log pi(response | prompt) of each sequence: sums over its response tokens, in nats."""
    hidden_STH = model.get_decoder()(
        input_ids=batch.ids_ST, attention_mask=batch.mask_ST, use_cache=False
    ).last_hidden_state
    hidden_NH = hidden_STH[batch.sequence_N, batch.column_N]
    logps_N = head_logps(model, hidden_NH, batch.target_N)
    # Sums per sequence over a split: index_add would be nondeterministic on GPUs.
    return torch.stack([part.sum() for part in logps_N.split(list(batch.num_tokens_S))])


def head_logps(model: PreTrainedModel, hidden_NH: torch.Tensor, target_N: torch.Tensor) -> torch.Tensor:
    """Return (N,) log-probabilities of the target tokens, softmax in fp32 or wider."""
    logits_NV = _head(model)(hidden_NH)
    logits_NV = _as_configured(logits_NV, model)
    logits_NV = logits_NV if logits_NV.dtype == torch.float64 else logits_NV.float()
    chosen_N = logits_NV.gather(-1, target_N.unsqueeze(-1)).squeeze(-1)
    return chosen_N - torch.logsumexp(logits_NV, dim=-1)


def _head(model: PreTrainedModel) -> nn.Module:
    head = model.get_output_embeddings()
    if head is None:
        raise ModelError(f"{type(model).__name__} has no language-modelling head; it cannot be trained here")
    return head


def _as_configured(logits_NV: torch.Tensor, model: PreTrainedModel) -> torch.Tensor:
    """Apply what some families do to logits after the head, in their order."""
    facts = model.config.get_text_config().to_dict()
    if (scale := facts.get("logit_scale")) is not None:  # Cohere
        logits_NV = logits_NV * scale
    if (scale := facts.get("logits_scaling")) is not None:  # Granite
        logits_NV = logits_NV / scale
    if (cap := facts.get("final_logit_softcapping")) is not None:  # Gemma-2 and 3
        logits_NV = torch.tanh(logits_NV / cap) * cap
    return logits_NV


def by_role(sums_S: torch.Tensor, batch: PaddedBatch) -> SequenceLogps:
    """Split role-major sequences into one (B,) tensor per role."""
    num_rows = len(sums_S) // len(batch.roles)
    counts_S = torch.tensor(batch.num_tokens_S, device=sums_S.device)
    return SequenceLogps(
        dict(zip(batch.roles, sums_S.split(num_rows), strict=True)),
        dict(zip(batch.roles, counts_S.split(num_rows), strict=True)),
    )


@torch.no_grad()
def check_head(model: PreTrainedModel, *, name: str) -> None:
    """Compare the log-probabilities of a few tokens with the model's own forward pass.

    Guards against families whose head does more than `_as_configured` knows.

    Raises:
        ModelError: they differ.
    """
    device = model.device
    ids_T = torch.arange(8, device=device) * 7 % model.config.get_text_config().vocab_size
    batch = PaddedBatch(
        ("probe",),
        ids_T[None],
        torch.ones_like(ids_T)[None],
        torch.zeros(5, dtype=torch.long, device=device),
        torch.arange(2, 7, device=device),
        ids_T[3:],
        (5,),
    )
    ours = sequence_logps(model, batch)
    logits_TV = model(input_ids=ids_T[None], attention_mask=batch.mask_ST, use_cache=False).logits[0].float()
    plain = torch.log_softmax(logits_TV[2:7], -1).gather(-1, ids_T[3:, None]).sum()
    tolerance = 1e-4 if model.dtype == torch.float32 else 5e-2
    if not torch.isclose(ours[0].float(), plain, rtol=tolerance, atol=tolerance):
        raise ModelError(
            f"{name}: {type(model).__name__} does something to its logits that training does not know "
            f"(log-probability {ours[0]:.6g} against its own {plain:.6g}); this family is not supported yet"
        )
