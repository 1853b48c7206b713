"""Small pieces of HTML that several sections of the report use."""

from collections.abc import Mapping
from html import escape


def figure(title: str, caption: str, legend: str, chart: str) -> str:
    return f'<figure class="card"><h3>{escape(title)}</h3><figcaption>{escape(caption)}</figcaption>{legend}{chart}</figure>'


def none(text: str) -> str:
    return f'<p class="none">{escape(text)}</p>'


def percent(share: float) -> str:
    return f"{share * 100:.0f} %" if share in (0, 1) or 0.1 <= share < 0.995 else f"{share * 100:.1f} %"


def duration(seconds: float) -> str:
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 100:
        return f"{seconds:.0f} s"
    hours, rest = divmod(round(seconds), 3600)
    minutes, left = divmod(rest, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {left:02d} s"


def bars(title: str, counts: Mapping[str, int]) -> str:
    if not counts:
        return ""
    total, top = sum(counts.values()), max(counts.values())
    rows = "".join(
        f'<span>{escape(name)}</span><div class="bar" style="width:{count / (top or 1):.1%}"></div>'
        f'<span class="num">{count:,} <span class="ci">{percent(count / (total or 1))}</span></span>'
        for name, count in sorted(counts.items(), key=lambda item: -item[1])
    )
    return f'<figcaption>{escape(title)}</figcaption><div class="bars">{rows}</div>'
