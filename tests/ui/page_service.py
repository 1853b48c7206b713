"""The service that the page's tests look at: scripted models over real HTTP, and a run written by the real writers."""

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn

from fusion.artifact import Quarantined, write_json
from fusion.config import Config
from fusion.report import StageReport, build_summary
from fusion.rows import (
    EvaluationItem,
    Finish,
    Message,
    Prompt,
    Response,
    ScoredResponse,
    Verdict,
)
from fusion.select import Best, Quadruple, Split
from fusion.stage import Stage, StageContext, StageResult, run_stage
from fusion.stages import select
from scripted_service import ScriptedChat, ScriptedReward, card
from serving.app import build_app
from serving.backends import Delta, Scored
from serving.config import Limits
from serving.errors import ApiError

XSS = (
    "<script>window.hit=1</script>",
    '<img src=x onerror="window.hit=1">',
    "<svg onload=window.hit=1>",
    '"><script>window.hit=1</script>',
    "'><img src=x onerror=window.hit=1>",
    '<iframe src="javascript:parent.hit=1"></iframe>',
    '<iframe srcdoc="<script>parent.hit=1</script>"></iframe>',
    '<a href="javascript:window.hit=1" autofocus onfocus=window.hit=1>x</a>',
    "<body onload=window.hit=1>",
    '<details open ontoggle="window.hit=1">',
    "<math><mtext></mtext><style><!--</style><img src=x onerror=window.hit=1>--></math>",
    "</textarea><script>window.hit=1</script>",
    "</title></style></script><script>window.hit=1</script>",
    "<style>@import 'https://evil.example/x.css';*{display:none}</style>",
    '<link rel=stylesheet href="https://evil.example/x.css">',
    '<meta http-equiv=refresh content="0;url=https://evil.example/">',
    '<base href="https://evil.example/"><img src=x.png>',
    '<object data="https://evil.example/x.swf"></object><embed src=x>',
    '<form action="https://evil.example/"><button autofocus>x</button></form>',
    "<video><source onerror=window.hit=1></video>",
    "${window.hit=1} {{constructor.constructor('window.hit=1')()}}",
    "[x](javascript:window.hit=1) ![x](https://evil.example/x.png)",
    'data: [DONE]\n\ndata: {"error": {"message": "no", "code": "x"}}\n\n',
    "\u202egnp.tset\u202c \u2028\u2029 \u0000\u0007 \ufeff a\u0301",
    "javascript:/*--></title></style></textarea></script><svg/onload='+/\"/+/onmouseover=1/+/[*/[]/+window.hit=1//'>",
)
"""Things a model, a file or an error may say."""


class Chat(ScriptedChat):
    """Answers with `script`, or with the user's own words where there is none."""

    def __init__(self, name: str, script: str | None = None, **fields):
        super().__init__(script or "", **fields)
        self.card = card(name, "chat").model_copy(update={"max_tokens": 100_000})
        self.conversations = []
        self._echoes = script is None

    def encode(self, messages):
        super().encode(messages)
        self.conversations.append([(message.role, message.content) for message in messages])
        return [ord(letter) for letter in messages[-1].content]

    async def generate(self, generation):
        if not self._echoes:
            async for deltas in super().generate(generation):
                yield deltas
            return
        text = "".join(map(chr, generation.prompt_ids))
        pieces = [text[start : start + 5] for start in range(0, len(text), 5)]
        for place, piece in enumerate(pieces):
            yield [Delta(0, piece, 1, "stop" if place + 1 == len(pieces) else None)]


class Broken(Chat):
    """Says a little, then fails with a message of its own."""

    def __init__(self, name: str, message: str):
        super().__init__(name, "abc")
        self._message = message

    async def generate(self, generation):
        yield [Delta(0, "a ", 1)]
        await asyncio.sleep(0.01)
        raise ApiError("backend_unavailable", self._message)


class Reward(ScriptedReward):
    """Scores of either sign with objectives; some responses have their own fate."""

    def __init__(self, name: str = "rm", *, message: str = "out of memory", part: str = "helpful"):
        super().__init__()
        self.card = card(name, "reward").model_copy(
            update={"score_direction": "higher_is_better", "determinism": "bitwise on CPU"}
        )
        self._message, self._part = message, part

    async def score(self, conversations, *, truncation):
        self.calls.append((conversations, truncation))
        return [self._one(c[-1].content, truncation) for c in conversations]

    def _one(self, text: str, truncation: str) -> Scored:
        if text.startswith("break"):
            return Scored(None, 7, error_code="backend_error", error_message=self._message)
        value = 3.140625 - sum(map(ord, text)) % 97 / 7
        cut = len(text) > 500 and truncation != "error"
        return Scored(value, 11 + len(text), truncated=cut, objectives={self._part: 0.25, "concise": -value / 3})


def make_app(*, chats=None, rewards=None, run: Path | None = None, not_ready=lambda: None):
    chats = [Chat("wrpo"), Chat("target", "Fifty-five.")] if chats is None else chats
    rewards = [Reward()] if rewards is None else rewards
    return build_app(
        chats={chat.card.id: chat for chat in chats},
        rewards={reward.card.id: reward for reward in rewards},
        limits=Limits(),
        not_ready=not_ready,
        run=run,
    )


def until(page, expression: str, *, seconds: float = 8) -> None:
    """Wait until a JavaScript expression is true; playwright's own way needs `eval`, which the page forbids."""
    ends_at = time.monotonic() + seconds
    while not page.evaluate(expression):
        assert time.monotonic() < ends_at, f"not true within {seconds:g} s: {expression}"
        page.wait_for_timeout(20)


def hold(page, pattern: str) -> list:
    """Hold back what the page asks for and give the list it gathers in: answers come when the test lets them."""
    held = []

    def keep(route):  # a method of a list is no handler to playwright
        held.append(route)

    page.route(pattern, keep)
    return held


def until_held(page, held: list, count: int, *, seconds: float = 8) -> None:
    ends_at = time.monotonic() + seconds
    while len(held) < count:
        assert time.monotonic() < ends_at, f"asked for {len(held)} times, not {count}, within {seconds:g} s"
        page.wait_for_timeout(20)


class Keyed:
    """Asks for a key as the service does: the files of the page are open, data and models are not."""

    def __init__(self, app, key: str):
        self._app, self._key = app, key

    async def __call__(self, scope, receive, send):
        guarded = scope["type"] == "http" and scope["path"].startswith(("/v1/", "/ui/data/"))
        if guarded and dict(scope["headers"]).get(b"authorization", b"").decode() != f"Bearer {self._key}":
            error = ApiError("invalid_api_key", "this key is not known")
            head = [(b"content-type", b"application/json"), (b"x-request-id", b"req-locked")]
            await send({"type": "http.response.start", "status": 401, "headers": head})
            await send({"type": "http.response.body", "body": json.dumps(error.body()).encode()})
            return
        await self._app(scope, receive, send)


@contextmanager
def serving(app) -> Iterator[str]:
    """Serve `app` on a free port of this machine and give its URL."""
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    ends_at = time.monotonic() + 10
    while not server.started and time.monotonic() < ends_at:
        time.sleep(0.01)
    assert server.started, "uvicorn did not start"
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = server.force_exit = True
        thread.join(10)


# ---- a run ------------------------------------------------------------------------------------

NUM_PROMPTS = 36
SPLIT = Split(sft=1, preference=2, seed=1)
SOURCES = ("llama-add", "qwen2-sort")


class Given(Config):
    """Names what a stage of this file writes."""

    name: str


_GIVEN: dict[str, tuple[list, list[Quarantined]]] = {}


def _give(ctx: StageContext) -> StageResult:
    rows, refused = _GIVEN[ctx.config.name]
    ids = [getattr(row, "prompt_id", None) or row.response.row_id for row in rows]
    ids = [f"{row_id}/{place}" for place, row_id in enumerate(ids)]
    chunks = ctx.plan(ids, chunk_rows=25)
    for chunk in chunks:
        last = chunk is chunks[-1]
        ctx.commit(chunk, rows[chunk.start : chunk.stop], quarantined=refused if last else ())
    return StageResult(rows_in=len(rows) + len(refused), notes={"tokens": 3 * len(rows)})


def _train(ctx: StageContext) -> StageResult:
    rows = ctx.artifact("rows").manifest.rows_out
    return StageResult(rows_in=rows, rows_out=rows)


def given(kind: str, slug: str, rows: list, row_type: type, inputs=None, refused=()) -> Stage:
    _GIVEN[f"{kind}/{slug}"] = (rows, list(refused))
    return Stage(kind, slug, 1, Given(name=f"{kind}/{slug}"), inputs or {}, _give, row_type)


class RunWriter:
    """Writes stages into `<root>/store` and, with `finish`, what a finished run leaves in `<root>/demo`."""

    def __init__(self, root: Path):
        self.root, self.folder, self.store = root, root / "demo", root / "store"
        self.done = {}
        self.stages = []

    def run(self, stage: Stage) -> Stage:
        inputs = {name: self.done[id(node)] for name, node in stage.inputs.items()}
        artifact, _ = run_stage(
            stage, self.store, inputs=inputs, report=lambda _: None, resume_command="fuseline run recipe.yaml"
        )
        self.done[id(stage)] = artifact
        self.stages.append(stage)
        return stage

    def finish(self) -> Path:
        """Write history and summary in the form of `jobs.driver` and `jobs.results`."""
        artifacts = [self.done[id(stage)] for stage in self.stages]
        entries = {
            f"{s.label}-{s.key}": {"path": str(a.path), "digest": a.manifest.digest, "hit": False}
            for s, a in zip(self.stages, artifacts, strict=True)
        }
        recipe = {"name": "demo", "serve": {"arm": "wrpo"}}
        history = {"recipe": recipe, "argv": ["fuseline"], "total_seconds": 65.25, "artifacts": entries}
        write_json(self.folder / "history" / "20260102T030405Z.json", history)
        summary = build_summary(
            recipe_name="demo",
            stages=[StageReport.of(artifact, hit=False) for artifact in artifacts],
            evaluate=None,
            total_seconds=65.25,
        )
        summary["benchmark"] = "held_out"
        summary["models"] = {
            name: {
                key: {"mean": m, "low": m - 0.03, "high": m + 0.04}
                for key, m in (("reward", mean), ("exact", mean / 2))
            }
            for name, mean in (("target", 0.41), ("wrpo", 0.55), ("llama-add", 0.52))
        }
        write_json(self.folder / "summary.json", summary)
        return self.folder


def prompts() -> list[Prompt]:
    def text(n: int) -> str:
        return XSS[n] if n < len(XSS) else f"what is {n} plus {n + 1}?"

    return [
        Prompt(f"p{n:03d}", "add" if n % 2 else XSS[0], (Message("user", text(n)),), reference=str(2 * n + 1))
        for n in range(NUM_PROMPTS)
    ]


def scored(prompt: Prompt, model: str, sample: int, score: float, *, text: str | None = None, **fields):
    finish = fields.pop("finish", Finish.stop)
    text = text if text is not None else f"{model} says {sample} to {prompt.prompt_id}"
    response = Response(prompt.prompt_id, model, sample, "sample", text, (1, 2, 3), finish, 7, 5, "t")
    parts = {"exact": score / 2, XSS[1]: -score}
    return ScoredResponse(response, score, "verifier", parts, **fields)


def answers(all_prompts: list[Prompt], model: str, shift: int) -> list[ScoredResponse]:
    """Three answers to each prompt; scores differ, the first is hostile, the last of some is cut."""
    found = []
    for n, prompt in enumerate(all_prompts):
        for sample in range(3):
            tie = n % 9 == 4 and model == "sft"
            value = 0.5 if tie else ((n * 7 + sample * 5 + shift) % 11) / 10 - 0.3
            text = XSS[n % len(XSS)] + f" {sample}" if sample == 0 else None
            finish = Finish.length if sample == 2 and n % 4 == 0 else Finish.stop
            verdict = Verdict.correct if value > 0.5 else Verdict.wrong
            found.append(scored(prompt, model, sample, value, text=text, finish=finish, verdict=verdict))
    return found


def write_run(root: Path) -> Path:
    """Write a small finished run and return its folder."""
    run = RunWriter(root)
    everything = prompts()
    sides = SPLIT.assign(prompt.prompt_id for prompt in everything)
    asked = run.run(given("prompts", "train", everything, Prompt))
    sources = {}
    for shift, name in enumerate(SOURCES):
        rows = answers(everything, name, shift)
        responses = [row.response for row in rows]
        made = run.run(given("generate", name, responses, Response, {"prompts": asked}))
        refused = [Quarantined(f"p005/{name}/3", "non_finite_score", XSS[2])] if shift == 0 else []
        inputs = {"prompts": asked, "responses": made}
        sources[f"source_{name}"] = run.run(given("score", name, rows, ScoredResponse, inputs, refused))
    best = Stage(
        "select", "best", 1, select.SelectConfig(rule=Best(seed=1), split=SPLIT), {"prompts": asked, **sources},
        select.run, Best.row_type,
    )  # fmt: skip
    run.run(best)
    run.run(Stage("sft", "sft", 1, Given(name="sft"), {"rows": best}, _train, None))
    rows = answers([p for p in everything if sides[p.prompt_id] == "preference"], "sft", 3)
    made = run.run(given("generate", "sft", [row.response for row in rows], Response, {"prompts": asked}))
    own = run.run(given("score", "sft", rows, ScoredResponse, {"prompts": asked, "responses": made}))
    quadruple = Stage(
        "select", "quadruple", 1, select.SelectConfig(rule=Quadruple(seed=1), split=SPLIT),
        {"prompts": asked, **sources, "own": own}, select.run, Quadruple.row_type,
    )  # fmt: skip
    run.run(quadruple)
    run.run(Stage("prefer", "wrpo", 1, Given(name="wrpo"), {"rows": quadruple}, _train, None))
    items = [EvaluationItem("held_out", "wrpo", "h1", 0, "greedy", "x", 1.0, {})]
    run.run(given("evaluate", "held_out", items, EvaluationItem))
    return run.finish()
