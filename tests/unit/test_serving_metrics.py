"""Metrics and the access log: what a request adds, and what must never be in them."""

import asyncio
import json
import logging
import math
import re
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from fusion.errors import InputError
from scripted_service import LIMITS, ScriptedChat, ScriptedReward
from serving.access import AccessLog
from serving.app import build_app
from serving.auth import ApiKey, Guard, hash_key, new_key
from serving.config import Observability
from serving.edge import Observers
from serving.telemetry import (
    FIRST_TOKEN,
    IN_FLIGHT,
    METRICS,
    NON_FINITE,
    REJECTED,
    REQUESTS,
    SECONDS,
    TOKENS,
    TRUNCATED,
    InMemory,
)

BOARD = Path(__file__).parents[2] / "cluster" / "grafana" / "fuseline.json"
SECRET = "the-prompt-nobody-may-log"
KEY = new_key()


class Cutting(ScriptedReward):
    """Cuts every conversation, and cannot score the one that says nan."""

    async def score(self, conversations, *, truncation):
        scored = await super().score(conversations, truncation=truncation)
        return [type(s)(s.score, s.num_tokens, truncated=math.isfinite(s.score or 0)) for s in scored]


class Service:
    def __init__(self, tmp_path, *, chat=None, reward=None, keys=(), **limits):
        self.log = tmp_path / "access.jsonl"
        self.telemetry = InMemory()
        app = build_app(
            chats={"chat": chat or ScriptedChat()},
            rewards={"rm": reward or ScriptedReward()},
            limits=LIMITS.model_copy(update=limits),
            not_ready=lambda: None,
            observers=Observers(Guard(keys), self.telemetry, AccessLog(str(self.log))),
        )
        self.http = TestClient(app, raise_server_exceptions=False)

    def lines(self):
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def chat(self, **change):
        body = {"model": "chat", "messages": [{"role": "user", "content": "hi"}], **change}
        return self.http.post("/v1/chat/completions", json=body)

    def score(self, *responses):
        items = [{"prompt": "a", "response": response} for response in responses]
        return self.http.post("/v1/rewards", json={"model": "rm", "input": items, "truncation": "left"})


def test_a_chat_answer_and_a_stream(tmp_path):
    service = Service(tmp_path, chat=ScriptedChat(delay_s=0.02))
    answers = [service.chat(), service.chat(stream=True, n=2, temperature=1)]
    assert [answer.status_code for answer in answers] == [200, 200]
    route, model = "/v1/chat/completions", "chat"
    telemetry = service.telemetry
    assert telemetry.value(REQUESTS, route=route, status="200", code="ok", model=model) == 2
    assert telemetry.value(TOKENS, model=model, kind="prompt") == 4
    assert telemetry.value(TOKENS, model=model, kind="completion") == 3 + 6
    assert telemetry.count(SECONDS, route=route, model=model) == 2
    assert telemetry.count(FIRST_TOKEN, model=model) == 1
    assert telemetry.value(IN_FLIGHT, route=route) == 0
    whole, stream = service.lines()
    assert {name: whole[name] for name in ("method", "route", "status", "model", "prompt_tokens")} == {
        "method": "POST",
        "route": route,
        "status": 200,
        "model": model,
        "prompt_tokens": 2,
    }
    assert whole["request_id"] == answers[0].headers["x-request-id"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", whole["time"])
    assert whole["ms"] >= 60
    assert (whole["completion_tokens"], stream["completion_tokens"]) == (3, 6)
    assert 20 <= stream["ttft_ms"] < stream["ms"]
    assert not {"ttft_ms", "code", "key", "items", "replayed"} & set(whole)


def test_scores_and_a_replay(tmp_path):
    service = Service(tmp_path, reward=Cutting())
    assert service.score("x", "nan", "yz").status_code == 200
    telemetry = service.telemetry
    assert telemetry.value(TOKENS, model="rm", kind="scored") == 5 + 3 + 5
    assert telemetry.value(TRUNCATED, model="rm") == 2
    assert telemetry.value(NON_FINITE, model="rm") == 1
    (line,) = service.lines()
    assert (line["items"], line["scored_tokens"], line["truncated"], line["non_finite"]) == (3, 13, 2, 1)
    body = {"model": "rm", "input": [{"prompt": "a", "response": "b"}]}
    for _ in range(2):
        service.http.post("/v1/rewards", json=body, headers={"idempotency-key": "k"})
    _, first, again = service.lines()
    assert ("replayed" in first, again["replayed"]) == (False, True)
    assert "scored_tokens" not in again  # nothing was scored, and nothing is charged


def test_errors_have_their_code_also_past_the_first_byte(tmp_path):
    service = Service(tmp_path, chat=ScriptedChat(fails=2))
    service.http.get("/nowhere/7")
    service.http.get("/v1/rewards")
    service.chat(model="no-such-model")
    service.chat(tempature=1)
    service.chat(stream=True)
    assert [(line["route"], line["status"], line.get("code"), line["model"]) for line in service.lines()] == [
        ("other", 404, "not_found", "none"),
        ("/v1/rewards", 405, "method_not_allowed", "none"),
        ("/v1/chat/completions", 404, "model_not_found", "other"),
        ("/v1/chat/completions", 400, "unknown_field", "none"),
        ("/v1/chat/completions", 200, "backend_unavailable", "chat"),
    ]
    failed = {"route": "/v1/chat/completions", "status": "200", "code": "backend_unavailable", "model": "chat"}
    assert service.telemetry.value(REQUESTS, **failed) == 1


def test_rejections_are_counted_by_reason(tmp_path):
    keys = [ApiKey(name="ci", sha256=hash_key(KEY), scopes=("chat",), requests_per_minute=2)]
    service = Service(tmp_path, keys=keys)
    bearer = {"authorization": f"Bearer {KEY}"}
    service.http.get("/v1/models")
    service.http.get("/v1/models", headers={"authorization": "Bearer " + new_key()})
    service.http.post("/v1/rewards", json={}, headers=bearer)
    for _ in range(3):
        service.http.get("/v1/models", headers=bearer)
    service.http.get("/nowhere", headers=bearer)
    reasons = {values[0]: n for (name, values), n in service.telemetry.values.items() if name == REJECTED.name}
    assert reasons == {"missing_api_key": 1, "invalid_api_key": 1, "forbidden": 1, "rate_limited": 2}
    assert [line.get("key") for line in service.lines()] == [None, None, None, "ci", "ci", "ci", "ci"]


def test_in_flight_counts_what_is_running(tmp_path):
    seen = []

    class Watched(ScriptedChat):
        async def generate(self, generation):
            seen.append(service.telemetry.value(IN_FLIGHT, route="/v1/chat/completions"))
            async for deltas in super().generate(generation):
                yield deltas

    service = Service(tmp_path, chat=Watched(delay_s=0.05))

    async def three():
        import httpx

        transport = httpx.ASGITransport(service.http.app)
        body = {"model": "chat", "messages": [{"role": "user", "content": "hi"}]}
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as asked:
            await asyncio.gather(*(asked.post("/v1/chat/completions", json=body) for _ in range(3)))

    asyncio.run(three())
    assert max(seen) == 3
    assert service.telemetry.value(IN_FLIGHT, route="/v1/chat/completions") == 0


# ---- what must never be there -----------------------------------------------------------------


def test_no_text_of_a_prompt_and_no_key_is_logged_or_measured(tmp_path, caplog, capfd):
    class Crashing(ScriptedReward):
        async def score(self, conversations, *, truncation):
            if SECRET + "crash" in conversations[0][-1].content:
                raise RuntimeError(f"the scorer broke on {conversations}")
            return await super().score(conversations, truncation=truncation)

    keys = [ApiKey(name="ci", sha256=hash_key(KEY), scopes=("chat", "reward"))]
    service = Service(tmp_path, keys=keys, reward=Crashing(), chat_body_bytes=4096)
    caplog.set_level(0)
    for theirs in ("httpx", "httpx2"):  # the client's own log
        caplog.set_level(logging.WARNING, theirs)
    other = new_key()
    for key in (KEY, other):
        service.http.headers["authorization"] = f"Bearer {key}"
        say = [{"role": "user", "content": SECRET}]
        service.chat(messages=say)
        service.chat(messages=say, stream=True)
        service.chat(messages=[{"role": "user", "content": SECRET + "unrenderable"}])
        service.chat(messages=say, **{SECRET: 1})
        service.chat(model=SECRET, messages=say)
        service.score(SECRET, "nan")
        service.score(SECRET + "crash")
        service.http.post("/v1/rewards", content=SECRET.encode(), headers={"content-type": "application/json"})
        service.http.get(f"/{SECRET}?q={SECRET}&key={key}", headers={"x-request-id": f"{SECRET} {key}"})
        service.http.request(SECRET.upper().replace("-", ""), "/v1/models")
        service.http.get("/v1/models", headers={"cookie": SECRET, "user-agent": SECRET})
    assert {line["status"] for line in service.lines()} >= {200, 400, 401, 404, 405, 500}
    out = capfd.readouterr()
    everywhere = service.log.read_text() + repr(service.telemetry.values) + caplog.text + out.out + out.err
    everywhere += repr([vars(record) for record in caplog.records if record.name.startswith(("serving", "fuseline"))])
    assert SECRET not in everywhere and SECRET.upper().replace("-", "") not in everywhere
    assert KEY not in everywhere and other not in everywhere
    assert "RuntimeError" in caplog.text and "in score" in caplog.text  # a crash is told, without its text


def test_labels_have_few_values_whatever_clients_send(tmp_path):
    service = Service(tmp_path)
    for n in range(50):
        service.chat(model=f"model-{n}")
        service.http.get(f"/path/{n}")
        service.http.request(f"M{n}", "/v1/models")
        service.http.get("/healthz", headers={"x-request-id": f"id-{n}"})
    assert len([key for key in service.telemetry.values if key[0] == REQUESTS.name]) == 4
    assert {line["method"] for line in service.lines()} == {"POST", "GET", "OTHER"}


# ---- the definitions --------------------------------------------------------------------------


def test_a_metric_wants_exactly_its_labels():
    with pytest.raises(AssertionError, match="has labels"):
        InMemory().add(IN_FLIGHT, 1, {"route": "/x", "model": "m"})
    assert len({metric.name for metric in METRICS}) == len(METRICS)
    for metric in METRICS:
        assert metric.name.startswith("fuseline_")
        assert (metric.kind == "histogram") == bool(metric.buckets) == metric.name.endswith("_seconds")
        assert (metric.kind == "counter") == metric.name.endswith("_total")
        assert list(metric.buckets) == sorted(set(metric.buckets))


def test_the_exporter_has_every_metric_under_the_name_that_the_docs_say(monkeypatch):
    """Ray's recorder is what its agent exports from; it turns our names into those of the board."""
    import prometheus_client
    from ray._private.telemetry.open_telemetry_metric_recorder import OpenTelemetryMetricRecorder

    recorder = OpenTelemetryMetricRecorder()
    for metric in METRICS:
        labels = dict.fromkeys(metric.labels, "x")
        match metric.kind:
            case "counter":
                recorder.register_counter_metric(metric.name, metric.description)
            case "gauge":
                recorder.register_gauge_metric(metric.name, metric.description)
            case "histogram":
                recorder.register_histogram_metric(metric.name, metric.description, list(metric.buckets))
        recorder.set_metric_value(metric.name, labels, 1.0)
    exported = {line.split("{")[0] for line in prometheus_client.generate_latest().decode().splitlines()}
    assert _exported_names() <= exported


def test_rays_metrics_take_our_definitions():
    from serving.ray_metrics import RayTelemetry

    telemetry = RayTelemetry()
    for metric in METRICS:
        telemetry.add(metric, 1.0, dict.fromkeys(metric.labels, "x"))
        with pytest.raises(AssertionError, match="has labels"):
            telemetry.add(metric, 1.0, {})


def _exported_names():
    names = set()
    for metric in METRICS:
        suffixes = ("_bucket", "_sum", "_count") if metric.kind == "histogram" else ("",)
        names |= {f"ray_{metric.name}{suffix}" for suffix in suffixes}
    return names


def test_the_board_shows_metrics_that_there_are_and_all_of_them():
    board = json.loads(BOARD.read_text())
    expressions = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    variables = [variable["query"]["query"] for variable in board["templating"]["list"] if variable["type"] == "query"]
    used = set(re.findall(r"[a-z_]*fuseline_[a-z_]+", " ".join(expressions + variables)))
    assert used <= _exported_names()
    assert {metric.name for metric in METRICS} == {
        re.sub(r"_(bucket|sum|count)$", "", name.removeprefix("ray_")) for name in used
    }
    labels = {f"ray_{metric.name}": set(metric.labels) for metric in METRICS}
    for expression in expressions:
        name = re.search(r"ray_[a-z_]+", expression).group()
        known = labels[re.sub(r"_bucket$", "", name)] | {"application", "le"}
        by = {word.strip() for group in re.findall(r"by \((.*?)\)", expression) for word in group.split(",")}
        assert by | set(re.findall(r"[{,](\w+)[=!]", expression)) <= known, expression


def test_the_board_is_whole():
    """What Grafana needs to import a board: ids, places that do not overlap, a source for every query."""
    board = json.loads(BOARD.read_text())
    assert board["title"] and board["uid"] and board["schemaVersion"] >= 36
    ids = [panel["id"] for panel in board["panels"]]
    assert len(set(ids)) == len(ids) == 10
    taken = set()
    for panel in board["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken and max(x for x, _ in cells) < 24
        taken |= cells
        assert panel["title"] and panel["description"] and panel["fieldConfig"]["defaults"]["unit"]
        for target in panel["targets"]:
            assert target["datasource"] == panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
            for opening, closing in ("()", "{}", "[]"):
                assert target["expr"].count(opening) == target["expr"].count(closing)


def test_access_logs_go_where_they_are_told(tmp_path, capfd):
    for target in ("stderr", "stdout", "off"):
        log = AccessLog(target)
        app = build_app(chats={}, rewards={}, limits=LIMITS, not_ready=lambda: None, observers=Observers(access=log))
        TestClient(app).get("/healthz")
        out = capfd.readouterr()
        lines = {"stderr": out.err, "stdout": out.out}.get(target, "")
        assert ('"route":"/healthz"' in lines) == (target != "off")
    assert Observability(access_log="a.jsonl").access_log == str(Path.cwd() / "a.jsonl")
    assert Observability(access_log="off").access_log == "off"
    with pytest.raises(InputError, match="cannot write the access log"):
        AccessLog(str(tmp_path / "no" / "folder"))


def test_an_access_log_may_be_rotated(tmp_path):
    service = Service(tmp_path)
    service.http.get("/healthz")
    service.log.rename(tmp_path / "old")
    service.http.get("/readyz")
    assert [line["route"] for line in service.lines()] == ["/readyz"]
