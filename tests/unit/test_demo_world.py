"""Building a tiny demo world: whole, killed half-way, damaged, and asked for twice."""

import json
import shutil
from pathlib import Path

import pytest

from fusion.artifact import file_sha256
from fusion.chat import Chat
from fusion.rows import Message
from jobs.demo.curriculum import SKILLS
from jobs.demo.random_models import build as build_random_models
from jobs.demo.settings import WorldSettings
from jobs.demo.world import MANIFEST, STARTED, build

TINY = WorldSettings(
    source_examples=64, target_examples=64, sloppy_examples=32, reward_examples=64, num_prompts=8, num_held_out=8
)

MODELS = SKILLS.models


def digests(world: Path) -> dict[str, str]:
    return json.loads((world / MANIFEST).read_text())["files"]


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """One tiny world, built from nothing."""
    out = tmp_path_factory.mktemp("demo") / "world"
    assert build(out, settings=TINY).num_trained == len(MODELS)
    return out


def test_a_world_is_plain_hugging_face_folders_and_two_prompt_files(world):
    assert not (world / STARTED).exists() and not (world / "tmp").exists()
    assert {"prompts.jsonl", "held_out.jsonl"} < digests(world).keys()
    for name in MODELS:
        files = {file.name for file in (world / "models" / name).iterdir()}
        assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= files
        assert "chat_template.jinja" in files
        if name != "reward":
            generation = json.loads((world / "models" / name / "generation_config.json").read_text())
            assert tuple(sorted(generation["eos_token_id"])) == Chat.load(world / "models" / name).stop_ids


def test_a_second_call_trains_nothing(world, capsys):
    before = digests(world)
    assert build(world, settings=TINY).num_trained == 0
    assert "verified" in capsys.readouterr().out
    assert digests(world) == before


def test_a_killed_build_keeps_finished_models_and_ends_with_the_same_bytes(world, tmp_path):
    """What a kill during the last model leaves: no manifest, a half-made folder under tmp/."""
    out = tmp_path / "world"
    shutil.copytree(world, out)
    key = json.loads((out / MANIFEST).read_text())["fingerprint"]
    (out / MANIFEST).unlink()
    (out / STARTED).write_text(json.dumps({"fingerprint": key}))
    (out / "tmp").mkdir()
    (out / "models" / "qwen2-sort").rename(out / "tmp" / "qwen2-sort")
    (out / "held_out.jsonl").unlink()
    assert build(out, settings=TINY, workers=1).num_trained == 1
    assert digests(out) == digests(world)


def test_a_damaged_file_costs_only_its_model(world, tmp_path, capsys):
    out = tmp_path / "world"
    shutil.copytree(world, out)
    (out / "models" / "reward" / "model.safetensors").write_bytes(b"torn")
    kept = (out / "models" / "target" / "model.safetensors").stat().st_mtime_ns
    assert build(out, settings=TINY, workers=1).num_trained == 1
    assert "models/reward/model.safetensors: changed or missing" in capsys.readouterr().out
    assert digests(out) == digests(world)
    assert (out / "models" / "target" / "model.safetensors").stat().st_mtime_ns == kept


@pytest.mark.parametrize("name", MODELS)
def test_unknown_characters_do_not_raise(world, name):
    chat = Chat.load(world / "models" / name)
    assert len(chat.encode_prompt([Message("user", "héllo 世界 \u0000 ✨ add 1")])) > 5


def test_random_models_are_seeded_and_take_any_text(tmp_path):
    text = "naïve 世界\t\u0000 «✨» <|im_end|> [INST]\r\n  def f(x):\n    return '\U0001f9ea'"
    folders = build_random_models(tmp_path / "a", seed=1)
    again = build_random_models(tmp_path / "b", seed=1)
    other = build_random_models(tmp_path / "c", seed=2)
    assert [folder.name for folder in folders] == ["llama", "qwen2", "gemma2", "mistral", "target", "reward"]
    for one, two, three in zip(folders, again, other, strict=True):
        weights = [file_sha256(folder / "model.safetensors") for folder in (one, two, three)]
        assert weights[0] == weights[1] != weights[2]
        tokenizer = Chat.load(one).tokenizer
        ids = tokenizer(text, add_special_tokens=False).input_ids
        assert tokenizer.decode(ids) == text
