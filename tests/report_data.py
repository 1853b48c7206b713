"""A made-up but realistic run of the demo recipe, for tests and for looking at the report."""

import math

import numpy as np

from fusion.report import StageReport, build_summary
from fusion.stages.statistics import histogram
from fusion.stages.statistics import summary as summary_of

SOURCES = ("llama-add", "qwen2-sort", "gemma2-translate", "mistral-reverse")
REWARDS = {
    "target": (0.271, 0.249, 0.349, 0.31),
    "sft": (0.383, 0.314, 0.363, 0.32),
    "dpo_off_policy": (0.521, 0.392, 0.463, 0.4),
    "dpo_on_policy": (0.651, 0.467, 0.794, 0.61),
    "wrpo": (0.679, 0.482, 0.804, 0.62),
    "sft_all": (0.765, 0.588, 0.854, 0.71),
    "llama-add": (0.625, 0.389, 0.66, 0.41),
    "qwen2-sort": (0.61, 0.38, 0.64, 0.39),
    "gemma2-translate": (0.598, 0.371, 0.63, 0.385),
    "mistral-reverse": (0.604, 0.375, 0.64, 0.38),
}
PAIRS = [("sft", "target"), ("wrpo", "sft"), ("dpo_on_policy", "dpo_off_policy"), ("wrpo", "dpo_on_policy")]
PAIRS += [("sft_all", "wrpo"), *(("wrpo", source) for source in SOURCES)]
METRICS = ("reward", "exact", "greedy_reward", "greedy_exact")


def interval(mean, half):
    return {"mean": mean, "low": mean - half, "high": mean + half}


def stages():
    yield StageReport("prompts/held-out", "prompts", "held-out", "0a1b2c3d4e5f", 0.21, 320, 320, {}, hit=True)
    yield StageReport(
        "prompts/train",
        "prompts",
        "train",
        "1a1b2c3d4e5f",
        0.3,
        1512,
        1500,
        {"held_out": 8, "duplicate_prompt": 4},
        hit=True,
    )
    for i, name in enumerate(SOURCES):
        yield StageReport(
            f"generate/{name}", "generate", name, f"2{i}1b2c3d4e5f", 62 + i, 7500, 7499, {"engine_error": 1}, hit=True
        )
        yield StageReport(f"score/{name}", "score", name, f"3{i}1b2c3d4e5f", 1.4, 7499, 7499, {}, hit=True)
    yield StageReport("select/best", "select", "best", "4a1b2c3d4e5f", 0.4, 500, 498, {"only_truncated": 2}, hit=False)
    yield StageReport("sft/sft", "sft", "sft", "5a1b2c3d4e5f", 31.0, 498, 498, {}, hit=False)
    yield StageReport(
        "select/quadruple",
        "select",
        "quadruple",
        "6a1b2c3d4e5f",
        0.5,
        1000,
        912,
        {"tie": 61, "identical_text": 27},
        hit=False,
    )
    yield StageReport(
        "reference/sft-quadruple", "reference", "sft-quadruple", "7a1b2c3d4e5f", 9.2, 912, 912, {}, hit=False
    )
    for i, name in enumerate(("wrpo", "dpo_on_policy", "dpo_off_policy")):
        yield StageReport(f"prefer/{name}", "prefer", name, f"8{i}1b2c3d4e5f", 48.7 - 9 * i, 912, 912, {}, hit=False)
    yield StageReport("sft/sft_all", "sft", "sft_all", "9a1b2c3d4e5f", 64.0, 1490, 1490, {}, hit=False)
    for i, name in enumerate(REWARDS):
        yield StageReport(
            f"generate/held_out-{name}",
            "generate",
            f"held_out-{name}",
            f"a{i}1b2c3d4e5f",
            44.0,
            960,
            960,
            {},
            hit=False,
        )
    yield StageReport("evaluate/held_out", "evaluate", "held_out", "ba1b2c3d4e5f", 1.9, 9600, 9600, {}, hit=False)


def summary():
    found = build_summary(recipe_name="demo", stages=list(stages()), evaluate=None, total_seconds=1043.6)
    found["benchmark"] = "held_out"
    found["models"] = {
        name: {m: interval(v, 0.02 if i < 2 else 0.03) for i, (m, v) in enumerate(zip(METRICS, values, strict=True))}
        for name, values in REWARDS.items()
    }
    found["differences"] = [
        {"a": a, "b": b, "metric": m, **interval(REWARDS[a][i] - REWARDS[b][i], 0.016 + 0.01 * i)}
        for a, b in PAIRS
        for i, m in enumerate(METRICS)
    ]
    found["answers"] = {
        name: {
            "greedy": {"num_responses": 320, "num_prompts": 320, "mean_tokens": 21.3, "share_finished": 1.0},
            "sample": {"num_responses": 640, "num_prompts": 320, "mean_tokens": 19.8 + i, "share_finished": 0.996},
        }
        for i, name in enumerate(REWARDS)
    }
    found["counts"] = {"prompts": dict.fromkeys(METRICS, 319), "left_out": {"reward": {"target": 1}}}
    return found


def curves(steps=62):
    rng = np.random.default_rng(0)
    found = {"sft": [{"step": i + 1, "loss": 1.1 * math.exp(-i / 9) + 0.45 + rng.normal(0, 0.03)} for i in range(16)]}
    for name, gain in (("wrpo", 2.9), ("dpo_on_policy", 2.3), ("dpo_off_policy", 3.4)):
        lines = []
        for i in range(steps):
            margin = gain * (1 - math.exp(-i / 18)) + rng.normal(0, 0.25) * min(1, i / 5)
            chosen = -14 + 0.03 * i + rng.normal(0, 0.6)
            line = {
                "step": i + 1,
                "grad_norm": 1.5 + 3 * math.exp(-i / 15) + abs(rng.normal(0, 0.3)),
                "loss": math.log1p(math.exp(-margin)) + abs(rng.normal(0, 0.03)),
                "rewards/margins": margin,
                "rewards/accuracies": min(1.0, 0.5 + 0.4 * (1 - math.exp(-i / 12)) + rng.normal(0, 0.05)),
                "logps/chosen": chosen,
                "logps/rejected": -17 - 0.08 * i + rng.normal(0, 0.8),
            }
            if name == "wrpo":
                line |= {
                    "alpha": 0.5 * i / (steps - 1),
                    "logps/source_chosen": -24 + 0.09 * i + rng.normal(0, 0.9),
                    "logps/target_chosen": chosen,
                }
            lines.append(line)
        found[name] = lines
    found["sft_all"] = [{"step": i + 1, "loss": 1.1 * math.exp(-i / 9) + 0.36 + rng.normal(0, 0.03)} for i in range(47)]
    return found


def scores():
    rng, found = np.random.default_rng(1), {}
    for i, name in enumerate((*SOURCES, "sft", "held_out-wrpo", "held_out-sft")):
        values = np.clip(np.concatenate([rng.normal(0.33, 0.12, 5000 + 300 * i), rng.normal(0.95, 0.05, 2500)]), 0, 1)
        decodings = ("greedy", "sample") if name.startswith("held_out-") else ("sample",)
        found[name] = {
            "scores": [
                {
                    "model": name.removeprefix("held_out-"), "decoding": decoding, "scorer": "verify", **summary_of(values),
                    "truncated": 0, "mean_tokens": 20.0, "length_correlation": 0.3 - 0.1 * i, "histogram": histogram(values),
                }
                for decoding in decodings
            ],
            "truncated": 0,
        }  # fmt: skip
    return found


def select_notes(rule, share, drops, *, margins=None):
    domains = ("add", "sort", "translate", "reverse")
    wins = {d: {s: int(share * (200 if i == j else 18)) for j, s in enumerate(SOURCES)} for i, d in enumerate(domains)}
    won = {s: sum(w[s] for w in wins.values()) for s in SOURCES}
    total = sum(won.values())
    return {
        "rule": rule,
        "wins": {s: {"count": n, "share": n / total} for s, n in won.items()},
        "wins_by_domain": wins,
        "drops": drops,
        "drops_by_domain": {"add": drops} if drops else {},
        "weights": None,
        "domains": {"add": {"prompts": total + sum(drops.values()), "rows": total}},
        "answers": {},
        "margins": margins,
        "lengths": {
            "chosen": {"mean_tokens": 21.0, "mean_characters": 43.0},
            "rejected": {"mean_tokens": 9.0, "mean_characters": 20.0},
        },
    }


def selections():
    margins = {"mean": 0.41}
    return {
        "sft": select_notes("best", 0.5, {"only_truncated": 2}),
        "wrpo": select_notes("quadruple", 0.9, {"tie": 61, "identical_text": 27}, margins=margins),
        "dpo_on_policy": {
            **select_notes("on_policy_pair", 0.9, {"tie": 61}, margins=margins),
            "wins": {},
            "wins_by_domain": {},
        },
        "dpo_off_policy": select_notes("source_pair", 1.0, {}, margins=margins),
        "sft_all": select_notes("best", 1.5, {"only_truncated": 7}),
    }
