"""What was measured as plain text and as JSON. Plain, because a bare GPU machine has no rich.

Units: seconds per optimizer step, MiB, GFLOP per optimizer step.
"""

from __future__ import annotations

import dataclasses
import platform
import statistics
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

MIB = 1 << 20
PACKAGES = ("torch", "transformers", "trl", "accelerate", "numpy")


@dataclasses.dataclass
class Line:
    """One contender on one shape; what was not measured is None."""

    name: str
    losses: tuple[float, float]
    wall_s: list[float]
    cpu_s: list[float]
    num_tokens: float
    """Real tokens of a step, the prompt counted once per response."""
    gflop: float
    min_gflop: float
    peak_flops: float | None
    peak_bytes: int | None = None
    base_bytes: int | None = None
    memory_method: str | None = None
    paired: list[float] = dataclasses.field(default_factory=list)
    """Wall seconds / those of ours in the same repetition."""

    @property
    def wall(self) -> float:
        return statistics.median(self.wall_s)

    @property
    def cpu(self) -> float:
        return statistics.median(self.cpu_s)

    def facts(self, ours: Line | None) -> dict[str, Any]:
        """Return the measured and derived numbers under names with units."""
        facts: dict[str, Any] = {
            "losses": self.losses,
            "wall_s": self.wall_s,
            "cpu_s": self.cpu_s,
            "wall_s_median": self.wall,
            "cpu_s_median": self.cpu,
            "tokens_per_s": self.num_tokens / self.wall,
            "gflop": self.gflop,
            "gflop_over_minimum": self.gflop / self.min_gflop,
            "gflop_per_s": self.gflop / self.wall,
            "peak_over_base_mib": None if self.peak_bytes is None else self.peak_bytes / MIB,
            "base_mib": None if self.base_bytes is None else self.base_bytes / MIB,
            "memory_method": self.memory_method,
        }
        if self.peak_flops:
            # Of the work that the rows need, and of the work that the layout does.
            facts["mfu"] = self.min_gflop * 1e9 / self.wall / self.peak_flops
            facts["hfu"] = self.gflop * 1e9 / self.wall / self.peak_flops
        if ours is not None:
            facts["wall_over_ours"] = self.wall / ours.wall
            facts["cpu_over_ours"] = self.cpu / ours.cpu
            facts["paired_wall_over_ours"] = self.paired
            facts["paired_wall_over_ours_median"] = statistics.median(self.paired)
            if self.peak_bytes and ours.peak_bytes:
                facts["peak_over_ours"] = self.peak_bytes / ours.peak_bytes
        return facts


def table(lines: Sequence[dict[str, Any]]) -> str:
    """Return a text table of `Line.facts` with a `name` each."""
    columns: list[tuple[str, str, str]] = [
        ("wall s", "wall_s_median", ".3f"), ("cpu s", "cpu_s_median", ".3f"), ("wall/ours", "wall_over_ours", ".2f"),
        ("paired", "paired_wall_over_ours_median", ".2f"), ("cpu/ours", "cpu_over_ours", ".2f"),
        ("tokens/s", "tokens_per_s", ".0f"), ("peak MiB", "peak_over_base_mib", ".0f"),
        ("peak/ours", "peak_over_ours", ".2f"), ("GFLOP", "gflop", ".0f"), ("/minimum", "gflop_over_minimum", ".2f"),
        ("MFU", "mfu", ".3f"), ("HFU", "hfu", ".3f"),
    ]  # fmt: skip
    columns = [column for column in columns if any(line.get(column[1]) is not None for line in lines)]
    rows = [["", *(title for title, _, _ in columns)]]
    for line in lines:
        cells = [format(line[key], spec) if line.get(key) is not None else "-" for _, key, spec in columns]
        rows.append([line["name"], *cells])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        row[0].ljust(widths[0])
        + "".join("  " + cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))
        for row in rows
    )


def machine(device: torch.device, threads: int) -> dict[str, Any]:
    """Return what the numbers depend on, without names of hosts or users."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "cpu": _cpu_name(),
        "system": f"{platform.system()} {platform.machine()}",
        "threads": threads,
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
        "commit": _commit(),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
    }


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    return names[0].split(":", 1)[1].strip() if names else platform.processor()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """Return the commit of this checkout, with a plus when files differ from it; None outside of git."""
    folder = Path(__file__).parent
    try:
        run = [subprocess.run(["git", *args], cwd=folder, capture_output=True, text=True, check=True) for args in (
            ("rev-parse", "--short", "HEAD"), ("status", "--porcelain", "--untracked-files=no"),
        )]  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return None
    return run[0].stdout.strip() + ("+" if run[1].stdout.strip() else "")
