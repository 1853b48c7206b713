"""ArmoRM as a scorer: what is refused and why, cuts, fixed weights, and the same bits by every way to it.

Its numbers are held against the published formula in tests/reference/test_armorm.py.
"""

import json
from pathlib import Path

import pytest
from pydantic import TypeAdapter, ValidationError
from safetensors.torch import load_file, save_file

from armorm_models import SPECIALS, TEMPLATE, save_armorm
from fusion.artifact import part_name, read_part
from fusion.errors import ModelError
from fusion.models import ModelRef
from fusion.rewards import ArmoRM, ArmoSettings, ClassifierSettings, RewardFn, RewardModelSettings, Scorer
from fusion.rewards.armorm import OBJECTIVES, last_opening, objective_names
from fusion.rewards.family import settings_for
from fusion.row_tables import to_table
from fusion.rows import Message
from scored import prompt, response
from scored_file import score_here
from serving.cards import reward_card
from serving.config import RewardModel, RewardPlacement
from tiny_models import TEMPLATE as CHATML
from tiny_models import save_chat_model, save_reward_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return save_armorm(tmp_path_factory.mktemp("armorm") / "rm")


@pytest.fixture(scope="module")
def reward(folder) -> RewardFn:
    return ArmoSettings().load(folder)


def conversation(question: str, answer: str) -> tuple[Message, ...]:
    return (Message("user", question), Message("assistant", answer))


# ---- config -----------------------------------------------------------------------------------


def test_a_recipe_names_it_by_type():
    revision = "0123456789" * 4
    written = {
        "type": "armorm",
        "model": {"repo": "RLHFlow/ArmoRM-Llama3-8B-v0.1", "revision": revision},
        "max_length": 4096,
    }
    scorer = TypeAdapter(Scorer).validate_python(written)
    assert isinstance(scorer, ArmoRM)
    assert scorer.model == ModelRef(repo="RLHFlow/ArmoRM-Llama3-8B-v0.1", revision=revision)
    assert scorer.settings == ArmoSettings(max_length=4096) and scorer.label == "armorm"
    with pytest.raises(ValidationError, match="unknown field 'backend'"):  # vLLM reads one token, and no gate
        TypeAdapter(Scorer).validate_python({**written, "backend": "vllm"})


@pytest.mark.parametrize(
    ("ids", "opening", "at"),
    [
        ((5, 1, 2, 7, 1, 2, 8), (1, 2), 4),
        ((1, 2), (1, 2), 0),
        ((1, 1, 2), (1, 2), 1),
        ((2, 1), (1, 2), None),
        ((1,), (1, 2), None),
        ((), (1, 2), None),
    ],
)
def test_the_last_opening(ids, opening, at):
    assert last_opening(ids, opening) == at


def test_names_are_the_published_ones_unless_the_config_has_as_many():
    file = Path("rm/config.json")
    assert objective_names({}, file) == objective_names({"id2label": {"0": "LABEL_0"}}, file) == OBJECTIVES
    assert objective_names({"num_objectives": 2, "id2label": {"0": "kind", "1": "true"}}, file) == ("kind", "true")
    own = {str(i): f"n{i}" for i in range(19)}
    assert objective_names({"id2label": own}, file) == tuple(own.values())
    assert objective_names({"id2label": dict(sorted(own.items()))}, file) == tuple(own.values()), "10 comes after 9"
    assert objective_names({"id2label": {str(i): f"LABEL_{i}" for i in range(19)}}, file) == OBJECTIVES
    for count in ("19", 19.0, None, 0, True):
        with pytest.raises(
            ModelError, match=r"rm/config\.json: num_objectives is .*; it must be a whole number above 0"
        ):
            objective_names({"num_objectives": count}, file)
    for labels in ({"0": "LABEL_0"}, {"1": "a", "2": "b"}, {"0": "a", "1": "a"}, None):
        with pytest.raises(
            ModelError, match=r"rm/config\.json: num_objectives is 2, and id2label does not name as many"
        ):
            objective_names({"num_objectives": 2, "id2label": labels}, file)


# ---- loading ----------------------------------------------------------------------------------


def changed(folder: Path, change) -> Path:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


def configured(folder: Path, **fields) -> Path:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **fields}))
    return folder


def drop(name: str):
    return lambda weights: weights.pop(name)


DAMAGED = {
    "no rewards": (drop("regression_layer.weight"), r"weights regression_layer\.weight are missing"),
    "no transform": (drop("reward_transform_matrix"), r"weights reward_transform_matrix are missing"),
    "no bias in the gate": (drop("gating.layers.1.bias"), r"weights gating\.layers\.1\.bias are missing"),
    "no scale": (drop("gating.logit_scale"), r"weights gating\.logit_scale are missing"),
    "no layer of the trunk": (drop("model.norm.weight"), r"weights model\.norm\.weight are missing"),
    "left over": (lambda w: w.update({"score.weight": w["model.norm.weight"][None].clone()}), r"score\.weight belong to no part"),
    "other shape": (
        lambda w: w.update({"regression_layer.weight": w["regression_layer.weight"][:18].clone()}),
        r"regression_layer\.weight have another shape",
    ),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGED)
def test_weights_that_do_not_fit_are_named(tmp_path, damage):
    change, said = DAMAGED[damage]
    with pytest.raises(ModelError, match=said):
        ArmoSettings().load(changed(save_armorm(tmp_path / "rm"), change))


CONFIGS = {
    "a smaller gate": ({"gating_n_hidden": 2}, r"gating\.layers\.3\.bias, gating\.layers\.3\.weight belong to no part"),
    "another width": ({"gating_hidden_dim": 1024}, r"gating\.layers\.0\.bias, .* and 4 more have another shape"),
    "no temperature": ({"gating_temperature": 0}, r"config\.json: gating_temperature is 0; it must be above 0"),
    "a temperature of text": (
        {"gating_temperature": "10"},
        r"config\.json: gating_temperature is '10'; it must be a number",
    ),
    "no width": (
        {"gating_hidden_dim": None},
        r"config\.json: gating_hidden_dim is None; it must be a whole number",
    ),
    "no names": ({"num_objectives": 18}, "num_objectives is 18, and id2label does not name as many"),
    "another architecture": (
        {"architectures": ["LlamaForRewardModelWithGating31"]},
        "LlamaForRewardModelWithGating31 is not an ArmoRM, which is a LlamaForRewardModelWithGating",
    ),
    "another trunk": (
        {"model_type": "mistral"},
        r"config\.json: model_type is mistral; an ArmoRM has the trunk of a llama",
    ),
    "fewer positions": ({"max_position_embeddings": 16}, r"max_length 64 is above the 16 positions"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_that_does_not_fit_is_refused(tmp_path, name):
    fields, said = CONFIGS[name]
    with pytest.raises(ModelError, match=said):
        ArmoSettings(max_length=64).load(configured(save_armorm(tmp_path / "rm"), **fields))


def test_pickled_weights_are_refused(tmp_path):
    folder = save_armorm(tmp_path / "rm")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"no \*\.safetensors file; convert the weights, pickled ones are not loaded"):
        ArmoSettings().load(folder)


def test_its_remote_code_is_not_run(folder):
    """The folder holds a `modeling_custom.py` that would end this process, and a config that points at it."""
    config = json.loads((folder / "config.json").read_text())
    assert config["auto_map"] and "SystemExit" in (folder / "modeling_custom.py").read_text()
    assert ArmoSettings().load(folder).score([conversation("q", "a")])[0].score is not None


def test_a_tokenizer_or_template_that_is_not_llama_3s_is_refused(tmp_path):
    other = tuple(token for token in SPECIALS if token != "<|eot_id|>")
    with pytest.raises(
        ModelError, match=r"rm: the tokenizer has no token <\|eot_id\|>; an ArmoRM needs that of Llama 3"
    ):
        ArmoSettings().load(save_armorm(tmp_path / "rm", specials=other))
    for template in (CHATML, TEMPLATE.replace("\n\n", "\n")):
        folder = save_armorm(tmp_path / "other", template=template)
        with pytest.raises(ModelError, match=r"the chat template does not write '<\|eot_id\|>.*' before an answer"):
            ArmoSettings().load(folder)
        # A user who knows the right one may give it.
        assert (
            ArmoSettings(chat={"template": TEMPLATE}).load(folder).score([conversation("q", "a")])[0].score is not None
        )


def test_each_family_says_which_type_the_other_is(folder, tmp_path):
    with pytest.raises(ModelError, match=r"config\.json: this is an ArmoRM, another family; write type: armorm"):
        ClassifierSettings().load(folder)
    with pytest.raises(ModelError, match="the tokenizer has no token"):
        ArmoSettings().load(save_reward_model(tmp_path / "rm"))


# ---- reading ----------------------------------------------------------------------------------


def test_a_cut_that_takes_the_header_is_said_to_be_one_of_length(folder, reward):
    """Published code fails there with 'Token pattern not found in the list', for a whole batch."""
    short = ArmoSettings(max_length=64).load(folder)
    asked = [
        conversation("q", "a"),
        conversation("q" * 90, "a" * 9),
        conversation("q", "a" * 90),
        conversation("q", "b"),
    ]
    whole = reward.score(asked)
    refused = short.score(asked)
    assert [r.error_code for r in refused] == [None, *["context_length_exceeded"] * 2, None]
    assert refused[1].error_message == f"{whole[1].num_tokens} tokens > 64"
    left, right = (short.score(asked, truncation=side) for side in ("left", "right"))
    # On the left the question is cut, and goes away with its header where the answer alone is too long; and vice versa.
    assert [r.error_code for r in left] == [None, None, "context_length_exceeded", None]
    assert [r.error_code for r in right] == [None, "context_length_exceeded", None, None]
    for lost, whole_one in ((left[2], whole[2]), (right[1], whole[1])):
        assert lost.score is None and lost.num_tokens == whole_one.num_tokens
        assert lost.error_message.startswith(f"cut to 64 of {lost.num_tokens} tokens, it does not hold '<|eot_id|>")
    assert left[1].truncated and right[2].truncated
    for results in (refused, left, right):
        assert (results[0], results[3]) == (whole[0], whole[3])


def test_fixed_weights_replace_the_gate(folder, reward):
    fixed = ArmoSettings(objectives={"helpsteer-helpfulness": 1.0, "helpsteer-verbosity": -0.5}).load(folder)
    gated, weighed = (scorer.score([conversation("q", "some answer")])[0] for scorer in (reward, fixed))
    assert gated.objectives == weighed.objectives and tuple(gated.objectives) == OBJECTIVES
    parts = weighed.objectives
    assert weighed.score == parts["helpsteer-helpfulness"] - 0.5 * parts["helpsteer-verbosity"] != gated.score
    with pytest.raises(
        ModelError, match=r"config\.json: no output is named 'helpfulness'; there are: helpsteer-helpfulness,"
    ):
        ArmoSettings(objectives={"helpfulness": 1.0}).load(folder)


def test_scores_that_are_not_finite_are_errors(tmp_path):
    """The gate of every prompt, so every score; the rewards are finite."""
    broken = changed(save_armorm(tmp_path / "rm"), lambda w: w["gating.logit_scale"].fill_(float("inf")))
    (result,) = ArmoSettings().load(broken).score([conversation("q", "a")])
    assert result.score is None and result.error_code == "non_finite_score"


# ---- every way to it --------------------------------------------------------------------------


def test_the_family_is_read_from_the_folder(folder, tmp_path):
    given = RewardModelSettings(max_length=64, truncation="left", objectives={"a": 1.0})
    same = {"max_length": 64, "truncation": "left", "objectives": {"a": 1.0}}
    assert settings_for(folder, given) == ArmoSettings(**same)
    assert settings_for(save_reward_model(tmp_path / "rm"), given) == ClassifierSettings(**same)
    with pytest.raises(ModelError, match=r"Qwen3ForCausalLM is not a reward model; .* or an ArmoRM"):
        settings_for(save_chat_model(tmp_path / "chat"), given)


def test_its_card_tells_the_objectives_and_checks_weights_before_anything_is_loaded(folder):
    card = reward_card("armo", RewardModel(folder=folder))
    assert (card.kind, card.objectives, card.max_tokens) == ("reward", list(OBJECTIVES), 512)
    weighed = reward_card("armo", RewardModel(folder=folder, settings={"objectives": {"code-style": 1.0}}))
    assert weighed.revision != card.revision
    with pytest.raises(ModelError, match="no output is named 'style'"):
        reward_card("armo", RewardModel(folder=folder, settings={"objectives": {"style": 1.0}}))


def test_files_the_pipeline_and_the_service_give_the_same_bits(folder, reward, tmp_path):
    from fusion.rewards import DomainScorer
    from fusion.stages.scorer import ScoreActor, ScorerSettings, Work
    from serving.rewards import RewardServer

    asked, texts = prompt("p"), ("a", "bb " * 20, "", "c" * 600)
    expected = reward.score([(*asked.messages, Message("assistant", text)) for text in texts])
    assert [result.error_code for result in expected] == [None, None, None, "context_length_exceeded"]
    sound = [(result.score, result.objectives) for result in expected[:3]]

    row = {"prompt": asked.messages[0].content, "responses": texts}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    artifact, _, _ = score_here(tmp_path / "rows.jsonl", folder, tmp_path / "work", allow_empty=True)
    found = read_part(artifact.path / part_name(0)).to_pylist()
    assert [(each["score"], dict(each["objectives"])) for each in found] == sound

    (tmp_path / "part").mkdir()
    scorers = {"*": DomainScorer(reward=ArmoSettings())}
    actor = ScoreActor(settings=ScorerSettings(tmp_path / "part", scorers, {"*": folder}, device="cpu", num_threads=1))
    work = [Work(asked, response("m", i, text=text)) for i, text in enumerate(texts)]
    receipt = actor.run_chunk(0, to_table(work, Work))
    found = read_part(tmp_path / "part" / part_name(0)).to_pylist()
    assert [(each["score"], dict(each["objectives"])) for each in found] == sound
    assert {each["scorer"] for each in found} == {"armorm"} and receipt.quarantined == 1

    server = RewardServer("rm", folder, RewardModel(folder=folder).settings, RewardPlacement(), device="cpu")
    scored = server._score_all([(*asked.messages, Message("assistant", text)) for text in texts], "error")
    assert scored == expected
