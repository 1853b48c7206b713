"""Records of row layouts as their publishers show them, rows to export, and the text and the reader that tests of layouts share."""

import dataclasses
import json
from pathlib import Path

from hypothesis import strategies as st

from fusion.rows import (
    Finish,
    PreferencePair,
    PreferenceQuadruple,
    PreferenceSet,
    ResponseGroup,
    SftExample,
    Verdict,
    WeightedGroups,
    WeightedPairs,
    WeightedResponses,
)
from scored import prompt, scored

ALPHABET = 'aé日🙂\n"\\\u2028\0 #'
TEXT = st.text(ALPHABET, max_size=6).map(str.strip)

Q = {"role": "user", "content": "Translate: kerro minulle"}
A = {"role": "assistant", "content": "Tell me"}
B = {"role": "assistant", "content": "Here: tell me"}
C = {"role": "assistant", "content": "Tell"}
SHA = "3ebac2832721f4ef8e9ead1bb19e251e5d21d60dbd9f89cae931fe4aac900058"

PUBLISHED = {
    "README of WRPO": ("wrpo", {"prompt_id": SHA, "prompt": Q, "chosen": [A, B], "rejected": [C]}),
    "WRPO, prompt as text": ("wrpo", {"prompt_id": SHA, "prompt": Q["content"], "chosen": [A, B], "rejected": [C]}),
    "TRL, prompt only": ("trl", {"prompt": [Q]}),
    "TRL, SFT": ("trl", {"messages": [Q, A]}),
    "TRL, prompt-completion": ("trl", {"prompt": [Q], "completion": [A]}),
    "TRL, preference": ("trl", {"prompt": [Q], "chosen": [A], "rejected": [C]}),
    "TRL, implicit prompt": ("trl", {"chosen": [Q, A], "rejected": [Q, C]}),
    "TRL, standard": ("trl", {"prompt": Q["content"], "chosen": "Tell me", "rejected": "Tell"}),
    "TRL, unpaired": ("trl_unpaired", {"prompt": [Q], "completion": [A], "label": True}),
    "SimPO, before selection": (
        "simpo",
        {"prompt": Q["content"], "all_generated_responses": ["Tell", "Tell me"], "all_rm_scores": [0.1, 0.2]},
    ),
    "SimPO, after selection": (
        "simpo",
        {
            "prompt_id": SHA, "prompt": Q["content"], "all_generated_responses": ["Tell", "so", "Tell me"],
            "all_rm_scores": [0.1, 0.15, 0.2], "chosen": [Q, A], "rejected": [Q, C],
        },
    ),
    "UltraFeedback binarized": (
        "binarized",
        {
            "prompt": Q["content"], "prompt_id": SHA, "chosen": [Q, A], "rejected": [Q, C], "messages": [Q, A],
            "score_chosen": 8.5, "score_rejected": 7.0,
        },
    ),
    "FuseChat-3.0 SFT-Data": (
        "fusechat3",
        {
            "dataset": "openmathinstruct2", "source_model": "Qwen2.5-72B-Instruct",
            "conversations": [{"from": "human", "value": Q["content"]}, {"from": "gpt", "value": "Tell me"}],
        },
    ),
    "FuseChat-3.0 DPO-Data": (
        "fusechat3",
        {"dataset": "ultrafeedback", "source_model": "gemma", "prompt": [Q], "chosen": [A], "rejected": [C]},
    ),
    "LLaMA-Factory sharegpt": (
        "sharegpt",
        {
            "conversations": [{"from": "human", "value": Q["content"]}], "chosen": {"from": "gpt", "value": "Tell me"},
            "rejected": {"from": "gpt", "value": "Tell"}, "system": "be short",
        },
    ),
    "LLaMA-Factory alpaca": (
        "alpaca",
        {
            "instruction": "Translate:", "input": "kerro minulle", "output": "Tell me", "system": "be short",
            "history": [["hi", "hello"]],
        },
    ),
    "LLaMA-Factory alpaca, preference": (
        "alpaca", {"instruction": "Translate: kerro minulle", "input": "", "chosen": "Tell me", "rejected": "Tell"}
    ),
    "distilabel generations": (
        "distilabel",
        {
            "instruction": Q["content"], "generations": ["Tell", "Tell me"], "generation_models": ["x", "y"],
            "ratings": [3, 5], "rationales": ["", ""],
        },
    ),
    "distilabel generation": (
        "distilabel", {"system_prompt": "be short", "instruction": Q["content"], "generation": "Tell me", "model_name": "y"}
    ),
    "distilabel DPO": (
        "distilabel",
        {
            "instruction": Q["content"], "generations": ["Tell", "Tell me"], "generation_models": ["x", "y"],
            "ratings": [3, 5], "prompt": Q["content"], "prompt_id": SHA, "chosen": [Q, A], "chosen_model": "y",
            "chosen_rating": 5, "rejected": [Q, C], "rejected_model": "x", "rejected_rating": 3,
        },
    ),
    "distilabel DPO, its own columns alone": (
        "distilabel",
        {
            "prompt": Q["content"], "prompt_id": SHA, "chosen": [Q, A], "chosen_model": "y", "chosen_rating": 5,
            "rejected": [Q, C], "rejected_model": "x", "rejected_rating": 3,
        },
    ),
}  # fmt: skip
"""Records as the publishers' own documents show them."""


def row_for(row_type: type, p: str):
    """A row that answers the prompt `p`, with verdicts, several models and a weight."""
    a, b, c = (scored(model, score, prompt_id=p) for model, score in (("a", 5.5), ("b", 4.0), ("c", 1.0)))
    a = dataclasses.replace(a, verdict=Verdict.correct)
    c = dataclasses.replace(c, verdict=Verdict.wrong, verdict_reason="timeout")
    cut = scored("sft", 0.0, 3, prompt_id=p, finish=Finish.length)
    best = scored("sft", 3.0, 1, prompt_id=p)
    held = {
        SftExample: (a,),
        PreferencePair: (a, c),
        PreferenceQuadruple: (a, best, cut),
        PreferenceSet: ((a, b), best, (c,), cut),
        ResponseGroup: ((a, c),),
        WeightedResponses: ((a, b), (0.75, 0.25)),
        WeightedPairs: ((a, b), (c, c), (0.75, 0.25)),
        WeightedGroups: ((a, b, a, c), (0, 0, 1, 1), (0.5, 0.5)),
    }
    return row_type(prompt(p, domain="math"), *held[row_type], weight=0.5)


def lines_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]
