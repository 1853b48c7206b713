"""Scorers on tiny random models: equal to plain transformers, deaf to neighbours, loud about bad weights."""

import json
import math
import random
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from fusion.errors import InputError, ModelError, RecipeError
from fusion.models import ModelRef
from fusion.rewards import ClassifierSettings, PythonScorer, RewardFn, Scorer, SequenceClassifier
from fusion.rewards.common import Tokens
from fusion.rows import Message
from scored import prompt, response
from tiny_models import NO_NEWLINE, add_tokens, save_reward_model

SETTINGS = ClassifierSettings()


def conversation(question: str, answer: str) -> tuple[Message, ...]:
    return (Message("user", question), Message("assistant", answer))


def conversations(num: int, *, longest: int = 150) -> list[tuple[Message, ...]]:
    rng = random.Random(5)
    text = lambda: "".join(rng.choices("abcdefg ", k=rng.randint(1, longest)))  # noqa: E731
    return [conversation(text(), text()) for _ in range(num)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_reward_model(tmp_path_factory.mktemp("rm") / "llama")


@pytest.fixture(scope="module")
def reward(folder: Path) -> RewardFn:
    return SETTINGS.load(folder)


def plain_scores(folder: Path, asked: list[tuple[Message, ...]], *, precision: str) -> list[float]:
    """The scores of the transformers model itself, one conversation at a time and without padding."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    # "eager" is the model's own formula; PyTorch's scaled dot product leaves out the softcap of Gemma-2 without a word.
    model = AutoModelForSequenceClassification.from_pretrained(
        folder, dtype=getattr(torch, precision), attn_implementation="eager"
    ).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    found = []
    for messages in asked:
        turns = [{"role": m.role, "content": m.content} for m in messages]
        ids = tokenizer.apply_chat_template(turns, return_tensors="pt", return_dict=True)["input_ids"]
        with torch.inference_mode():
            found.append(model(input_ids=ids).logits[0, 0].item())
    return found


@pytest.mark.parametrize(
    ("architecture", "fields"),
    [
        ("Llama", {}),
        ("Llama", {"pad_token_id": None, "template": NO_NEWLINE}),
        # Pad and end of turn are one token, and it is the last one of every conversation.
        ("Llama", {"pad_token_id": 258, "template": NO_NEWLINE}),
        ("Qwen2", {"pad_token_id": 258}),
        ("Qwen3", {}),
        ("Gemma2", {"sliding_window": 32, "query_pre_attn_scalar": 32}),
        ("Mistral", {"sliding_window": 48}),
    ],
    ids=lambda value: value if isinstance(value, str) else ",".join(value) or "plain",
)
@pytest.mark.parametrize("passes", ["shared", "padded"])
def test_scores_equal_the_transformers_model(tmp_path, architecture, fields, passes):
    folder = save_reward_model(tmp_path / "rm", architecture=architecture, **fields)
    asked = conversations(40)
    reward = SETTINGS.load(folder)
    assert reward._model.passes == "shared"
    reward._model.use(passes, skips_unread=passes == "shared")
    scores = [s.score for s in reward.score(asked)]
    exact = plain_scores(folder, asked, precision="float64")
    assert max(exact) - min(exact) > 0.3
    # Two right computations in float32 differ by rounding, so neither is the measure: both are held against float64.
    rounding = max(abs(a - b) for a, b in zip(plain_scores(folder, asked, precision="float32"), exact, strict=True))
    assert max(abs(a - b) for a, b in zip(scores, exact, strict=True)) < 2 * rounding < 4e-6


def same_prompt(num: int) -> list[tuple[Message, ...]]:
    """Conversations of which many begin alike, with answers of very different lengths."""
    rng = random.Random(7)
    text = lambda most: "".join(rng.choices("abcdefg ", k=rng.randint(1, most)))  # noqa: E731
    prompts = [text(most) for most in (3, 40, 150, 200)]
    return [conversation(rng.choice(prompts), text(rng.choice((2, 30, 200)))) for _ in range(num)]


@pytest.mark.parametrize("passes", ["shared", "padded"])
@pytest.mark.parametrize("architecture", ["Llama", "Qwen3", "Gemma2", "Mistral"])
def test_a_score_is_the_same_bits_alone_among_neighbours_and_in_any_order(tmp_path, architecture, passes):
    # A window shorter than some sequences and longer than others: the kernel changes from one to the next.
    fields = {"sliding_window": 48} if architecture in ("Gemma2", "Mistral") else {}
    folder = save_reward_model(tmp_path / "rm", architecture=architecture, **fields)
    reward = SETTINGS.load(folder)
    reward._model.use(passes, skips_unread=passes == "shared")
    asked = conversations(20) + same_prompt(40)
    together = reward.score(asked)
    assert [reward.score([c])[0] for c in asked] == together
    rng = random.Random(1)
    for size in (2, 7, 32):
        order = rng.sample(range(60), 60)
        for start in range(0, 60, size):
            part = order[start : start + size]
            assert reward.score([asked[i] for i in part]) == [together[i] for i in part]
    again = ClassifierSettings(tokens_per_forward=600 if passes == "shared" else 4096).load(folder)
    again._model.use(passes, skips_unread=passes == "shared")
    assert again.score(asked) == together


def test_a_prompt_is_encoded_once_for_all_its_responses(reward):
    seen = []
    trunk = reward._model._trunk
    hook = trunk.register_forward_pre_hook(lambda _, args, kwargs: seen.append(kwargs), with_kwargs=True)
    try:
        reward.score([conversation("q" * 150, answer) for answer in ("a", "bb" * 20, "c" * 7)])
    finally:
        hook.remove()
    (given,) = seen
    whole = [reward._tokens(conversation("q" * 150, answer)) for answer in ("a", "bb" * 20, "c" * 7)]
    num_tokens = len(whole[0].prompt) + sum(len(tokens.answer) for tokens in whole)
    assert given["input_ids"].shape == (1, num_tokens + -num_tokens % 8)


def test_a_model_whose_layers_mix_tokens_is_scored_with_padded_passes(tmp_path, caplog):
    """A block that looks at the whole pass would give scores that depend on neighbours: the probe notices."""
    from fusion.rewards.classifier import Classifier, choose_passes

    folder = save_reward_model(tmp_path / "rm")
    model = Classifier.load(folder, dtype="float32", device="cpu", tokens_per_forward=4096)
    mlp = model._trunk.layers[0].mlp
    plain = mlp.forward
    mlp.forward = lambda x: plain(x) + x.mean(1, keepdim=True)
    choose_passes(model, name="odd")
    assert model.passes == "padded"
    assert "odd: a prompt is encoded again for each of its responses: a score of" in caplog.text


def test_a_processor_whose_rounding_depends_on_the_pass_gets_padded_passes(tmp_path, caplog):
    from fusion.rewards.classifier import Classifier, choose_passes

    model = Classifier.load(save_reward_model(tmp_path / "rm"), dtype="float32", device="cpu", tokens_per_forward=4096)
    mlp = model._trunk.layers[0].mlp
    plain = mlp.forward
    # What a matrix product that picks its kernel by the number of rows would do: some units in the last place.
    mlp.forward = lambda x: plain(x) * (1 + (x.shape[1] > 64) * 2**-22)
    choose_passes(model, name="odd")
    assert model.passes == "padded"
    assert "last bits of a score depend on what else is in the pass" in caplog.text


# ---- several outputs --------------------------------------------------------------------------


LABELS = {"id2label": {0: "helpful", 1: "verbose", 2: "safe"}, "num_labels": 3}


def test_a_weighted_sum_of_several_outputs(tmp_path):
    import torch

    folder = save_reward_model(tmp_path / "rm", **LABELS)
    weights = {"helpful": 1.0, "verbose": -0.5}
    reward = ClassifierSettings(objectives=weights).load(folder)
    model = reward._model
    asked = conversations(10)
    for messages, result in zip(asked, reward.score(asked), strict=True):
        outputs = model.score_ids([reward._tokens(messages)])[0]
        assert result.objectives == dict(zip(("helpful", "verbose", "safe"), outputs, strict=True))
        assert result.score == outputs[0] - 0.5 * outputs[1]
    model.use("padded")
    plain = [model.plain_outputs(reward._tokens(messages).ids) for messages in asked]
    found = [list(result.objectives.values()) for result in reward.score(asked)]
    assert torch.allclose(torch.tensor(found), torch.tensor(plain), atol=1e-5)


@pytest.mark.parametrize(
    ("objectives", "said"),
    [
        (
            None,
            r"this model has 3 outputs \(helpful, verbose, safe\); say which make the score, e.g. objectives: {helpful: 1.0}",
        ),
        ({"kind": 1.0}, r"no output is named 'kind'; there are: helpful, verbose, safe"),
    ],
)
def test_outputs_must_be_named(tmp_path, objectives, said):
    folder = save_reward_model(tmp_path / "rm", **LABELS)
    with pytest.raises(ModelError, match=said):
        ClassifierSettings(objectives=objectives).load(folder)


def test_an_output_that_is_not_finite_spoils_the_score_even_without_weight():
    from fusion.rewards.sequence_classifier import ScoreRule

    rule = ScoreRule.of(("a", "b"), {"a": 2.0}, name="config.json")
    assert rule.score((1.5, 4.0)) == 3.0
    assert math.isnan(rule.score((1.5, math.inf)))


def test_token_counts_and_truncation(folder, reward):
    whole = reward.score([conversation("q", "a" * 400)])[0]
    assert whole.num_tokens == len(reward.chat.encode_conversation(conversation("q", "a" * 400))[0])
    short = ClassifierSettings(max_length=64).load(folder)
    asked = [conversation("q", "a"), conversation("q" * 90, "a" * 9), conversation("q", "b")]
    alone, _, after = reward.score(asked)
    refused = short.score(asked)
    assert (refused[0], refused[2]) == (alone, after)
    assert refused[1].score is None and refused[1].error_code == "context_length_exceeded"
    assert refused[1].error_message == f"{refused[1].num_tokens} tokens > 64"
    left, right = (short.score(asked, truncation=side)[1] for side in ("left", "right"))
    assert left.truncated and right.truncated and left.num_tokens == right.num_tokens == refused[1].num_tokens
    assert left.score != right.score
    # What a cut leaves is what is scored: the head of two conversations that differ in the tail only is one.
    other = conversation("q" * 90, "b" * 9)
    assert short.score([other], truncation="right")[0].score == right.score
    assert short.score([other], truncation="left")[0].score != left.score


def test_a_left_cut_keeps_the_bos(folder):
    short = ClassifierSettings(max_length=16).load(folder)
    short.chat.tokenizer.bos_token = "<|im_start|>"
    tokens = short._tokens(conversation("q" * 40, "a"))
    cut = short._cut(tokens, "left")
    assert cut.ids == (tokens.ids[0], *tokens.ids[-15:])
    assert cut.answer == tokens.answer


@given(st.integers(1, 60), st.integers(0, 60), st.sampled_from(["left", "right"]))
def test_a_cut_keeps_the_ids_that_it_says_and_where_the_answer_begins(reward, prompt, answer, side):
    """Worked: 10 ids of which 4 are the answer, cut to 6 on the left, are 2 ids of the prompt and the answer."""
    short = RewardFn(reward.chat, reward._model, reward.rule, max_length=16)
    bos = reward.chat.tokenizer.bos_token_id
    assert bos is None
    tokens = Tokens(tuple(range(prompt)), tuple(range(100, 100 + answer)))
    cut = short._cut(tokens, side)
    assert len(cut) == min(16, len(tokens)) and cut.prompt
    assert cut.ids == (tokens.ids[-16:] if side == "left" else tokens.ids[:16])
    # The answer's ids are those from 100 on, but for the one that stands for an empty prompt.
    assert all(token >= 100 for token in cut.answer)


def test_bad_conversations_do_not_hurt_their_neighbours(reward):
    good = conversation("q", "a")
    results = reward.score([good, (Message("user", "q"),), good])
    assert results[0] == results[2] == reward.score([good])[0]
    assert results[1].error_code == "invalid_roles" and results[1].score is None


def test_an_id_outside_of_the_embedding_is_an_error_of_its_conversation_alone(tmp_path):
    folder = add_tokens(save_reward_model(tmp_path / "rm", vocab_size=260), ["zebra", "yak"])
    reward = SETTINGS.load(folder)
    asked = [conversation("q", text) for text in ("a zebra", "a yak", "ok", "yak " + "z" * 90)]
    alone = [reward.score([each])[0] for each in asked]
    together = reward.score(asked)
    assert together == alone
    assert [result.error_code for result in together] == [None, "scorer_error", None, "scorer_error"]
    assert together[1].error_message == "the tokenizer gives id 260, the model has 260; they do not fit"
    assert together[1].num_tokens == together[0].num_tokens
    # What a cut takes away is not asked of the model.
    short = ClassifierSettings(max_length=64).load(folder)
    assert short.score(asked[3:], truncation="left")[0].score is not None


def test_non_finite_scores_are_errors(tmp_path, folder):
    import torch
    from safetensors.torch import load_file, save_file

    broken = save_reward_model(tmp_path / "rm")
    weights = load_file(broken / "model.safetensors")
    weights["model.embed_tokens.weight"][ord("~") - 33] = torch.inf  # byte-level ids start at "!"
    save_file(weights, broken / "model.safetensors", {"format": "pt"})
    bad, good = SETTINGS.load(broken).score([conversation("q", "~"), conversation("q", "a")])
    assert bad.score is None and bad.error_code == "non_finite_score"
    assert good.score is not None


# ---- loading ----------------------------------------------------------------------------------


def rewrite(folder: Path, change) -> Path:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


def test_missing_head_is_refused_and_not_drawn_at_random(tmp_path):
    folder = rewrite(save_reward_model(tmp_path / "rm"), lambda w: w.pop("score.weight"))
    with pytest.raises(ModelError, match=r"rm: weights score\.weight are missing and would be drawn at random"):
        SETTINGS.load(folder)


def test_unexpected_weights_are_refused(tmp_path):
    folder = rewrite(
        save_reward_model(tmp_path / "rm"), lambda w: w.update({"gating.weight": w["score.weight"].clone()})
    )
    with pytest.raises(ModelError, match=r"gating\.weight belong to no part of the model"):
        SETTINGS.load(folder)


def test_weights_of_another_shape_are_refused(tmp_path):
    def widen(weights):
        weights["score.weight"] = weights["score.weight"].repeat(2, 1)

    with pytest.raises(ModelError, match=r"score\.weight have another shape"):
        SETTINGS.load(rewrite(save_reward_model(tmp_path / "rm"), widen))


def test_another_kind_of_classifier_is_refused(tmp_path):
    from transformers import BertConfig, BertForSequenceClassification

    folder = save_reward_model(tmp_path / "rm")
    sizes = {
        "vocab_size": 272,
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    BertForSequenceClassification(BertConfig(num_labels=1, **sizes)).save_pretrained(folder)
    with pytest.raises(ModelError, match=r"BertForSequenceClassification is not a decoder"):
        SETTINGS.load(folder)


def test_pickled_weights_are_refused(tmp_path):
    folder = save_reward_model(tmp_path / "rm")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"no \*\.safetensors file"):
        SETTINGS.load(folder)


def test_remote_code_is_not_run(tmp_path):
    folder = save_reward_model(tmp_path / "rm")
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "model_type": "own",
        "auto_map": {"AutoConfig": "own.Config", "AutoModelForSequenceClassification": "own.M"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text("raise SystemExit('remote code was run')")
    with pytest.raises(ModelError, match=r"config\.json cannot be used"):
        SETTINGS.load(folder)


def test_a_limit_above_the_models_own_is_refused(folder):
    with pytest.raises(ModelError, match="max_length 1000 is above the 512 positions"):
        ClassifierSettings(max_length=1000).load(folder)


def test_a_tokenizer_of_another_model_is_refused(tmp_path):
    folder = save_reward_model(tmp_path / "rm", vocab_size=128, pad_token_id=0, eos_token_id=0)
    with pytest.raises(ModelError, match=r"rm: the tokenizer gives id 258, the model has 128"):
        SETTINGS.load(folder)


# ---- python scorers ---------------------------------------------------------------------------


def python_scorer(tmp_path, monkeypatch, body: str, **fields):
    name = f"own_scorers_{abs(hash(tmp_path))}"
    (tmp_path / f"{name}.py").write_text(body)
    monkeypatch.syspath_prepend(tmp_path)
    return PythonScorer(function=f"{name}:f", version=1, **fields)


@pytest.mark.parametrize(
    ("body", "score", "objectives", "code", "message"),
    [
        ("return len(response.text)", 8.0, {}, None, None),
        ("return {'score': 1, 'exact': 0.5}", 1.0, {"exact": 0.5}, None, None),
        ("import numpy; return numpy.float32(0.5)", 0.5, {}, None, None),
        ("raise KeyError('no gold')\n", None, {}, "scorer_error", "KeyError: 'no gold'"),
        ("raise ValueError('first\\nsecond')", None, {}, "scorer_error", "ValueError: first"),
        ("raise SystemExit(3)", None, {}, "scorer_error", "SystemExit: 3"),
        ("return None", None, {}, "scorer_error", "'score' is None (NoneType); return a number for it"),
        ("return True", None, {}, "scorer_error", "'score' is True (bool); return a number for it"),
        ("return {'exact': 1.0}", None, {}, "scorer_error", "the mapping has no 'score', only ['exact']"),
        ("return {'score': 1.0, 'exact': 'yes'}", None, {}, "scorer_error", "'exact' is 'yes' (str); return a number for it"),
        ("return float('nan')", None, {}, "non_finite_score", "score is nan"),
        ("return {'score': 1.0, 'part': float('inf')}", None, {}, "non_finite_score", "part is inf"),
    ],
)  # fmt: skip
def test_what_a_python_scorer_may_say(tmp_path, monkeypatch, body, score, objectives, code, message):
    scorer = python_scorer(tmp_path, monkeypatch, f"def f(prompt, response):\n    {body}\n")
    result = scorer.load().score(prompt(), response("a", text="12345678"))
    assert (result.score, result.objectives, result.error_code, result.error_message) == (
        score,
        objectives,
        code,
        message,
    )


def test_parameters_reach_the_function(tmp_path, monkeypatch):
    body = "def f(prompt, response, *, scale): return scale * len(response.text)"
    scorer = python_scorer(tmp_path, monkeypatch, body, parameters={"scale": 0.5})
    assert scorer.load().score(prompt(), response("a", text="abcd")).score == 2.0


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (
            "no_such_module_here:f",
            r"'no_such_module_here:f': module no_such_module_here cannot be imported \(ModuleNotFound",
        ),
        ("json:no_such", r"'json:no_such': no_such does not exist in .*json"),
        ("json:__doc__", r"'json:__doc__': __doc__ is not a function"),
    ],
)
def test_a_function_that_cannot_be_imported_is_named(function, message):
    with pytest.raises(RecipeError, match=message) as caught:
        PythonScorer(function=function, version=1).load()
    assert isinstance(caught.value, InputError)


@pytest.mark.parametrize("function", ["f", "a.b", "a:b.c", "a b:c", ":f", "a:", "../a:f"])
def test_function_names_are_checked_at_load_of_the_recipe(function):
    with pytest.raises(ValidationError):
        PythonScorer(function=function, version=1)


# ---- configs ----------------------------------------------------------------------------------


def test_settings_are_the_scorer_without_its_model():
    scorer = TypeAdapter(Scorer).validate_python(
        {"type": "sequence_classifier", "model": {"path": "x"}, "max_length": 64, "dtype": "bfloat16"}
    )
    assert isinstance(scorer, SequenceClassifier) and scorer.model == ModelRef(path=Path("x"))
    assert scorer.settings == ClassifierSettings(max_length=64, dtype="bfloat16")


def test_importing_scorers_is_light():
    code = "import sys, fusion.rewards, fusion.select; print([m for m in ('torch', 'transformers', 'ray') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
