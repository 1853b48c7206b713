"""API keys: files, hashes, scopes, and budgets that hold to the nanosecond."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st

from fusion.errors import InputError
from jobs.keys import add
from scripted_service import LIMITS, USER, ScriptedChat, ScriptedReward, client, refused
from serving.app import build_app
from serving.auth import MINUTE_NS, ApiKey, Bucket, Guard, hash_key, load_keys, new_key, parse_keys, read_key_file
from serving.config import Security
from serving.edge import Observers

ROOT = Path(__file__).parents[2]
CHAT = {"model": "chat", "messages": USER}
SCORE = {"model": "rm", "input": [{"prompt": "a", "response": "bcd"}]}
KEYS = {name: new_key() for name in ("all", "chat", "reward", "few", "thrifty")}


class Clock:
    def __init__(self):
        self.now = 10**15

    def __call__(self):
        return self.now


def entry(name, scopes=("chat", "reward"), **rates):
    return ApiKey(name=name, sha256=hash_key(KEYS[name]), scopes=scopes, **rates)


def guarded(clock=None, *, fronts=1):
    keys = [
        entry("all"),
        entry("chat", ("chat",)),
        entry("reward", ("reward",)),
        entry("few", requests_per_minute=6),
        entry("thrifty", tokens_per_minute=60),
    ]
    app = build_app(
        chats={"chat": ScriptedChat()},
        rewards={"rm": ScriptedReward()},
        limits=LIMITS,
        not_ready=lambda: None,
        observers=Observers(guard=Guard(keys, fronts=fronts, clock=clock or Clock())),
    )
    return TestClient(app, raise_server_exceptions=False)


def bearer(name):
    return {"authorization": f"Bearer {KEYS[name]}"}


# ---- who --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "code"),
    [
        (None, "missing_api_key"),
        ("Bearer " + new_key(), "invalid_api_key"),
        ("Bearer", "invalid_api_key"),
        ("Bearer ", "invalid_api_key"),
        ("Basic " + KEYS["all"], "invalid_api_key"),
        (KEYS["all"], "invalid_api_key"),
        ("Bearer " + hash_key(KEYS["all"]), "invalid_api_key"),
        ("Bearer " + KEYS["all"][:-1], "invalid_api_key"),
        ("Bearer " + KEYS["all"] + "x", "invalid_api_key"),
        ("Bearer " + "a" * 257, "invalid_api_key"),
        ("Bearer \xe9", "invalid_api_key"),
    ],
)
@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/v1/models"), ("POST", "/v1/rewards"), ("GET", "/v1/nowhere"), ("GET", "/openapi.json"), ("PUT", "/x")],
)
def test_without_a_good_key_nothing_is_told(header, code, method, path):
    headers = {} if header is None else {"authorization": header.encode("latin-1")}
    answer = guarded().request(method, path, headers=headers)
    message = refused(answer, 401, code)
    assert answer.headers["www-authenticate"] == "Bearer"
    assert "fl-" not in message


def test_two_authorization_headers_are_none():
    headers = [("authorization", f"Bearer {KEYS['all']}"), ("authorization", f"Bearer {KEYS['chat']}")]
    refused(guarded().get("/v1/models", headers=headers), 401, "invalid_api_key")


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
def test_probes_are_open(path):
    assert guarded().get(path).status_code == 200


@pytest.mark.parametrize(("path", "status"), [("/ui", 200), ("/ui/", 200), ("/ui/app.js", 200)])
def test_the_page_is_open(path, status):
    assert guarded().get(path).status_code == status


@pytest.mark.parametrize(
    "path",
    [
        "//v1/models",
        "/v1/models/",
        "/V1/models",
        "/uix",
        "/ui/data",
        "/ui/data/rows",
        "/ui%2f..%2fv1/models",
        "/healthz/x",
    ],
)
def test_paths_beside_the_open_ones_are_not_open(path):
    answer = guarded().get(path)
    # An encoded slash is a slash to the router, which finds nothing below /ui; dots are not resolved.
    assert answer.status_code == (404 if path.startswith("/ui%") else 401), answer.text


@pytest.mark.parametrize(("name", "chat", "reward"), [("all", 200, 200), ("chat", 200, 403), ("reward", 403, 200)])
def test_scopes(name, chat, reward):
    asked = guarded()
    for path, body, status in (("/v1/chat/completions", CHAT, chat), ("/v1/rewards", SCORE, reward)):
        answer = asked.post(path, json=body, headers=bearer(name))
        assert answer.status_code == status
        if status == 403:
            refused(answer, 403, "forbidden")


@pytest.mark.parametrize("name", ["all", "chat", "reward"])
def test_any_key_may_list_and_look_up_every_model(name):
    asked = guarded()
    listed = asked.get("/v1/models", headers=bearer(name)).json()["data"]
    assert [card["id"] for card in listed] == ["chat", "rm"]
    assert [asked.get(f"/v1/models/{card['id']}", headers=bearer(name)).json() for card in listed] == listed
    refused(asked.get("/v1/models/none", headers=bearer(name)), 404, "model_not_found")


def test_the_openapi_document_says_where_a_key_is_asked_for():
    def document(asked, headers=None):
        found = asked.get("/openapi.json", headers=headers).json()
        routes = {(method, path): route for path, of in found["paths"].items() for method, route in of.items()}
        return found["components"].get("securitySchemes"), routes

    asked = guarded()
    schemes, routes = document(asked, bearer("all"))
    assert schemes is not None
    assert [(scheme["type"], scheme["scheme"]) for scheme in schemes.values()] == [("http", "bearer")]
    closed = [{name: []} for name in schemes]
    for (method, path), route in routes.items():
        opened = asked.request(method, path).status_code != 401
        assert (route.get("security"), "401" in route["responses"]) == ((None, False) if opened else (closed, True))
        assert ("403" in route["responses"]) == (method == "post")
    schemes, routes = document(client())
    assert schemes is None
    assert all("security" not in route and not {"401", "403"} & route["responses"].keys() for route in routes.values())


def test_without_keys_everybody_may_ask():
    app = build_app(chats={}, rewards={"rm": ScriptedReward()}, limits=LIMITS, not_ready=lambda: None)
    assert TestClient(app).post("/v1/rewards", json=SCORE).status_code == 200


def test_every_entry_is_compared_whichever_it_is(monkeypatch):
    import serving.auth

    compared = []
    original = serving.auth.hmac.compare_digest
    monkeypatch.setattr(serving.auth.hmac, "compare_digest", lambda a, b: (compared.append(b), original(a, b))[1])
    guard = Guard([entry("all"), entry("chat"), entry("reward")])
    for name in ("all", "chat", "reward"):
        compared.clear()
        key = guard.identify("/v1/models", [(b"authorization", bearer(name)["authorization"].encode())])
        assert (key.name, len(compared)) == (name, 3)


# ---- how much ---------------------------------------------------------------------------------


def test_requests_per_minute_and_a_true_retry_after():
    clock = Clock()
    asked = guarded(clock)
    for _ in range(6):
        assert asked.get("/v1/models", headers=bearer("few")).status_code == 200
    answer = asked.get("/v1/models", headers=bearer("few"))
    assert "requests" in refused(answer, 429, "rate_limited")
    assert answer.headers["retry-after"] == "10"
    clock.now += 10 * 10**9 - 1
    refused(asked.get("/v1/models", headers=bearer("few")), 429, "rate_limited")
    clock.now += 1
    assert asked.get("/v1/models", headers=bearer("few")).status_code == 200
    refused(asked.get("/v1/models", headers=bearer("few")), 429, "rate_limited")
    assert asked.get("/v1/models", headers=bearer("all")).status_code == 200


def test_copies_of_the_front_share_a_rate():
    clock = Clock()
    fronts = [guarded(clock, fronts=3) for _ in range(3)]
    answered = [front.get("/v1/models", headers=bearer("few")).status_code for front in fronts for _ in range(6)]
    assert answered.count(200) == 6


def test_tokens_are_charged_after_the_answer():
    clock = Clock()
    asked = guarded(clock)
    # 60 per minute; each answer costs 2 of prompt and 3 written, and the last one may go beyond the budget.
    for _ in range(12):
        assert asked.post("/v1/chat/completions", json=CHAT, headers=bearer("thrifty")).status_code == 200
    answer = asked.post("/v1/chat/completions", json=CHAT, headers=bearer("thrifty"))
    assert "tokens" in refused(answer, 429, "rate_limited")
    assert answer.headers["retry-after"] == "1"
    clock.now += 10**9
    stream = asked.post("/v1/chat/completions", json={**CHAT, "stream": True}, headers=bearer("thrifty"))
    assert stream.status_code == 200
    answer = asked.post("/v1/rewards", json=SCORE, headers=bearer("thrifty"))
    refused(answer, 429, "rate_limited")
    assert answer.headers["retry-after"] == "5"  # the stream cost 5, one of which was there


Rates = st.integers(1, 10**9)


@given(Rates, st.integers(1, 8), st.lists(st.tuples(st.integers(0, 2 * MINUTE_NS), st.integers(1, 1000)), max_size=40))
def test_a_bucket_never_gives_more_than_its_rate_and_always_says_the_truth(per_minute, shares, steps):
    clock = Clock()
    bucket = Bucket(per_minute, shares=shares, clock=clock)
    started, given_out = clock.now, 0
    for pause, amount in steps:
        clock.now += pause
        wait_s = bucket.wait_s(amount)
        if amount <= max(1, per_minute // shares):  # fits a bucket: after the wait it is there, and not before
            before = clock.now
            clock.now += round(wait_s * 1e9)
            assert bucket.wait_s(amount) == 0
            if clock.now - before > 1:
                clock.now -= 2  # one for rounding
                assert bucket.wait_s(amount) > 0
                clock.now += 2
            bucket.take(amount)
            given_out += amount
        elif wait_s == 0:
            bucket.take(amount)
            given_out += amount
        allowed = per_minute * (MINUTE_NS + clock.now - started) / (MINUTE_NS * shares)
        assert given_out <= max(1, allowed) + 1


@given(Rates, st.integers(1, 8))
def test_the_first_request_is_always_there_and_an_idle_bucket_fills(per_minute, shares):
    clock = Clock()
    bucket = Bucket(per_minute, shares=shares, clock=clock)
    assert bucket.wait_s() == 0
    bucket.take(per_minute * 3)
    assert bucket.wait_s() > 0
    clock.now += 4 * MINUTE_NS * shares
    assert bucket.wait_s() == 0


# ---- where keys are kept ----------------------------------------------------------------------


def test_a_key_is_made_by_the_command_and_opens_the_service(tmp_path):
    file = tmp_path / "keys.yaml"

    def run(*arguments):
        command = [sys.executable, "-m", "jobs.keys", *arguments, "--file", str(file)]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    made = run("new", "--name", "ci", "--scopes", "chat,reward", "--requests-per-minute", "60")
    assert made.returncode == 0, made.stderr
    key = made.stdout.strip()
    assert file.stat().st_mode & 0o777 == 0o600
    assert key not in file.read_text() and hash_key(key) in file.read_text()
    (loaded,) = load_keys(Security(keys_file=file))
    assert (loaded.name, loaded.scopes, loaded.requests_per_minute) == ("ci", ("chat", "reward"), 60)
    assert Guard([loaded]).identify("/v1/models", [(b"authorization", b"bearer " + key.encode())]) == loaded
    for wrong, text in (
        (["--name", "ci"], "has a key named ci already"),
        (["--name", "x", "--scopes", "admin"], "--scopes"),
    ):
        refusal = run("new", *wrong)
        assert (refusal.returncode, refusal.stdout) == (2, "")
        assert text in refusal.stderr and len(refusal.stderr.splitlines()) == 1
    assert run("list").stdout == "ci: chat, reward; 60 requests/min, - tokens/min\n"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# mine\n",
        "# mine",
        "# mine\n[]\n",
        "---\n[ ]  # mine\n\n",
        "# mine\nnull",
        "# mine\n- {name: a, sha256: 'H', scopes: [chat]}  # first",
        "[{name: a, sha256: 'H', scopes: [chat]}]",
    ],
)
def test_keys_are_appended_to_any_form_of_the_file(tmp_path, text):
    file = tmp_path / "keys.yaml"
    file.write_text(text.replace("H", "0" * 64))
    file.chmod(0o600)
    add(file, name="b", scopes=["reward"])
    assert [key.name for key in read_key_file(file)] == (["a", "b"] if "name" in text else ["b"])
    assert ("# mine" in file.read_text()) == ("# mine" in text)
    assert [path.name for path in tmp_path.iterdir()] == ["keys.yaml"]


def test_a_link_stays_one_and_the_file_behind_it_gets_the_key(tmp_path):
    for folder in ("real", "links"):
        (tmp_path / folder).mkdir()
    real, link, first = tmp_path / "real" / "keys.yaml", tmp_path / "links" / "keys.yaml", tmp_path / "links" / "first"
    link.symlink_to("../real/keys.yaml")
    first.symlink_to("keys.yaml")
    for name, file in (("a", link), ("b", first), ("c", real)):  # the first makes the file
        add(file, name=name, scopes=["chat"])
        assert not real.is_symlink() and real.stat().st_mode & 0o777 == 0o600
    assert [str(path.readlink()) for path in (link, first)] == ["../real/keys.yaml", "keys.yaml"]
    assert [key.name for key in read_key_file(real)] == ["a", "b", "c"]
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["first", "keys.yaml", "keys.yaml", "links", "real"]
    real.unlink()
    real.symlink_to(link)
    with pytest.raises(InputError, match="cannot write"):
        add(link, name="d", scopes=["chat"])
    assert link.is_symlink() and real.is_symlink()


def test_json_files_and_commands_at_once(tmp_path):
    file = tmp_path / "keys.json"
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: add(file, name=f"k{n}", scopes=["chat"]), range(16)))
    assert sorted(key["name"] for key in json.loads(file.read_text())) == sorted(f"k{n}" for n in range(16))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("- name: a\n", r"keys: \[0\]\.sha256: Field required"),
        ("- {name: a, sha256: 12, scopes: [chat]}", r"\[0\]\.sha256"),
        ("- {name: a, sha256: 'H', scopes: []}", r"\[0\]\.scopes"),
        ("- {name: a, sha256: 'H', scopes: [admin]}", r"\[0\]\.scopes"),
        ("- {name: a, sha256: 'H', scopes: [chat], key: x}", "unknown field 'key'"),
        ("- {name: a, sha256: 'H', scopes: [chat], requests_per_minute: 0}", "requests_per_minute"),
        (
            "- {name: a, sha256: 'H', scopes: [chat]}\n- {name: a, sha256: 'G', scopes: [chat]}",
            "the name a occurs twice",
        ),
        (
            "- {name: a, sha256: 'H', scopes: [chat]}\n- {name: b, sha256: 'H', scopes: [chat]}",
            "the hash 0+ occurs twice",
        ),
        ("name: a", "valid list"),
        ("a: [", "keys: while parsing"),
        ("!!python/object:os.system {}", "could not determine a constructor"),
    ],
)
def test_key_files_that_are_refused(text, expected):
    with pytest.raises(InputError, match=expected):
        parse_keys(text.replace("H", "0" * 64).replace("G", "1" * 64), "keys")


@pytest.mark.parametrize("mode", [0o604, 0o602, 0o644, 0o666, 0o601])
def test_a_key_file_that_others_may_use_is_refused(tmp_path, mode):
    file = tmp_path / "keys.yaml"
    add(file, name="a", scopes=["chat"])
    file.chmod(mode)
    with pytest.raises(InputError, match=f"run: chmod 600 {file}"):
        load_keys(Security(keys_file=file))


def test_keys_from_the_environment(monkeypatch, tmp_path):
    first, second = new_key(), new_key()
    monkeypatch.setenv("FUSELINE_KEYS", f"{first}, {second}\n")
    keys = load_keys(Security(keys_env="FUSELINE_KEYS"))
    assert [(key.name, key.sha256) for key in keys] == [
        ("fuseline-keys-1", hash_key(first)),
        ("fuseline-keys-2", hash_key(second)),
    ]
    for value, expected in (
        ("", "not set or empty"),
        ("short", "has 5 characters"),
        (first + "\xfc", "key 1 in FUSELINE_KEYS has a character that is not printable ASCII"),
        (first + "\xa0" + second, "key 1 in FUSELINE_KEYS"),
        (f"{first},{second}\x7f", "key 2 in FUSELINE_KEYS"),
        (f"{first} {second}\udcff", "key 2 in FUSELINE_KEYS"),  # a byte that is not UTF-8
    ):
        monkeypatch.setenv("FUSELINE_KEYS", value)
        with pytest.raises(InputError, match=expected) as error:
            load_keys(Security(keys_env="FUSELINE_KEYS"))
        assert (error.value.exit_code, str(error.value).count("\n")) == (2, 0)
        assert not any(key in str(error.value) for key in (value or "-", first, second))
    with pytest.raises(InputError, match="cannot read the key file"):
        load_keys(Security(keys_file=tmp_path / "none"))
    empty = tmp_path / "empty.yaml"
    empty.touch(mode=0o600)
    with pytest.raises(InputError, match="holds no key"):
        load_keys(Security(keys_file=empty))
    assert "FUSELINE_KEYS" in os.environ


def test_a_config_holds_no_key(monkeypatch):
    secret = new_key()
    monkeypatch.setenv("FUSELINE_KEYS", secret)
    security = Security(keys_env="FUSELINE_KEYS")
    (key,) = load_keys(security)
    assert secret not in security.model_dump_json() + repr(security) + repr(key) + repr(vars(Guard([key])))
