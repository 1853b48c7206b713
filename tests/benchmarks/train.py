"""How fast one training step is beside the released trainer and TRL: time, memory, FLOPs. Asserts equal losses only.

    python tests/benchmarks/train.py                                          # all shapes of the CPU, an hour or two
    python tests/benchmarks/train.py --shapes 4k-256:256 --contenders official ours --repeats 7 --json out.json
    python tests/benchmarks/train.py --device cuda --shapes llama3-8b
    python tests/benchmarks/train.py --quick                                  # does it run? minutes; no figures to keep

Every contender makes the same optimizer steps on the same rows, from the same weights, with the reference pass in
the step. Before anything is timed, the losses of the first two steps must agree, else the exit code is 1. Then
contenders take turns step by step; medians over repetitions, ratios to ours. fp32 on CPUs, bf16 on CUDA.
Needs torch and transformers; TRL only for its own contenders. See `training/` for layouts, FLOPs and memory.
"""

import argparse
import dataclasses
import gc
import json
import os
import sys
from pathlib import Path
from typing import Any

# The command line runs from a bare checkout: nothing needs to be installed but the packages above.
sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parents[1]))
import torch

from benchmarks.training.contender import Contender, Weights
from benchmarks.training.flops import flop_limit, minimal_layout, passes, peak_flops, step_flops
from benchmarks.training.measure import OutOfMemory, disagreements, first_losses, time_steps
from benchmarks.training.memory import MemoryFailure, cpu_peak, cuda_peak
from benchmarks.training.report import Line, machine, table
from benchmarks.training.roster import CONTENDERS, Unavailable, baseline, build, load
from benchmarks.training.shapes import SHAPES, Shape

LEGEND = """
Seconds: medians per optimizer step. wall/ours: ratio of medians; paired: median ratio within a repetition. tokens/s: real
tokens, a prompt counted once per response. peak: over weights and optimizer state. GFLOP: matrix products of the layout;
/minimum: over what the rows need. MFU, HFU: minimum and layout over the device's dense bf16 peak."""


def main() -> int:
    options = parse()
    device = torch.device(options.device)
    torch.set_num_threads(options.threads)
    report: dict[str, Any] = {"machine": machine(device, options.threads), "repeats": options.repeats, "shapes": []}
    print(json.dumps(report["machine"]))
    failed = False
    for name in options.shapes:
        result = run_shape(_adapted(SHAPES[name], options), options, device)
        failed |= bool(result["disagreements"])
        report["shapes"].append(result)
        if options.json:  # after each shape: a run of hours may be cut short
            options.json.write_text(json.dumps(report, indent=1) + "\n")
    print(LEGEND)
    return 1 if failed else 0


def parse() -> argparse.Namespace:
    names = {name: f"{name:17} {entry.about}" for name, entry in CONTENDERS.items()}
    shapes = [
        f"{s.name:17} {s.task}, {s.rows} rows, {s.lengths}{', CUDA only' if s.cuda_only else ''}"
        for s in SHAPES.values()
    ]
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="contenders:\n  " + "\n  ".join(names.values()) + "\n\nshapes:\n  " + "\n  ".join(shapes),
    )
    parser.add_argument(
        "--shapes", nargs="+", choices=SHAPES, metavar="NAME", help="default: all that the device allows"
    )
    parser.add_argument(
        "--contenders",
        nargs="+",
        choices=CONTENDERS,
        metavar="NAME",
        help="default: all but ours-ckpt and sft-*-ckpt, which GPU shapes add",
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--rows", type=int, help="prompts per step instead of the shape's")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="of torch on the CPU")
    parser.add_argument("--no-memory", action="store_true", help="leave out peak memory")
    parser.add_argument("--quick", action="store_true", help="quarter lengths, few rows, one repetition, no memory")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything measured")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: this torch sees no GPU")
    on_cpu = options.device == "cpu"
    if refused := [name for name in options.shapes or () if on_cpu and SHAPES[name].cuda_only]:
        parser.error(f"only with --device cuda: {', '.join(refused)}")
    options.shapes = options.shapes or [s.name for s in SHAPES.values() if not (on_cpu and s.cuda_only)]
    if options.quick:
        options.repeats, options.no_memory = 1, True
    if options.repeats < 1 or options.threads < 1 or (options.rows or 1) < 1:
        parser.error("--repeats, --threads and --rows must be at least 1")
    return options


def _adapted(shape: Shape, options: argparse.Namespace) -> Shape:
    if options.quick:
        shape = shape.quick()
    return dataclasses.replace(shape, rows=options.rows) if options.rows else shape


def run_shape(shape: Shape, options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Measure and print one shape; return everything about it."""
    batches = shape.batches()
    limit = flop_limit(shape.model, batches) if shape.task == "wrpo" else None
    print(
        f"\n{shape.name}: {shape.rows} rows x {shape.num_batches} steps, {shape.lengths}, "
        f"hidden {shape.model.hidden}, {shape.model.layers} layers, vocab {shape.model.vocab}"
        + (f", FLOP limit {limit:.2f}x" if limit else "")
    )
    left_out: dict[str, str] = {}
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    contenders = _build(shape, _wanted(shape, options), Weights(shape, device=device, dtype=dtype), left_out)
    torch.set_num_threads(options.threads)  # imports of the peers may have set their own
    losses: dict[str, tuple[float, float]] = {}
    for name in list(contenders):
        try:
            losses[name] = first_losses(contenders[name], batches)
        except OutOfMemory as error:
            left_out[name] = str(error)
            del contenders[name]
        _release(device)
    wrong = disagreements(losses, contenders, dtype)
    lines = []
    if contenders and not wrong:
        try:
            lines = _measure(shape, contenders, losses, options, device, left_out)
        except OutOfMemory as error:
            left_out["all timing"] = str(error)
    del contenders
    _release(device)
    if lines:
        print(table(lines))
    _print_notes(lines, wrong, left_out)
    return {
        "shape": dataclasses.asdict(shape),
        "lengths": [[row.lengths for row in batch] for batch in batches],
        "flop_limit": limit,
        "contenders": lines,
        "disagreements": wrong,
        "left_out": left_out,
    }


def _wanted(shape: Shape, options: argparse.Namespace) -> list[str]:
    task = [name for name, entry in CONTENDERS.items() if entry.task == shape.task]
    if options.contenders:
        return [name for name in task if name in options.contenders]
    return [name for name in task if shape.cuda_only or not CONTENDERS[name].optional]


def _build(shape: Shape, names: list[str], weights: Weights, left_out: dict[str, str]) -> dict[str, Contender]:
    contenders = {}
    for name in names:
        try:
            load(name)  # before the copy of the weights
            contenders[name] = build(name, weights.learner())
        except Unavailable as error:
            left_out[name] = str(error)
    return contenders


def _measure(
    shape: Shape,
    contenders: dict[str, Contender],
    losses: dict[str, tuple[float, float]],
    options: argparse.Namespace,
    device: torch.device,
    left_out: dict[str, str],
) -> list[dict[str, Any]]:
    """Return a table line per contender, in the order of the roster."""
    batches = shape.batches()
    seconds = time_steps(contenders, batches, repeats=options.repeats, device=device)
    peak = peak_flops(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    least = sum(step_flops(shape.model, minimal_layout(batch), passes(shape.task)) for batch in batches)
    lines = {}
    for name, contender in contenders.items():
        flops = sum(step_flops(shape.model, contender.layout(batch), contender.passes()) for batch in batches)
        lines[name] = Line(
            name=name,
            losses=losses[name],
            wall_s=seconds[name].wall_s,
            cpu_s=seconds[name].cpu_s,
            num_tokens=sum(row.num_tokens for batch in batches for row in batch) / len(batches),
            gflop=flops / len(batches) / 1e9,
            min_gflop=least / len(batches) / 1e9,
            peak_flops=peak,
        )
    ours = lines.get(baseline(shape.task))
    for name, line in lines.items():
        if ours:
            line.paired = [theirs / own for theirs, own in zip(line.wall_s, ours.wall_s, strict=True)]
        if not options.no_memory:
            _add_memory(line, shape, contenders[name], options.threads, left_out)
    return [{"name": line.name, **line.facts(ours)} for line in lines.values()]


def _add_memory(line: Line, shape: Shape, contender: Contender, threads: int, left_out: dict[str, str]) -> None:
    try:
        on_gpu = contender.device.type == "cuda"
        found = cuda_peak(contender, shape.batches()) if on_gpu else cpu_peak(line.name, shape, threads=threads)
    except (MemoryFailure, OutOfMemory) as error:
        left_out[f"{line.name}, peak memory"] = str(error)
        return
    line.base_bytes, line.peak_bytes, line.memory_method = found.base, found.over_base, found.method


def _print_notes(lines: list[dict[str, Any]], wrong: list[str], left_out: dict[str, str]) -> None:
    found = {line["name"]: line for line in lines}
    peers = {
        name: line["wall_over_ours"]
        for name, line in found.items()
        if name.startswith("trl-best") and "wall_over_ours" in line
    }
    if peers:
        print(f"TRL best / ours: {min(peers.values()):.2f} ({min(peers, key=peers.__getitem__)})")
    for name in found:
        if not load(name).same_maths:
            print(f"{name}: other mathematics by design, its loss is not compared")
    for line in wrong:
        print(f"LOSSES DISAGREE, nothing timed: {line}")
    for name, reason in left_out.items():
        print(f"left out: {name}: {reason}")
    sys.stdout.flush()


def _release(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


if __name__ == "__main__":
    # Read when TRL and transformers are imported.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    sys.exit(main())
