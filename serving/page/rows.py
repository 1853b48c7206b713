"""The training rows of a run: a page of them, and one prompt with all answers to it and what became of each.

Nothing is held between requests; `parts` reads what a page or a prompt needs and no more.
"""

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

from pydantic import Field

from fusion.artifact import Artifact
from fusion.rows import NOT_ROLES
from serving.errors import ApiError
from serving.page import parts
from serving.page.parts import NEVER_SHOWN, find
from serving.page.reasons import DROPS, Answer, Side, Use, rule_for, use_of, why
from serving.page.runs import Arm, Run
from serving.schemas import RequestModel, ResponseModel

MAX_ROWS = 50
SNIPPET = 200

NOT_LISTED = NEVER_SHOWN | {"text", "objectives", "reference", "scorer", "verdict", "truncated", "decoding"}


class RowsQuery(RequestModel):
    """`GET /ui/data/rows`."""

    arm: str = Field(min_length=1, max_length=128)
    offset: int = Field(default=0, ge=0, le=100_000_000)
    limit: int = Field(default=20, ge=1, le=MAX_ROWS)
    query: str = Field(default="", max_length=200)
    """Text that the prompt, its id, its domain or a model's name holds; case does not matter."""
    show: Literal["all", "rows", "dropped"] = "all"


class RowQuery(RequestModel):
    """`GET /ui/data/row`."""

    arm: str = Field(min_length=1, max_length=128)
    prompt_id: str = Field(min_length=1, max_length=512)


class RoleView(ResponseModel):
    """An answer in a row, in short."""

    role: str
    model: str
    score: float


class RowView(ResponseModel):
    """One prompt of an arm, in short."""

    prompt_id: str
    domain: str
    prompt: str
    """The beginning of the last user turn."""
    roles: list[RoleView]
    """Empty for a dropped prompt."""
    dropped: str | None = None
    """Reason code of a prompt that gave no row."""
    detail: str = ""


class RowPage(ResponseModel):
    """Some rows of an arm: those that give a row in the order of the prompts, then the dropped ones."""

    arm: str
    rule: str
    offset: int
    rows: list[RowView]
    more: bool
    """Whether there are rows after these."""
    total: int | None
    """Rows in all; None where `query` says what is wanted, because the rest has not been looked at."""


class MessageView(ResponseModel):
    """One turn of the prompt."""

    role: str
    content: str


class CandidateView(ResponseModel):
    """One answer to the prompt."""

    model: str
    sample: int
    side: Side
    decoding: str
    text: str
    finish_reason: str
    score: float
    scorer: str
    verdict: str | None
    objectives: dict[str, float]
    truncated: bool
    role: str | None
    use: Use
    why: str


class LostView(ResponseModel):
    """An answer that was refused on its way."""

    row_id: str
    stage: str
    reason: str
    detail: str


class PromptDetail(ResponseModel):
    """One prompt with all answers to it."""

    arm: str
    rule: str
    prompt_id: str
    domain: str
    messages: list[MessageView]
    reference: str | None
    outcome: Literal["row", "dropped", "not_asked"]
    """`not_asked`: the prompt is on the other side of the split."""
    reason: str | None
    words: str
    """What became of the prompt, in words."""
    weight: float | None
    margin: float | None
    """Reward of the chosen minus that of the rejected answer, of the own pair where there is one."""
    candidates: list[CandidateView]
    """In the order of the row's roles, then what the row does not hold; each by reward."""
    lost: list[LostView]


def list_rows(run: Run, asked: RowsQuery) -> RowPage:
    """Return one page of rows.

    Raises:
        ApiError: no such arm.
        ArtifactError: a part cannot be read.
    """
    arm = _arm(run, asked.arm)
    manifest = arm.selection.manifest
    counts = {"rows": manifest.rows_out, "dropped": manifest.num_quarantined}
    counts["all"] = counts["rows"] + counts["dropped"]
    # Without a query the place of a row is known from the manifest, and the rows before it are not read.
    skipped = min(asked.offset, counts["rows"]) if not asked.query and asked.show != "dropped" else 0
    entries: Iterator[RowView] = iter(())
    if asked.show != "dropped":
        entries = _rows(arm.selection, skip=skipped)
    if asked.show != "rows":
        entries = itertools.chain(entries, _dropped(run, arm))
    wanted = asked.query.casefold()
    matching = (entry for entry in entries if not wanted or wanted in _searchable(entry))
    start = asked.offset - skipped
    taken = list(itertools.islice(matching, start, start + asked.limit + 1))
    return RowPage(
        arm=arm.name,
        rule=arm.rule["type"],
        offset=asked.offset,
        rows=taken[: asked.limit],
        more=len(taken) > asked.limit,
        total=None if wanted else counts[asked.show],
    )


def detail(run: Run, asked: RowQuery) -> PromptDetail:
    """Return one prompt with every answer to it, by any source and by the target.

    Raises:
        ApiError: no such arm, or no such prompt.
        ArtifactError: a part cannot be read.
    """
    arm = _arm(run, asked.arm)
    prompts_key = _prompts_key(arm)
    prompts = run.find("prompts", prompts_key) if prompts_key else None
    found = find(prompts, "prompt_id", asked.prompt_id) if prompts else []
    rows = find(arm.selection, "prompt.prompt_id", asked.prompt_id, never=NEVER_SHOWN | {"text", "objectives"})
    if not found and not rows:
        raise ApiError("not_found", "this run has no such prompt", param="prompt_id")
    prompt = found[0] if found else rows[0]["prompt"]
    row = rows[0] if rows else None
    drop = None if row else next((q for q in parts.refused(arm.selection) if q["row_id"] == asked.prompt_id), None)
    roles = _roles(row) if row else {}
    answers = _answers(run, prompts_key, asked.prompt_id, roles) if prompts_key else []
    if roles.keys() - {each.place for each in answers}:
        answers += _held(arm.selection, asked.prompt_id, answers)
    reason = drop["reason"] if drop else None
    rule = rule_for(arm.rule, prompt["domain"])
    return PromptDetail(
        arm=arm.name,
        rule=arm.rule["type"],
        prompt_id=prompt["prompt_id"],
        domain=prompt["domain"],
        messages=[MessageView(**message) for message in prompt["messages"]],
        reference=prompt["reference"],
        outcome="row" if row else "dropped" if drop else "not_asked",
        reason=reason,
        words=_words(arm, drop, has_row=row is not None),
        weight=row["weight"] if row else None,
        margin=_margin(row) if row else None,
        candidates=_candidates(answers, (held.role for held in roles.values()), rule, dropped=row is None),
        lost=_lost(run, prompts_key, asked.prompt_id) if prompts_key else [],
    )


def _prompts_key(arm: Arm) -> str | None:
    """Key of the prompts that an arm's rows were selected for; None where the rows were given."""
    prompts = arm.selection.manifest.inputs.get("prompts")
    return prompts.key if prompts else None


def _arm(run: Run, name: str) -> Arm:
    arms = run.arms()
    for arm in arms:
        if arm.name == name:
            return arm
    offered = ", ".join(arm.name for arm in arms) or "none"
    raise ApiError("not_found", f"this run has no rows of arm {name!r}; there is: {offered}", param="arm")


# ---- a page -----------------------------------------------------------------------------------


def _rows(selection: Artifact, *, skip: int) -> Iterator[RowView]:
    for plain in parts.rows(selection, never=NOT_LISTED, skip=skip):
        roles = [RoleView(role=held.role, model=m, score=held.score) for (m, _), held in _roles(plain).items()]
        yield RowView(**_short(plain["prompt"]), roles=roles)


def _dropped(run: Run, arm: Arm) -> Iterator[RowView]:
    """Yield the prompts that gave no row, in the order of the prompts where those are still there."""
    refused = {q["row_id"]: q for q in parts.refused(arm.selection)}
    key = _prompts_key(arm)
    prompts = run.find("prompts", key) if refused and key else None
    for plain in parts.rows(prompts, never=NOT_LISTED) if prompts else ():
        if (q := refused.pop(plain["prompt_id"], None)) is not None:
            yield RowView(**_short(plain), roles=[], dropped=q["reason"], detail=q["detail"])
    for row_id, q in refused.items():
        yield RowView(prompt_id=row_id, domain="", prompt="", roles=[], dropped=q["reason"], detail=q["detail"])


def _short(prompt: dict[str, Any]) -> dict[str, str]:
    text = prompt["messages"][-1]["content"] if prompt["messages"] else ""
    shown = text if len(text) <= SNIPPET else f"{text[: SNIPPET - 1]}…"
    return {"prompt_id": prompt["prompt_id"], "domain": prompt["domain"], "prompt": shown}


def _searchable(entry: RowView) -> str:
    models = " ".join(role.model for role in entry.roles)
    return f"{entry.prompt_id}\n{entry.domain}\n{entry.prompt}\n{models}\n{entry.dropped or ''}".casefold()


@dataclasses.dataclass(frozen=True, slots=True)
class _Held:
    """An answer's place in a row."""

    role: str
    score: float
    weight: float | None
    """Its share of the row, in rows with several weighted answers."""


def _roles(row: dict[str, Any]) -> dict[tuple[str, int], _Held]:
    """Return (model, sample) -> what a row holds an answer as, in the order of the roles."""
    found = {}
    for role, scored, weight in _members(row):
        found[scored["response"]["model"], scored["response"]["sample"]] = _Held(role, scored["score"], weight)
    return found


def _members(row: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any], float | None]]:
    """Yield (role, answer, weight) of all answers in a row."""
    weights, groups = row.get("weights"), row.get("groups")
    for role, held in row.items():
        if role in NOT_ROLES:
            continue
        for place, scored in enumerate(_listed(held)):
            yield role, scored, weights[groups[place] if groups else place] if weights else None


# ---- one prompt -------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class _Found:
    plain: dict[str, Any]
    answer: Answer

    @property
    def place(self) -> tuple[str, int]:
        return self.answer.model, self.plain["response"]["sample"]


def _answers(run: Run, prompts_key: str, prompt_id: str, roles: dict[tuple[str, int], _Held]) -> list[_Found]:
    sources = run.source_names()
    found = []
    for _, artifact in run.scored(prompts_key):
        for plain in find(artifact, "response.prompt_id", prompt_id):
            response = plain["response"]
            side: Side = "source" if response["model"] in sources else "own"
            found.append(_Found(plain, _answer(plain, side, roles.get((response["model"], response["sample"])))))
    return found


def _held(selection: Artifact, prompt_id: str, found: list[_Found]) -> list[_Found]:
    """Return the answers that the row itself holds and whose scored artifact is gone."""
    known = {each.place for each in found}
    row = find(selection, "prompt.prompt_id", prompt_id)[0]
    more = []
    for role, plain, weight in _members(row):
        if (plain["response"]["model"], plain["response"]["sample"]) not in known:
            own = role.startswith("target_") or (role == "rejected" and "target_chosen" in row)
            more.append(_Found(plain, _answer(plain, "own" if own else "source", _Held(role, plain["score"], weight))))
    return more


def _answer(plain: dict[str, Any], side: Side, held: _Held | None) -> Answer:
    response = plain["response"]
    return Answer(
        response["model"],
        side,
        plain["score"],
        response["finish_reason"],
        held.role if held else None,
        plain["verdict"],
        held.weight if held else None,
    )


def _candidates(
    found: list[_Found], roles: Iterable[str], rule: Mapping[str, Any], *, dropped: bool
) -> list[CandidateView]:
    answers = [each.answer for each in found]
    in_row = [*dict.fromkeys(roles), None]
    views = []
    for each in found:
        response, answer = each.plain["response"], each.answer
        views.append(
            CandidateView(
                model=answer.model,
                sample=response["sample"],
                side=answer.side,
                decoding=response["decoding"],
                text=response["text"],
                finish_reason=answer.finish_reason,
                score=answer.score,
                scorer=each.plain["scorer"],
                verdict=each.plain["verdict"],
                objectives=dict(each.plain["objectives"]),
                truncated=each.plain["truncated"],
                role=answer.role,
                use=use_of(answer.role, rule["type"]),
                why=why(answer, answers, rule, dropped=dropped),
            )
        )
    return sorted(views, key=lambda view: (in_row.index(view.role), -view.score, view.model, view.sample))


def _words(arm: Arm, drop: dict[str, str] | None, *, has_row: bool) -> str:
    if has_row:
        return f"A row of {arm.name}, made by rule {arm.rule['type']}."
    if drop is None:
        return f"Not asked: the prompt is not on the side of the split that {arm.name} trains on."
    detail = f" ({drop['detail']})" if drop["detail"] else ""
    return f"No row: {DROPS.get(drop['reason'], drop['reason'])}{detail}."


def _margin(row: dict[str, Any]) -> float | None:
    """Chosen minus rejected score; of several weighted pairs the weighted mean."""
    chosen, rejected = row.get("target_chosen") or row.get("chosen"), row.get("rejected")
    if not chosen or not rejected:
        return None
    weights: list[float] = row.get("weights") or [1.0]
    pairs = zip(_listed(chosen), _listed(rejected), weights, strict=True)
    return sum(weight * (better["score"] - worse["score"]) for better, worse, weight in pairs)


def _listed(held: Any) -> list[dict[str, Any]]:
    return held if isinstance(held, list) else [held]


def _lost(run: Run, prompts_key: str, prompt_id: str) -> list[LostView]:
    """Return the answers to a prompt that generation or scoring refused."""
    found = []
    for folder, scored in run.scored(prompts_key):
        key = scored.manifest.inputs["responses"].key
        made = {kind: run.find(kind, key) for kind in ("generate", "existing")}
        for stage, artifact in (
            *((f"{kind}/{folder.slug}", a) for kind, a in made.items()),
            (f"score/{folder.slug}", scored),
        ):
            for q in parts.refused(artifact) if artifact else ():
                if q["row_id"] == prompt_id or q["row_id"].startswith(f"{prompt_id}/"):
                    found.append(LostView(row_id=q["row_id"], stage=stage, reason=q["reason"], detail=q["detail"]))
    return found
