"""Requests and responses of the HTTP service, as strict pydantic models.

Strict means: no unknown fields, no numbers in strings, no booleans as numbers. What OpenAI or vLLM clients
may send and this service does not do is listed in `UNSUPPORTED`, so that it is refused by name instead of
ignored. Response models are what the OpenAPI document shows.
"""

from collections import Counter
from collections.abc import Callable
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, JsonValue, StringConstraints, WithJsonSchema, model_validator
from pydantic_core import PydanticCustomError

from serving.errors import STATUS

UNSUPPORTED = frozenset(
    """
    add_generation_prompt add_special_tokens allowed_token_ids audio bad_words best_of cache_salt chat_template
    chat_template_kwargs continue_final_message documents ec_transfer_params echo function_call functions guided_choice
    guided_decoding_backend guided_grammar guided_json guided_regex guided_whitespace_pattern ignore_eos
    include_reasoning include_stop_str_in_output instruction kv_transfer_params length_penalty logit_bias
    logits_processors logprob_token_ids max_chunks_per_doc max_reasoning_tokens max_tokens_per_doc
    max_tokens_per_query media_io_kwargs metadata min_p min_tokens mm_payload mm_processor_kwargs modalities
    moderation padding parallel_tool_calls prediction priority prompt_cache_key prompt_cache_options
    prompt_cache_retention prompt_logprobs rank_fields reasoning_effort relevant_spans repetition_detection
    repetition_penalty request_id response_format return_mm_kwargs return_prompt_text return_token_ids
    return_token_offsets return_tokens_as_token_ids routed_experts_prompt_start safety_identifier service_tier
    session_id skip_special_tokens spaces_between_special_tokens stop_token_ids store stream_interval
    structured_outputs thinking_token_budget tool_choice tools top_k truncate_prompt_tokens truncation_side
    use_beam_search verbosity vllm_xargs watermarking web_search_options
    """.split()  # noqa: SIM905
)
"""Known parameters of OpenAI, vLLM, Cohere or Jina requests that this service refuses by name."""

MAX_STOP = 4
MAX_N = 8
MAX_STOP_TEXT = 256
MAX_LOGPROBS = 20

_STOP_TEXT: dict[str, JsonValue] = {"type": "string", "minLength": 1, "maxLength": MAX_STOP_TEXT}
_STOP: list[JsonValue] = [
    {**_STOP_TEXT},
    {"type": "array", "maxItems": MAX_STOP, "items": {**_STOP_TEXT}},
    {"type": "null"},
]

T = TypeVar("T")
ModelName = Annotated[str, StringConstraints(min_length=1, max_length=128)]
ItemId = Annotated[str, StringConstraints(min_length=1, max_length=128)]
Range = Annotated[
    tuple[float, float],
    # A pair is an array of two for every reader of JSON schemas, the older ones too.
    WithJsonSchema({"type": "array", "items": {"type": "number"}, "minItems": 2, "maxItems": 2}),
]
Many = Annotated[list[T], Field(fail_fast=True)]
"""A list of a request, read up to the first element that is wrong: four megabytes of wrong elements are no million errors."""
Role = Literal["system", "user", "assistant"]


class RequestModel(BaseModel):
    """Base of everything a client sends."""

    model_config = ConfigDict(
        extra="forbid", strict=True, allow_inf_nan=False, frozen=True, use_attribute_docstrings=True
    )


class ResponseModel(BaseModel):
    """Base of everything a client gets."""

    model_config = ConfigDict(
        extra="forbid",
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        # Fields with a default are sent all the same.
        json_schema_serialization_defaults_required=True,
    )


def refuse(code: str, message: str, param: str | None = None) -> PydanticCustomError:
    """Return the error that a validator raises to end the request with this code."""
    # The message is passed as a value, because pydantic reads braces in a template.
    return PydanticCustomError("api_error", "{text}", {"code": code, "text": message, "param": param})


def one_of_forms(*forms: tuple[str, ...]) -> Callable[[dict[str, Any]], None]:
    """Return what makes the JSON schema of a model say that the fields of exactly one of `forms` are given."""
    every = {name for form in forms for name in form}

    def say(schema: dict[str, Any]) -> None:
        properties, required = schema.pop("properties"), schema.pop("required", [])
        schema["anyOf"] = [
            {
                "type": "object",
                "additionalProperties": False,
                "required": [*required, *form],
                "properties": {
                    name: _not_null(value) if name in form else {"type": "null"} if name in every else value
                    for name, value in properties.items()
                },
            }
            for form in forms
        ]
        del schema["type"], schema["additionalProperties"]

    return say


def _not_null(schema: dict[str, Any]) -> dict[str, Any]:
    kept = [choice for choice in schema["anyOf"] if choice != {"type": "null"}]
    rest = {key: value for key, value in schema.items() if key not in ("anyOf", "default")}
    return rest | (kept[0] if len(kept) == 1 else {"anyOf": kept})


# ---- chat -------------------------------------------------------------------------------------


class ChatMessage(RequestModel):
    """One turn."""

    role: Role
    content: str


class StreamOptions(RequestModel):
    """What a stream carries besides text."""

    include_usage: bool = False
    """End the stream with one chunk of token counts."""


class ChatCompletionRequest(RequestModel):
    """`POST /v1/chat/completions`."""

    model: ModelName
    messages: Many[ChatMessage] = Field(min_length=1, max_length=1024)
    """The conversation; the last turn is the user's, or the assistant's where a reward model scores it."""
    max_tokens: int | None = Field(default=None, ge=1, le=2**31 - 1)
    """Longest answer in tokens."""
    max_completion_tokens: int | None = Field(default=None, ge=1, le=2**31 - 1)
    """The newer name of `max_tokens`."""
    temperature: float | None = Field(default=None, ge=0, le=2)
    """0 is greedy; the default is the model's own, else 1."""
    top_p: float | None = Field(default=None, gt=0, le=1)
    n: int | None = Field(default=None, ge=1, le=MAX_N)
    """Answers to one prompt."""
    stop: str | Many[str] | None = Field(default=None, json_schema_extra={"anyOf": _STOP})
    """Up to four texts that end the answer; they are not part of it."""
    seed: int | None = Field(default=None, ge=-(2**63), le=2**63 - 1)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logprobs: bool | None = None
    """Return the log-probability of each token of the answer."""
    top_logprobs: int | None = Field(default=None, ge=0, le=MAX_LOGPROBS)
    """How many alternatives to return for each token; needs `logprobs`."""
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    user: str | None = Field(default=None, max_length=512)
    """Accepted and not used."""

    @model_validator(mode="after")
    def _combinations(self) -> Self:
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise refuse("invalid_request", "give max_tokens or max_completion_tokens, not both", "max_tokens")
        stops = self.stops
        if len(stops) > MAX_STOP:
            raise refuse("invalid_request", f"stop has {len(stops)} texts, at most {MAX_STOP}", "stop")
        if any(not text or len(text) > MAX_STOP_TEXT for text in stops):
            raise refuse("invalid_request", f"each stop text has 1 to {MAX_STOP_TEXT} characters", "stop")
        if self.stream_options is not None and not self.stream:
            raise refuse("invalid_request", "stream_options needs stream: true", "stream_options")
        if self.top_logprobs is not None and not self.logprobs:
            raise refuse("invalid_request", "top_logprobs needs logprobs: true", "top_logprobs")
        return self

    @property
    def stops(self) -> tuple[str, ...]:
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)


class TopLogprob(ResponseModel):
    """One token that could have been sampled."""

    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(TopLogprob):
    """One sampled token with its alternatives."""

    top_logprobs: list[TopLogprob]


class ChoiceLogprobs(ResponseModel):
    """Log-probabilities of an answer, token by token."""

    content: list[TokenLogprob]
    refusal: None = None


class AssistantMessage(ResponseModel):
    """The answer."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class ChatChoice(ResponseModel):
    """One of the `n` answers."""

    index: int
    message: AssistantMessage
    finish_reason: Literal["stop", "length"]
    logprobs: ChoiceLogprobs | None = None


class Usage(ResponseModel):
    """Tokens read and written."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class ChatCompletion(ResponseModel):
    """Answer of a chat request without stream."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    system_fingerprint: str
    """Revision of the model that answered."""
    choices: list[ChatChoice]
    usage: Usage


# ---- rewards ----------------------------------------------------------------------------------


class RewardItem(RequestModel):
    """What to score: exactly one of `messages`, `prompt` + `response`, `prompt` + `responses`."""

    model_config = ConfigDict(
        json_schema_extra=one_of_forms(("messages",), ("prompt", "response"), ("prompt", "responses"))
    )

    id: ItemId | None = None
    messages: Many[ChatMessage] | None = Field(default=None, min_length=1, max_length=1024)
    """A conversation that ends with the assistant's turn."""
    prompt: str | None = None
    response: str | None = None
    responses: Many[str] | None = Field(default=None, min_length=1)

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        forms = (self.messages, self.prompt, self.response, self.responses)
        match tuple(value is not None for value in forms):
            case (True, False, False, False) | (False, True, True, False) | (False, True, False, True):
                return self
        raise refuse("invalid_request", "give messages, or prompt and response, or prompt and responses")

    @property
    def num_responses(self) -> int:
        return len(self.responses) if self.responses is not None else 1


class RewardRequest(RequestModel):
    """`POST /v1/rewards`."""

    model: ModelName
    input: Many[RewardItem] = Field(min_length=1)
    truncation: Literal["error", "left", "right"] = "error"
    """What to do with a conversation that is too long; `left` drops its beginning, `right` its end."""
    on_error: Literal["item", "fail"] = "item"
    """`item`: an item that fails has its own error; `fail`: the first one fails the request."""
    allow_empty: bool = False
    """Score empty responses instead of refusing them."""
    normalize: Literal["sigmoid"] | None = None
    """Map scores to 0..1; they are raw otherwise."""
    return_: Many[Literal["objectives"]] = Field(default=[], alias="return", max_length=8)
    """`objectives`: the named parts of each score, where the model has them."""

    @model_validator(mode="after")
    def _distinct_ids(self) -> Self:
        times = Counter(item.id for item in self.input)
        for where, item in enumerate(self.input):
            if item.id is not None and times[item.id] > 1:
                raise refuse("invalid_request", "ids must be unique", f"input[{where}].id")
        return self

    @property
    def num_responses(self) -> int:
        return sum(item.num_responses for item in self.input)


class ErrorBody(ResponseModel):
    """What went wrong, in OpenAI's form."""

    message: str
    type: str
    param: str | None
    """The field at fault, as in `input[1].prompt`."""
    code: str = Field(json_schema_extra={"enum": [*sorted(STATUS)]})


class ErrorEnvelope(ResponseModel):
    """Every answer that is not 2xx."""

    error: ErrorBody


class RewardResult(ResponseModel):
    """The score of one response, or why there is none."""

    index: int
    """Position of the item in `input`."""
    response_index: int | None = Field(default=None, exclude_if=lambda value: value is None)
    """Position in `responses`, where the item has several."""
    id: str | None
    object: Literal["reward"] = "reward"
    status: Literal["ok", "error"]
    score: float | None
    tokens: int | None
    """Tokens of the whole conversation, before any truncation."""
    truncated: bool = False
    objectives: dict[str, float] | None = None
    error: ErrorBody | None = Field(default=None, exclude_if=lambda value: value is None)


class Scorer(ResponseModel):
    """What made the numbers."""

    dtype: str
    template_sha256: str
    range: Range | None
    """Lowest and highest score that were seen when the model was made, where known."""


class RewardSummary(ResponseModel):
    """How many responses were scored."""

    ok: int
    error: int


class RewardUsage(ResponseModel):
    """Tokens of the conversations that were scored."""

    prompt_tokens: int
    total_tokens: int


class RewardResponse(ResponseModel):
    """Answer of a scoring request; one result per response, in order."""

    id: str
    object: Literal["list"] = "list"
    created: int
    model: str
    model_revision: str
    scorer: Scorer
    results: list[RewardResult]
    summary: RewardSummary
    usage: RewardUsage


# ---- models -----------------------------------------------------------------------------------


class ModelCard(ResponseModel):
    """One served model."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "fuseline"
    kind: Literal["chat", "reward"]
    revision: str
    """Content hash of the model folder."""
    max_tokens: int
    """Prompt plus answer for a chat model, whole conversation for a reward model."""
    dtype: str
    template_sha256: str
    score_range: Range | None = None
    score_direction: Literal["higher_is_better"] | None = None
    objectives: list[str] | None = None
    """Names of the parts of a score, where a reward model has them."""
    determinism: str
    canary: Literal["pair", "none"] | None = None
    """`pair`: a reward model that serves only while it scores a known pair in the right order; `none`: no such pair."""


class ModelList(ResponseModel):
    """`GET /v1/models`."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class Health(ResponseModel):
    """`GET /healthz` and `GET /readyz`."""

    status: Literal["ok", "ready"]
