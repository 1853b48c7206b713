"""What people see and reach: every view in both themes and two sizes, by keyboard alone, without a run, while starting."""

import pytest
from axe_playwright_python.sync_playwright import Axe

from fusion.rows import Verdict
from ui.page_service import SPLIT, Chat, Keyed, Reward, hold, make_app, prompts, serving, until, until_held

SIZES = {"small": (360, 740), "large": (1280, 900)}
PROMPTS = {prompt.prompt_id: prompt for prompt in prompts()}
# On the preference side, and one whose last answers are cut.
PREFERENCE = next(i for i, side in SPLIT.assign(PROMPTS).items() if side == "preference" and int(i[1:]) % 4 == 0)
LONG = "A longer answer, so that the line has to be broken somewhere on a small screen: " + "x" * 90


def chat(page, text, *, answers=2):
    turns = page.locator(".turn").count()
    page.fill("#chat-message", text)
    page.keyboard.press("Control+Enter")
    done = page.locator(".turn").nth(turns).locator("[data-state=done]")
    done.nth(answers - 1).wait_for()


def score(page, prompt, responses):
    page.fill("#score-prompt", prompt)
    while page.locator(".responses textarea").count() < len(responses):
        page.get_by_role("button", name="Add response").click()
    for place, text in enumerate(responses):
        page.locator(".responses textarea").nth(place).fill(text)
    page.get_by_role("button", name="Score", exact=True).click()
    page.locator(".scores").wait_for()


def fill_chat(page):
    page.locator("#chat-message").wait_for()
    chat(page, "What is 47 + 8?")
    page.click("[data-choice=left]")
    chat(page, LONG)


def fill_score(page):
    score(page, "What is 47 + 8?", ["55", LONG, "break", "", "54"])
    page.get_by_role("button", name="Copy as curl").click()
    page.locator("#score-curl").wait_for()


def fill_inspect(page):
    page.locator(".rows a").nth(1).click()
    page.locator(".candidate").first.wait_for()


def fill_run(page):
    page.locator(".stage-group").first.wait_for()


VIEWS = {"chat": fill_chat, "score": fill_score, "inspect": fill_inspect, "run": fill_run}


def serious(page):
    """Return what axe-core finds that keeps people out."""
    page.evaluate(Axe().axe_script)
    found = page.evaluate("axe.run({ resultTypes: ['violations'] })")["violations"]
    return [
        f"{each['id']}: {node['target']} {node['failureSummary']}"
        for each in found
        if each["impact"] in ("serious", "critical")
        for node in each["nodes"]
    ]


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_every_view(visit, service, screenshots, theme, size):
    width, height = SIZES[size]
    with visit(f"{service}/ui", width=width, height=height, theme=theme, bypass_csp=True) as page:
        for name, fill in VIEWS.items():
            page.goto(f"{service}/ui#{name}")
            page.locator(f"#view-{name}:not([hidden]) > :not(.loading)").first.wait_for()
            page.screenshot(path=screenshots / f"{name}-empty-{theme}-{width}.png")
            if (size, theme) == ("small", "light"):  # colours and sizes of the rest are those of the filled view
                assert serious(page) == []
            fill(page)
            if name != "chat":
                page.evaluate("scrollTo(0, 0)")
            page.screenshot(path=screenshots / f"{name}-{theme}-{width}.png", full_page=name != "chat")
            assert serious(page) == [], name
            assert page.evaluate("document.documentElement.scrollWidth") <= width, f"{name} scrolls sideways"
            assert (
                page.evaluate(
                    "[...document.querySelectorAll('main *')].filter((e) => e.checkVisibility() && "
                    "!e.closest('.scroll, .unseen, pre') && e.getBoundingClientRect().right > innerWidth + 1).map((e) => e.outerHTML)"
                )
                == []
            ), f"{name} is cut at the right"
        page.click("#key-button")
        page.screenshot(path=screenshots / f"key-{theme}-{width}.png")
        assert serious(page) == []


def test_small_texts_are_not_tiny_and_buttons_can_be_hit(visit, service):
    with visit(f"{service}/ui", width=360, height=740) as page:
        fill_chat(page)
        sizes = page.evaluate(
            "[...document.querySelectorAll('body *')].map((e) => parseFloat(getComputedStyle(e).fontSize))"
        )
        assert min(sizes) >= 12
        heights = page.evaluate(
            "[...document.querySelectorAll('button')].filter((b) => b.checkVisibility()).map((b) => b.offsetHeight)"
        )
        assert min(heights) >= 30


def test_theme_follows_the_system_until_it_is_chosen(visit, service):
    background = "getComputedStyle(document.body).backgroundColor"
    with visit(f"{service}/ui", theme="dark") as page:
        dark = page.evaluate(background)
        page.emulate_media(color_scheme="light")
        light = page.evaluate(background)
        assert dark != light
        page.get_by_role("button", name="Dark theme").click()
        assert page.evaluate(background) == dark
        page.reload()
        assert page.evaluate(background) == dark
        page.get_by_role("button", name="Light theme").click()
        assert page.evaluate(background) == light


def test_motion_is_reduced_where_it_is_not_wanted(visit):
    with serving(make_app(chats=[Chat("slow", "a" * 500, delay_s=0.02)], rewards=[])) as url:
        moving = (
            "getComputedStyle(document.querySelector('[data-state=streaming] > .foreign'), '::after').animationName"
        )
        for wanted, name in (("no-preference", "pulse"), ("reduce", "none")):
            with visit(f"{url}/ui", reduced_motion=wanted) as page:
                page.fill("#chat-message", "hi")
                page.keyboard.press("Control+Enter")
                page.locator("[data-state=streaming]").wait_for()
                assert page.evaluate(moving) == name


def test_keyboard_alone(visit, service):
    with visit(f"{service}/ui") as page:
        page.locator("#chat-message").wait_for()
        focused = "document.activeElement.id || document.activeElement.textContent"
        page.keyboard.press("Tab")
        assert page.evaluate(focused) == "Skip to content"
        outline = "getComputedStyle(document.activeElement).outlineStyle"
        page.keyboard.press("Enter")
        assert page.evaluate("document.activeElement.id") == "main"
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.id") == "chat-left"
        assert page.evaluate(outline) == "solid"
        for _ in range(3):
            page.keyboard.press("Shift+Tab")
        assert page.evaluate(focused) == "tab-chat"
        for key, name in (
            ("ArrowRight", "score"),
            ("End", "run"),
            ("ArrowRight", "chat"),
            ("ArrowLeft", "run"),
            ("Home", "chat"),
        ):
            page.keyboard.press(key)
            assert page.evaluate(focused) == f"tab-{name}"
            page.locator(f"#view-{name}:not([hidden])").wait_for()
            assert (
                page.locator("[role=tab][tabindex='0']").count() + page.locator("[role=tab]:not([tabindex])").count()
                == 1
            )
        page.keyboard.press("ArrowRight")
        page.locator("#score-prompt").wait_for()
        for _ in range(10):
            page.keyboard.press("Tab")
            if page.evaluate("document.activeElement.id") == "score-prompt":
                break
        page.keyboard.type("What is 47 + 8?")
        page.keyboard.press("Tab")
        page.keyboard.type("55")
        page.keyboard.press("Control+Enter")
        page.locator(".score [data-score]").wait_for()
        assert page.locator(".score").count() == 2
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.getAttribute('aria-label')") == "Remove response 1"
        page.keyboard.press("Enter")
        assert page.locator(".responses li").count() == 1
        assert page.evaluate("document.activeElement.tagName") == "TEXTAREA"
        assert page.locator(".stale").is_visible()


def test_deep_links_and_the_back_button(visit, service):
    with visit(f"{service}/ui#inspect/sft/p003") as page:
        page.locator(".detail h3", has_text="p003").wait_for()
        assert page.locator("#inspect-arm").input_value() == "sft"
        page.click("#tab-run")
        page.locator(".stage-group").first.wait_for()
        assert page.title() == "Run · fuseline"
        page.go_back()
        page.locator(".detail h3").first.wait_for()
        assert page.locator("#tab-inspect").get_attribute("aria-selected") == "true"
        page.goto(f"{service}/ui#nowhere/%E0%A4%A")
        page.locator("#chat-message").wait_for()


def test_without_models_of_a_kind_and_without_a_run_each_view_says_what_to_do(visit):
    with serving(make_app(chats=[], rewards=[])) as url:
        with visit(f"{url}/ui") as page:
            for name, text in {
                "chat": "No chat model is served",
                "score": "No reward model is served",
                "inspect": "No run to inspect",
                "run": "No run to show",
            }.items():
                page.click(f"#tab-{name}")
                box = page.locator(f"#view-{name} .empty")
                box.wait_for()
                assert text in box.text_content()
                assert "fuseline serve recipe.yaml" in box.text_content()
                assert serious(page) == []


def test_a_starting_service_is_shown_as_one_and_then_as_ready(visit):
    waiting = ["rm is loading"]
    with serving(make_app(not_ready=lambda: waiting[0] if waiting else None)) as url:
        with visit(f"{url}/ui", allowed=("503",)) as page:
            page.locator("#state[data-state=starting]").wait_for()
            assert page.locator("#state-text").text_content() == "Starting: rm is loading"
            waiting.clear()
            page.locator("#state[data-state=ready]").wait_for()
            assert page.locator("#state-text").text_content() == "Ready, 3 models"


def test_a_service_that_is_gone_is_an_error_in_its_place(visit):
    with serving(make_app()) as url:
        with visit(f"{url}/ui#score", allowed=("ERR_", "Failed to load")) as page:
            page.locator("#score-prompt").wait_for()
            page.route("**/v1/rewards", lambda route: route.abort())
            page.get_by_role("button", name="Score", exact=True).click()
            box = page.locator("#view-score .error")
            assert "The service does not answer." in box.text_content()
            page.unroute("**/v1/rewards")
            box.get_by_role("button", name="Try again").click()
            page.locator(".scores").wait_for()


def test_the_key_is_asked_for_and_kept_in_the_tab_only(visit, run_folder):
    with serving(Keyed(make_app(run=run_folder), "s3cret")) as url:
        with visit(f"{url}/ui#score", allowed=("401",)) as page:
            page.locator("#key-dialog[open]").wait_for()
            assert "this key is not known" in page.locator("#key-why").text_content()
            assert page.locator("#key-input").get_attribute("type") == "password"
            page.fill("#key-input", "wrong")
            page.keyboard.press("Enter")
            page.locator("#key-dialog[open]").wait_for()
            page.fill("#key-input", " s3cret ")
            page.keyboard.press("Enter")
            page.locator("#score-prompt").wait_for()
            assert not page.locator("#key-dialog").is_visible()
            page.click("#tab-run")
            page.locator(".stage-group").first.wait_for()
            assert page.evaluate("[localStorage.length, document.cookie, sessionStorage.getItem('fuseline-key')]") == [
                0,
                "",
                "s3cret",
            ]
            assert "s3cret" not in page.content()
            page.click("#key-button")
            page.get_by_role("button", name="Forget").click()
            page.locator("#key-dialog[open]").wait_for()
            assert page.evaluate("sessionStorage.getItem('fuseline-key')") is None
            page.get_by_role("button", name="Cancel").click()


def test_rows_can_be_searched_filtered_and_paged(visit, service):
    with visit(f"{service}/ui#inspect") as page:
        rows = page.locator(".rows a")
        rows.first.wait_for()
        assert (page.locator("#inspect-arm").input_value(), rows.count()) == ("wrpo", 20)
        assert "1 to 20 of 24" in page.locator(".rows nav").text_content()
        page.get_by_role("button", name="Next").click()
        page.get_by_text("21 to 24 of 24").wait_for()
        assert page.get_by_role("button", name="Next").is_disabled()
        page.select_option("#inspect-show", "dropped")
        page.get_by_text("1 to 3 of 3").wait_for()
        rows.first.click()
        page.get_by_text("No row: the best and the worst answer have the same reward").wait_for()
        page.select_option("#inspect-show", "all")
        page.fill("#inspect-query", "WHAT IS 2")
        until(page, "document.querySelectorAll('.rows a').length < 10")
        assert all("what is 2" in text for text in rows.all_text_contents())
        page.fill("#inspect-query", "not there")
        page.get_by_text("No prompt holds this text.").wait_for()


def test_another_trained_model_has_its_own_rows_and_verdicts(visit, service):
    with visit(f"{service}/ui#inspect/sft/p001") as page:
        page.get_by_text("A row of sft, made by rule best.").wait_for()
        page.select_option("#inspect-arm", "wrpo")
        page.get_by_text("1 to 20 of 24").wait_for()
        assert page.evaluate("location.hash") == "#inspect/wrpo"
        assert page.locator(".rows a:not([href^='#inspect/wrpo/'])").count() == 0
        assert page.locator(".detail").text_content().startswith("Choose a row")
        page.select_option("#inspect-arm", "sft")
        page.locator(".rows a[href='#inspect/sft/p001']").click()
        page.get_by_text("A row of sft, made by rule best.").wait_for()
        page.evaluate("location.hash = 'inspect/wrpo/p001'")
        page.get_by_text("Not asked: the prompt is not on the side of the split that wrpo trains on.").wait_for()
        assert "A row of sft" not in page.locator(".detail").text_content()


def test_verdicts_have_the_colours_of_what_they_say(visit, service):
    """Right answers once had the colour of a warning, since the page knew them by another name than the rows."""
    with visit(f"{service}/ui#inspect/wrpo/p002") as page:
        page.locator(".candidates").first.wait_for()
        for verdict, colour in ((Verdict.correct, "good"), (Verdict.wrong, "bad")):
            badges = page.locator(".candidates .badge").get_by_text(verdict, exact=True)
            assert badges.count() > 0, verdict
            assert {badge.get_attribute("class") for badge in badges.all()} == {f"badge {colour}"}


def test_a_row_chosen_first_is_not_drawn_over_the_one_chosen_last(visit, service):
    with visit(f"{service}/ui") as page:
        held = hold(page, "**/ui/data/rows?*")
        page.evaluate("location.hash = 'inspect/wrpo/p000'")
        until_held(page, held, 1)
        page.evaluate("location.hash = 'inspect/wrpo/p002'")
        page.locator(".detail h3", has_text="p002").wait_for()
        held.pop().continue_()
        page.locator(".rows a[href='#inspect/wrpo/p002'][aria-current]").wait_for()
        page.wait_for_timeout(300)  # long enough for an older row to be asked for and drawn
        assert page.locator(".detail h3").first.text_content() == "p002"


def test_a_new_key_asks_again_for_what_was_open(visit, run_folder):
    with serving(make_app(run=run_folder)) as url:
        with visit(f"{url}/ui#inspect/sft/p001", allowed=("503",)) as page:
            page.locator(".detail h3", has_text="p001").wait_for()
            held = hold(page, "**/ui/data/run")
            for number in (1, 2):
                page.click("#key-button")
                page.fill("#key-input", f"key {number}")
                page.keyboard.press("Enter")
                until_held(page, held, number)
            held[1].continue_()
            page.locator(".detail h3", has_text="p001").wait_for()
            held[0].fulfill(status=503, body="{}")
            page.wait_for_timeout(300)
            assert page.locator(".detail h3").first.text_content() == "p001"
            assert page.locator("#view-inspect .error").count() == 0


def test_a_row_shows_every_answer_with_its_reason_and_can_be_scored(visit, service):
    with visit(f"{service}/ui#inspect/wrpo/{PREFERENCE}") as page:
        candidates = page.locator(".candidate")
        candidates.first.wait_for()
        assert candidates.count() == 9
        texts = candidates.all_text_contents()
        answers = page.locator(".candidate .foreign").all_text_contents()
        assert "source chosen" in texts[0] and "highest reward of all source answers" in texts[0]
        assert "target chosen" in texts[1] and "highest reward of the target's own answers" in texts[1]
        assert "rejected" in texts[2] and "lowest reward of the target's own answers" in texts[2]
        assert all("not used: " in text for text in texts[3:])
        assert any("cut at the token limit" in text for text in texts)
        page.get_by_role("button", name="Score these answers").click()
        page.locator(".scores").wait_for()
        assert page.locator(".score").count() == len(set(answers))  # equal texts are scored once
        assert page.locator("#score-prompt").input_value() == PROMPTS[PREFERENCE].messages[0].content


def test_the_run_adds_up(visit, service):
    with visit(f"{service}/ui#run") as page:
        page.locator(".stage-group").first.wait_for()
        facts = page.locator(".fact").all_text_contents()
        assert facts[0] == "12 of 12stages finished"
        assert facts[1] == "1 min 05 sfrom start to end"
        assert facts[3] == "4rows quarantined"
        row = page.locator("tr", has_text="quadruple")
        assert row.locator("td").all_text_contents()[:3] == ["24", "21", "tie 3"]
        widths = page.evaluate(
            "[...document.querySelectorAll('.models .fill')].map((e) => e.getBoundingClientRect().width)"
        )
        ratio = widths[1] / widths[0]
        assert abs(ratio - 0.55 / 0.41) < 0.02


def test_an_older_state_of_the_run_is_not_drawn_over_a_newer_one(visit, service):
    with visit(f"{service}/ui#run") as page:
        page.locator(".stage-group").first.wait_for()
        held = hold(page, "**/ui/data/run")
        for number in (1, 2):
            page.get_by_role("button", name="Refresh").click()
            until_held(page, held, number)
        run = page.request.get(f"{service}/ui/data/run").json()
        for late, name in ((1, "newer"), (0, "older")):
            run["run"]["name"] = name
            held[late].fulfill(json=run)
            page.wait_for_timeout(300)
            assert page.locator(".run-head h2").text_content() == "newer"


def test_models_that_come_later_are_offered_without_a_reload(visit):
    app = make_app(chats=[Chat("one")], rewards=[Reward()])
    with serving(app) as url:
        with visit(f"{url}/ui") as page:
            page.locator("#chat-message").wait_for()
            assert page.locator("#chat-right").input_value() == ""
            chat(page, "hello", answers=1)
            assert page.locator(".answer").count() == 1
            assert page.locator("[data-choice]").count() == 0
