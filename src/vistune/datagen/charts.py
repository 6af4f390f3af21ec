"""The report's charts as inline SVG: no script, no font, no address, the page's own colours (so dark and light are one file).

All text is escaped here; a label may come from anywhere.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from html import escape

WIDTH = 520
_ROW = 22
_FONT = 11


def histogram(counts: Counter[int], *, unit: str, most_bars: int = 26) -> str:
    """How often each number occurs, in bars of equal width; the longest hundredth is gathered in the last bar, marked with "≥"."""
    total = counts.total()
    if not total:
        return _empty()
    low, high = min(counts), _quantile(counts, 0.99)
    step = _round_step((high - low + 1) / most_bars)
    first = low // step * step
    bars = [0] * ((high - first) // step + 1)
    for value, count in counts.items():
        bars[min((value - first) // step, len(bars) - 1)] += count
    height, bottom = 150, 20
    tallest = max(bars)
    bar_width = WIDTH / len(bars)
    parts = []
    for place, count in enumerate(bars):
        start = first + place * step
        last = place == len(bars) - 1 and max(counts) >= start + step
        label = f"≥ {start}" if last else f"{start}" if step == 1 else f"{start}–{start + step - 1}"
        tall = (height - 14) * count / tallest
        parts.append(
            f'<g><title>{label} {escape(unit)}: {count:,} ({count / total:.1%})</title><rect class="bar" x="{place * bar_width + 1:.1f}" '
            f'y="{height - tall:.1f}" width="{max(bar_width - 2, 1):.1f}" height="{tall:.1f}" rx="1.5"/></g>'
        )
        if place % max(1, -(-len(bars) // 9)) == 0:
            parts.append(f'<text class="tick" x="{(place + 0.5) * bar_width:.1f}" y="{height + 14}" text-anchor="middle">{start}</text>')
    median = _quantile(counts, 0.5)
    caption = f"median {median} {unit}, longest {max(counts):,}"
    return f'{_svg(height + bottom, parts, caption)}<p class="note">{escape(caption)}</p>'


def bars(values: Sequence[tuple[str, int]], *, total: int) -> str:
    """One bar a label, with count and share."""
    if not values:
        return _empty()
    longest = max(value for _, value in values)
    left, right = 170, 96
    parts = []
    for place, (label, value) in enumerate(values):
        y = place * _ROW
        long = (WIDTH - left - right) * value / longest
        parts.append(
            f'<text x="{left - 8}" y="{y + 15}" text-anchor="end">{escape(_short(label, 26))}</text>'
            f'<rect class="bar" x="{left}" y="{y + 4}" width="{max(long, 1):.1f}" height="{_ROW - 8}" rx="2"/>'
            f'<text class="tick" x="{left + max(long, 1) + 6:.1f}" y="{y + 15}">{value:,} · {value / max(total, 1):.1%}</text>'
        )
    return _svg(len(values) * _ROW + 4, parts, "bar chart")


def verb_nouns(pairs: Counter[tuple[str, str]], *, most_verbs: int = 14, most_nouns: int = 6) -> str:
    """What is asked: the commonest verbs, each a bar made of the nouns that go with it."""
    if not pairs:
        return _empty()
    by_verb: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for (verb, noun), count in pairs.items():
        by_verb[verb][noun] += count
    verbs = sorted(by_verb.items(), key=lambda item: (-item[1].total(), item[0]))[:most_verbs]
    left, right, row, width = 90, 60, 26, 2 * WIDTH
    scale = (width - left - right) / verbs[0][1].total()
    parts = []
    for place, (verb, nouns) in enumerate(verbs):
        y, x = place * row, float(left)
        common = sorted(nouns.items(), key=lambda item: (-item[1], item[0]))[:most_nouns]
        rest = nouns.total() - sum(count for _, count in common)
        parts.append(f'<text x="{left - 8}" y="{y + 17}" text-anchor="end" class="strong">{escape(_short(verb, 14))}</text>')
        for shade, (noun, count) in enumerate([*common, ("other nouns", rest)]):
            long = count * scale
            if count:
                parts.append(
                    f'<g><title>{escape(verb)} … {escape(noun)}: {count:,}</title><rect class="shade{min(shade, most_nouns)}" x="{x:.1f}" '
                    f'y="{y + 4}" width="{max(long - 1, 0.5):.1f}" height="{row - 8}" rx="2"/></g>'
                )
                if long > 7 * len(noun) + 8:
                    parts.append(f'<text class="inside" x="{x + long / 2:.1f}" y="{y + 17}" text-anchor="middle">{escape(noun)}</text>')
            x += long
        parts.append(f'<text class="tick" x="{x + 6:.1f}" y="{y + 17}">{nouns.total():,}</text>')
    return _svg(len(verbs) * row + 4, parts, "verbs and nouns of the questions", width=width)


def _svg(height: int, parts: Sequence[str], label: str, *, width: int = WIDTH) -> str:
    begin = f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(label, quote=True)}" font-size="{_FONT}">'
    return f"{begin}{''.join(parts)}</svg>"


def _empty() -> str:
    return '<p class="note">Nothing to show.</p>'


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _quantile(counts: Counter[int], share: float) -> int:
    """The smallest value that at least this share of all does not exceed."""
    seen, total = 0, counts.total()
    for value in sorted(counts):
        seen += counts[value]
        if seen >= share * total:
            return value
    return max(counts)


def _round_step(least: float) -> int:
    """The smallest of 1, 2, 5, 10, 20, 50, ... that is at least this."""
    power = 1
    while True:
        for factor in (1, 2, 5):
            if factor * power >= least:
                return factor * power
        power *= 10
