"""Imports of published rows: every record is taken or quarantined, and what was asked wrongly is told in one line."""

import json
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import TypeAdapter

from fusion.errors import InputError
from fusion.layouts import LAYOUTS, layout_named
from fusion.layouts.importing import import_files
from fusion.promptsets.common import DomainName
from fusion.promptsets.existing import ExistingAnswers
from fusion.promptsets.files import JsonlFile
from fusion.promptsets.records import Refused, to_prompt
from fusion.row_files import read_rows, row_type_of
from fusion.rows import Message, Prompt
from jobs.layout_driver import export_rows, import_rows
from layout_examples import PUBLISHED, SHA, A, B, C, Q, lines_of

# ---- imports ----------------------------------------------------------------------------------


def write_lines(path: Path, *records) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_an_import_accounts_for_every_record(tmp_path, capsys):
    good = {"prompt_id": "a", "prompt": Q, "chosen": [A, B], "rejected": [C]}
    source = write_lines(
        tmp_path / "w.jsonl",
        good,
        good | {"prompt_id": "b", "chosen": [A]},
        good | {"prompt": "another question"},
        good | {"prompt_id": "c", "chosen_scores": [1, 2], "rejected_scores": [3]},
        good | {"prompt_id": "d", "chosen_models": ["gemma", None], "domain": "math"},
        good,
    )
    done = import_rows([source], "wrpo", tmp_path / "in", domain="chat", model="llama")
    assert (done.records, done.taken, dict(done.refused)) == (6, 3, {"bad_field": 1, "id_conflict": 1, "not_a_row": 1})
    assert done.records == done.taken + sum(done.refused.values())
    out = capsys.readouterr().out
    assert "6 records in = 3 taken + 3 quarantined (bad_field 1, id_conflict 1, not_a_row 1)" in out
    assert "3 rows say only which answer is better" in out
    refused = lines_of(tmp_path / "in/quarantine.jsonl")
    assert [(line["row_id"], line["reason"]) for line in refused] == [
        (f"{source}:2", "bad_field"), (f"{source}:3", "id_conflict"), (f"{source}:4", "not_a_row")
    ]  # fmt: skip
    assert "chosen score 2.0 is not above rejected score 3.0" in refused[2]["detail"]
    prompts_read = lines_of(tmp_path / "in/prompts.jsonl")
    assert prompts_read == [
        {"id": "a", "domain": "chat", "messages": [Q]}, {"id": "d", "domain": "math", "messages": [Q]}
    ]  # fmt: skip
    read = lines_of(tmp_path / "in/answers.jsonl")
    assert [(a["id"], a["model"], a["sample"], a["role"], a["response"]) for a in read] == [
        ("a", "llama", 0, "source_chosen", "Tell me"),
        ("a", "sft", 0, "target_chosen", "Here: tell me"),
        ("a", "sft", 1, "rejected", "Tell"),
        ("d", "gemma", 0, "source_chosen", "Tell me"),
        ("d", "sft", 0, "target_chosen", "Here: tell me"),
        ("d", "sft", 1, "rejected", "Tell"),
    ]
    assert not any("score" in answer for answer in read)  # the file says none
    assert [row.row_id for row in read_rows(tmp_path / "in/rows.parquet")] == ["a", "d", "a#2"]
    summary = json.loads((tmp_path / "in/import.json").read_text())
    assert (summary["finished"], summary["records"], summary["quarantined"]) == (True, 6, dict(done.refused))


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_half_a_pair_is_quarantined_and_what_gives_no_row_is_counted(tmp_path, capsys, suffix):
    records = [
        {"prompt": "q1", "chosen": "good", "rejected": None},
        {"prompt": "q2", "chosen": "good", "rejected": "bad"},
        {"prompt": "q3", "chosen": None, "rejected": "bad"},
        {"prompt": "q4", "chosen": None, "rejected": None},
    ]
    source = write_lines(tmp_path / "half.jsonl", *records)
    if suffix == ".parquet":
        source = tmp_path / "half.parquet"
        pq.write_table(pa.Table.from_pylist(records), source)
    done = import_rows([source], "trl", tmp_path / "in")
    assert (done.taken, done.rows, done.without_row, dict(done.refused)) == (2, 1, 1, {"missing_side": 2})
    assert "1 records gave no row: prompts alone, or answers that no score compares" in capsys.readouterr().out
    assert [line["detail"] for line in lines_of(tmp_path / "in/quarantine.jsonl")] == [
        "chosen is there and rejected is null; a pair needs both, other rows neither",
        "rejected is there and chosen is null; a pair needs both, other rows neither",
    ]
    assert json.loads((tmp_path / "in/import.json").read_text())["without_row"] == 1


def test_a_row_of_another_layout_has_what_is_not_null(tmp_path):
    record = {"prompt_id": "a", "prompt": Q, "chosen": None, "rejected": [C]}
    with pytest.raises(Refused) as caught:
        LAYOUTS["wrpo"].example(record, domain="d")
    assert caught.value.reason == "wrong_layout"
    assert caught.value.detail.endswith("the row has: prompt_id, prompt, rejected (null: chosen)")
    source = write_lines(tmp_path / "w.jsonl", {"prompt": "q", "chosen": None, "rejected": None})
    with pytest.raises(InputError, match=re.escape("it has prompt (null: chosen, rejected), as in: --layout trl")):
        import_rows([source], "wrpo", tmp_path / "in")


TURN_Q = {"from": "human", "value": "q"}
WORTHLESS = {
    "sharegpt, empty": ("sharegpt", {"conversations": [TURN_Q, {"from": "gpt", "value": ""}]}, "empty_response"),
    "alpaca, empty": ("alpaca", {"instruction": "q", "output": ""}, "empty_response"),
    "alpaca, blank": ("alpaca", {"instruction": "q", "output": " \n\t"}, "empty_response"),
    "trl, empty chosen": ("trl", {"prompt": "q", "chosen": "", "rejected": "bad"}, "empty_response"),
    "trl, blank rejected": ("trl", {"prompt": "q", "chosen": "good", "rejected": " "}, "empty_response"),
    "trl, empty completion": ("trl", {"prompt": "q", "completion": ""}, "empty_response"),
    "trl_unpaired, empty": ("trl_unpaired", {"prompt": "q", "completion": "", "label": False}, "empty_response"),
    "distilabel, empty": ("distilabel", {"instruction": "q", "generation": " "}, "empty_response"),
    "wrpo, empty source answer": ("wrpo", {"prompt": "q", "chosen": ["", "b"], "rejected": ["c"]}, "empty_response"),
    "a group with an empty answer": (
        "simpo", {"prompt": "q", "all_generated_responses": ["a", ""], "all_rm_scores": [1, 0]}, "empty_response"
    ),
    "trl, one text": ("trl", {"prompt": "q", "chosen": "x", "rejected": "x"}, "identical_text"),
    "trl, one text with white space": ("trl", {"prompt": "q", "chosen": "x", "rejected": " x\n"}, "identical_text"),
    "binarized, one text": ("binarized", {"chosen": [Q, A], "rejected": [Q, A], "score_chosen": 2, "score_rejected": 1}, "identical_text"),
    "simpo, one text": (
        "simpo",
        {"prompt": Q["content"], "all_generated_responses": ["Tell me", "Tell me"], "chosen": [Q, A], "rejected": [Q, A]},
        "identical_text",
    ),
    "sharegpt, one text": (
        "sharegpt", {"conversations": [TURN_Q], "chosen": {"from": "gpt", "value": "a"}, "rejected": {"from": "gpt", "value": "a"}},
        "identical_text",
    ),
    "wrpo, one own text": ("wrpo", {"prompt": "q", "chosen": ["a", "b"], "rejected": ["b"]}, "identical_text"),
    "a group of one text": (
        "simpo", {"prompt": "q", "all_generated_responses": ["a", "a"], "all_rm_scores": [0.1, 0.1]}, "identical_text"
    ),
    "a group whose best is its worst": (
        "simpo", {"prompt": "q", "all_generated_responses": ["a", "b", "a"], "all_rm_scores": [3, 2, 1]}, "identical_text"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WORTHLESS)
def test_what_teaches_nothing_is_no_row(tmp_path, name):
    layout, record, reason = WORTHLESS[name]
    good = next(published for of, published in PUBLISHED.values() if of == layout)
    done = import_rows([write_lines(tmp_path / "w.jsonl", good, record)], layout, tmp_path / "in")
    assert (done.records, done.taken, dict(done.refused)) == (2, 1, {reason: 1})
    assert "\n" not in lines_of(tmp_path / "in/quarantine.jsonl")[0]["detail"]


def test_groups_that_can_be_told_apart_stay_rows(tmp_path):
    """As in the rule response_group: two answers may be one text where the best and the worst are not."""
    group = {"prompt": "q", "all_generated_responses": ["a", "a", "b"], "all_rm_scores": [3, 2, 1]}
    unscored = {"prompt": "r", "all_generated_responses": ["a", "a"]}
    done = import_rows([write_lines(tmp_path / "g.jsonl", group, unscored)], "simpo", tmp_path / "in")
    assert (done.taken, done.rows, done.without_row) == (2, 1, 1)


def test_a_source_answer_to_avoid_that_is_preferred_leaves_the_row(tmp_path, capsys):
    """As in the rule preference_set; it is an answer all the same, of a source."""
    record = {
        "prompt": "q",
        "chosen": ["a", "b"],
        "rejected": ["a", "no", "c"],
        "rejected_models": ["llama", None, None],
    }
    done = import_rows([write_lines(tmp_path / "w.jsonl", record)], "wrpo", tmp_path / "in")
    (row,) = read_rows(tmp_path / "in/rows.parquet")
    assert [held.response.text for held in row.source_rejected] == ["no"] and done.narrowed == 1
    assert ("llama", "other", "a") in [
        (one["model"], one["role"], one["response"]) for one in lines_of(tmp_path / "in/answers.jsonl")
    ]
    assert "1 rows go without an answer to avoid that is also a preferred one" in capsys.readouterr().out


def test_answers_that_come_again_are_counted(tmp_path, capsys):
    pairs = [{"prompt": "q", "chosen": "a", "rejected": worse} for worse in ("b", "c", "b")]
    done = import_rows([write_lines(tmp_path / "p.jsonl", *pairs)], "trl", tmp_path / "in")
    assert (done.answers, done.same_answers) == (3, 3) and done.answers + done.same_answers == 2 * done.taken
    assert "answers.jsonl (3 the same as an earlier one)" in capsys.readouterr().out
    assert json.loads((tmp_path / "in/import.json").read_text())["same_answers"] == 3


def test_only_rows_that_compare_answers_say_which_is_better(tmp_path, capsys):
    sft = import_rows([write_lines(tmp_path / "s.jsonl", {"messages": [Q, A]})], "trl", tmp_path / "sft")
    assert (sft.rows, sft.without_scores) == (1, 0) and "only which answer is better" not in capsys.readouterr().out
    pair = import_rows([write_lines(tmp_path / "p.jsonl", PUBLISHED["TRL, standard"][1])], "trl", tmp_path / "pair")
    assert (pair.rows, pair.without_scores) == (1, 1) and "only which answer is better" in capsys.readouterr().out


NAMES = ["a b", "a/b", "a\nb", "x" * 65, "a\u2028b", "\x1b[2J"]


@pytest.mark.parametrize("domain", NAMES)
def test_domains_are_those_that_a_recipe_can_name(tmp_path, domain):
    record = {"messages": [Q, A]}
    assert not TypeAdapter(DomainName).validator.isinstance_python(domain)
    source = write_lines(tmp_path / "s.jsonl", record, record | {"domain": domain}, record | {"domain": "x" * 64})
    done = import_rows([source], "trl", tmp_path / "in")
    assert (done.taken, dict(done.refused)) == (2, {"bad_field": 1})
    with pytest.raises(
        InputError, match=r"--domain '.+' must be 1 to 64 characters without white space and /"
    ) as caught:
        import_rows([source], "trl", tmp_path / "in", domain=domain)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("model", ["", "a\nb", "x" * 257])
def test_a_model_has_a_name(tmp_path, model):
    source = write_lines(tmp_path / "s.jsonl", {"messages": [Q, A]})
    with pytest.raises(
        InputError, match="--model is empty, longer than 256 characters or holds control characters; name"
    ):
        import_rows([source], "trl", tmp_path / "in", model=model)
    assert not (tmp_path / "in").exists()


def test_records_that_come_again_are_kept_and_counted(tmp_path, capsys):
    pair = {"prompt": "q", "chosen": "a", "rejected": "b"}
    source = write_lines(tmp_path / "p.jsonl", pair, pair | {"rejected": "c"}, pair, pair | {"weight": 0.5})
    done = import_rows([source], "trl", tmp_path / "in")
    assert (done.rows, done.repeated) == (4, 1)
    assert "1 records say the same as an earlier one; they are kept" in capsys.readouterr().out
    done = import_rows([source, source], "trl", tmp_path / "in")
    assert (done.rows, done.repeated, done.prompts) == (8, 5, 1)
    assert json.loads((tmp_path / "in/import.json").read_text())["repeated"] == 5


def test_names_of_what_is_printed_stand_apart(tmp_path, capsys):
    source = write_lines(tmp_path / "p.jsonl", PUBLISHED["TRL, unpaired"][1] | {"completion_score": 1})
    import_rows([source], "trl_unpaired", tmp_path / "in")
    one = {"prompt": "q", "generations": ["a", "b"], "ratings": [1, 0], "generation_verdicts": ["correct", "wrong"]}
    import_rows([write_lines(tmp_path / "d.jsonl", one)], "distilabel", tmp_path / "groups")
    capsys.readouterr()
    export_rows([tmp_path / "groups"], "trl_unpaired", tmp_path / "u.jsonl")
    lines = capsys.readouterr().out.splitlines()
    assert f"trl_unpaired: {tmp_path / 'u.jsonl'}" in lines[2] and lines[1].startswith("examples:   1 examples in")


def test_sets_widen_the_quadruples_before_them(tmp_path):
    quadruple = {"prompt": "q", "chosen": [A, B], "rejected": [C]}
    wide = {"prompt": "r", "chosen": [A, C, B], "rejected": [{"role": "assistant", "content": "no"}, C]}
    source = write_lines(tmp_path / "w.jsonl", quadruple, wide, quadruple | {"prompt": "s"})
    done = import_rows([source], "wrpo", tmp_path / "in")
    assert (done.rows, done.row_type) == (3, "PreferenceSet")
    rows = list(read_rows(tmp_path / "in/rows.parquet"))
    assert [(len(row.source_chosen), len(row.source_rejected)) for row in rows] == [(1, 0), (2, 1), (1, 0)]
    assert {path.name for path in (tmp_path / "in").iterdir()} == {
        "prompts.jsonl", "answers.jsonl", "rows.parquet", "import.json"
    }  # fmt: skip


def test_rows_of_two_types_in_one_file_are_not_mixed(tmp_path):
    source = write_lines(
        tmp_path / "t.jsonl", {"messages": [Q, A]}, {"prompt": "q", "chosen": "a", "rejected": "b"}, {"prompt": "z"}
    )
    done = import_rows([source], "trl", tmp_path / "in")
    assert (done.row_type, done.rows, dict(done.refused), done.prompts) == ("SftExample", 1, {"other_row_type": 1}, 2)


def test_made_up_row_ids_collide_with_nobody(tmp_path):
    pair = {"prompt": "q", "chosen": "a", "rejected": "b"}
    source = write_lines(
        tmp_path / "t.jsonl",
        pair | {"prompt_id": "x"}, pair | {"prompt_id": "x"}, pair | {"prompt_id": "x#2"},
        pair | {"prompt_id": "y#2"}, pair | {"prompt_id": "y"}, pair | {"prompt_id": "y"},
    )  # fmt: skip
    done = import_rows([source], "trl", tmp_path / "in")
    assert [row.row_id for row in read_rows(tmp_path / "in/rows.parquet")] == ["x", "x#2", "y#2", "y"]
    assert dict(done.refused) == {"id_conflict": 2}


def test_a_second_import_replaces_the_first_and_nothing_else(tmp_path):
    pairs = write_lines(tmp_path / "p.jsonl", {"prompt": "q", "chosen": "a", "rejected": "b"}, {"prompt": 3})
    alone = write_lines(tmp_path / "q.jsonl", {"prompt": "q"})
    import_rows([pairs], "trl", tmp_path / "in")
    assert (tmp_path / "in/rows.parquet").exists() and (tmp_path / "in/quarantine.jsonl").exists()
    import_rows([alone], "trl", tmp_path / "in")
    assert {path.name for path in (tmp_path / "in").iterdir()} == {"prompts.jsonl", "answers.jsonl", "import.json"}
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/prompts.jsonl").write_text("precious")
    with pytest.raises(InputError, match="holds something that fuseline import has not written"):
        import_rows([alone], "trl", tmp_path / "mine")
    assert (tmp_path / "mine/prompts.jsonl").read_text() == "precious"
    nothing = write_lines(tmp_path / "x.jsonl", {"x": 1})
    with pytest.raises(InputError, match=r"nothing of layout wrpo in .*x\.jsonl:1: wrong_layout: wrpo needs prompt \+"):
        import_rows([nothing], "wrpo", tmp_path / "new/deeper")
    assert not (tmp_path / "new").exists()  # nothing is left of what came to nothing


def test_prompts_and_answers_of_an_import_are_what_prompt_sets_read(tmp_path):
    import_rows([write_lines(tmp_path / "w.jsonl", PUBLISHED["SimPO, after selection"][1])], "simpo", tmp_path / "in")
    (record,) = lines_of(tmp_path / "in/prompts.jsonl")
    assert to_prompt(record, domain=None) == Prompt(SHA, "general", (Message("user", Q["content"]),))
    read = lines_of(tmp_path / "in/answers.jsonl")
    assert [(a["role"], a["score"]) for a in read] == [("rejected", 0.1), ("other", 0.15), ("chosen", 0.2)]
    source = ExistingAnswers(data=JsonlFile(path=tmp_path / "in/answers.jsonl"), match="id")
    found = [one.answer for one in source.answers()]
    assert [(one.key, one.text) for one in found] == [(SHA, "Tell"), (SHA, "so"), (SHA, "Tell me")]


def test_what_a_stranger_wrote_does_not_reach_the_terminal(tmp_path):
    evil = "\x1b[2J\nerror: \x9b"
    for record, said in (
        ({evil: 1}, r"\x1b[2J\nerror"),
        (
            {
                "prompt_id": "a\x9b",
                "prompt": "q",
                "chosen": "a",
                "rejected": "b",
                "chosen_score": 1,
                "rejected_score": 2,
            },
            "row a?: chosen score",
        ),
    ):
        source = write_lines(tmp_path / "x.jsonl", record)
        with pytest.raises(InputError, match=re.escape(said)) as caught:
            import_rows([source], "trl", tmp_path / "in")
        assert str(caught.value).isprintable()


def test_a_wrong_layout_is_told_with_the_right_one(tmp_path):
    source = write_lines(tmp_path / "s.jsonl", PUBLISHED["LLaMA-Factory sharegpt"][1])
    with pytest.raises(InputError, match=r"s\.jsonl:1 is not of layout wrpo, .*as in: --layout .*sharegpt") as caught:
        import_files([source], layout_named("wrpo"), tmp_path / "in")
    assert caught.value.exit_code == 2 and not (tmp_path / "in").exists()


# ---- training rows in a file ------------------------------------------------------------------


def test_a_file_of_rows_that_is_none_is_refused_with_its_name(tmp_path):
    path = tmp_path / "rows.parquet"
    for content, said in ((None, "is not a file"), (b"PAR1", "is not a readable Parquet file")):
        if content:
            path.write_bytes(content)
        with pytest.raises(InputError, match=said):
            row_type_of(path)
    pq.write_table(pa.table({"prompt": ["q"]}), path)
    with pytest.raises(InputError, match="its schema names no row type"):
        row_type_of(path)
    import_rows(
        [write_lines(tmp_path / "w.jsonl", *({"prompt": f"q{n}", "chosen": "a", "rejected": "b"} for n in range(3)))],
        "trl",
        tmp_path / "in",
    )
    table = pq.read_table(tmp_path / "in/rows.parquet")
    pq.write_table(table.drop_columns(["weight"]), path)
    with pytest.raises(InputError, match=r"rows\.parquet: these rows are not PreferencePair") as caught:
        list(read_rows(path))
    assert "\n" not in str(caught.value)
    rows = table.to_pylist()
    rows[1]["chosen"]["score"] = -1.0
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), path)
    with pytest.raises(InputError, match=r"rows\.parquet:1: row .*chosen score -1.0 is not above rejected score 0.0"):
        list(read_rows(path))
