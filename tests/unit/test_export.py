"""Export on tiny random models of several architectures: reload equal, pinned template, damage refused."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from fusion.chat import Chat, ChatConfig
from fusion.config import Config
from fusion.errors import StageError
from fusion.models import ModelRef, PinnedModel
from fusion.report.card import model_card
from fusion.rows import Finish, Message, PreferencePair, Prompt, Response, ScoredResponse, SftExample
from fusion.sampling import Decoding
from fusion.stage import Stage, StageContext, StageResult, run_stage
from fusion.stages import export
from fusion.stages.export import ExportConfig
from jobs.demo.models import SOURCES, TARGET, make_model, make_tokenizer, save

TEXTS = ["add 47 and 8", "sure! 7+8=15,4+1=5 so answer: 55. cheers!", "put in order owl cat pig ant"] * 20
DATED = (
    "{%- if strftime_now is defined %}{%- set day = strftime_now('%d %b %Y') %}{%- endif %}"
    "{%- if not date_string is defined %}{%- set date_string = '01 Jan 1999' %}{%- endif %}"
    "{{ '<|im_start|>system\n' + day + ' ' + date_string + '<|im_end|>\n' }}"
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% if enable_thinking is defined %}"
    "{{ enable_thinking | string + '\n' }}{% endif %}{% endif %}"
)


class Rule(Config):
    type: str = "best"


class NoConfig(Config):
    rule: Rule = Rule()


def tiny_folder(path, tiny=TARGET, *, dtype=torch.float32):
    tokenizer = make_tokenizer(tiny, texts=TEXTS, all_bytes=True)
    save(make_model(tiny, tokenizer, seed=3).to(dtype), tokenizer, path)
    return path


def answer(text, score=1.0):
    response = Response("p", "llama-add", 0, "sample", text, (1, 2), Finish.stop, 1, 3, "another tokenizer")
    return ScoredResponse(response, score, "s")


def run_export(store, folder, *, config=None, row_type=SftExample, num_rows=3):
    prompt = Prompt("p", "d", (Message("user", "add 47 and 8"),))
    if row_type is SftExample:
        rows = [SftExample(prompt, answer(f"sure! so answer: {i}.")) for i in range(num_rows)]
    else:
        rows = [PreferencePair(prompt, answer(f"good {i}"), answer("bad", 0.0)) for i in range(num_rows)]

    def write(ctx: StageContext) -> StageResult:
        for chunk in ctx.plan([str(i) for i in range(num_rows)], chunk_rows=100):
            ctx.commit(chunk, rows[chunk.start : chunk.stop])
        return StageResult(rows_in=num_rows)

    select = Stage("select", "best", 1, NoConfig(), {}, write, row_type)
    selected, _ = run_stage(select, store, inputs={}, report=lambda _: None, resume_command="again")
    model = PinnedModel("target", ModelRef(path=folder), store / "digests.json")
    stage = Stage(
        kind="export",
        slug="arm",
        version=export.VERSION,
        config=config or ExportConfig(name="demo-arm", chat=ChatConfig(), num_check=2),
        inputs={"model": model, "rows": select},
        run=export.run,
        row_type=None,
        exclusive=True,
    )
    return run_stage(
        stage, store, inputs={"model": model, "rows": selected}, report=lambda _: None, resume_command="again"
    )[0]


@pytest.mark.parametrize("tiny", [TARGET, *SOURCES], ids=lambda tiny: tiny.architecture)
def test_exported_folder_stands_on_its_own(tmp_path, tiny):
    folder = tiny_folder(tmp_path / "trained", tiny)
    artifact = run_export(tmp_path, folder, row_type=PreferencePair)
    out = artifact.model_folder
    assert (artifact.manifest.rows_in, artifact.manifest.rows_out) == (2, 2)
    names = {f.name for f in artifact.manifest.files}
    assert names >= {
        "model/model.safetensors", "model/config.json", "model/tokenizer.json", "model/chat_template.jinja",
        "model/generation_config.json", "model/README.md",
    }  # fmt: skip
    chat = Chat.load(folder)
    generation = json.loads((out / "generation_config.json").read_text())
    assert generation["eos_token_id"] == list(chat.stop_ids) and generation["pad_token_id"] == chat.pad_id
    before, after = (AutoModelForCausalLM.from_pretrained(f).eval() for f in (folder, out))
    ids = torch.tensor([chat.encode_prompt([Message("user", "add 47 and 8")])])
    with torch.inference_mode():
        assert torch.equal(before(ids).logits, after(ids).logits)
    assert not list(artifact.path.glob(".model*"))
    assert artifact.manifest.notes["check"]["max_abs_difference"] == 0.0


def test_template_is_pinned_for_users_who_know_nothing_of_us(tmp_path):
    folder = tiny_folder(tmp_path / "trained")
    (folder / "chat_template.jinja").write_text(DATED)
    chat_config = ChatConfig(date="2025-03-09", thinking=False)
    out = run_export(tmp_path, folder, config=ExportConfig(name="m", chat=chat_config, num_check=1)).model_folder
    tokenizer = AutoTokenizer.from_pretrained(out)
    question = [{"role": "user", "content": "add 47 and 8"}]
    text = tokenizer.apply_chat_template(question, tokenize=False, add_generation_prompt=True)
    assert "<|im_start|>system\n09 Mar 2025 09 Mar 2025<|im_end|>" in text
    assert text.endswith("<|im_start|>assistant\nFalse\n")
    ids = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_dict=False)
    assert tuple(ids) == Chat.load(folder, chat_config).encode_prompt([Message("user", "add 47 and 8")])


def test_extra_stop_tokens_go_into_the_generation_config(tmp_path):
    folder = tiny_folder(tmp_path / "trained")
    chat_config = ChatConfig(stop_tokens=("<|im_start|>",))
    out = run_export(tmp_path, folder, config=ExportConfig(name="m", chat=chat_config)).model_folder
    start = AutoTokenizer.from_pretrained(out).convert_tokens_to_ids("<|im_start|>")
    assert start in json.loads((out / "generation_config.json").read_text())["eos_token_id"]


def test_dtype_is_kept(tmp_path):
    out = run_export(tmp_path, tiny_folder(tmp_path / "trained", dtype=torch.bfloat16)).model_folder
    assert {t.dtype for t in load_file(out / "model.safetensors").values()} == {torch.bfloat16}
    assert AutoModelForCausalLM.from_pretrained(out, dtype="auto").dtype == torch.bfloat16


def test_shards_are_copied_with_their_index(tmp_path):
    folder = tiny_folder(tmp_path / "trained")
    model = AutoModelForCausalLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="300KB")
    (folder / "model-left-over.safetensors").write_bytes(b"not of this model")
    out = run_export(tmp_path, folder).model_folder
    listed = set(json.loads((out / "model.safetensors.index.json").read_text())["weight_map"].values())
    assert len(listed) > 1 and {p.name for p in out.glob("*.safetensors")} == listed


def damage(folder, change):
    file = folder / "model.safetensors"
    weights = load_file(file)
    change(weights)
    save_file(weights, file, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("model.layers.1.mlp.up_proj.weight"), "missing weights: model.layers.1.mlp.up_proj.weight"),
        (lambda w: w.update({"model.extra.weight": torch.zeros(2)}), "unexpected weights: model.extra.weight"),
        (lambda w: w.update({"model.norm.weight": torch.zeros(0)}), "cannot be loaded"),
        (lambda w: w.update({"model.norm.weight": torch.full((128,), torch.nan)}), "differ by up to nan"),
    ],
    ids=["missing", "unexpected", "empty", "not finite"],
)
def test_damaged_weights_are_refused_and_nothing_is_left(tmp_path, change, message):
    folder = tiny_folder(tmp_path / "trained")
    damage(folder, change)
    with pytest.raises(StageError, match=message):
        run_export(tmp_path, folder)
    (directory,) = (tmp_path / "export").iterdir()
    assert {p.name for p in directory.iterdir()} <= {"seconds.json"}


def test_torn_weights_are_refused(tmp_path):
    folder = tiny_folder(tmp_path / "trained")
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(StageError, match="cannot be loaded"):
        run_export(tmp_path, folder)


def test_a_copy_that_differs_is_refused(tmp_path):
    trained, copy = tiny_folder(tmp_path / "trained"), tiny_folder(tmp_path / "copy")
    damage(copy, lambda w: w["lm_head.weight"].mul_(1.01))
    chat = Chat.load(trained)
    row = SftExample(Prompt("p", "d", (Message("user", "add 47 and 8"),)), answer("55"))
    encoded = export.encode_row(row, chat, max_length=100)
    assert isinstance(encoded.prompt_ids, np.ndarray)
    with pytest.raises(StageError, match=r"log-probabilities of .*copy differ by up to"):
        export.check_export(trained, copy, chat=chat, config=ChatConfig(), rows=[(row, encoded)])


def test_the_log_probabilities_of_every_response_of_a_group_are_compared(tmp_path):
    """One difference in the second response of a group role is enough to refuse."""
    trained, copy = tiny_folder(tmp_path / "trained"), tiny_folder(tmp_path / "copy")
    ids = [Chat.load(trained).encode_prompt([Message("user", text)]) for text in ("add 47 and 8", "55", "word")]
    prompt, one, other = (np.asarray(i, np.int64) for i in ids)
    group = export.EncodedRow("p", 1.0, prompt, {"responses": (one, other)}, {})
    single = [export.EncodedRow("p", 1.0, prompt, {"response": (held,)}, {}) for held in (one, other)]
    together, dtype = export._logps(trained, [group])
    apart, _ = export._logps(trained, single)
    assert together == apart and len(together) == 2 and together[0] != together[1] and dtype == "float32"
    damage(copy, lambda w: w["lm_head.weight"].mul_(1.01))
    assert export._logps(copy, [group])[0] != together


def test_an_interrupted_export_is_made_again(tmp_path):
    folder = tiny_folder(tmp_path / "trained")
    artifact = run_export(tmp_path, folder)
    digest = artifact.manifest.digest
    (artifact.path / "manifest.json").unlink()
    (artifact.path / ".model.dead.tmp").mkdir()
    (artifact.path / "model" / "config.json").write_text("half")
    again = run_export(tmp_path, folder)
    assert again.manifest.digest == digest and not (again.path / ".model.dead.tmp").exists()


def test_card_says_what_it_was_made_from(tmp_path):
    card = (run_export(tmp_path, tiny_folder(tmp_path / "trained")).model_folder / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\n") and "# demo-arm" in card
    assert "rule `best`: 3 prompts in, 3 rows out" in card and "not legal advice" in card
    assert "Not evaluated" in card and str(tmp_path) not in card


def test_a_config_that_would_cast_the_weights_is_refused(tmp_path):
    folder = tiny_folder(tmp_path / "trained")
    config = json.loads((folder / "config.json").read_text()) | {"dtype": "bfloat16"}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(StageError, match=r"says bfloat16 but the weights are float32"):
        run_export(tmp_path, folder)


class Answers(Config):
    name: str
    decodings: tuple[Decoding, ...] = (Decoding(num_samples=5, temperature=0.8, top_p=0.95),)


class Selection(Config):
    rule: Rule = Rule()


class Training(Config):
    train: Rule = Rule(type="wrpo")


def chain(store):
    """generate/gemma -> score/gemma -> select/best -> sft/sft, each a finished artifact without rows."""

    def stage(kind, slug, config, inputs, **notes):
        def run(_ctx):
            return StageResult(rows_in=10, rows_out=9, quarantined={"too_long": 1}, notes=notes)

        node = Stage(kind, slug, 1, config, inputs, run, None)
        loaded = {name: done[id(n)] for name, n in inputs.items()}
        done[id(node)], _ = run_stage(node, store, inputs=loaded, report=lambda _: None, resume_command="again")
        return node

    done = {}
    generated = stage("generate", "gemma", Answers(name="gemma"), {})
    scored = stage("score", "gemma", NoConfig(), {"responses": generated})
    rows = stage("select", "best", Selection(), {"source_gemma": scored}, wins={"gemma": {"count": 7, "share": 0.7}})
    trained = stage("sft", "sft", Training(), {"rows": rows}, steps=62, num_tokens=12345)
    return [done[id(n)].manifest for n in (generated, scored, rows, trained)]


def test_lineage_walks_to_the_first_stage_inputs_first(tmp_path):
    _, _, rows, trained = chain(tmp_path)
    found = export.lineage([trained, rows], tmp_path)
    assert [(m.stage, m.slug) for m in found] == [("generate", "gemma"), ("score", "gemma")]
    assert [m.stage for m in export.lineage([trained], tmp_path)] == ["generate", "score", "select"]


def test_card_holds_the_facts_of_the_manifests(tmp_path):
    generated, scored, rows, trained = chain(tmp_path)
    interval = {"mean": 0.679, "low": 0.669, "high": 0.689}
    metrics = {"reward": interval, "exact": None, "greedy_reward": None, "greedy_exact": None}
    card = model_card(
        name="demo-wrpo",
        trained=trained,
        rows=rows,
        lineage=[generated, scored],
        given={"target": "org/target@" + "a" * 40, "gemma": "google/gemma@" + "b" * 40, "odd|name": "x\ny"},
        chat={"stop_ids": [2, 7], "end_of_turn_id": 7, "date": "2024-07-26", "system_role": "native"},
        evaluation={
            "benchmark": "held_out", "models": {"wrpo": metrics}, "differences": [], "counts": {"prompts": {"reward": 320}}
        },
        check={"rows": 8, "max_abs_difference": 0.0},
    )  # fmt: skip
    assert 'base_model: "org/target"' in card.split("---")[1]
    line = "| source | gemma | google/gemma@" + "b" * 40 + " | 5 at temperature 0.8, top-p 0.95 | 7 | not recorded |"
    assert line in card
    assert "odd\\|name" in card and "| x y |" in card
    assert (
        "**sft/sft**: 9 rows, 62 steps, 12345 tokens, 1 rows dropped (too_long 1)" in card and '"type": "wrpo"' in card
    )
    assert "| generate/gemma | 10 | 9 | 1 (too_long 1) |" in card
    assert "On 320 held-out prompts" in card and "0.679 [0.669, 0.689]*" in card
    assert "(2, 7)" in card and f"`sft/sft` `{trained.key}`" in card
