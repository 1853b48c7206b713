"""The report: well formed, self-contained, safe with hostile names, and complete where data is missing."""

import math
import re
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion.report import build_summary, render
from fusion.report.plots import Series, histogram, line_chart, number, smooth, tick_text, ticks
from tests import report_data as data

VOID = {"meta", "br", "hr", "img", "input", "link"}


class Page(HTMLParser):
    """Collects text, attributes and tags; fails on a tag that is closed out of order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == [], self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, (tag, self.open[-3:])
        self.open.pop()

    def handle_data(self, text):
        self.text += text


def rendered(**changes):
    parts = {
        "summary": data.summary(),
        "selections": data.selections(),
        "scores": data.scores(),
        "curves": data.curves(),
        "notices": {},
    } | changes
    return render(parts.pop("summary"), **parts)


def test_report_is_well_formed_and_self_contained():
    text = rendered()
    page = Page(text)
    assert not set(page.tags) & {"script", "link", "img", "iframe", "object", "embed", "base"}
    assert not re.search(r"https?:|//[a-z]|@import|url\(", text)
    assert all(value.startswith("#") for name, value in page.attributes if name in ("href", "src", "xlink:href"))
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert len(text) < 600_000


def test_report_shows_the_numbers():
    page = Page(rendered())
    for name in data.REWARDS:
        assert name in page.text
    assert "0.765" in page.text and "0.745 to 0.785" in page.text
    assert "wrpo − dpo_on_policy" in page.text and "+0.028" in page.text
    assert "sft_all has the highest reward: 0.765" in page.text
    for title in ("Reward margin", "Log-probability: wrpo", "SFT loss", "Wins per source", "Dropped, by reason"):
        assert title in page.text
    assert "tie 61, identical_text 27" in page.text
    assert "17 min 24 s" in page.text


def test_only_the_best_of_a_column_is_bold():
    text = rendered()
    cells = re.findall(r'<td class="best" data-metric="([^"]+)"><b>([^<]+)</b>', text)
    assert cells == [("reward", "0.765"), ("exact", "0.588"), ("greedy reward", "0.854"), ("greedy exact", "0.710")]


def test_a_difference_that_holds_zero_is_marked_as_open():
    text = rendered()
    found = {label: tone for tone, label in re.findall(r'class="track (\w*)"[^>]*aria-label="([^":]+):', text)}
    assert found["wrpo - dpo_on_policy, exact"] == "open"
    assert found["wrpo - dpo_on_policy, reward"] == ""


HOSTILE = "<script>alert('x')</script>\"&<img src=x onerror=alert(1)>"


def test_hostile_names_stay_text():
    summary = data.summary()
    summary["recipe"] = HOSTILE
    summary["benchmark"] = HOSTILE
    summary["models"] = {HOSTILE: summary["models"]["wrpo"], "b": summary["models"]["sft"]}
    summary["answers"] = {HOSTILE: {HOSTILE: {"mean_tokens": 1.0, "share_finished": 1.0}}}
    summary["differences"] = [{**summary["differences"][0], "a": HOSTILE}]
    summary["stages"] = [{**summary["stages"][0], "stage": f"score/{HOSTILE}", "key": HOSTILE, "reasons": {HOSTILE: 3}}]
    notes = data.select_notes(HOSTILE, 1.0, {HOSTILE: 2})
    notes["wins"] = {HOSTILE: {"count": 3, "share": 1.0}}
    notes["wins_by_domain"] = {HOSTILE: {HOSTILE: 3}, "d": {HOSTILE: 1}}
    notes["lengths"] = {HOSTILE: {"mean_characters": 3.0}}
    entry = data.scores()["sft"]["scores"][0] | {"model": HOSTILE, "decoding": HOSTILE, "scorer": HOSTILE}
    line = {"step": 1, "loss": 0.5, "rewards/margins": 0.1, f"logps/{HOSTILE}": -3.0}
    text = render(
        summary,
        selections={HOSTILE: notes},
        scores={HOSTILE: {"scores": [entry]}},
        curves={HOSTILE: [line, {**line, "step": 2}]},
        notices={HOSTILE: [{"name": HOSTILE, "step": 3, "text": HOSTILE}]},
    )
    page = Page(text)
    assert "script" not in page.tags and "img" not in page.tags
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert HOSTILE in page.text


def test_missing_parts_say_so():
    nothing = build_summary(recipe_name="r", stages=[], evaluate=None, total_seconds=0.0)
    page = Page(render(nothing, selections={}, scores={}, curves={}, notices={}))
    for text in (
        "no evaluate block",
        "nothing to compare",
        "no training metrics",
        "No training responses",
        "No rows were",
    ):
        assert text in page.text
    assert "Nothing was run" in page.text


def test_metrics_that_are_none_are_not_stated():
    summary = data.summary()
    summary["models"]["sft"]["exact"] = None
    for metrics in summary["models"].values():
        metrics["greedy_exact"] = None
    summary["differences"] = [d for d in summary["differences"] if d["metric"] != "greedy_exact"]
    page = Page(rendered(summary=summary))
    assert "not stated" in page.text and "greedy exact" not in page.text


def test_curves_with_holes_resumed_steps_and_nan():
    lines = [{"step": i, "loss": 1.0 / i, "rewards/margins": math.nan if i == 3 else float(i)} for i in range(1, 9)]
    lines[5:5] = [{"step": 4, "loss": 7.0, "rewards/margins": 4.0}]  # a resumed run writes step 4 again
    lines[1] = {"step": 2, "loss": None, "rewards/margins": 2.0}
    text = rendered(curves={"arm": lines})
    assert "arm, step 4: 7.000" in text and "arm, step 4: 0.250" not in text
    assert (
        "arm, step 3: 3" not in text
        and "arm, step 2: 0.5" not in text
        and "nan" not in text.lower().replace("finan", "")
    )


def test_one_point_and_constant_values_can_be_drawn():
    text = rendered(curves={"arm": [{"step": 1, "loss": 0.5}], "same": [{"step": i, "loss": 2.0} for i in range(9)]})
    Page(text)
    assert "NaN" not in text and "inf" not in re.findall(r'd="([^"]*)"', text)


def test_stage_without_rows_or_time():
    summary = data.summary()
    summary["stages"] = [{**summary["stages"][0], "seconds": 0.0, "rows_in": 0, "rows_out": 0}]
    assert "0.0 s" in Page(rendered(summary=summary)).text


# ---- plots ------------------------------------------------------------------------------------


def test_ticks_are_round():
    assert ticks(0.13, 0.94) == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert ticks(-21.9, -11.2) == [-25.0, -20.0, -15.0, -10.0]
    assert ticks(1, 62) == [0.0, 20.0, 40.0, 60.0, 80.0]


@settings(deadline=None)
@given(st.floats(-1e6, 1e6), st.floats(0, 1e6))
def test_ticks_span_their_range_and_are_few(low, width):
    high = low + width
    marks = ticks(low, high)
    slack = 1e-6 * max(1.0, abs(low), abs(high))
    assert marks[0] <= low + slack and marks[-1] >= high - slack
    assert 2 <= len(marks) <= 9 and marks == sorted(set(marks))


def test_numbers_for_people():
    assert [number(v) for v in (0.0, 0.12345, -1.5, 123.456, 1234567.0)] == [
        "0",
        "0.123",
        "−1.500",
        "123.5",
        "1,234,567",
    ]
    assert number(0.25, sign=True) == "+0.250"
    assert (tick_text(0.2, 0.2), tick_text(-5.0, 5.0), tick_text(20000.0, 5000.0)) == ("0.2", "−5", "20k")


def test_smoothing_keeps_lines_and_removes_noise():
    straight = [(float(i), 2.0 * i) for i in range(100)]
    inner = smooth(straight)[10:-10]
    assert [y for _, y in inner] == pytest.approx([y for _, y in straight[10:-10]])
    saw = smooth([(float(i), float(i % 2)) for i in range(100)])
    assert max(abs(y - 0.5) for _, y in saw) <= 0.2


def test_long_series_are_averaged_in_buckets():
    text = line_chart("t", [Series("s", tuple((float(i), 1.0) for i in range(10_000)), 0)])
    assert text.count("<circle") == 80


def test_line_goes_through_its_points():
    """x 0 to 10 spans 46 to 350; y ticks are 0 to 10 over 176 to 10: the point (10, 10) is at (350, 10)."""
    text = line_chart("t", [Series("s", ((0.0, 0.0), (10.0, 10.0)), 0)])
    assert 'd="M46.0,176.0L350.0,10.0"' in text


def test_histogram_columns_have_the_share_of_their_bin():
    text = histogram("t", [1, 3], [0.0, 0.5, 1.0], mean=0.6, x_range=(0.0, 1.0))
    assert "0 to 0.500: 1 (25.0%)" in text and "0.500 to 1.000: 3 (75.0%)" in text
    heights = [float(h) for h in re.findall(r'class="column"[^>]* height="([\d.]+)"', text)]
    assert heights[1] == pytest.approx(3 * heights[0], rel=0.02)


def test_alarms_and_held_out_curves_are_shown():
    told = {"wrpo": [{"name": "chosen_falling", "step": 40, "text": "the log-probability has fallen by 5.0 nats"}]}
    lines = [{"step": i, "loss": 0.6, "rewards/margins": 0.1, "eval/loss": 0.5, "lengths/tilt": 0.1} for i in (1, 2)]
    text = rendered(curves={"wrpo": lines}, notices=told)
    assert "<b>wrpo</b>, step 40: the log-probability has fallen by 5.0 nats" in text
    assert "Held-out loss" in text and "Length tilt" in text and "Held-out reward accuracy" not in text
    quiet = rendered(curves={"wrpo": [{"step": 1, "loss": 0.6}]})
    assert "Noticed while training" not in quiet and "Held-out loss" not in quiet
