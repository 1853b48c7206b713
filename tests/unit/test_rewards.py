"""Scorers on tiny random models: equal to plain transformers, deaf to neighbours, loud about bad weights."""

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import TypeAdapter, ValidationError

from fusion.errors import InputError, ModelError, RecipeError
from fusion.models import ModelRef
from fusion.rewards import ClassifierSettings, PythonScorer, RewardFn, Scorer, SequenceClassifier
from fusion.rows import Message
from scored import prompt, response
from tiny_models import NO_NEWLINE, save_reward_model

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


def plain_scores(folder: Path, asked: list[tuple[Message, ...]]) -> list[float]:
    """The scores of the transformers model itself, one conversation at a time and without padding."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
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
def test_scores_equal_the_transformers_model(tmp_path, architecture, fields):
    folder = save_reward_model(tmp_path / "rm", architecture=architecture, **fields)
    asked = conversations(12)
    scores = [s.score for s in SETTINGS.load(folder).score(asked)]
    plain = plain_scores(folder, asked)
    assert max(plain) - min(plain) > 0.3
    assert scores == pytest.approx(plain, abs=1e-6)


def test_a_score_is_the_same_bits_alone_among_neighbours_and_in_any_order(folder, reward):
    asked = conversations(60)
    together = reward.score(asked)
    assert [reward.score([c])[0] for c in asked] == together
    rng = random.Random(1)
    for size in (2, 7, 32):
        order = rng.sample(range(60), 60)
        for start in range(0, 60, size):
            part = order[start : start + size]
            assert reward.score([asked[i] for i in part]) == [together[i] for i in part]
    assert SETTINGS.load(folder).score(asked) == together


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
    ids = short.chat.encode_conversation(conversation("q" * 40, "a"))[0]
    assert short._cut(ids, "left") == (ids[0], *ids[-15:])


def test_bad_conversations_do_not_hurt_their_neighbours(reward):
    good = conversation("q", "a")
    results = reward.score([good, (Message("user", "q"),), good])
    assert results[0] == results[2] == reward.score([good])[0]
    assert results[1].error_code == "invalid_roles" and results[1].score is None


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


def test_a_model_with_two_outputs_is_refused(tmp_path):
    folder = save_reward_model(tmp_path / "rm", num_labels=2)
    with pytest.raises(ModelError, match=r"LlamaForSequenceClassification\) has 2; give .* num_labels 1"):
        SETTINGS.load(folder)


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
    with pytest.raises(ModelError, match=r"gives id 258, the model has 128"):
        SETTINGS.load(folder).score([conversation("q", "a")])


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
