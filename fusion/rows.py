"""The typed rows that machines pass from stage to stage; `row_tables.py` has their Arrow form.

Rows are frozen, slotted dataclasses, and a field is declared once. Rows are checked where they are made: the invariants of a preference live in its
`__post_init__` and name the row. Roles are fields (`source_chosen`, `target_chosen`, `rejected`),
never positions.
"""

import dataclasses
import math
import typing
from enum import StrEnum
from functools import cache
from typing import Any


class Finish(StrEnum):
    """Why a response ended: `stop` = a stop token was sampled, `length` = the token limit came first."""

    stop = "stop"
    length = "length"


class Verdict(StrEnum):
    """What a verifier says of a response.

    `unparsable`: there is nothing in it that could be checked. `error`: the check itself failed, which says nothing of the
    response and is never a score of 0.
    """

    correct = "correct"
    wrong = "wrong"
    unparsable = "unparsable"
    error = "error"


@dataclasses.dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation. Example: `Message(role="user", content="add 47 and 8")`."""

    role: str
    content: str


@dataclasses.dataclass(frozen=True, slots=True)
class Prompt:
    """A conversation that ends with a user turn and waits for an answer.

    Example: `Prompt("m-1", "math", (Message("user", "2+2?"),), reference="4")`.
    """

    prompt_id: str
    domain: str
    messages: tuple[Message, ...]
    reference: str | None = None
    """Gold answer that a verifier compares with; None where there is none."""
    tests: tuple[str, ...] = ()
    """Assert lines for code prompts."""
    entry_point: str | None = None
    """Name of the function that `tests` call."""
    dataset: str | None = None
    """Name of the prompt set that it is from; splits are made and rows are counted within one."""


@dataclasses.dataclass(frozen=True, slots=True)
class Response:
    """One sampled answer. `token_ids` end with the stop token exactly when `finish_reason` is stop."""

    prompt_id: str
    model: str
    """Name of the model in the recipe (a source name, `target`, `sft` or an arm)."""
    sample: int
    """Index of the sample among all samples of this prompt and model, counted over all decodings."""
    decoding: str
    """Name of the decoding that made it, e.g. `sample` or `greedy`."""
    text: str
    """Decoded answer without stop token, surrounding white space removed."""
    token_ids: tuple[int, ...]
    finish_reason: Finish
    seed: int
    num_prompt_tokens: int
    tokenizer: str
    """Fingerprint of the tokenizer that `token_ids` belong to."""

    @property
    def row_id(self) -> str:
        return f"{self.prompt_id}/{self.model}/{self.sample}"


@dataclasses.dataclass(frozen=True, slots=True)
class ScoredResponse:
    """A response with what a scorer said of it. Scores are finite; a non-finite one is quarantined before."""

    response: Response
    score: float
    scorer: str
    objectives: dict[str, float] = dataclasses.field(default_factory=dict)
    """Named parts of the score (e.g. `exact`), where the scorer has them."""
    verdict: Verdict | None = None
    """What a verifier said of it, where one was asked; never `error`, which is quarantined."""
    verdict_reason: str | None = None
    """Short code of why, e.g. `timeout`, where the verdict has one."""
    truncated: bool = False
    """True when the scorer saw only a part of the conversation."""

    def __post_init__(self) -> None:
        if not math.isfinite(self.score):
            raise ValueError(f"row {self.response.row_id}: score {self.score} is not finite")


@dataclasses.dataclass(frozen=True, slots=True)
class SftExample:
    """A prompt and the answer to imitate."""

    prompt: Prompt
    response: ScoredResponse
    weight: float = 1.0

    def __post_init__(self) -> None:
        _check_row(self, self.response)

    @property
    def row_id(self) -> str:
        return self.prompt.prompt_id


@dataclasses.dataclass(frozen=True, slots=True)
class PreferencePair:
    """(x, y_w, y_l): `chosen` scored above `rejected`."""

    prompt: Prompt
    chosen: ScoredResponse
    rejected: ScoredResponse
    weight: float = 1.0

    def __post_init__(self) -> None:
        _check_row(self, self.chosen, self.rejected)
        _check_order(self.prompt, self.chosen, self.rejected)

    @property
    def row_id(self) -> str:
        return self.prompt.prompt_id


@dataclasses.dataclass(frozen=True, slots=True)
class PreferenceQuadruple:
    """(x, y_ws, y_wt, y_l) of WRPO (arXiv 2412.03187, section 3).

    `source_chosen` is the best answer of all sources; `target_chosen` and `rejected` are the best
    and the worst of the target's own samples.
    """

    prompt: Prompt
    source_chosen: ScoredResponse
    target_chosen: ScoredResponse
    rejected: ScoredResponse
    weight: float = 1.0

    def __post_init__(self) -> None:
        _check_row(self, self.source_chosen, self.target_chosen, self.rejected)
        _check_order(self.prompt, self.target_chosen, self.rejected)
        source, own = self.source_chosen.response.model, self.target_chosen.response.model
        if own != self.rejected.response.model:
            raise ValueError(
                f"row {self.row_id}: target_chosen is of {own} but rejected of {self.rejected.response.model}; "
                "both must be the target's own samples"
            )
        if source == own:
            raise ValueError(f"row {self.row_id}: source_chosen is of {source}, the target itself")

    @property
    def row_id(self) -> str:
        return self.prompt.prompt_id


@dataclasses.dataclass(frozen=True, slots=True)
class PreferenceSet:
    """(x, {y_ws}, y_wt, {y_ls}, y_l): WRPO with several source answers, and source answers to avoid.

    Example: the best answers of two sources, one answer of a source that is to be avoided, and the target's best and
    worst: `PreferenceSet(prompt, (a, b), own_best, (c,), own_worst)`. With one `source_chosen` and no
    `source_rejected` it says what a `PreferenceQuadruple` says.
    """

    prompt: Prompt
    source_chosen: tuple[ScoredResponse, ...]
    """One or more."""
    target_chosen: ScoredResponse
    source_rejected: tuple[ScoredResponse, ...]
    """None or more."""
    rejected: ScoredResponse
    weight: float = 1.0

    def __post_init__(self) -> None:
        sources = (*self.source_chosen, *self.source_rejected)
        _check_row(self, *sources, self.target_chosen, self.rejected)
        _check_order(self.prompt, self.target_chosen, self.rejected)
        if not self.source_chosen:
            raise ValueError(f"row {self.row_id}: source_chosen is empty; at least one source answer is needed")
        own = self.target_chosen.response.model
        if own != self.rejected.response.model:
            raise ValueError(
                f"row {self.row_id}: target_chosen is of {own} but rejected of {self.rejected.response.model}; "
                "both must be the target's own samples"
            )
        if own in (scored.response.model for scored in sources):
            raise ValueError(f"row {self.row_id}: a source answer is of {own}, the target itself")
        best, worst = self.source_chosen, self.source_rejected
        if worst and not min(s.score for s in best) > max(s.score for s in worst):
            raise ValueError(f"row {self.row_id}: a source_chosen score is not above every source_rejected score")

    @property
    def row_id(self) -> str:
        return self.prompt.prompt_id


@dataclasses.dataclass(frozen=True, slots=True)
class ResponseGroup:
    """Several scored answers to one prompt, compared with each other: the rows of RLOO.

    Example: the five samples of one source, `ResponseGroup(prompt, samples)`.
    """

    prompt: Prompt
    responses: tuple[ScoredResponse, ...]
    """Two or more."""
    weight: float = 1.0

    def __post_init__(self) -> None:
        _check_row(self, *self.responses)
        if len(self.responses) < 2:
            raise ValueError(f"row {self.row_id}: {len(self.responses)} responses; a group needs at least two")

    @property
    def row_id(self) -> str:
        return self.prompt.prompt_id


@dataclasses.dataclass(frozen=True, slots=True)
class WeightedResponses:
    """(x, {(y_i, w_i)}): several answers to imitate, each with its share of the prompt; the rows of FuseSFT.

    Example: the best answers of two sources, the first of which counts three times as much:
    `WeightedResponses(prompt, (a, b), weights=(0.75, 0.25))` (arXiv 2504.06562, section 3).
    """

    prompt: Prompt
    responses: tuple[ScoredResponse, ...]
    """One or more."""
    weights: tuple[float, ...]
    """One per response; they sum to 1."""
    weight: float = 1.0

    def __post_init__(self) -> None:
        _check_row(self, *self.responses)
        _check_weights(self, len(self.responses), "responses")

    @property
    def row_id(self) -> str:
        return self.prompt.prompt_id


@dataclasses.dataclass(frozen=True, slots=True)
class WeightedPairs:
    """(x, {(y_w_i, y_l_i, w_i)}): several pairs of one prompt, each with its share of it; the rows of FusePO.

    Pair i is `chosen[i]` against `rejected[i]`. Example: the best and the worst answer of each of two sources,
    `WeightedPairs(prompt, (a_best, b_best), (a_worst, b_worst), weights=(0.75, 0.25))`.
    """

    prompt: Prompt
    chosen: tuple[ScoredResponse, ...]
    """One or more."""
    rejected: tuple[ScoredResponse, ...]
    """As many."""
    weights: tuple[float, ...]
    """One per pair; they sum to 1."""
    weight: float = 1.0

    def __post_init__(self) -> None:
        _check_row(self, *self.chosen, *self.rejected)
        if len(self.chosen) != len(self.rejected):
            raise ValueError(f"row {self.row_id}: {len(self.chosen)} chosen against {len(self.rejected)} rejected")
        _check_weights(self, len(self.chosen), "pairs")
        for chosen, rejected in zip(self.chosen, self.rejected, strict=True):
            _check_order(self.prompt, chosen, rejected)

    @property
    def row_id(self) -> str:
        return self.prompt.prompt_id


@dataclasses.dataclass(frozen=True, slots=True)
class WeightedGroups:
    """(x, {(Y_i, w_i)}): groups of answers of one prompt, each compared within itself and with its share of the prompt.

    The rows of FusePO with RLOO. Example: three answers of a first source and two of a second,
    `WeightedGroups(prompt, (a1, a2, a3, b1, b2), groups=(0, 0, 0, 1, 1), weights=(0.75, 0.25))`.
    """

    prompt: Prompt
    responses: tuple[ScoredResponse, ...]
    """The answers of group 0, then those of group 1, and so on; at least two each."""
    groups: tuple[int, ...]
    """Group of each response."""
    weights: tuple[float, ...]
    """One per group; they sum to 1."""
    weight: float = 1.0

    def __post_init__(self) -> None:
        _check_row(self, *self.responses)
        _check_weights(self, len(self.weights), "groups")
        sizes = [self.groups.count(number) for number in range(len(self.weights))]
        expected = tuple(number for number, size in enumerate(sizes) for _ in range(size))
        if self.groups != expected or len(self.groups) != len(self.responses) or min(sizes) < 2:
            raise ValueError(
                f"row {self.row_id}: groups {self.groups} of {len(self.responses)} responses and {len(self.weights)} "
                "weights; each group needs at least two responses that stand together, in the order of the groups"
            )

    @property
    def row_id(self) -> str:
        return self.prompt.prompt_id


@dataclasses.dataclass(frozen=True, slots=True)
class ReferenceLogps:
    """Log-probabilities of one training row under the reference model, one sum per response (nats).

    They are finite; a row with another is quarantined before.
    """

    row_id: str
    logps: dict[str, tuple[float, ...]]
    """role -> per response of that role, the sum over its tokens of log pi_ref(token)."""
    num_tokens: dict[str, tuple[int, ...]]
    """role -> per response, the number of tokens summed."""

    def __post_init__(self) -> None:
        for role, values in self.logps.items():
            # A list's items may be null in Arrow, which is what pandas makes of NaN.
            if None in values or not all(map(math.isfinite, values)):
                raise ValueError(f"row {self.row_id}: reference log-probabilities {values} of {role} are not finite")


@dataclasses.dataclass(frozen=True, slots=True)
class Assignment:
    """The side of the split that a prompt is on. Example: `Assignment("m-1", "math", None, "sft")`."""

    prompt_id: str
    domain: str
    dataset: str | None
    side: str
    """`sft` or `preference`."""


@dataclasses.dataclass(frozen=True, slots=True)
class EvaluationItem:
    """One graded answer of one model to one held-out prompt."""

    benchmark: str
    model: str
    prompt_id: str
    sample: int
    decoding: str
    text: str
    score: float
    detail: dict[str, float]
    """Named parts of the score; `exact` where the scorer has it."""


TRAINING_ROWS = (
    SftExample,
    PreferencePair,
    PreferenceQuadruple,
    PreferenceSet,
    ResponseGroup,
    WeightedResponses,
    WeightedPairs,
    WeightedGroups,
)

NOT_ROLES = ("prompt", "weight", "weights", "groups")
"""Fields of training rows that hold no response."""


def roles(row_type: type) -> tuple[str, ...]:
    """Return the response roles of a training row type, in field order.

    Example: `roles(PreferencePair) == ("chosen", "rejected")`.
    """
    assert row_type in TRAINING_ROWS, row_type
    return tuple(f.name for f in dataclasses.fields(row_type) if f.name not in NOT_ROLES)


@cache
def group_roles(row_type: type) -> frozenset[str]:
    """Return the roles that hold any number of responses. Example: `group_roles(ResponseGroup) == {"responses"}`."""
    hints = typing.get_type_hints(row_type)
    return frozenset(role for role in roles(row_type) if typing.get_origin(hints[role]) is tuple)


def responses_of(row: Any, role: str) -> tuple[ScoredResponse, ...]:
    """Return the responses that a training row has in a role: one, or as many as a group role holds."""
    held = getattr(row, role)
    return held if isinstance(held, tuple) else (held,)


def _check_row(row: Any, *responses: ScoredResponse) -> None:
    """What every training row promises: a weight that a loss can be multiplied by, and answers to its own prompt."""
    if not 0 <= row.weight < math.inf:
        raise ValueError(f"row {row.row_id}: weight {row.weight} is not a finite number of 0 or more")
    for scored in responses:
        if scored.response.prompt_id != row.prompt.prompt_id:
            raise ValueError(
                f"row {row.row_id}: response of {scored.response.model} answers {scored.response.prompt_id}"
            )


def response_weights(row: Any, role: str) -> tuple[float, ...]:
    """Return the share of the row that each response of a role has; 1 each where the row type has no weights.

    Example: for `WeightedGroups` with groups (0, 0, 1, 1) and weights (0.75, 0.25): (0.75, 0.75, 0.25, 0.25).
    """
    if isinstance(row, WeightedGroups):
        return tuple(row.weights[number] for number in row.groups)
    if isinstance(row, WeightedResponses | WeightedPairs):
        return row.weights
    return (1.0,) * len(responses_of(row, role))


def response_groups(row: Any, role: str) -> tuple[int, ...]:
    """Return the group of each response of a role, counted from 0; all in one where the row type has no groups."""
    return row.groups if isinstance(row, WeightedGroups) else (0,) * len(responses_of(row, role))


def _check_weights(row: Any, num_members: int, called: str) -> None:
    """What rows of FuseRL promise: shares of the prompt that sum to 1, so that every prompt counts once."""
    if not num_members or len(row.weights) != num_members:
        raise ValueError(
            f"row {row.row_id}: {len(row.weights)} weights for {num_members} {called}; one each, at least one"
        )
    # A list's items may be null in Arrow, see ReferenceLogps.
    if None in row.weights or not all(0 <= w <= 1 for w in row.weights) or abs(math.fsum(row.weights) - 1) > 1e-9:
        raise ValueError(f"row {row.row_id}: weights {row.weights} are not shares that sum to 1")


def _check_order(prompt: Prompt, better: ScoredResponse, worse: ScoredResponse) -> None:
    """A pair is told apart by a verifier where it has looked at both, else by their scores."""
    if better.verdict is Verdict.correct and worse.verdict in (Verdict.wrong, Verdict.unparsable):
        return
    if not better.score > worse.score:
        raise ValueError(
            f"row {prompt.prompt_id}: chosen score {better.score} is not above rejected score {worse.score}"
        )
