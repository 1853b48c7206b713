"""Promises of fusion.chat over small templates of every family, on tokenizers trained here."""

import dataclasses
import json
import pickle
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from chat_families import EVERY_TOKEN, FAMILIES, train
from fusion.chat import Chat, ChatConfig
from fusion.errors import InputError, ModelError
from fusion.rows import Message

TEMPLATES = Path(__file__).parent.parent / "templates"


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One model folder (without weights) per family."""
    root = tmp_path_factory.mktemp("chats")
    for name, family in FAMILIES.items():
        tokenizer = train(family)
        PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            bos_token=family.bos,
            eos_token=family.eos,
            unk_token="<unk>" if family.vocabulary != "bytes" else None,
        ).save_pretrained(root / name)
        shutil.copy(TEMPLATES / f"{name}.jinja", root / name / "chat_template.jinja")
        if family.generation_eos:
            ids = [tokenizer.token_to_id(token) for token in family.generation_eos]
            (root / name / "generation_config.json").write_text(json.dumps({"eos_token_id": ids}))
    return {name: root / name for name in FAMILIES}


@pytest.fixture(scope="session")
def chats(folders: dict[str, Path]) -> dict[str, Chat]:
    return {name: Chat.load(folder) for name, folder in folders.items()}


every_family = pytest.mark.parametrize("name", FAMILIES)
properties = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
texts = st.lists(
    st.one_of(
        st.sampled_from([*EVERY_TOKEN, " ", "\n", "\n\n", "sure! ", "so answer: 55.", "<|im_", "</", "s>", "\ufdd0"]),
        st.text(alphabet=st.characters(exclude_categories=("Cs",)), max_size=5),
    ),
    max_size=6,
).map("".join)
# "▁" is how SentencePiece-like tokenizers write a space: no such tokenizer has the character itself.
answers = texts.map(lambda text: text.replace("▁", "_"))


def user(text: str) -> tuple[Message, ...]:
    return (Message("user", text),)


def raw(chat: Chat, ids: Sequence[int]) -> str:
    text = chat.tokenizer.decode(list(ids), skip_special_tokens=False)
    assert isinstance(text, str)
    return text


def id_of(chat: Chat, token: str) -> int:
    found = chat.tokenizer.convert_tokens_to_ids(token)
    assert isinstance(found, int)
    return found


# ---- what load finds out ----------------------------------------------------------------------


@every_family
def test_load_finds_end_of_turn_stop_ids_and_system_role(chats: dict[str, Chat], name: str) -> None:
    chat, family = chats[name], FAMILIES[name]
    assert chat.end_of_turn_id == id_of(chat, family.end_of_turn)
    ends = {family.eos, family.end_of_turn, *family.generation_eos}
    assert chat.stop_ids == tuple(sorted(id_of(chat, token) for token in ends))
    assert chat.identity["system_role"] == ("native" if family.native_system else "folded")
    assert chat._probe.separator == family.separator


@every_family
def test_ordinary_conversation_is_tokenised_as_transformers_does(chats: dict[str, Chat], name: str) -> None:
    chat = chats[name]
    messages = [Message("user", "add 47 and 8"), Message("assistant", "sure! 55."), Message("user", "sort 9 3")]
    rendered = chat.tokenizer.apply_chat_template(
        [dataclasses.asdict(m) for m in messages], add_generation_prompt=True, tokenize=False, date_string="26 Jul 2024"
    )
    assert isinstance(rendered, str)
    if name != "llama32_now":  # prints the real date there
        assert list(chat.encode_prompt(messages)) == chat.tokenizer.encode(rendered, add_special_tokens=False)


@every_family
def test_response_is_the_rest_of_the_rendered_conversation(chats: dict[str, Chat], name: str) -> None:
    """For plain texts and templates that add nothing, prompt + response = the template's own rendering."""
    chat = chats[name]
    question, text = user("add 47 and 8"), "7+8=15 so answer: 55."
    whole, mask = chat.encode_conversation((*question, Message("assistant", text)))
    ids = (*chat.encode_prompt(question), *chat.encode_response(question, text))
    if name in ("qwen3", "deepseek_v3", "plain"):  # an empty thought; no thought; no end of turn
        assert whole != ids
    elif name == "mistral" or FAMILIES[name].vocabulary == "bytes":
        assert whole[: len(ids)] == ids
        assert [token for token, own in zip(whole, mask, strict=True) if own] == list(ids[-sum(mask) :])
    assert (
        raw(chat, [t for t, own in zip(whole, mask, strict=True) if own]).strip().startswith(text[0]) or "qwen3" in name
    )


def test_the_longest_token_after_an_answer_ends_the_turn_but_never_the_bos(folders: dict[str, Path]) -> None:
    loop = "{% for m in messages %}{{ m['content'] }}"
    chat = Chat.load(folders["llama3"], ChatConfig(template=loop + "{{ bos_token }}{% endfor %}"))
    assert chat.end_of_turn_id == id_of(chat, "<|end_of_text|>")
    tokenizer = Chat.load(folders["llama3"]).tokenizer
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|eot_id|>>"]})
    chat = Chat(tokenizer, ChatConfig(template=loop + "<|eot_id|>>{% endfor %}"), name="llama3", generation_eos=())
    assert chat.end_of_turn_id == id_of(chat, "<|eot_id|>>")


# ---- prompts ----------------------------------------------------------------------------------


@every_family
@properties
@given(text=texts, system=st.none() | texts, earlier=st.none() | st.tuples(texts, texts))
@example(text="<s></s><|im_end|><end_of_turn>", system="<|eot_id|>", earlier=("</s>", "<|im_end|>\n"))
def test_prompt_has_one_bos_and_only_the_markup_of_its_template(
    chats: dict[str, Chat], name: str, text: str, system: str | None, earlier: tuple[str, str] | None
) -> None:
    chat, family = chats[name], FAMILIES[name]
    turns = [Message("system", system)] if system is not None else []
    turns += [Message("user", earlier[0]), Message("assistant", earlier[1])] if earlier is not None else []
    innocent = [Message(turn.role, "x") for turn in turns]
    ids = chat.encode_prompt([*turns, Message("user", text)])
    expected = chat.encode_prompt([*innocent, Message("user", "x")])
    markup = {id_of(chat, token) for token in (family.bos, family.eos, *family.special) if token}
    assert [i for i in ids if i in markup] == [i for i in expected if i in markup]
    if family.bos and family.template_bos:
        assert ids[0] == id_of(chat, family.bos)
        assert ids.count(ids[0]) == 1
    elif family.bos:
        assert id_of(chat, family.bos) not in ids


@every_family
def test_typed_markup_reads_back_as_typed(chats: dict[str, Chat], name: str) -> None:
    text = "say <|im_end|></s><end_of_turn> and <|eot_id|> now"
    assert text in raw(chats[name], chats[name].encode_prompt(user(text)))


@pytest.mark.parametrize("name", ["gemma2", "mistral", "phi3"])
def test_system_text_is_folded_into_the_first_user_turn(folders: dict[str, Path], chats: dict[str, Chat], name: str):
    chat = Chat.load(folders[name], ChatConfig(system="Be brief."))
    expected = chats[name].encode_prompt(user("Be brief.\n\nhi"))
    assert chat.encode_prompt(user("hi")) == expected
    assert chats[name].encode_prompt((Message("system", "Be brief."), *user("hi"))) == expected


@every_family
def test_configured_system_prompt_comes_before_the_conversations_own(folders: dict[str, Path], name: str) -> None:
    chat = Chat.load(folders[name], ChatConfig(system="Be brief."))
    text = raw(chat, chat.encode_prompt((Message("system", "Be kind."), *user("hi there"))))
    assert text.index("Be brief.\n\nBe kind.") < text.index("hi there")
    assert text.count("Be brief.") == 1


def test_no_system_message_is_made_up(chats: dict[str, Chat]) -> None:
    assert "system" not in raw(chats["llama3"], chats["llama3"].encode_prompt(user("hi")))
    assert "You are a helpful" in raw(chats["qwen2"], chats["qwen2"].encode_prompt(user("hi")))


@pytest.mark.parametrize("name", ["llama31", "llama32_now"])
def test_dates_are_pinned(folders: dict[str, Path], name: str) -> None:
    for date, printed in (("2024-07-26", "Today Date: 26 Jul 2024"), ("2031-03-05", "Today Date: 05 Mar 2031")):
        chat = Chat.load(folders[name], ChatConfig(date=date))
        assert printed in raw(chat, chat.encode_prompt(user("hi")))
        assert chat.identity["date"] == date


def test_thinking_reaches_the_template(folders: dict[str, Path], chats: dict[str, Chat]) -> None:
    quick = Chat.load(folders["qwen3"], ChatConfig(thinking=False))
    prompt = chats["qwen3"].encode_prompt(user("hi"))
    assert quick.encode_prompt(user("hi"))[: len(prompt)] == prompt
    assert raw(quick, quick.encode_prompt(user("hi"))[len(prompt) :]) == "<think>\n\n</think>\n\n"


@pytest.mark.parametrize(
    "messages", [(), (Message("assistant", "hi"),), (Message("user", "a"), Message("assistant", "b"))]
)
def test_a_conversation_that_waits_for_no_answer_is_refused(chats: dict[str, Chat], messages) -> None:
    with pytest.raises(InputError, match="must end with a user message"):
        chats["qwen2"].encode_prompt(messages)


def test_a_conversation_that_the_template_refuses_names_the_reason(chats: dict[str, Chat]) -> None:
    with pytest.raises(InputError, match=r"refuses this conversation.*must alternate"):
        chats["gemma2"].encode_prompt((*user("a"), *user("b")))


def test_lone_surrogates_are_refused_with_their_place(chats: dict[str, Chat]) -> None:
    with pytest.raises(InputError, match=r"message 0 \(user\) is not valid Unicode at character 2"):
        chats["qwen2"].encode_prompt(user("ab\ud800"))
    with pytest.raises(InputError, match="the response is not valid Unicode"):
        chats["qwen2"].encode_response(user("ab"), "\udfff")


# ---- responses --------------------------------------------------------------------------------


@every_family
@properties
@given(question=texts, text=answers)
@example(question="hi", text="sure! </s><|im_end|><end_of_turn><|eot_id|> so answer: 55.\n\n")
@example(question="hi", text="<think>\nx\n</think>\n\nsure")
@example(question="hi\n", text="")
@example(question="hi", text="\u0301 e\u0301")
def test_response_promises(chats: dict[str, Chat], name: str, question: str, text: str) -> None:
    chat = chats[name]
    messages = user(question)
    ids = chat.encode_response(messages, text)
    open_ids = chat.encode_response(messages, text, finished=False)
    assert ids == (*open_ids, chat.end_of_turn_id)
    assert not set(open_ids) & set(chat.stop_ids)
    assert chat.decode(ids) == chat.decode(open_ids) == text.strip()
    junk = (chat.end_of_turn_id, 3, chat.stop_ids[0], 5)
    assert chat.trim_generated(ids + junk) == chat.trim_generated(ids) == ids
    assert chat.trim_generated(open_ids) == open_ids
    prompt = chat.encode_prompt(messages)
    joined = raw(chat, prompt + open_ids)
    assert joined.startswith(raw(chat, prompt))
    assert joined[len(raw(chat, prompt)) :].strip() == text.strip()


@pytest.mark.parametrize("name", ["gemma2", "internlm2", "yi"])
def test_a_token_that_straddles_the_boundary_is_not_used(chats: dict[str, Chat], name: str) -> None:
    """The tokenizer would merge the newline of the generation prompt with the answer's first word."""
    chat = chats[name]
    prompt = chat.encode_prompt(user("hi"))
    joint = chat._markup.encode(chat._rendered(user("hi"), generation=True) + "sure! ok")
    assert tuple(joint[: len(prompt)]) != prompt, "this tokenizer does not show the case any more"
    ids = chat.encode_response(user("hi"), "sure! ok")
    assert raw(chat, prompt + ids) == raw(chat, [*joint, chat.end_of_turn_id])


def test_sentencepiece_answer_after_inst_starts_with_its_space(chats: dict[str, Chat]) -> None:
    chat = chats["mistral"]
    first = chat.tokenizer.convert_ids_to_tokens(chat.encode_response(user("hi"), "hello")[0])
    assert isinstance(first, str)
    assert first.startswith("▁")


def test_thoughts_are_the_models_own_words_in_answers_and_text_in_questions(chats: dict[str, Chat]) -> None:
    for name in ("qwen3", "deepseek_v3"):
        chat = chats[name]
        thought = id_of(chat, "<think>")
        assert thought in chat.encode_response(user("hi"), "<think>x")
        prompt = chat.encode_prompt(user("a <think> b"))
        assert prompt.count(thought) == chat.encode_prompt(user("a b")).count(thought)


def test_a_spelt_stop_token_is_text_where_merges_could_make_it_real(chats: dict[str, Chat]) -> None:
    chat = chats["mistral"]
    merged = chat.tokenizer.backend_tokenizer
    merged = Tokenizer.from_str(merged.to_str())
    merged.encode_special_tokens = True
    # The plain switch of the library does not help: the merges put the stop token together again.
    assert chat.end_of_turn_id in merged.encode("a</s>", add_special_tokens=False).ids
    assert chat.encode_response(user("q"), "a</s>b").count(chat.end_of_turn_id) == 1
    assert chat.decode(chat.encode_response(user("q"), "a</s>b")) == "a</s>b"


def test_an_ordinary_word_as_stop_token_is_refused_inside_answers(folders: dict[str, Path]) -> None:
    chat = Chat.load(folders["plain"], ChatConfig(stop_tokens=("!",)))
    assert id_of(chat, "!") in chat.stop_ids
    with pytest.raises(InputError, match="spells the stop token '!'"):
        chat.encode_response(user("hi"), "so ! no")


def test_text_that_the_tokenizer_cannot_express_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    tokenizer = Tokenizer(models.BPE({"a": 0, "b": 1, "<e>": 2}, []))
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(["<e>"])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<e>").save_pretrained(tmp_path)
    chat = Chat.load(tmp_path, ChatConfig(template="{% for m in messages %}{{ m['content'] }}{% endfor %}"))
    assert chat.encode_response(user("a"), "ab") == (0, 1, 2)
    with pytest.raises(InputError, match="cannot express the response 'axb': it reads back 'ab'"):
        chat.encode_response(user("a"), "axb")


def test_a_tokenizer_that_composes_characters_loses_nothing(folders: dict[str, Path], tmp_path: Path) -> None:
    """transformers gives every folder of model_type qwen2 the normal form C of Qwen2Tokenizer."""
    shutil.copytree(folders["qwen2"], tmp_path / "qwen2")
    (tmp_path / "qwen2" / "config.json").write_text('{"model_type": "qwen2"}')
    chat = Chat.load(tmp_path / "qwen2")
    assert type(chat.tokenizer).__name__ == "Qwen2Tokenizer"
    assert chat.decode(chat.encode_response(user("hi"), "cafe\u0301")) == "caf\u00e9"
    assert chat.encode_response(user("hi"), "cafe\u0301") == chat.encode_response(user("hi"), "caf\u00e9")


# ---- generated ids ----------------------------------------------------------------------------


def test_decode_shows_leaked_markup_inside_and_hides_it_at_the_end(chats: dict[str, Chat]) -> None:
    chat = chats["qwen2"]
    start, end = id_of(chat, "<|im_start|>"), id_of(chat, "<|im_end|>")
    word = chat.tokenizer.encode(" sure", add_special_tokens=False)
    assert chat.decode([*word, start, *word, start, end]) == "sure<|im_start|> sure"
    assert chat.decode([end]) == chat.decode([]) == ""


# ---- whole conversations ----------------------------------------------------------------------


@every_family
@properties
@given(question=texts, text=answers)
def test_conversation_mask_is_the_last_answer(chats: dict[str, Chat], name: str, question: str, text: str) -> None:
    assume("</think>" not in text)  # templates move or drop what stands before it
    chat, family = chats[name], FAMILIES[name]
    messages = (*user("first"), Message("assistant", "second"), *user(question), Message("assistant", text))
    ids, mask = chat.encode_conversation(messages)
    assert len(ids) == len(mask)
    own = [token for token, is_own in zip(ids, mask, strict=True) if is_own]
    assert chat.decode(own).endswith(text.strip())
    assert sum(token == chat.end_of_turn_id for token in own) == (name != "plain")
    if family.vocabulary == "bytes":
        assert chat.decode(own) == text.strip()
    if family.bos and family.template_bos:
        assert ids.count(id_of(chat, family.bos)) == 1


def test_thoughts_belong_to_the_scored_answer_and_leave_earlier_turns(chats: dict[str, Chat]) -> None:
    chat = chats["qwen3"]
    thought = Message("assistant", "<think>\nwhy\n</think>\n\nfine")
    ids, mask = chat.encode_conversation((*user("hi"), thought))
    assert chat.decode([i for i, own in zip(ids, mask, strict=True) if own]).endswith("why\n</think>\n\nfine")
    earlier = raw(chat, chat.encode_prompt((*user("hi"), thought, *user("so"))))
    assert "fine" in earlier
    assert "why" not in earlier


def test_conversation_must_end_with_an_answer(chats: dict[str, Chat]) -> None:
    with pytest.raises(InputError, match="does not end with an assistant message"):
        chats["qwen2"].encode_conversation(user("hi"))


# ---- identity and bad folders -----------------------------------------------------------------


def test_identity_moves_with_template_date_and_stops_only(folders: dict[str, Path], chats: dict[str, Chat]) -> None:
    base = chats["qwen2"].identity
    assert Chat.load(folders["qwen2"]).identity == base
    assert base["tokenizer"] != chats["qwen3"].identity["tokenizer"]
    changed = Chat.load(
        folders["qwen2"],
        ChatConfig(template=(TEMPLATES / "internlm2.jinja").read_text(), date="2025-01-01", stop_tokens=("sure",)),
    )
    assert {k for k in base if changed.identity[k] != base[k]} == {"template_sha256", "date", "stop_ids"}
    json.dumps(base)


def test_tokenizer_hash_survives_saving_and_moves_with_a_merge(folders: dict[str, Path], tmp_path: Path) -> None:
    chat = Chat.load(folders["llama3"])
    chat.tokenizer.save_pretrained(tmp_path / "copy")
    shutil.copy(folders["llama3"] / "chat_template.jinja", tmp_path / "copy")
    assert Chat.load(tmp_path / "copy").tokenizer_hash == chat.tokenizer_hash
    path = tmp_path / "copy" / "tokenizer.json"
    spec = json.loads(path.read_text())
    path.write_text(json.dumps(spec | {"post_processor": None, "truncation": None}))
    assert Chat.load(tmp_path / "copy").tokenizer_hash == chat.tokenizer_hash
    spec["model"]["merges"].pop()
    path.write_text(json.dumps(spec))
    assert Chat.load(tmp_path / "copy").tokenizer_hash != chat.tokenizer_hash


def test_chat_travels_by_pickle(chats: dict[str, Chat]) -> None:
    copy = pickle.loads(pickle.dumps(chats["gemma2"]))
    messages = user("hi <end_of_turn>")
    assert copy.encode_prompt(messages) == chats["gemma2"].encode_prompt(messages)
    assert copy.encode_response(messages, "ok") == chats["gemma2"].encode_response(messages, "ok")


def test_bad_folders_name_the_file(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"nowhere/tokenizer\.json is missing"):
        Chat.load(tmp_path / "nowhere")
    shutil.copytree(folders["qwen2"], tmp_path / "bare")
    (tmp_path / "bare" / "chat_template.jinja").unlink()
    with pytest.raises(ModelError, match=r"bare: chat_template\.jinja is missing"):
        Chat.load(tmp_path / "bare")
    shutil.copytree(folders["qwen2"], tmp_path / "eos")
    (tmp_path / "eos" / "generation_config.json").write_text('{"eos_token_id": "two"}')
    with pytest.raises(ModelError, match=r"generation_config\.json: eos_token_id is 'two'"):
        Chat.load(tmp_path / "eos")
    (tmp_path / "eos" / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match=r"tokenizer\.json cannot be loaded"):
        Chat.load(tmp_path / "eos")


def test_bad_templates_are_refused_at_load(folders: dict[str, Path]) -> None:
    for template, reason in (
        ("{{ nothing.at.all }}", "cannot render one question"),
        ("{% for m in messages %}", "cannot render one question"),
        ("hello", "leaves out the text"),
        ("{{ bos_token + bos_token }}{% for m in messages %}{{ m['content'] }}{% endfor %}", "BOS token twice"),
    ):
        with pytest.raises(ModelError, match=reason):
            Chat.load(folders["llama3"], ChatConfig(template=template))
    with pytest.raises(ModelError, match=r"stop token '<nope>' is not in tokenizer\.json"):
        Chat.load(folders["llama3"], ChatConfig(stop_tokens=("<nope>",)))


@pytest.mark.parametrize("date", ["26 Jul 2024", "20240726", "2024-02-30"])
def test_bad_dates_are_refused(date: str) -> None:
    with pytest.raises(ValueError, match="date"):
        ChatConfig(date=date)


def test_threads_may_load_the_first_chats_at_once(folders) -> None:
    """In a fresh process: the lazy module of transformers fails when its first import happens twice at the same time."""
    code = (
        "import sys\n"
        "from concurrent.futures import ThreadPoolExecutor\n"
        "from fusion.chat import Chat\n"
        "with ThreadPoolExecutor(4) as pool:\n"
        "    print(len({chat.tokenizer_hash for chat in pool.map(Chat.load, [sys.argv[1]] * 4)}))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(folders["qwen2"])],
        check=False,
        capture_output=True,
        text=True,
        cwd=TEMPLATES.parents[1],
    )
    assert (done.returncode, done.stdout) == (0, "1\n"), done.stderr
