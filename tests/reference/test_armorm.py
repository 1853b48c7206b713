"""ArmoRM against its published formula, written out plainly: one conversation at a time, on token ids, with loops."""

import json
import random
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaModel

from armorm_models import OPEN_TEMPLATE, PAD, TEMPLATE, save_armorm
from fusion.rewards import ArmoSettings, RewardFn
from fusion.rewards.armorm import OBJECTIVES, OPENING, last_opening
from fusion.rewards.armorm_model import GatedHead, GatedRewardModel
from fusion.rewards.common import Tokens
from fusion.rows import Message

# ---- the published formula --------------------------------------------------------------------


class Published:
    """What `modeling_custom.py` of RLHFlow/ArmoRM-Llama3-8B-v0.1 computes of one conversation without padding."""

    def __init__(self, folder: Path, dtype: torch.dtype = torch.float64, trunk: torch.dtype | None = None) -> None:
        config = json.loads((folder / "config.json").read_text())
        weights = load_file(folder / "model.safetensors")
        # "eager" is attention as it is written in the paper.
        self.trunk = LlamaModel(LlamaConfig(**config, attn_implementation="eager")).eval()
        self.trunk.load_state_dict({k[len("model.") :]: w for k, w in weights.items() if k.startswith("model.")})
        self.trunk.to(trunk or dtype)
        self.heads = {k: w.to(dtype) for k, w in weights.items() if not k.startswith("model.")}
        self.num_objectives, self.temperature = config["num_objectives"], config["gating_temperature"]
        self.num_hidden, self.dtype = config["gating_n_hidden"], dtype

    def gates(self, hidden_H: torch.Tensor) -> list[float]:
        for layer in range(self.num_hidden + 1):
            hidden_H = (
                self.heads[f"gating.layers.{layer}.weight"] @ hidden_H + self.heads[f"gating.layers.{layer}.bias"]
            )
            if layer < self.num_hidden:
                hidden_H = hidden_H.clamp(min=0)
        powers = [(x / self.temperature).exp() for x in hidden_H]
        return [(power / sum(powers) * self.heads["gating.logit_scale"][0]).item() for power in powers]

    @torch.inference_mode()
    def __call__(self, ids: Sequence[int], opening: Sequence[int]) -> tuple[float, list[float], list[float]]:
        """Return score, rewards and gates."""
        starts = [at for at in range(len(ids)) if list(ids[at : at + len(opening)]) == list(opening)]
        hidden_TH = self.trunk(input_ids=torch.tensor([list(ids)])).last_hidden_state[0].to(self.dtype)
        gates = self.gates(hidden_TH[starts[-1]])
        rewards = (self.heads["regression_layer.weight"] @ hidden_TH[-1]).tolist()
        transform = self.heads["reward_transform_matrix"].tolist()
        score = 0.0
        for j in range(self.num_objectives):
            score += gates[j] * sum(rewards[i] * transform[i][j] for i in range(self.num_objectives))
        return score, rewards, gates


def test_the_formula_worked_by_hand():
    """Two objectives: r = (1, 2); T takes half of the second off the first, r T = (0, 2); g = 2 softmax(0, ln 3) = (0.5, 1.5);
    the score is 0.5 * 0 + 1.5 * 2 = 3.
    """
    config = LlamaConfig(
        vocab_size=8, hidden_size=4, intermediate_size=4, num_hidden_layers=1, num_attention_heads=2,
        num_objectives=2, gating_temperature=10, gating_hidden_dim=3, gating_n_hidden=1,
    )  # fmt: skip
    model = GatedRewardModel(config)
    with torch.no_grad():
        model.regression_layer.weight.copy_(torch.tensor([[1.0, 0, 0, 0], [0, 1, 0, 0]]))
        model.reward_transform_matrix.copy_(torch.tensor([[1.0, 0], [-0.5, 1]]))
        for layer in model.gating.layers:
            layer.weight.zero_()
            layer.bias.zero_()
        # The token of the prompt is (0, 0, 1, -1): ReLU lets its third number through and keeps the fourth back.
        model.gating.layers[0].weight.copy_(torch.tensor([[0.0, 0, 1, 0], [0, 0, 0, 1], [0, 0, 0, 0]]))
        model.gating.layers[1].weight.copy_(10 * torch.log(torch.tensor(3.0)) * torch.tensor([[0.0, 1, 0], [1, 1, 0]]))
        model.gating.logit_scale.fill_(2.0)
        hidden_NH = torch.tensor([[0.0, 0, 1, -1], [1, 2, 9, 9]])
        outputs = GatedHead(model, ("a", "b"), (5,))(hidden_NH, torch.tensor([[1, 0]]))
    assert outputs[0].tolist() == pytest.approx([3.0, 1.0, 2.0], abs=1e-6)


# ---- parity -----------------------------------------------------------------------------------


def turns(*texts: str, system: str | None = None) -> tuple[Message, ...]:
    """A conversation in which user and assistant take turns; the last text is the answer to score."""
    said = tuple(Message(("user", "assistant")[i % 2], text) for i, text in enumerate(texts))
    return (() if system is None else (Message("system", system),)) + said


def conversations() -> list[tuple[Message, ...]]:
    """Many lengths, prompts with several answers, turns, and texts that spell what the gate looks for."""
    rng = random.Random(3)
    text = lambda most: "".join(rng.choices("abcdefg \n", k=rng.randint(1, most)))  # noqa: E731
    prompts = [text(most) for most in (1, 9, 60, 150, 220)]
    found = [turns(rng.choice(prompts), text(rng.choice((1, 2, 40, 150)))) for _ in range(24)]
    for _ in range(6):
        found.append(turns(text(30), text(30), text(30), text(40), system=rng.choice((None, "Be brief."))))
    header = f"{OPENING}no{OPENING}"
    found += [
        turns(header, "yes"),
        turns("q", header),
        turns(f"what is {OPENING}", f"it is {OPENING} and {OPENING}"),
        turns("q", header, f"{OPENING}again", "a"),
        turns("a [PAD] in the text", "and in [PAD] the answer"),
        turns("q", "\n\n\n after new lines"),
        turns("q", "<|eot_id|>"),
    ]
    return rng.sample(found, len(found))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return save_armorm(tmp_path_factory.mktemp("armorm") / "rm")


@pytest.fixture(scope="module")
def reward(folder) -> RewardFn:
    return ArmoSettings().load(folder)


@pytest.mark.parametrize("passes", ["shared", "padded"])
@pytest.mark.parametrize(
    ("template", "fields"),
    [
        (TEMPLATE, {}),
        # It ends with an open turn of the assistant: the last header stands behind the answer, and so does the gate.
        (OPEN_TEMPLATE, {"seed": 1}),
        (TEMPLATE, {"num_objectives": 3, "gating_n_hidden": 1, "gating_temperature": 0.5, "id2label": {0: "a", 1: "b", 2: "c"}}),
        (TEMPLATE, {"gating_n_hidden": 0, "seed": 2}),
    ],
    ids=["llama3", "open", "three objectives", "no hidden layer"],
)  # fmt: skip
def test_scores_equal_the_published_formula(tmp_path, template, fields, passes):
    folder = save_armorm(tmp_path / "rm", template=template, **fields)
    reward = ArmoSettings().load(folder)
    assert reward._model.passes == "shared"
    reward._model.use(passes, skips_unread=passes == "shared")
    asked = conversations()
    published, opening = Published(folder), reward._model.head.opening
    worst, scores, seen = 0.0, [], set()
    for messages, result in zip(asked, reward.score(asked), strict=True):
        ids, _ = reward.chat.encode_conversation(messages)
        score, rewards, gates = published(ids, opening)
        found = [result.score, *result.objectives.values()]
        worst = max(worst, *(abs(a - b) for a, b in zip(found, [score, *rewards], strict=True)))
        scores.append(score)
        seen.add(max(range(len(gates)), key=gates.__getitem__))
    assert max(scores) - min(scores) > 1 and len(seen) > 1  # or nothing would have been compared
    assert worst < 1e-5


def test_only_the_heads_are_float32_in_half_precision(tmp_path):
    """bfloat16 moves a score by some hundredths; what is left of it is the trunk's rounding, and none of the heads'."""
    folder = save_armorm(tmp_path / "rm", dtype="bfloat16")
    reward = ArmoSettings(dtype="bfloat16").load(folder)
    kinds = {name: weight.dtype for name, weight in reward._model._model.named_parameters()}
    heads = {name for name, dtype in kinds.items() if dtype == torch.float32}
    assert heads == {name for name in kinds if not name.startswith("model.")} and len(heads) == 11
    assert reward._model.passes == "shared", "a prompt is encoded once for its responses"
    published = Published(folder, torch.float32, trunk=torch.bfloat16)
    asked = conversations()
    for messages, result in zip(asked, reward.score(asked), strict=True):
        ids, _ = reward.chat.encode_conversation(messages)
        assert result.score == pytest.approx(published(ids, reward._model.head.opening)[0], abs=0.15)


# ---- where the gate is read -------------------------------------------------------------------


def test_a_worked_place_of_the_gate(reward):
    """Of two turns it is the `<|eot_id|>` of the second question: what comes before it is read, the answer is not."""
    ids, is_answer = reward.chat.encode_conversation(turns("first", "one", "second", "two"))
    at = last_opening(ids, reward._model.head.opening)
    decode = reward.chat.tokenizer.decode
    assert decode(ids[at]) == "<|eot_id|>" and decode(ids[at - 6 : at]) == "second"
    assert decode(ids[at : is_answer.index(True)]) == OPENING
    assert reward._model.head.places(ids) == (len(ids) - 1, at)


def test_the_gate_depends_on_the_prompt_alone(reward, folder):
    published, opening = Published(folder), reward._model.head.opening
    encode = reward.chat.encode_conversation
    gates = [
        published(encode(messages)[0], opening)[2]
        for messages in (turns("q", "a"), turns("q", "b" * 60), turns("r", "a"))
    ]
    assert gates[0] == pytest.approx(gates[1], abs=1e-12) and gates[0] != pytest.approx(gates[2], abs=1e-3)


PIECES = st.lists(st.sampled_from(["opening", "half", "text"]), max_size=5)


@settings(max_examples=25, deadline=None)
@given(before=PIECES, after=PIECES, data=st.data())
def test_of_several_headers_in_the_ids_the_last_one_counts(reward, folder, before, after, data):
    """Wherever the cut between prompt and answer is: inside of a header too."""
    opening = reward._model.head.opening
    pieces = {"opening": opening, "half": opening[:4], "text": (65, 66)}
    ids = [256, *[i for piece in [*before, "opening", *after] for i in pieces[piece]], 70]
    cut = data.draw(st.integers(1, len(ids) - 1))
    outputs = reward._model.score_ids([Tokens(tuple(ids[:cut]), tuple(ids[cut:]))])[0]
    score, rewards, _ = _published(folder)(ids, opening)
    assert outputs == pytest.approx([score, *rewards], abs=1e-5)


def _published(folder: Path, made: dict[Path, Published] = {}) -> Published:  # noqa: B006 - one model for all examples
    return made.setdefault(folder, Published(folder))


def test_a_padding_token_inside_does_not_say_where_an_answer_is_judged(reward):
    """The published code would read the token before the first `[PAD]`, whatever follows it."""
    head = (*reward.chat.encode_prompt([Message("user", "q")]), 65, PAD)
    one, other = (reward._model.score_ids([Tokens(head, tail)])[0] for tail in ((66, 67), (68, 69, 70)))
    assert abs(one[0] - other[0]) > 0.01
    # At the very end it is padding.
    assert reward._model.score_ids([Tokens(head, (66, 67, PAD))])[0] == pytest.approx(one, abs=1e-5)


# ---- neighbours -------------------------------------------------------------------------------


@pytest.mark.parametrize("passes", ["shared", "padded"])
def test_a_score_is_the_same_bits_alone_among_neighbours_and_in_any_order(folder, passes):
    reward = ArmoSettings(tokens_per_forward=1500).load(folder)
    reward._model.use(passes, skips_unread=passes == "shared")
    asked = conversations()
    together = reward.score(asked)
    assert [reward.score([messages])[0] for messages in asked] == together
    rng = random.Random(1)
    for size in (2, 7, 32):
        order = rng.sample(range(len(asked)), len(asked))
        for start in range(0, len(asked), size):
            part = order[start : start + size]
            assert reward.score([asked[i] for i in part]) == [together[i] for i in part]


def test_prompt_and_gate_are_computed_once_for_all_answers(reward):
    gates, passes = [], []
    head = reward._model.head
    hook = reward._model._trunk.register_forward_pre_hook(
        lambda _, args, kwargs: passes.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    plain = head._gate
    head._gate = lambda hidden: gates.append(1) or plain(hidden)
    try:
        asked = [turns(q, a) for q in ("q" * 90, "r" * 50) for a in ("a", "bb" * 9, "c" * 7)]
        reward.score(asked)
    finally:
        hook.remove()
        del head._gate
    tokens = [reward._tokens(messages) for messages in asked]
    shared = sum(map(len, {t.prompt for t in tokens})) + sum(len(t.answer) for t in tokens)
    assert len(gates) == 2 and passes == [shared + -shared % 8]


def test_the_names_are_those_of_the_model_card(reward):
    assert len(OBJECTIVES) == len(set(OBJECTIVES)) == 19
    assert tuple(reward.score([turns("q", "a")])[0].objectives) == OBJECTIVES
