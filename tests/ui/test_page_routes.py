"""The page's routes without a browser: which files are sent and how, what is refused, and the shapes of the data."""

import json
import re
import shutil
import tomllib
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from fusion.artifact import MANIFEST
from scripted_service import refused
from serving.page import parts, routes, rows
from ui.page_service import make_app, write_run

CSP = "default-src 'self'; connect-src 'self'; img-src 'self' data:; frame-ancestors 'none'"
FOLDER = Path(routes.__file__).parent / "ui"
DATA = ("/ui/data/run", "/ui/data/rows", "/ui/data/row")


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs"))


@pytest.fixture
def own_demo(demo, tmp_path) -> Path:
    """A copy that a test may spoil."""
    shutil.copytree(demo.parent, tmp_path / "runs")
    return tmp_path / "runs" / "demo"


def client(run=None):
    return TestClient(make_app(run=run), raise_server_exceptions=False)


@pytest.fixture(scope="module")
def data(demo):
    http = client(demo)

    def get(path, **parameters):
        answer = http.get(path, params=parameters)
        assert answer.status_code == 200, answer.text
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["content-security-policy"] == CSP
        return answer.json()

    return get


def test_files_are_sent_with_the_policy_and_asked_for_again_by_etag():
    http = client()
    for name in ("", *(f"/{path.name}" for path in FOLDER.iterdir())):
        answer = http.get(f"/ui{name}")
        assert answer.status_code == 200
        assert answer.headers["content-security-policy"] == CSP
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["cache-control"] == "no-cache"
        tag = answer.headers["etag"]
        for known in (tag, f"W/{tag}", f'"other", {tag}'):
            again = http.get(f"/ui{name}", headers={"if-none-match": known})
            assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
        assert http.get(f"/ui{name}", headers={"if-none-match": '"other"'}).status_code == 200
    assert http.get("/ui").headers["content-type"] == "text/html; charset=utf-8"
    assert http.get("/ui/app.js").headers["content-type"] == "text/javascript; charset=utf-8"
    assert http.get("/ui/").content == http.get("/ui").content


@pytest.mark.parametrize(
    "path",
    ["/ui/nothing.js", "/ui/..%2froutes.py", "/ui/%2e%2e/routes.py", "/ui/%2e%2e%2froutes.py", "/ui/..%5croutes.py", "/ui//etc/passwd",
     "/ui/%2fetc%2fpasswd", "/ui/app.js%00", "/ui/app.js/", "/ui/APP.JS", "/ui/data", "/ui/data/", "/ui/data/other", "/uix"],
)  # fmt: skip
def test_nothing_else_is_sent(path):
    refused(client().get(path), 404, "not_found")


def test_only_get_is_allowed():
    for path in ("/ui", "/ui/app.js", *DATA):
        refused(client().post(path), 405, "method_not_allowed")


def test_the_page_is_no_part_of_the_api_document():
    paths = client().get("/openapi.json").json()["paths"]
    assert not [path for path in paths if path.startswith("/ui")]


def test_nothing_in_the_files_needs_what_the_policy_forbids():
    for path in FOLDER.iterdir():
        text = path.read_text(encoding="utf-8")
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|\beval\(|new Function|srcdoc", text
        ), path
        assert not re.search(r"localStorage|document\.cookie|indexedDB", text), path
        where = [url for url in re.findall(r"https?://[^\s\"'`)]+", text) if url != "http://www.w3.org/2000/svg"]
        assert where == [], path
        if path.suffix == ".html":
            assert not re.search(r"<style|\sstyle=|\son\w+=|<script>", text)


def test_a_wheel_holds_the_files():
    root = Path(routes.__file__).parents[2]
    packaged = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    assert packaged["serving.page"] == ["ui/*"]
    assert all(path.is_file() and path.suffix in routes.MEDIA_TYPES for path in FOLDER.iterdir())


def test_without_a_run_the_answer_says_how_to_get_one(tmp_path):
    answer = client().get("/ui/data/run").json()
    assert answer["run"] is None and "fuseline serve recipe.yaml" in answer["why"]
    refused(client().get("/ui/data/rows?arm=x"), 404, "not_found")
    answer = client(tmp_path / "runs" / "demo").get("/ui/data/run").json()
    assert answer["run"] is None and "fuseline run recipe.yaml" in answer["why"]


@pytest.mark.parametrize(
    ("path", "status", "code", "param"),
    [
        ("/ui/data/run?x=1", 400, "unknown_field", "x"),
        ("/ui/data/rows", 400, "invalid_request", "arm"),
        ("/ui/data/rows?arm=", 400, "invalid_request", "arm"),
        ("/ui/data/rows?arm=wrpo&arm=sft", 400, "invalid_request", None),
        ("/ui/data/rows?arm=wrpo&offset=-1", 400, "invalid_request", "offset"),
        ("/ui/data/rows?arm=wrpo&offset=1e3", 400, "invalid_request", "offset"),
        ("/ui/data/rows?arm=wrpo&offset=999999999999999999999999", 400, "invalid_request", "offset"),
        ("/ui/data/rows?arm=wrpo&limit=51", 400, "invalid_request", "limit"),
        ("/ui/data/rows?arm=wrpo&limit=0", 400, "invalid_request", "limit"),
        ("/ui/data/rows?arm=wrpo&show=some", 400, "invalid_request", "show"),
        (f"/ui/data/rows?arm=wrpo&query={'x' * 201}", 400, "invalid_request", "query"),
        ("/ui/data/rows?arm=../store", 404, "not_found", "arm"),
        ("/ui/data/row?arm=wrpo", 400, "invalid_request", "prompt_id"),
        ("/ui/data/row?arm=wrpo&prompt_id=nothing", 404, "not_found", "prompt_id"),
        ("/ui/data/row?arm=wrpo&prompt_id=%00", 404, "not_found", "prompt_id"),
    ],
)
def test_parameters_are_checked(demo, path, status, code, param):
    refused(client(demo).get(path), status, code, param)


def test_pages_join_to_all_rows_in_order(data):
    everything = []
    for offset in range(0, 24, 5):
        page_of = data("/ui/data/rows", arm="wrpo", offset=offset, limit=5)
        assert page_of["total"] == 24 and page_of["more"] == (offset + 5 < 24)
        everything += page_of["rows"]
    assert everything == data("/ui/data/rows", arm="wrpo", limit=50)["rows"]
    ids = [row["prompt_id"] for row in everything]
    assert len(set(ids)) == 24
    kept = [row["prompt_id"] for row in everything if row["dropped"] is None]
    assert kept == sorted(kept) and len(kept) == 21
    assert [row["dropped"] for row in everything[21:]] == ["tie"] * 3
    assert data("/ui/data/rows", arm="wrpo", offset=24)["rows"] == []
    assert data("/ui/data/rows", arm="wrpo", show="rows", limit=50)["rows"] == everything[:21]
    assert data("/ui/data/rows", arm="wrpo", show="dropped", offset=1)["rows"] == everything[22:]


def test_a_search_is_the_filter_of_all_rows(data):
    everything = data("/ui/data/rows", arm="wrpo", limit=50)["rows"]
    for query in ("SCRIPT", "p02", "qwen2", "tie", "what is"):
        expected = [row for row in everything if query.casefold() in rows._searchable(rows.RowView(**row))]
        assert expected
        found = [data("/ui/data/rows", arm="wrpo", query=query, limit=3, offset=o) for o in range(0, len(expected), 3)]
        assert [row for each in found for row in each["rows"]] == expected
        assert [each["more"] for each in found] == [True] * (len(found) - 1) + [False]


def test_every_answer_to_every_prompt_has_its_role_and_a_reason(data):
    listed = data("/ui/data/rows", arm="wrpo", limit=50)["rows"]
    for row in listed:
        found = data("/ui/data/row", arm="wrpo", prompt_id=row["prompt_id"])
        candidates = found["candidates"]
        assert len(candidates) == 9 == len({(c["model"], c["sample"]) for c in candidates})
        roles = {c["role"]: c for c in candidates if c["role"]}
        assert {role: (c["model"], c["score"]) for role, c in roles.items()} == {
            r["role"]: (r["model"], r["score"]) for r in row["roles"]
        }
        assert all(c["why"].startswith(("not used: ", f"{c['use']}: ")) for c in candidates)
        if row["dropped"]:
            assert (found["outcome"], found["reason"], roles) == ("dropped", "tie", {})
            continue
        # The words must be true of the numbers.
        own = [c["score"] for c in candidates if c["side"] == "own" and c["finish_reason"] == "stop"]
        source = [c["score"] for c in candidates if c["side"] == "source" and c["finish_reason"] == "stop"]
        assert roles["source_chosen"]["score"] == max(source)
        assert roles["target_chosen"]["score"] == max(own)
        assert roles["rejected"]["score"] == min(own)
        assert found["margin"] == max(own) - min(own)
        for c in candidates:
            if "cut at the token limit" in c["why"]:
                assert c["finish_reason"] == "length"
            if "between the chosen" in c["why"]:
                assert min(own) < c["score"] < max(own)
            if "same reward as" in c["why"]:
                assert c["score"] in (max(source), max(own), min(own))


def test_a_prompt_of_the_other_side_was_not_asked(data):
    sft = {row["prompt_id"] for row in data("/ui/data/rows", arm="sft", limit=50)["rows"]}
    other = next(row["prompt_id"] for row in data("/ui/data/rows", arm="wrpo")["rows"])
    assert other not in sft
    found = data("/ui/data/row", arm="sft", prompt_id=other)
    assert found["outcome"] == "not_asked" and "other" not in found["candidates"][0]["why"]
    own = [c for c in found["candidates"] if c["side"] == "own"]
    assert own and all("rule best does not read the target's own answers" in c["why"] for c in own)


def test_lost_answers_are_named(data):
    lost = data("/ui/data/row", arm="wrpo", prompt_id="p005")["lost"]
    assert [(each["row_id"], each["stage"], each["reason"]) for each in lost] == [
        ("p005/llama-add/3", "score/llama-add", "non_finite_score")
    ]


def test_a_run_at_work_is_shown_as_far_as_it_is(own_demo):
    shutil.rmtree(own_demo)
    store = own_demo.parent / "store"
    selection = next((store / "select").glob("quadruple-*"))
    (selection / MANIFEST).unlink()
    scored = next((store / "score").glob("sft-*"))
    (scored / MANIFEST).unlink()
    (scored / "part-00001.parquet").unlink()
    run = client(own_demo).get("/ui/data/run").json()["run"]
    assert (run["status"], run["finished"], run["results"]) == ("unfinished", None, [])
    stages = {stage["stage"]: stage for stage in run["stages"]}
    assert stages["score/sft"]["status"] == "begun"
    assert (stages["score/sft"]["parts_done"], stages["score/sft"]["parts"]) == (2, 3)
    assert stages["generate/sft"]["status"] == "finished"
    assert [arm["name"] for arm in run["arms"]] == ["sft"]


def test_what_is_damaged_or_gone_is_said_and_hurts_nothing_else(own_demo):
    store = own_demo.parent / "store"
    next((store / "generate").glob("qwen2-sort-*/part-00000.parquet")).write_bytes(b"torn")
    shutil.rmtree(next((store / "score").glob("llama-add-*")))
    http = client(own_demo)
    stages = {stage["stage"]: stage for stage in http.get("/ui/data/run").json()["run"]["stages"]}
    assert stages["generate/qwen2-sort"]["status"] == "damaged"
    assert "store/generate/" in stages["generate/qwen2-sort"]["problem"]
    assert str(store) not in json.dumps(stages)
    assert stages["score/llama-add"]["status"] == "missing"
    taken = next(
        row for row in http.get("/ui/data/rows?arm=wrpo").json()["rows"] if row["roles"][0]["model"] == "llama-add"
    )
    found = http.get("/ui/data/row", params={"arm": "wrpo", "prompt_id": taken["prompt_id"]}).json()
    assert found["candidates"][0]["model"] == "llama-add"  # from the row itself
    assert found["candidates"][0]["side"] == "source"
    assert len(found["candidates"]) == 7


def test_a_torn_part_is_an_error_that_names_it(own_demo):
    part = next((own_demo.parent / "store" / "select").glob("quadruple-*/part-00000.parquet"))
    http = client(own_demo)
    assert http.get("/ui/data/rows?arm=wrpo").status_code == 200
    part.write_bytes(b"x" * part.stat().st_size)
    message = refused(http.get("/ui/data/rows?arm=wrpo"), 500, "internal_error")
    assert "store/select/quadruple-" in message and str(own_demo.parent) not in message


def test_a_broken_history_is_an_error_that_names_it(own_demo):
    (own_demo / "history" / "20260102T030405Z.json").write_text("{")
    message = refused(client(own_demo).get("/ui/data/run"), 500, "internal_error")
    assert "demo/history/20260102T030405Z.json" in message


def test_a_list_reads_no_token_ids_and_no_answers(demo):
    selection = next((demo.parent / "store" / "select").glob("quadruple-*/part-00000.parquet"))
    with parts.opened(selection) as file:
        listed = parts.leaves(file, rows.NOT_LISTED)
        shown = parts.leaves(file, parts.NEVER_SHOWN)
    assert not [path for path in shown if "token_ids" in path]
    assert not [path for path in listed if path.endswith((".text", ".objectives.key_value.key"))]
    assert "prompt.messages.list.element.content" in listed
