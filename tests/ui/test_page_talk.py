"""What the page does with the service: streams, stop, votes, scores, curl; and that nothing a model says is ever run."""

import json
import re
import shlex
import subprocess
import time

import pytest

from ui.page_service import (
    XSS,
    Broken,
    Chat,
    Keyed,
    Reward,
    hold,
    make_app,
    serving,
    until,
    until_held,
    write_run,
)
from ui.test_page_views import chat, score

AWKWARD = "it's \"5\" \\ `id` $HOME $(id) !x\n\tnext — 数 é \u2028 %s ''"


def ask(page, text):
    page.fill("#chat-message", text)
    page.keyboard.press("Control+Enter")


def test_two_models_answer_with_the_same_settings_and_the_conversation_goes_on_from_the_vote(visit):
    left, right = Chat("wrpo", "one"), Chat("target", "two")
    with serving(make_app(chats=[left, right])) as url:
        with visit(f"{url}/ui") as page:
            page.locator("#chat-message").wait_for()
            page.fill("#chat-temperature", "0.25")
            page.fill("#chat-max-tokens", "40")
            page.fill("#chat-seed", "7")
            chat(page, "first")
            for model in (left, right):
                asked = model.asked[-1]
                assert (asked.temperature, asked.max_tokens, asked.seed) == (0.25, 40, 7)
            facts = page.locator(".answer .facts").first.text_content()
            first, rate, tokens = map(float, re.findall(r"[\d.]+", facts))
            assert tokens == 3
            assert 0 < rate * (first - 0.005) <= 3  # of the whole answer, so no more than as if it had come at once
            page.click("[data-choice=right]")
            assert page.locator(".answer.right .tag").is_visible()
            chat(page, "second")
            told = [("user", "first"), ("assistant", "two"), ("user", "second")]
            assert left.conversations[-1] == right.conversations[-1] == told
            page.fill("#chat-temperature", "")
            page.fill("#chat-max-tokens", "")
            page.fill("#chat-seed", "")
            chat(page, "third")
            assert (left.asked[-1].temperature, left.asked[-1].seed) == (None, None)
            assert left.conversations[-1] == [*told, ("assistant", "one"), ("user", "third")]
            page.fill("#chat-temperature", "3")
            ask(page, "too hot")
            assert page.locator(".turn").count() == 3


def test_votes_are_exported_as_preference_rows(visit, service):
    with visit(f"{service}/ui") as page:
        page.locator("#chat-message").wait_for()
        for place, (text, choice) in enumerate((("one", "left"), (AWKWARD, "right"), ("three", "tie"))):
            chat(page, text)
            page.locator(".turn").nth(place).locator(f"[data-choice={choice}]").click()
        page.locator(".turn").nth(0).locator("[data-choice=right]").click()  # a vote can be changed
        page.reload()  # and outlives a reload of the tab
        with page.expect_download() as started:
            page.get_by_role("button", name="Export 2 votes").click()
        assert started.value.suggested_filename == "votes.jsonl"
        with open(started.value.path(), encoding="utf-8", newline="\n") as file:  # noqa: PTH123
            rows = [json.loads(line) for line in file]
    assert [row["chosen"] for row in rows] == [[{"role": "assistant", "content": "Fifty-five."}]] * 2
    assert rows[0]["rejected"] == [{"role": "assistant", "content": "one"}]
    assert rows[0]["prompt"] == [{"role": "user", "content": "one"}]
    assert rows[1]["prompt"][-1] == {"role": "user", "content": AWKWARD}
    assert rows[1]["rejected"][0]["content"] == AWKWARD
    assert (rows[0]["chosen_model"], rows[0]["rejected_model"], rows[0]["seed"]) == ("target", "wrpo", 1)


@pytest.mark.parametrize("kept", ["{bad", "null", "{}", "[1]", '[["a", null]]', '[["a", {"choice": "left"}]]'])
def test_kept_votes_that_cannot_be_read_are_left_out(visit, service, kept):
    with visit(f"{service}/ui") as page:
        page.locator("#chat-message").wait_for()
        assert page.locator("#view-chat .notice").count() == 0
        page.evaluate("(kept) => sessionStorage.setItem('fuseline-votes', kept)", kept)
        page.reload()
        page.get_by_text("The votes kept in this tab cannot be read and are left out.").wait_for()
        assert page.get_by_role("button", name="Export votes").is_disabled()
        chat(page, "hi")
        page.click("[data-choice=left]")
        assert page.get_by_role("button", name="Export 1 vote").is_enabled()
        page.reload()
        page.get_by_role("button", name="Export 1 vote").wait_for()
        assert page.locator("#view-chat .notice").count() == 0


@pytest.mark.parametrize("way", ["button", "escape", "new", "leave"])
def test_stop_closes_the_stream(visit, way):
    models = [Chat("wrpo", "ab" * 2000, delay_s=0.01), Chat("target", "cd" * 2000, delay_s=0.01)]
    with serving(make_app(chats=models)) as url:
        with visit(f"{url}/ui") as page:
            page.locator("#chat-message").wait_for()
            ask(page, "go on for ever")
            page.locator(".answer[data-state=streaming]").nth(1).wait_for()
            assert [model.closed for model in models] == [0, 0]
            if way == "button":
                page.get_by_role("button", name="Stop").click()
            elif way == "escape":
                page.keyboard.press("Escape")
            elif way == "new":
                page.get_by_role("button", name="New chat").click()
            else:
                page.goto("about:blank")
            ends_at = time.monotonic() + 2
            while [model.closed for model in models] != [1, 1] and time.monotonic() < ends_at:
                page.wait_for_timeout(20)
            assert [model.closed for model in models] == [1, 1]
            if way in ("button", "escape"):
                assert page.locator(".answer[data-state=stopped]").count() == 2
                kept = page.locator(".answer .foreign").first.text_content()
                assert 0 < len(kept) < 2000
                ask(page, "and now?")  # what was said so far is a part of the conversation
                until(page, "document.querySelectorAll('.turn').length === 2")
                page.wait_for_timeout(50)
                assert models[0].conversations[-1][1] == ("assistant", kept)
                page.keyboard.press("Escape")
            if way == "new":
                page.get_by_text("Ask, compare, vote").wait_for()


def test_a_new_chat_does_not_get_the_old_question_back(visit, service):
    with visit(f"{service}/ui") as page:
        page.locator("#chat-message").wait_for()
        held = hold(page, "**/v1/chat/completions")
        ask(page, "old question")
        until_held(page, held, 2)
        page.get_by_role("button", name="New chat").click()
        page.get_by_role("button", name="Send").wait_for()
        assert page.locator("#chat-message").input_value() == ""
        assert page.locator(".turn").count() == 0


def test_what_came_before_an_error_is_no_answer(visit):
    right = Chat("target", "fine")
    with serving(make_app(chats=[Broken("broken", "the engine failed"), right])) as url:
        with visit(f"{url}/ui") as page:
            page.locator("#chat-message").wait_for()
            for text in ("first", "second"):
                ask(page, text)
                turn = page.locator(".turn", has_text=text)
                turn.get_by_role("button", name="Score it").wait_for()
                assert turn.locator(".answer.left .foreign").text_content() == "a "
                assert page.locator("[data-choice]").count() == 0
                assert page.locator(".tag:not([hidden])").count() == 0
            told = [("user", "first"), ("assistant", "fine"), ("user", "second")]
            assert right.conversations[-1] == told
            page.select_option("#chat-right", "")
            ask(page, "third")
            page.get_by_text("No answer: this turn is left out of the conversation.").wait_for()
            assert page.locator("#chat-message").input_value() == "third"


def test_errors_stand_where_the_answer_would_with_code_and_request_id(visit):
    with serving(make_app(chats=[Broken("broken", "the engine failed"), Chat("target", "fine")])) as url:
        with visit(f"{url}/ui", allowed=("400",)) as page:
            page.locator("#chat-message").wait_for()
            ask(page, "hi")
            left = page.locator(".answer.left")
            page.locator(".answer.left[data-state=failed]").wait_for()
            assert "the engine failed" in left.locator(".error").text_content()
            assert "backend_unavailable" in left.locator(".error").text_content()
            assert "request req-" in left.locator(".error").text_content()
            assert left.locator(".foreign").text_content() == "a "
            page.locator(".answer.right[data-state=done]").wait_for()
            ask(page, "unrenderable")
            page.locator(".turn").nth(1).locator(".error").nth(1).wait_for()
            text = page.locator(".turn").nth(1).text_content()
            assert text.count("invalid_roles · HTTP 400 · messages") == 2
            assert "this turn is left out" in text
            assert page.locator("#chat-message").input_value() == "unrenderable"


def test_scores_are_ranked_and_drawn_with_their_sign(visit, service):
    responses = ["aa", "zz", "break", "", "aa", "qq"]
    with visit(f"{service}/ui#score") as page:
        page.locator("#score-prompt").wait_for()
        score(page, "p", responses)
        rows = page.locator(".score")
        names = [row.split("Response ")[1][0] for row in rows.all_text_contents()]
        values = [float(each.get_attribute("data-score")) for each in page.locator("[data-score]").all()]
        assert values == sorted(values, reverse=True) and min(values) < 0 < max(values)
        expected = {
            place: 3.140625 - sum(map(ord, text)) % 97 / 7
            for place, text in enumerate(responses, 1)
            if text not in ("break", "")
        }
        assert values == [expected[int(name)] for name in names[:4]]
        ranks = [row.locator(".rank").text_content() for row in rows.all()]
        assert ranks[4:] == ["–", "–"] and sorted(ranks[:4]) == sorted(
            ["#1", "#2", "#2", "#4"] if values[1] == values[2] else ["#1", "#1", "#3", "#4"]
        )
        failed = rows.nth(4).text_content() + rows.nth(5).text_content()
        assert "backend_error" in failed and "out of memory" in failed and "empty_response" in failed
        boxes = page.evaluate(
            "[...document.querySelectorAll('.score .bar')].map((b) => { const [f, z] = [b.querySelector('.fill').getBoundingClientRect(),"
            " b.querySelector('.zero').getBoundingClientRect()]; return [f.left - z.left, f.right - z.left]; })"
        )
        scale = [box[1] / value if value > 0 else box[0] / value for box, value in zip(boxes, values, strict=True)]
        assert max(scale) - min(scale) < 0.05 * max(scale)  # one axis for all
        for box, value in zip(boxes, values, strict=True):
            assert abs(box[0] if value > 0 else box[1]) < 2  # from zero
        assert "helpful" in rows.first.text_content()


def test_scores_of_an_input_that_changed_while_they_were_made_say_so(visit, service):
    with visit(f"{service}/ui#score") as page:
        page.locator("#score-prompt").wait_for()
        score(page, "old", ["one", "two"])
        assert page.locator(".stale").is_hidden()
        held = hold(page, "**/v1/rewards")
        page.get_by_role("button", name="Score", exact=True).click()
        until_held(page, held, 1)
        page.fill("#score-prompt", "new")
        held[0].continue_()
        page.locator(".scores").wait_for()
        assert page.locator(".stale").is_visible()


def test_truncation_is_asked_for_and_shown(visit):
    reward = Reward()
    with serving(make_app(rewards=[reward])) as url:
        with visit(f"{url}/ui#score") as page:
            page.locator("#score-prompt").wait_for()
            page.select_option("#score-truncation", "right")
            score(page, "p", ["x" * 600, "short"])
            assert reward.calls[-1][1] == "right"
            assert (
                next(row for row in page.locator(".score").all_text_contents() if "truncated" in row).count(
                    "611 tokens"
                )
                == 1
            )


@pytest.mark.parametrize("keyed", [False, True])
def test_the_curl_command_gives_the_shown_scores(visit, keyed):
    app = Keyed(make_app(), "k'y $x") if keyed else make_app()
    with serving(app) as url:
        with visit(f"{url}/ui#score", allowed=("401",), permissions=["clipboard-read", "clipboard-write"]) as page:
            if keyed:
                page.fill("#key-input", "k'y $x")
                page.keyboard.press("Enter")
            page.locator("#score-prompt").wait_for()
            score(page, AWKWARD, [AWKWARD, "55", "@/etc/passwd"])
            page.get_by_role("button", name="Copy as curl").click()
            command = page.locator("#score-curl").text_content()
            page.locator(".command").get_by_text("Copied. In full:").wait_for()
            assert page.evaluate("navigator.clipboard.readText()") == command
            assert "k'y" not in command and ("$FUSELINE_API_KEY" in command) == keyed
            assert shlex.split(command)[0] == "curl"
            done = subprocess.run(
                ["sh", "-c", command],
                capture_output=True,
                timeout=20,
                check=True,
                env={"PATH": "/usr/bin:/bin", "FUSELINE_API_KEY": "k'y $x", "NO_PROXY": "127.0.0.1"},
            )
            results = json.loads(done.stdout)["results"]
            shown = {}
            for row in page.locator(".score").all():
                number = int(row.locator(".name").text_content().removeprefix("Response "))
                shown[number] = row.locator("[data-score]").get_attribute("data-score")
            assert shown == {place: json.dumps(result["score"]) for place, result in enumerate(results, 1)}


def test_the_curl_command_of_another_input_is_not_shown(visit, service):
    with visit(f"{service}/ui") as page:
        page.locator("#chat-message").wait_for()
        chat(page, "hi")
        page.click("#tab-score")
        score(page, "old", ["one", "two"])
        page.evaluate(
            "() => { navigator.clipboard.writeText = () => new Promise((done) => { window.copied = done; }); }"
        )
        page.get_by_role("button", name="Copy as curl").click()
        page.fill("#score-prompt", "new")
        page.evaluate("window.copied()")
        page.wait_for_timeout(50)
        assert page.locator(".command").is_hidden()
        page.get_by_role("button", name="Copy as curl").click()
        page.evaluate("window.copied()")
        page.locator("#score-curl").wait_for()
        page.click("#tab-chat")
        page.get_by_role("button", name="Score both").click()
        page.locator(".scores").wait_for()
        assert page.locator(".command").is_hidden()


def test_a_chat_can_be_scored_with_all_that_was_said_before(visit):
    reward = Reward()
    with serving(make_app(chats=[Chat("wrpo", "one"), Chat("target", "two")], rewards=[reward])) as url:
        with visit(f"{url}/ui") as page:
            page.locator("#chat-message").wait_for()
            chat(page, "first")
            chat(page, "second")
            page.get_by_role("button", name="Score both").nth(1).click()
            page.locator(".scores").wait_for()
            conversations, _ = reward.calls[-1]
            assert [[turn.content for turn in c] for c in conversations] == [
                ["first", "one", "second", "one"],
                ["first", "one", "second", "two"],
            ]
            page.get_by_role("button", name="Leave them out").click()
            page.get_by_role("button", name="Score", exact=True).click()
            until(page, "document.querySelector('.stale')?.hidden !== false")
            page.locator(".scores").wait_for()
            assert [turn.content for turn in reward.calls[-1][0][0]] == ["second", "one"]


# ---- what models say is text -------------------------------------------------------------------


def inert(page, *, where="main"):
    """Nothing has run, nothing was made of what was said, and nothing was fetched."""
    assert page.evaluate("window.hit") is None
    assert (
        page.locator(
            f"{where} :is(script, iframe, object, embed, link, meta, base, style, video, math, svg, img)"
        ).count()
        == 0
    )
    assert (
        page.evaluate(
            "document.querySelectorAll('main [onerror], main [onload], main [onfocus], main [style*=display]').length"
        )
        == 0
    )
    assert page.title().endswith("fuseline")


def test_hostile_chat_answers_are_text(visit):
    assert len(XSS) == 25
    with serving(make_app(chats=[Chat("echo")], rewards=[])) as url:
        with visit(f"{url}/ui") as page:
            page.locator("#chat-message").wait_for()
            for place, text in enumerate(XSS):
                ask(page, text)
                page.locator(".turn").nth(place).locator("[data-state=done]").wait_for()
            shown = page.evaluate("[...document.querySelectorAll('.answer > .foreign')].map((e) => e.textContent)")
            assert [text.replace("\r", "") for text in shown] == list(XSS)
            inert(page)


def test_hostile_responses_scores_and_messages_are_text(visit):
    reward = Reward("<img src=x onerror=window.hit=1>", message=XSS[0], part=XSS[1])
    with serving(make_app(rewards=[reward], chats=[Broken(XSS[1], XSS[6]), Chat(XSS[2], "x")])) as url:
        with visit(f"{url}/ui#score") as page:
            page.locator("#score-prompt").wait_for()
            score(page, XSS[3], [*XSS, "break"])
            texts = page.evaluate("[...document.querySelectorAll('.score .foreign')].map((e) => e.textContent)")
            assert sorted(texts) == sorted([*XSS, "break"])
            page.get_by_role("button", name="Copy as curl").click()
            page.locator("#score-curl").wait_for()
            assert XSS[0] in page.locator(".why").text_content()
            inert(page)
            page.click("#tab-chat")
            ask(page, "hi")
            page.locator("[data-state=failed]").wait_for()
            assert XSS[6] in page.locator(".answer .error").text_content()
            assert page.locator(".answer h3").first.text_content() == XSS[1]
            inert(page)


def test_hostile_rows_are_text(visit, tmp_path):
    with serving(make_app(run=write_run(tmp_path))) as url:
        with visit(f"{url}/ui#inspect/sft") as page:
            seen = set()
            for arm, prompts in (("sft", 12), ("wrpo", 24)):
                page.goto(f"{url}/ui#inspect/{arm}")
                until(
                    page,
                    f"document.querySelectorAll('.rows a').length === {min(prompts, 20)} && document.querySelector('#inspect-arm').value === '{arm}'",
                )
                seen.update(page.evaluate("[...document.querySelectorAll('.rows .foreign')].map((e) => e.textContent)"))
            page.get_by_role("button", name="Next").click()
            page.get_by_text("21 to 24").wait_for()
            seen.update(page.evaluate("[...document.querySelectorAll('.rows .foreign')].map((e) => e.textContent)"))
            assert set(XSS) <= seen
            page.goto(f"{url}/ui#inspect/wrpo/p005")
            page.get_by_text("Refused on the way").wait_for()
            assert XSS[2] in page.locator(".detail").text_content()
            for summary in page.locator(".candidate summary").all()[:2]:
                summary.click()
            assert XSS[1] in page.locator(".candidate dt").all_text_contents()
            inert(page)
            page.click("#tab-run")
            page.locator(".stage-group").first.wait_for()
            inert(page)


# ---- modules -----------------------------------------------------------------------------------


def test_the_event_parser_does_not_depend_on_how_bytes_are_cut(visit, service):
    text = ': a comment\ndata: {"é": "数"}\n\ndata:no space\r\nevent: x\r\n\r\ndata: two\ndata: lines\n\nid: 1\n\ndata: [DONE]\n\ndata: unfinished'
    expected = ['{"é": "数"}', "no space", "two\nlines", "[DONE]"]
    script = """async ([text, size]) => {
      const { events } = await import("/ui/api.js");
      const bytes = new TextEncoder().encode(text);
      const cut = [];
      for (let i = 0; i < bytes.length; i += size) cut.push(bytes.slice(i, i + size));
      const stream = new ReadableStream({ start(c) { cut.forEach((piece) => c.enqueue(piece)); c.close(); } });
      const found = [];
      for await (const data of events(stream)) found.push(data);
      return found;
    }"""
    with visit(f"{service}/ui") as page:
        for size in (1, 2, 3, 5, 7, 64, 1000):
            assert page.evaluate(script, [text, size]) == expected, size


def test_the_axis_holds_every_score_and_zero(visit, service):
    script = """async (sets) => {
      const { scale } = await import("/ui/bars.js");
      return sets.map((values) => { const s = scale(values); return [s.low, s.high, s.ticks.length, s.at(0), ...values.map((v) => s.at(v))]; });
    }"""
    sets = [[], [0], [5], [-5], [-1e-9, 3e-9], [1e9, -3], [0.1, 0.2, 0.30000000000000004], [-7.25, -7.5]]
    with visit(f"{service}/ui") as page:
        for values, (low, high, ticks, zero, *places) in zip(sets, page.evaluate(script, sets), strict=True):
            assert low <= min([0, *values]) and high >= max([0, *values]) and low < high
            assert 2 <= ticks <= 7
            assert all(-1e-6 <= place <= 100 + 1e-6 for place in (zero, *places))
