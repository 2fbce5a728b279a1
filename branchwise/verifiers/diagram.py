"""How reliable probabilities are, as a page and as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from branchwise.verifiers.quality import (
    Bin,
    auc,
    auc_interval,
    decomposed,
    ece,
    log_loss,
    mce,
    reliability,
)


def report(p: Sequence[float], right: Sequence[bool], bins: int = 10) -> str:
    """All of these numbers as a page in Markdown.

    Args:
        p: the probability given to being right.
        right: what was right.
        bins: how many.

    Raises:
        SpecError: there are none, or one is no probability.

    Example:
        >>> print(report([0.2, 0.2, 0.8, 0.8], [False, False, True, True]).splitlines()[2])
        | predictions | 4, of which 2 right |
    """
    parts, hits = decomposed(p, right), sum(map(bool, right))
    area = "needs right and wrong ones"
    if 0 < hits < len(p):
        area = f"{auc(p, right):.4f}"
        if min(hits, len(p) - hits) > 1:
            low, high = auc_interval(p, right)
            area += f" ({low:.4f} to {high:.4f})"
    lines = [
        "| measure | value |",
        "|---|---|",
        f"| predictions | {len(p)}, of which {hits} right |",
        f"| AUC, with its 95 % interval | {area} |",
        f"| Brier score | {parts.score:.4f} |",
        f"| of it miscalibration | {parts.miscalibration:.4f} |",
        f"| of it discrimination, which counts against it | {parts.discrimination:.4f} |",
        f"| of it uncertainty | {parts.uncertainty:.4f} |",
        f"| log loss | {log_loss(p, right):.4f} |",
        f"| ECE, {bins} bins of equal width | {ece(p, right, bins):.4f} |",
        f"| ECE, {bins} bins of equal mass | {ece(p, right, bins, by='mass'):.4f} |",
        f"| MCE, {bins} bins of equal width | {mce(p, right, bins):.4f} |",
        "",
        "| from | to | n | predicted | right | 95 % interval |",
        "|---|---|---|---|---|---|",
    ]
    for one in reliability(p, right, bins):
        low, high = one.interval
        lines.append(
            f"| {one.low:.3g} | {one.high:.3g} | {one.n} | {one.predicted:.4f} "
            f"| {one.observed:.4f} | {low:.4f} to {high:.4f} |"
        )
    return "\n".join([*lines, ""])


_SIDE, _LEFT, _TOP, _LOW = 300, 52, 34, 54

_STYLE = (
    "text{font:12px sans-serif;fill:#555}.t{font-size:13px}.a{stroke:#888;fill:none}"
    ".d{stroke:#888;stroke-dasharray:3 4}.b{fill:#1b7f79;fill-opacity:.25}"
    ".o{fill:#1b7f79}.i{stroke:#1b7f79;stroke-width:1.5}"
    "@media(prefers-color-scheme:dark){text{fill:#bbb}.b,.o{fill:#4fc3b8}.i{stroke:#4fc3b8}}"
)


def reliability_svg(bins: Sequence[Bin], title: str = "") -> str:
    """A reliability diagram: the share that was right over the probability that was predicted.

    Each bin is a dot with its 95 % interval, over a bar for its share of all predictions; dots on
    the diagonal are calibrated. There is no background, and colours and text suit a
    light page as well as a dark one.

    Args:
        bins: from `reliability`.
        title: what stands above.

    Example:
        >>> reliability_svg(reliability([0.5, 0.5], [True, False])).count('class="o"')
        1
    """
    wide, tall = _LEFT + _SIDE + 16, _TOP + _SIDE + _LOW

    def x(value: float) -> str:
        return f"{_LEFT + _SIDE * value:.1f}"

    def y(value: float) -> str:
        return f"{_TOP + _SIDE * (1 - value):.1f}"

    total = sum(one.n for one in bins) or 1
    marks = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{wide}" height="{tall}"',
        f'viewBox="0 0 {wide} {tall}" role="img">',
        f"<title>{escape(title or 'Reliability diagram')}</title><style>{_STYLE}</style>",
        f'<text class="t" x="{_LEFT}" y="20">{escape(title)}</text>',
        f'<rect class="a" x="{_LEFT}" y="{_TOP}" width="{_SIDE}" height="{_SIDE}"/>',
        f'<line class="d" x1="{x(0)}" y1="{y(0)}" x2="{x(1)}" y2="{y(1)}"/>',
    ]
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        marks.append(
            f'<text x="{x(tick)}" y="{_TOP + _SIDE + 18}" text-anchor="middle">{tick:g}</text>'
        )
        marks.append(
            f'<text x="{_LEFT - 8}" y="{y(tick)}" dy="4" text-anchor="end">{tick:g}</text>'
        )
    for one in bins:
        low, high = max(one.low, 0.0), min(one.high, 1.0)
        width = max(_SIDE * (high - low) - 1, 1)
        marks.append(
            f'<rect class="b" x="{x(low)}" y="{y(one.n / total)}" width="{width:.1f}" '
            f'height="{_SIDE * one.n / total:.1f}"><title>{one.n} of {total}</title></rect>'
        )
    for one in bins:
        at = x(one.predicted)
        marks.append(
            f'<line class="i" x1="{at}" y1="{y(one.interval.low)}" x2="{at}" '
            f'y2="{y(one.interval.high)}"/>'
            f'<circle class="o" cx="{at}" cy="{y(one.observed)}" r="4">'
            f"<title>{one.observed:.3f} of {one.n}</title></circle>"
        )
    middle = _LEFT + _SIDE / 2
    marks += [
        f'<text x="{middle:g}" y="{tall - 12}" text-anchor="middle">predicted</text>',
        f'<text transform="translate(14 {_TOP + _SIDE / 2:g}) rotate(-90)"',
        'text-anchor="middle">right</text>',
        "</svg>",
    ]
    return "\n".join([*marks, ""])
