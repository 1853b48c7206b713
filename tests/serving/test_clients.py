"""Clients that people have: openai, cohere, httpx and curl, over a real socket."""

import ast
import asyncio
import importlib.util
import inspect
import json
import shutil
import subprocess
from pathlib import Path

import cohere
import httpx
import openai
import pytest

from live import serve
from scripted_service import ScriptedChat, ScriptedReward
from serving.aliases import RerankRequest, ScoreRequest
from serving.app import build_app
from serving.config import Limits
from serving.schemas import UNSUPPORTED, ChatCompletionRequest

HI = [{"role": "user", "content": "hi"}]
SAID = [*HI, {"role": "assistant", "content": "four"}]
DOCUMENTS = ["a", "four", "bb", "cc"]


@pytest.fixture(scope="module")
def url():
    app = build_app(
        chats={"chat": ScriptedChat()}, rewards={"rm": ScriptedReward()}, limits=Limits(), not_ready=lambda: None
    )
    with serve(app) as url:
        yield url


@pytest.fixture(scope="module")
def client(url):
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=30) as client:
        yield client


def test_openai(client):
    answer = client.chat.completions.create(
        model="chat", messages=HI, max_tokens=3, temperature=0.5, seed=1, n=2, stop=["z"], logprobs=True, top_logprobs=2
    )
    assert [choice.message.content for choice in answer.choices] == ["abc", "abc"]
    assert answer.choices[0].logprobs.content[0].top_logprobs[0].token == "a"
    assert answer.usage.total_tokens == 8
    assert answer._request_id


def test_openai_streams(client):
    options = {"include_usage": True}
    with client.chat.completions.create(model="chat", messages=HI, stream=True, stream_options=options) as stream:
        chunks = list(stream)
    assert "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices) == "abc"
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].usage.total_tokens == 5
    with client.chat.completions.stream(model="chat", messages=HI) as stream:  # the helper that gathers events
        assert stream.get_final_completion().choices[0].message.content == "abc"


def test_openai_async(url):
    async def both():
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=30) as client:
            whole = client.chat.completions.create(model="chat", messages=HI)
            pieces = client.chat.completions.create(model="chat", messages=HI, stream=True)
            answer, stream = await asyncio.gather(whole, pieces)
            text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
            names = [model.id async for model in client.models.list()]
            return answer.choices[0].message.content, text, names

    assert asyncio.run(both()) == ("abc", "abc", ["chat", "rm"])


def test_openai_models(client):
    assert [model.id for model in client.models.list()] == ["chat", "rm"]
    card = client.models.retrieve("rm")
    assert (card.id, card.object, card.owned_by, card.kind, card.revision) == (
        "rm",
        "model",
        "fuseline",
        "reward",
        "r1",
    )
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("none")
    assert caught.value.code == "model_not_found"


def test_openai_reads_our_errors(client):
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="chat", messages=HI, tools=[])
    error = caught.value
    assert (error.code, error.param, error.type) == ("unsupported_parameter", "tools", "invalid_request_error")
    assert error.request_id
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="none", messages=HI)


def test_every_parameter_of_openai_is_accepted_or_refused_by_name(client):
    parameters = set(inspect.signature(client.chat.completions.create).parameters)
    parameters -= {"extra_headers", "extra_query", "extra_body", "timeout"}
    assert parameters - UNSUPPORTED <= set(ChatCompletionRequest.model_fields)


@pytest.mark.parametrize(
    ("file", "models", "ours"),
    [
        ("openai/chat_completion/protocol.py", ["ChatCompletionRequest"], ChatCompletionRequest),
        ("pooling/scoring/protocol.py", ["ScoringRequestMixin", "ScoreQueriesDocumentsRequest"], ScoreRequest),
        ("pooling/scoring/protocol.py", ["ScoringRequestMixin", "RerankRequest"], RerankRequest),
        ("pooling/base/protocol.py", ["PoolingBasicRequestMixin", "ClassifyRequestMixin"], ScoreRequest),
    ],
)
def test_every_parameter_of_vllm_is_accepted_or_refused_by_name(file, models, ours):
    """Read from vLLM's source, because importing it takes many seconds."""
    found = importlib.util.find_spec("vllm")
    assert found is not None and found.origin is not None
    tree = ast.parse((Path(found.origin).parent / "entrypoints" / file).read_text(encoding="utf-8"))
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name in models]
    assert len(classes) == len(models)
    fields = {line.target.id for node in classes for line in node.body if isinstance(line, ast.AnnAssign)}
    assert {name for name in fields if not name.startswith("_")} - UNSUPPORTED <= set(ours.model_fields)


def test_openai_on_a_reward_model_as_with_nim(client, url):
    answer = client.chat.completions.create(model="rm", messages=SAID, stream=False)
    pairs = [pair.split(":") for pair in answer.choices[0].message.content.split(",")]
    scores = {name: float(value) for name, value in pairs}
    assert scores == {"reward": 4.0, "length": 1.0}
    assert {token.token: token.logprob for token in answer.choices[0].logprobs.content} == scores


def test_cohere(url):
    with httpx.Client(timeout=30) as transport:
        client = cohere.ClientV2(api_key="none", base_url=url, httpx_client=transport)
        ranked = client.rerank(model="rm", query="q", documents=DOCUMENTS, top_n=3)
        assert [(result.index, result.relevance_score) for result in ranked.results] == [(1, 4.0), (2, 2.0), (3, 2.0)]
        assert ranked.id
        everything = client.rerank(model="rm", query="q", documents=DOCUMENTS)
        assert [result.index for result in everything.results] == [1, 2, 3, 0]
        with pytest.raises(cohere.BadRequestError) as caught:
            client.rerank(model="rm", query="q", documents=DOCUMENTS, max_tokens_per_doc=10)
        assert caught.value.body["error"]["code"] == "unsupported_parameter"
        older = cohere.Client(api_key="none", base_url=url, httpx_client=transport)  # asks /v1/rerank
        ranked = older.rerank(model="rm", query="q", documents=[{"text": text} for text in DOCUMENTS], top_n=1)
        assert [(result.index, result.relevance_score) for result in ranked.results] == [(1, 4.0)]


def test_cohere_async(url):
    async def rerank():
        async with httpx.AsyncClient(timeout=30) as transport:
            client = cohere.AsyncClientV2(api_key="none", base_url=url, httpx_client=transport)
            return await client.rerank(model="rm", query="q", documents=DOCUMENTS, top_n=1)

    assert [result.index for result in asyncio.run(rerank()).results] == [1]


def test_httpx(url):
    with httpx.Client(base_url=url, timeout=30) as client:
        body = {"model": "rm", "input": [{"prompt": "q", "responses": DOCUMENTS}], "return": ["objectives"]}
        results = client.post("/v1/rewards", json=body).json()["results"]
        assert [(r["response_index"], r["score"]) for r in results] == [(0, 1.0), (1, 4.0), (2, 2.0), (3, 2.0)]
        data = client.post("/v1/score", json={"model": "rm", "text_1": "q", "text_2": DOCUMENTS}).json()["data"]
        assert [item["score"] for item in data] == [1.0, 4.0, 2.0, 2.0]
        with client.stream("POST", "/v1/chat/completions", json={"model": "chat", "messages": HI, "stream": True}) as s:
            lines = [line for line in s.iter_lines() if line]
        assert (len(lines), lines[-1]) == (6, "data: [DONE]")


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl(url):
    def curl(route, body, *options):
        sent = ["-H", "content-type: application/json", "-d", json.dumps(body)]
        command = ["curl", "-sS", "--max-time", "30", *options, f"{url}{route}", *sent]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout

    scored = json.loads(curl("/v1/rewards", {"model": "rm", "input": [{"prompt": "q", "response": "four"}]}))
    assert scored["results"][0]["score"] == 4.0
    streamed = curl("/v1/chat/completions", {"model": "chat", "messages": HI, "stream": True}, "-N")
    assert streamed.endswith("data: [DONE]\n\n")
    refused = curl("/v1/rewards", {"model": "none", "input": []}, "-o", "/dev/null", "-w", "%{http_code}")
    assert refused == "400"
    compressed = curl("/v1/rewards", {}, "-H", "content-encoding: gzip", "-w", " %{http_code}")
    assert compressed.endswith(" 415")
