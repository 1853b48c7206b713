"""The service as people start it: `python -m jobs.serve`, real vLLM and a real reward model on CPU."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import openai
import pytest

from fusion.chat import Chat, ChatConfig
from fusion.rows import Message
from readme import NAMES, examples
from tiny_models import MAX_LENGTH, save_chat_model, save_reward_model

pytestmark = pytest.mark.ray

ROOT = Path(__file__).parents[2]
ENV = {
    **os.environ,
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "disabled",
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
}
QUESTION = "What is <|im_end|> 2 + 2?"


class Service:
    """A running service, with what it printed so far."""

    def __init__(self, folder: Path, port: int, process: subprocess.Popen, lines: list[str]):
        self.chat_folder, self.reward_folder = folder / "chat", folder / "reward"
        self.url, self.process, self.lines = f"http://127.0.0.1:{port}", process, lines
        self.http = httpx.Client(base_url=self.url, timeout=60)
        self.openai = openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=60)


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "jobs.serve", *arguments]


@pytest.fixture(scope="module")
def service(tmp_path_factory, free_port):
    folder = tmp_path_factory.mktemp("served")
    save_chat_model(folder / "chat", initializer_range=0.4, stops=False)
    save_reward_model(folder / "reward", architecture="Qwen3")
    models = ["--chat", f"wrpo={folder / 'chat'}", "--reward", f"reward={folder / 'reward'}"]
    process = subprocess.Popen(
        command(*models, "--port", str(free_port), "--accelerator", "cpu"),
        cwd=ROOT,
        env=ENV,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        lines = []
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            if "/v1/rewards" in line:  # the last line of the welcome
                break
        assert process.poll() is None and lines, "".join(lines)
        yield Service(folder, free_port, process, lines)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


@pytest.fixture(scope="module")
def free_port():
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def greedy(service):
    """Prompt ids, and the greedy continuation of 24 tokens that transformers finds."""
    import torch
    from transformers import AutoModelForCausalLM

    chat = Chat.load(service.chat_folder, ChatConfig())
    ids = chat.encode_prompt([Message("user", QUESTION)])
    model = AutoModelForCausalLM.from_pretrained(service.chat_folder, dtype=torch.float32)
    with torch.inference_mode():
        out = model.generate(
            torch.tensor([ids]), do_sample=False, max_new_tokens=24, eos_token_id=list(chat.stop_ids), pad_token_id=256
        )
    return ids, chat.trim_generated(out[0, len(ids) :].tolist()), chat


def test_the_welcome_names_the_page(service):
    assert f"page: {service.url}/ui\n" in service.lines
    assert service.http.get("/ui").status_code == 200
    assert not any(line.startswith("access log") for line in service.lines)  # it is on standard error


def test_readiness_and_cards(service):
    assert service.http.get("/readyz").json() == {"status": "ready"}
    cards = {c["id"]: c for c in service.http.get("/v1/models").json()["data"]}
    assert {name: (c["kind"], c["max_tokens"], c["dtype"]) for name, c in cards.items()} == {
        "wrpo": ("chat", MAX_LENGTH, "float32"),
        "reward": ("reward", MAX_LENGTH, "float32"),
    }
    assert [m.id for m in service.openai.models.list()] == ["wrpo", "reward"]


def test_greedy_answers_equal_transformers_streamed_or_not(service, greedy):
    ids, expected_ids, chat = greedy
    # An answer cut inside a character is sent without its first bytes.
    expected = chat.tokenizer.decode(expected_ids, skip_special_tokens=True).rstrip("\ufffd")
    asked = {"model": "wrpo", "messages": [{"role": "user", "content": QUESTION}], "max_tokens": 24, "temperature": 0}
    whole = service.openai.chat.completions.create(**asked)
    # QUESTION spells a special token: were it taken for one, there would be nine ids fewer.
    assert whole.usage.prompt_tokens == len(ids)
    assert whole.usage.completion_tokens == len(expected_ids)
    assert whole.choices[0].message.content == expected
    chunks = list(service.openai.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == expected
    reasons = [c.choices[0].finish_reason for c in chunks if c.choices]
    assert reasons[-1] == whole.choices[0].finish_reason
    assert set(reasons[:-1]) == {None}
    assert chunks[-1].usage == whole.usage


def test_samples_seeds_stops_and_log_probabilities(service, greedy):
    asked = {"model": "wrpo", "messages": [{"role": "user", "content": QUESTION}], "max_tokens": 12}
    create = service.openai.chat.completions.create
    first, second = (create(**asked, seed=-1, temperature=1.0) for _ in range(2))  # no seed, if vLLM were asked
    assert first.choices[0].message.content == second.choices[0].message.content
    first, second = (create(**asked, n=3, seed=5, temperature=1.0) for _ in range(2))
    texts = [c.message.content for c in first.choices]
    assert texts == [c.message.content for c in second.choices]
    assert len(set(texts)) == 3
    assert [c.index for c in first.choices] == [0, 1, 2]

    logged = create(**asked, temperature=0, logprobs=True, top_logprobs=3)
    content = logged.choices[0].logprobs.content
    assert len(content) == logged.usage.completion_tokens
    for token in content:
        assert token.top_logprobs[0].logprob == token.logprob == max(t.logprob for t in token.top_logprobs)
        assert len(token.top_logprobs) == 3

    _, expected_ids, chat = greedy
    letters = [chat.tokenizer.decode([i]) for i in expected_ids]
    stop = next(letter for place, letter in enumerate(letters) if place and "\ufffd" not in letter)
    cut = create(**{**asked, "max_tokens": 24}, temperature=0, stop=stop).choices[0]
    assert cut.finish_reason == "stop"
    assert cut.message.content == "".join(chat.tokenizer.decode(expected_ids)).split(stop)[0]


def test_scores_equal_transformers_alone_and_among_neighbours(service):
    import torch
    from transformers import AutoModelForSequenceClassification

    chat = Chat.load(service.reward_folder, ChatConfig())
    model = AutoModelForSequenceClassification.from_pretrained(service.reward_folder, dtype=torch.float32)
    responses = [f"It is {i} " * (1 + 3 * i) for i in range(8)]
    expected = []
    for response in responses:
        ids, _ = chat.encode_conversation([Message("user", "2+2?"), Message("assistant", response)])
        with torch.inference_mode():
            expected.append(model(input_ids=torch.tensor([ids])).logits.item())
    items = [{"id": "all", "prompt": "2+2?", "responses": responses}]
    together = service.http.post("/v1/rewards", json={"model": "reward", "input": items}).json()
    scores = [result["score"] for result in together["results"]]
    assert scores == pytest.approx(expected, rel=1e-6, abs=1e-6)
    for response, score in zip(responses, scores, strict=True):
        messages = [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": response}]
        alone = service.http.post("/v1/rewards", json={"model": "reward", "input": [{"messages": messages}]}).json()
        assert alone["results"][0]["score"] == score  # the same bits


def test_long_conversations_are_refused_or_cut_as_asked(service):
    item = {"prompt": "q", "response": "x" * 600}
    sound = {"prompt": "q", "response": "a"}
    body = {"model": "reward", "input": [item, sound]}
    chat = Chat.load(service.reward_folder, ChatConfig())
    num_tokens = len(chat.encode_conversation([Message("user", "q"), Message("assistant", "x" * 600)])[0])
    assert num_tokens > MAX_LENGTH
    refused, scored = service.http.post("/v1/rewards", json=body).json()["results"]
    assert (refused["error"]["code"], refused["score"]) == ("context_length_exceeded", None)
    assert refused["tokens"] == num_tokens
    assert scored["status"] == "ok"
    for side in ("left", "right"):
        cut, _ = service.http.post("/v1/rewards", json={**body, "truncation": side}).json()["results"]
        assert (cut["status"], cut["truncated"], cut["tokens"]) == ("ok", True, num_tokens)


@pytest.mark.parametrize(
    ("route", "body", "status", "code"),
    [
        ("/v1/chat/completions", '{"model": "wrpo", "messages": [], "x": NaN}', 400, "invalid_json"),
        ("/v1/chat/completions", '{"model": "wrpo", "model": "wrpo"}', 400, "invalid_json"),
        ("/v1/chat/completions", {"model": "wrpo", "messages": [], "priority": 1}, 400, "unsupported_parameter"),
        ("/v1/chat/completions", {"model": "wrpo", "mesages": []}, 400, "unknown_field"),
        (
            "/v1/chat/completions",
            {"model": "none", "messages": [{"role": "user", "content": "q"}]},
            404,
            "model_not_found",
        ),
        (
            "/v1/chat/completions",
            {"model": "wrpo", "messages": [{"role": "user", "content": "x" * 600}]},
            400,
            "context_length_exceeded",
        ),
        ("/v1/chat/completions", " " * (1 << 20) + "{}", 413, "body_too_large"),
        (
            "/v1/rewards",
            {"model": "reward", "input": [{"prompt": "q", "responses": ["a"] * 65}]},
            413,
            "too_many_items",
        ),
        ("/v1/rewards", {"model": "reward", "input": [{"prompt": "q"}]}, 400, "invalid_request"),
        ("/v1/completions", {}, 404, "not_found"),
        ("/v1/load_lora_adapter", {}, 404, "not_found"),
        ("/v1/models", {}, 405, "method_not_allowed"),
    ],
    ids=lambda value: repr(value)[:50],
)
def test_bad_requests_over_the_wire(service, route, body, status, code):
    content = body if isinstance(body, str) else json.dumps(body)
    answer = service.http.post(route, content=content, headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert len(answer.headers.get_list("x-request-id")) == 1


def test_closing_streams_frees_the_engine(service):
    import ray
    from ray import serve

    long = {"model": "wrpo", "messages": [{"role": "user", "content": "q"}], "max_tokens": 480, "temperature": 1}
    streams = [service.openai.chat.completions.create(**long, seed=seed, stream=True) for seed in range(8)]
    for stream in streams:
        next(stream)
    address = next(line for line in service.lines if line.startswith("Ray cluster: ")).split(": ")[1].strip()
    os.environ["RAY_AUTH_MODE"] = "disabled"
    ray.init(address=address, log_to_driver=False)
    try:
        names = serve.status().applications["fuseline"].deployments
        (engine,) = [name for name in names if name.startswith("chat:wrpo:")]
        handle = serve.get_deployment_handle(engine, "fuseline")
        assert handle.num_unfinished.remote().result() > 0, "the answers ended before they were closed"
        for stream in streams:
            stream.close()
        ends_at = time.monotonic() + 30
        while (left := handle.num_unfinished.remote().result()) and time.monotonic() < ends_at:
            time.sleep(0.1)
        assert left == 0
    finally:
        ray.shutdown()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--chat", "a=/nowhere"], "/nowhere does not exist"),
        (["--chat", "/nowhere"], "NAME=FOLDER"),
        ([], "no model to serve"),
        (["--chat", "a=.", "--reward", "a=."], "use two names"),
        (["--chat", "a=.", "--port", "99999"], "port"),
        (["--chat", "a=.", "--accelerator", "tpu"], "'auto', 'cpu' or 'gpu'"),
        (
            ["--chat", "a=.", "--public"],
            "a public service needs keys: name its keys with security.keys_file (--keys-file)",
        ),
        (["--chat", "a=.", "--host", "0.0.0.0"], "set security.public (--public) and give keys"),
        (["--chat", "a=.", "--keys-env", "no name"], "keys_env"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments, said):
    done = subprocess.run(
        command(*arguments), cwd=ROOT, env=ENV, capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_port_in_use_is_one_line(service):
    port = service.url.rsplit(":", 1)[1]
    arguments = ["--chat", f"wrpo={service.chat_folder}", "--port", port]
    done = subprocess.run(
        command(*arguments), cwd=ROOT, env=ENV, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 2
    assert f"cannot listen on 127.0.0.1:{port}" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_file_is_scored_to_the_bits_that_http_gives(service, tmp_path):
    rng = random.Random(3)
    words = ["four", "4", "five", "ünder", "中文", "<|im_end|>", "\n"]
    texts = [" ".join(rng.choices(words, k=rng.randint(1, 30))) for _ in range(60)]
    rows = [{"id": str(i), "prompt": f"2+{i % 7}?", "response": text} for i, text in enumerate(texts)]
    rows[17]["response"] = "x" * 600  # too long
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    answer = service.http.post("/v1/rewards", json={"model": "reward", "input": rows}).json()
    done = subprocess.run(
        [
            sys.executable, "-m", "jobs.score", "rows.jsonl", "--model", str(service.reward_folder),
            "--out", "scores.jsonl", "--work", "work", "--accelerator", "cpu",
        ],
        cwd=tmp_path, env={**ENV, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    scored, refused = (
        [json.loads(line) for line in (tmp_path / name).read_text().splitlines()]
        for name in ("scores.jsonl", "scores.jsonl.quarantine.jsonl")
    )
    over_http = {r["id"]: (r["score"], r["tokens"]) for r in answer["results"] if r["status"] == "ok"}
    assert {row["id"]: (row["score"], row["tokens"]) for row in scored} == over_http  # the same bits
    assert len(over_http) == 59 and len({score for score, _ in over_http.values()}) > 50
    assert [(row["id"], row["reason"]) for row in refused] == [("17", answer["results"][17]["error"]["code"])]
    assert {row["model_revision"] for row in scored} == {answer["model_revision"]}


@pytest.mark.parametrize("name", NAMES)
def test_the_readmes_examples_run(service, name, tmp_path):
    example = examples((ROOT / "README.md").read_text(encoding="utf-8"))[name]
    if "curl " in example.text and shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    if name == "score":
        rows, model = example.score_files()
        for path in (rows, model):
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / rows).write_text('{"id": "a", "prompt": "2 + 2 = ?", "responses": ["4", "5"]}\n')
        (tmp_path / model).symlink_to(service.reward_folder)
    example.run(service.url, tmp_path)


def test_sigterm_ends_the_service_and_its_processes(service):
    """Last: nothing answers afterwards."""
    started = processes_of(service.process.pid)
    assert len(started) > 3
    service.process.send_signal(signal.SIGTERM)
    assert service.process.wait(60) == 0
    with pytest.raises(httpx.ConnectError):
        service.http.get("/healthz")
    ends_at = time.monotonic() + 30
    while (alive := [pid for pid in started if Path(f"/proc/{pid}").exists()]) and time.monotonic() < ends_at:
        time.sleep(0.2)
    assert alive == []


def processes_of(pid: int) -> list[int]:
    """Return the process and all its descendants."""
    import psutil

    return [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]
