"""SFT by hand: a mean over tokens, with row weights."""

import pytest

torch = pytest.importorskip("torch")

from fusion.losses import SftLoss  # noqa: E402
from loss_inputs import given, logps  # noqa: E402


def test_sft_is_the_token_mean_with_row_weights() -> None:
    """Sums -6 over 3 tokens and -4 over 1 token, weights 1 and 2: (6 + 2 * 4) / (1 * 3 + 2 * 1) = 2.8."""
    policy = logps({"response": [3, 1]}, response=[-6, -4])
    loss, weights = SftLoss(), torch.tensor([1.0, 2.0])
    out = loss(given(policy))
    total = (weights * out.losses_B).sum() / loss.mass(policy.num_tokens["response"], weights).sum()
    assert total.item() == pytest.approx(2.8)
    assert out.metrics["logps/response"].tolist() == [-6, -4]
