"""Messages to token ids: the only place where a chat template is applied.

What it gives: the prompt ids that an engine is handed, in serving as in training, and the response
ids that this engine would have produced for a text. A training sequence is exactly
`encode_prompt(messages) + encode_response(messages, text)`; nobody else joins, cuts or re-tokenises
conversations. It does not truncate and it does not sample.

The one idea: a template is only ever asked for *prompts*. How an answer follows a prompt (the white
space between, the token that ends the turn) is learnt once at load from a probe conversation, so
that an answer's own text never passes through a template that could drop, double or re-date parts
of it. And only what the template wrote becomes a special token: `<|im_end|>` typed by a user, or
spelt out by a model, stays text (`fusion.markup`).
"""

import dataclasses
import datetime
import hashlib
import json
import os.path
import re
import threading
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import field_validator

from fusion.config import Config, canonical_json
from fusion.errors import InputError, ModelError
from fusion.markup import Markup
from fusion.rows import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_PROBE_SYSTEM, _PROBE_USER, _PROBE_ANSWER = "Qsystemprobe", "Quserprobe", "Qanswerprobe"


class ChatConfig(Config):
    """How conversations of one model are rendered. Part of the key of every stage that renders."""

    system: str | None = None
    """System prompt put before every conversation; null = none, "" = an empty one."""
    date: str = "2024-07-26"
    """Day (YYYY-MM-DD) that templates which print today's date see."""
    template: str | None = None
    """Text of a Jinja template that replaces the model's own; null = the model's own."""
    stop_tokens: tuple[str, ...] = ()
    """Tokens that end an answer in serving, besides the model's own."""
    thinking: bool | None = None
    """Given to the template as `enable_thinking`; null = not given."""

    @field_validator("date")
    @classmethod
    def _is_date(cls, value: str) -> str:
        if not re.fullmatch(r"\d{4}-\d{2}-\d{2}", value):
            raise ValueError(f"{value!r} is not a date; write it like 2024-07-26")
        datetime.date.fromisoformat(value)
        return value


_FIRST_IMPORT = threading.Lock()
_DEFAULT = ChatConfig()


class _Renderer:
    """The template itself: plain messages in, rendered text out, with everything that could drift pinned."""

    def __init__(self, tokenizer: "PreTrainedTokenizerFast", config: ChatConfig, *, name: str) -> None:
        self.template = config.template if config.template is not None else _own_template(tokenizer, name)
        self._tokenizer = tokenizer
        self._name = name
        self._day = datetime.date.fromisoformat(config.date)
        self._thinking = config.thinking

    @property
    def variables(self) -> dict[str, Any]:
        """What the template sees besides the messages."""
        found: dict[str, Any] = {
            "date_string": f"{self._day.day:02d} {_MONTHS[self._day.month - 1]} {self._day.year}",
            "strftime_now": self._day.strftime,
        }
        return found if self._thinking is None else {**found, "enable_thinking": self._thinking}

    def __call__(self, messages: Sequence[Message], *, generation: bool) -> str:
        """Return the conversation as the template writes it, with or without the generation prompt.

        Raises:
            InputError: the template refuses the conversation.
        """
        # Only here: jinja2 comes with transformers, and reading a recipe needs neither.
        import jinja2

        try:
            text = self._tokenizer.apply_chat_template(
                [{"role": message.role, "content": message.content} for message in messages],
                chat_template=self.template,
                add_generation_prompt=generation,
                tokenize=False,
                **self.variables,
            )
        except (jinja2.TemplateError, TypeError) as error:
            raise InputError(
                f"{self._name}: the chat template refuses this conversation: {_one_line(error)}"
            ) from error
        assert isinstance(text, str)
        return text


@dataclasses.dataclass(frozen=True, slots=True)
class _Probe:
    """What one probe conversation shows of a template."""

    prompt: str
    """Rendered user turn with the generation prompt."""
    whole: str
    """Rendered user turn with an answer."""
    native_system: bool

    @classmethod
    def of(cls, render: _Renderer, *, name: str) -> "_Probe":
        question = [Message("user", _PROBE_USER)]
        try:
            prompt = render(question, generation=True)
            whole = render([*question, Message("assistant", _PROBE_ANSWER)], generation=False)
        except InputError as error:
            raise ModelError(f"{name}: the chat template cannot render one question and its answer: {error}") from error
        if _PROBE_USER not in prompt or _PROBE_ANSWER not in whole:
            raise ModelError(f"{name}: the chat template leaves out the text of messages; give a fixed one in template")
        try:
            # Templates without a system role either refuse the message or drop it without a word.
            native = _PROBE_SYSTEM in render([Message("system", _PROBE_SYSTEM), *question], generation=True)
        except InputError:
            native = False
        return cls(prompt=prompt, whole=whole, native_system=native)

    @property
    def separator(self) -> str:
        """White space that the template puts between the generation prompt and an answer.

        Anything else there (an empty thought) is for the model to write, not for us to put before its text.
        """
        if not self.whole.startswith(self.prompt):
            return ""
        between = self.whole[len(self.prompt) : self.whole.rindex(_PROBE_ANSWER)]
        return "" if between.strip() else between

    def end_of_turn(self, tokens: Iterable[str]) -> str | None:
        """Return the one of `tokens` that follows the answer, None where none does."""
        tail = self.whole[self.whole.rindex(_PROBE_ANSWER) + len(_PROBE_ANSWER) :].lstrip()
        return max((token for token in tokens if tail.startswith(token)), key=len, default=None)


class Chat:
    """The chat of one model: tokenizer, template and stop tokens, with everything derived at load.

    Attributes:
        tokenizer: the transformers tokenizer.
        stop_ids: ids that end an answer in serving, sorted.
        end_of_turn_id: the one of `stop_ids` that training appends.
        pad_id: a valid id for padding; masks go by position, so it may equal a stop id.
        tokenizer_hash: 16 hex digits; equal for tokenizers that give equal ids.
        template_hash: sha256 of the template's text.
    """

    tokenizer: "PreTrainedTokenizerFast"
    stop_ids: tuple[int, ...]
    end_of_turn_id: int
    pad_id: int
    tokenizer_hash: str
    template_hash: str

    def __init__(
        self, tokenizer: "PreTrainedTokenizerFast", config: ChatConfig, *, name: str, generation_eos: Sequence[int]
    ) -> None:
        """Use `load`. `name` is the folder, for messages; `generation_eos` the eos ids of generation_config.json."""
        self.tokenizer = tokenizer
        self.config = config
        self._name = name
        self._render = _Renderer(tokenizer, config, name=name)
        self.template_hash = hashlib.sha256(self._render.template.encode()).hexdigest()
        self._probe = _Probe.of(self._render, name=name)
        spec = json.loads(tokenizer.backend_tokenizer.to_str())
        self.tokenizer_hash = _tokenizer_hash(spec)

        ids = {token["content"]: token["id"] for token in spec["added_tokens"]}
        special = {token["content"] for token in spec["added_tokens"] if token["special"]}
        own_eos = _ids(tokenizer.eos_token_id)
        ends = {*own_eos, *generation_eos, *(_stop_id(tokenizer, token, name) for token in config.stop_tokens)}
        written = {token for token in ids if token.strip() and token in self._probe.prompt + self._probe.whole}
        markup = special | written | {token for token in ids if ids[token] in ends}

        # The BOS opens, whatever it stands behind; some models use one token for both.
        openers = {str(tokenizer.bos_token)} - {str(tokenizer.eos_token)}
        end = self._probe.end_of_turn(markup - openers)
        if end is None and not ends:
            raise ModelError(
                f"{name}: no token ends an answer (no eos_token in tokenizer_config.json, no eos_token_id in "
                "generation_config.json, none in the chat template); name one in stop_tokens"
            )
        self.end_of_turn_id = ids[end] if end is not None else (own_eos or sorted(ends))[0]
        self.stop_ids = tuple(sorted(ends | {self.end_of_turn_id}))
        self.pad_id = tokenizer.pad_token_id if isinstance(tokenizer.pad_token_id, int) else self.end_of_turn_id
        self._special_ids = frozenset(ids[token] for token in special)
        # Markup that is neither special nor ends a turn (`<think>`) is a word that models write themselves.
        self._own_words = frozenset(token for token in written - special if ids[token] not in self.stop_ids)
        self._markup = Markup(spec, tokens=markup)
        self._encode(self._markup.mark(self._probe.prompt))

    @classmethod
    def load(cls, folder: str | Path, config: ChatConfig = _DEFAULT) -> "Chat":
        """Return the chat of the model in a local Hugging Face folder.

        Raises:
            ModelError: tokenizer or template are missing or unusable; the text names the file.
        """
        # transformers takes seconds to import, and reading a recipe needs only ChatConfig. Its lazy module breaks when two
        # threads import it for the first time at once, as stages side by side do.
        with _FIRST_IMPORT:
            from transformers import AutoTokenizer, PreTrainedTokenizerFast

        folder = Path(folder)
        if not (folder / "tokenizer.json").is_file():
            raise ModelError(f"{folder / 'tokenizer.json'} is missing; save the tokenizer in its fast form there")
        try:
            tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
        # tokenizers raises plain Exception for a file that it cannot read.
        except Exception as error:
            raise ModelError(f"{folder / 'tokenizer.json'} cannot be loaded: {_one_line(error)}") from error
        if not isinstance(tokenizer, PreTrainedTokenizerFast):
            raise ModelError(f"{folder}: {type(tokenizer).__name__} does not use tokenizer.json; set tokenizer_class")
        return cls(tokenizer, config, name=str(folder), generation_eos=_generation_eos(folder))

    @property
    def template(self) -> str:
        """Text of the chat template in use."""
        return self._render.template

    @property
    def template_variables(self) -> dict[str, Any]:
        """What the template sees besides the messages: the pinned date and, where given, the thinking switch."""
        return self._render.variables

    @property
    def identity(self) -> dict[str, Any]:
        """What manifests record of this chat."""
        return {
            "template_sha256": self.template_hash,
            "tokenizer": self.tokenizer_hash,
            "date": self.config.date,
            "stop_ids": list(self.stop_ids),
            "end_of_turn_id": self.end_of_turn_id,
            "system_role": "native" if self._probe.native_system else "folded",
        }

    def encode_prompt(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """Return the ids of a conversation with its generation prompt: what an engine is given.

        Raises:
            InputError: the conversation is empty, ends with an answer, or the template refuses it.
        """
        return tuple(self._encode(self._prompt(messages)))

    def encode_response(self, messages: Sequence[Message], text: str, *, finished: bool = True) -> tuple[int, ...]:
        """Return the ids that the engine would have produced for `text` after `encode_prompt(messages)`.

        White space around `text` is not part of an answer. With `finished` the ids end with
        `end_of_turn_id`, and it is the only stop id in them; without, they hold none.

        Raises:
            InputError: `text` has characters that this tokenizer has no tokens for, or spells a stop
                token that cannot be told from the real one.
        """
        prompt = self._prompt(messages)
        prompt_ids = self._encode(prompt)
        _check_unicode(text, "the response")
        text = text.strip()
        ids = self._answer(prompt, prompt_ids, text) if text else []
        return (*ids, self.end_of_turn_id) if finished else tuple(ids)

    def trim_generated(self, token_ids: Sequence[int]) -> tuple[int, ...]:
        """Return generated ids up to and with the first stop id."""
        end = next((i + 1 for i, token in enumerate(token_ids) if token in self.stop_ids), len(token_ids))
        return tuple(token_ids[:end])

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of generated ids, without stop and special tokens at the end, stripped.

        Special tokens inside stay visible as text: an answer that leaks its template is to be seen.
        """
        end = len(token_ids)
        while end and (token_ids[end - 1] in self.stop_ids or token_ids[end - 1] in self._special_ids):
            end -= 1
        return self._text(token_ids[:end]).strip()

    def encode_conversation(self, messages: Sequence[Message]) -> tuple[tuple[int, ...], tuple[bool, ...]]:
        """Return ids of a whole conversation that ends with an answer, and which of them are this answer.

        The template renders the answer too and no generation prompt follows: the form that reward
        models read. The mask takes the answer with its end of turn.

        Raises:
            InputError: the last message is not the assistant's, or the template refuses the conversation.
        """
        if not messages or messages[-1].role != "assistant":
            raise InputError("the conversation to score does not end with an assistant message")
        text = self._rendered(messages, generation=False)
        other = self._rendered([*messages[:-1], Message("assistant", _PROBE_ANSWER)], generation=False)
        # A template may move the thoughts of an answer to before its text; they are a part of it.
        start = min(len(os.path.commonprefix([text, other])), other.rindex(_PROBE_ANSWER))
        ids, offsets = self._markup.encode_offsets(text)
        self._check_bos(ids)
        mask = [end > start for _, end in offsets]
        ends = [i for i, token in enumerate(ids) if mask[i] and token == self.end_of_turn_id]
        if ends:
            mask[ends[-1] + 1 :] = [False] * (len(ids) - ends[-1] - 1)
        return tuple(ids), tuple(mask)

    def _prompt(self, messages: Sequence[Message]) -> str:
        if not messages or messages[-1].role == "assistant":
            raise InputError("the conversation has no last message to answer; it must end with a user message")
        return self._rendered(messages, generation=True)

    def _rendered(self, messages: Sequence[Message], *, generation: bool) -> str:
        """Return the rendered conversation, the template's markup marked, typed markup left as text."""
        escaped = []
        for number, message in enumerate(self._with_system(messages)):
            _check_unicode(message.content, f"message {number} ({message.role})")
            keep = self._own_words if message.role == "assistant" else ()
            escaped.append(Message(message.role, self._markup.escape(message.content, keep=keep)))
        return self._markup.unescape(self._markup.mark(self._render(escaped, generation=generation)))

    def _with_system(self, messages: Sequence[Message]) -> list[Message]:
        """Return the messages with the configured system prompt first; without that role, folded into user turns."""
        turns = list(messages)
        if self.config.system is not None:
            own = turns.pop(0).content if turns and turns[0].role == "system" else ""
            turns.insert(0, Message("system", _join(self.config.system, own)))
        if self._probe.native_system:
            return turns
        folded: list[Message] = []
        system = ""
        for turn in turns:
            if turn.role == "system":
                system = _join(system, turn.content)
            elif turn.role == "user":
                folded.append(Message("user", _join(system, turn.content)))
                system = ""
            else:
                folded.append(turn)
        if system:
            raise InputError(
                f"{self._name} has no system role, and no user message follows to fold the system text into"
            )
        return folded

    def _encode(self, marked: str) -> list[int]:
        ids = self._markup.encode(marked)
        self._check_bos(ids)
        return ids

    def _check_bos(self, ids: list[int]) -> None:
        bos_id = self.tokenizer.bos_token_id
        if bos_id is not None and ids[:2] == [bos_id, bos_id]:
            raise ModelError(
                f"{self._name}: the chat template writes the BOS token twice; give a fixed one in template"
            )

    def _answer(self, prompt: str, prompt_ids: list[int], text: str) -> list[int]:
        """Return the ids of the not empty, stripped `text` behind a marked prompt."""
        answer = self._probe.separator + self._markup.mark(text, tokens=self._own_words)
        joint = self._markup.encode(prompt + answer)
        if joint[: len(prompt_ids)] == prompt_ids:
            ids = joint[len(prompt_ids) :]
        else:
            # A token would straddle the boundary. The engine cannot produce half of it, so it starts afresh.
            ids = self._markup.encode_bare(answer)
            if self._text([*prompt_ids, *ids]) != self._text(joint):
                raise InputError(f"the response {_short(text)} cannot follow its prompt: the texts do not join")
        said = self._text(ids).strip()
        # Tokenizers may normalise (Qwen: NFC); anything beyond that is text lost.
        if said != text and unicodedata.normalize("NFKC", said) != unicodedata.normalize("NFKC", text):
            raise InputError(
                f"{self._name}: the tokenizer cannot express the response {_short(text)}: it reads back {_short(said)}"
            )
        stops = [token for token in ids if token in self.stop_ids]
        if stops:
            spelt = self.tokenizer.convert_ids_to_tokens(stops[0])
            raise InputError(f"the response {_short(text)} spells the stop token {spelt!r}, an ordinary word here")
        return ids

    def _text(self, token_ids: Sequence[int]) -> str:
        text = self.tokenizer.decode(list(token_ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        return text


def _own_template(tokenizer: "PreTrainedTokenizerFast", name: str) -> str:
    template = tokenizer.chat_template
    if isinstance(template, dict):
        template = template.get("default")
    if not isinstance(template, str) or not template.strip():
        raise ModelError(
            f"{name}: chat_template.jinja is missing (and tokenizer_config.json has no chat_template); "
            "give one in template"
        )
    return template


def _generation_eos(folder: Path) -> list[int]:
    path = folder / "generation_config.json"
    if not path.is_file():
        return []
    try:
        value = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id")
    except (ValueError, AttributeError) as error:
        raise ModelError(f"{path} is not a JSON mapping: {_one_line(error)}") from error
    ids = _ids(value)
    if not all(type(i) is int for i in ids):
        raise ModelError(f"{path}: eos_token_id is {value!r}; it must be a token id or a list of them")
    return ids


def _tokenizer_hash(spec: dict[str, Any]) -> str:
    # The post-processor adds tokens that rendering never asks for; truncation and padding belong to a use.
    content = {k: v for k, v in spec.items() if k not in ("version", "truncation", "padding", "post_processor")}
    return hashlib.sha256(canonical_json(content).encode()).hexdigest()[:16]


def _stop_id(tokenizer: "PreTrainedTokenizerFast", token: str, name: str) -> int:
    token_id = tokenizer.get_vocab().get(token)
    if token_id is None:
        raise ModelError(f"{name}: stop token {token!r} is not in tokenizer.json")
    return token_id


def _ids(value: Any) -> list[Any]:
    return [] if value is None else value if isinstance(value, list) else [value]


def _join(first: str, second: str) -> str:
    return "\n\n".join(part for part in (first, second) if part)


def _check_unicode(text: str, what: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{what} is not valid Unicode at character {error.start} ({error.reason})") from error


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
