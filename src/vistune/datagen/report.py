"""The report of a run: one HTML file without script, font or address, to be opened from disk or sent by mail.

Everything that came from outside (captions, replies, file names) is escaped; pictures stand in it as small copies.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from vistune.datagen.charts import bars, histogram, verb_nouns
from vistune.datagen.tally import Rejected, Tally, picture_of
from vistune.errors import ImageError
from vistune.media import open_image
from vistune.types import ImagePart, InstructionExample

THUMBNAIL_SIDE = 320
_MOST_REPLY_CHARACTERS = 1200

_STYLE = """
:root { color-scheme: light dark; --page: #fbfbfa; --card: #fff; --ink: #1d2125; --soft: #667079; --line: #e2e5e8;
  --bar: #3c78b4; --s0: #3c78b4; --s1: #5b90c4; --s2: #7ba8d2; --s3: #9bbfdf; --s4: #b7d1e9; --s5: #cfe0f0; --s6: #e6eaee;
  --inside: #10202f; --wrong: #b3442f; }
@media (prefers-color-scheme: dark) { :root {
  --page: #15181b; --card: #1d2125; --ink: #e7eaec; --soft: #9aa4ad; --line: #31373d;
  --bar: #6aa5dd; --s0: #6aa5dd; --s1: #5a8fc2; --s2: #4c7aa6; --s3: #40678c; --s4: #365673; --s5: #2e485f; --s6: #2b3138;
  --inside: #f4f7f9;
  --wrong: #e58a76; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 32px 20px 64px; }
h1 { font-size: 26px; margin: 0 0 4px; } h2 { font-size: 18px; margin: 40px 0 12px; } h3 { font-size: 14px; margin: 0 0 8px; }
p.lead, .note { color: var(--soft); margin: 0 0 8px; } .note { font-size: 13px; }
.tiles { display: flex; flex-wrap: wrap; gap: 12px; margin-top: 20px; }
.tile { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 10px 16px; min-width: 120px; }
.tile b { display: block; font-size: 22px; font-weight: 600; } .tile span { color: var(--soft); font-size: 13px; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(420px, 100%), 1fr)); gap: 16px; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 16px; overflow-wrap: anywhere; min-width: 0; }
svg { width: 100%; height: auto; display: block; } svg text { fill: var(--ink); font-family: system-ui, sans-serif; }
svg .tick { fill: var(--soft); } svg .inside { fill: var(--inside); } svg .strong { font-weight: 600; } .bar { fill: var(--bar); }
.shade0 { fill: var(--s0); } .shade1 { fill: var(--s1); } .shade2 { fill: var(--s2); } .shade3 { fill: var(--s3); }
.shade4 { fill: var(--s4); } .shade5 { fill: var(--s5); } .shade6 { fill: var(--s6); }
.samples { columns: 2 420px; column-gap: 16px; } .samples .card { break-inside: avoid; margin-bottom: 16px; }
.samples img { max-width: 100%; max-height: 240px; border-radius: 6px; display: block; margin-bottom: 10px; }
dl { margin: 0; } dt { font-weight: 600; margin-top: 8px; white-space: pre-wrap; } dd { margin: 0; white-space: pre-wrap; }
table { border-collapse: collapse; width: 100%; } td, th { text-align: left; vertical-align: top; padding: 6px 10px 6px 0; }
tr + tr td, thead + tbody td { border-top: 1px solid var(--line); } td.number, th.number { text-align: right; white-space: nowrap; }
code { font-size: 13px; } pre { white-space: pre-wrap; font-size: 12.5px; margin: 6px 0 0; max-height: 220px; overflow: auto; }
details { margin-top: 4px; } summary { cursor: pointer; color: var(--soft); font-size: 13px; } .wrong { color: var(--wrong); }
"""


def write_report(path: Path, tally: Tally, about: Mapping[str, Any], *, image_root: Path) -> None:
    """Writes the page.

    Args:
        about: what is shown of the run: `title`, `figures` and `settings` by name, and `filters` with what each looks for.
        image_root: folder that the samples' pictures must lie in.
    """
    path.write_text(report_html(tally, about, image_root=image_root), encoding="utf-8")


def report_html(tally: Tally, about: Mapping[str, Any], *, image_root: Path) -> str:
    title = escape(str(about["title"]))
    samples = "".join(_sample(example, image_root) for example in tally.samples)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>{_STYLE}</style>
</head>
<body><main>
<h1>{title}</h1>
<p class="lead">Instruction data written by a teacher that saw captions and boxes, never the pictures.</p>
{_tiles(about["figures"])}
<h2>What came out</h2>
<div class="charts">
{_chart("Rows by kind", bars(tally.rows.most_common(), total=tally.total_rows))}
{_chart("Rejected, by reason", bars(tally.rejected.most_common(12), total=tally.asked + tally.rejected.total()))}
{_chart("Questions a row", histogram(tally.turns, unit="questions"))}
{_chart("Words a question", histogram(tally.question_words, unit="words"))}
{"".join(_chart(f"Words an answer: {kind}", histogram(counts, unit="words")) for kind, counts in sorted(tally.answer_words.items()))}
</div>
<h2>What is asked</h2>
<div class="card">
{verb_nouns(tally.verb_nouns)}
<p class="note">The first full verb of each question and the noun that follows it, over {tally.verb_nouns.total():,} questions. Pointing
at a bar names it.</p></div>
<h2>Rows, drawn at random</h2>
<div class="samples">{samples or '<p class="note">There are none.</p>'}</div>
<h2>Rejected</h2>
{_rejected(tally)}
<h2>Filters</h2>
{_filters(tally, about["filters"])}
<h2>Settings</h2>
<div class="card"><table>{"".join(_setting(name, value) for name, value in about["settings"].items())}</table></div>
</main></body>
</html>
"""


def _tiles(figures: Mapping[str, Any]) -> str:
    tiles = "".join(f'<div class="tile"><b>{escape(str(value))}</b><span>{escape(name)}</span></div>' for name, value in figures.items())
    return f'<div class="tiles">{tiles}</div>'


def _chart(title: str, drawing: str) -> str:
    return f'<div class="card"><h3>{escape(title)}</h3>{drawing}</div>'


def _setting(name: str, value: Any) -> str:
    if isinstance(value, Mapping):
        value = [f"{key} {str(digest)[:16]}" for key, digest in value.items()]
    shown = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return f"<tr><td>{escape(name)}</td><td><code>{escape(shown or '-')}</code></td></tr>"


def _sample(example: InstructionExample, image_root: Path) -> str:
    picture = picture_of(example)
    texts = [message.text.strip() for message in example.conversation.messages if message.role != "system"]
    turns = "".join(f"<{'dd' if number % 2 else 'dt'}>{escape(text)}</{'dd' if number % 2 else 'dt'}>" for number, text in enumerate(texts))
    shown = _thumbnail(picture, image_root) if picture else ""
    return f'<div class="card">{shown}<p class="note">{escape(example.kind)} · {escape(example.id)}</p><dl>{turns}</dl></div>'


def _thumbnail(picture: ImagePart, image_root: Path) -> str:
    """A small copy, as a data address."""
    try:
        image = open_image(picture.source, root=image_root)
    except ImageError as error:
        return f'<p class="note wrong">{escape(str(error))}</p>'
    image.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=82)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return f'<img alt="" width="{image.width}" height="{image.height}" src="data:image/jpeg;base64,{data}">'


def _rejected(tally: Tally) -> str:
    if not tally.rejected:
        return '<p class="note">Nothing was rejected.</p>'
    rows = "".join(
        f'<tr><td><code>{escape(reason)}</code></td><td class="number">{count:,}</td>'
        f"<td>{_examples(tally.rejected_samples[reason])}</td></tr>"
        for reason, count in tally.rejected.most_common()
    )
    head = '<thead><tr><th>reason</th><th class="number">count</th><th>the first of them</th></tr></thead>'
    note = '<p class="note">All of them, with the whole reply, are in rejects.jsonl.</p>'
    return f'<div class="card"><table>{head}<tbody>{rows}</tbody></table></div>{note}'


def _filters(tally: Tally, filters: Mapping[str, str]) -> str:
    rows = "".join(
        f'<tr><td><code>{escape(name)}</code></td><td class="number">{tally.objections[name]:,}</td><td>{escape(looks_for)}</td></tr>'
        for name, looks_for in filters.items()
    )
    if not rows:
        return '<p class="note">None was applied.</p>'
    head = '<thead><tr><th>filter</th><th class="number">objected to</th><th>looks for</th></tr></thead>'
    note = '<p class="note">A reply may meet several objections; it is counted once above, under the first.</p>'
    return f'<div class="card"><table>{head}<tbody>{rows}</tbody></table></div>{note}'


def _examples(samples: list[Rejected]) -> str:
    return "".join(
        f"<details><summary>{escape(' · '.join(filter(None, (each.image or each.row, each.kind))))}: {escape(each.message[:300])}</summary>"
        f"<pre>{escape(each.reply[:_MOST_REPLY_CHARACTERS])}</pre></details>"
        if each.reply
        else f'<p class="note">{escape(each.image or each.row)}: {escape(each.message[:300])}</p>'
        for each in samples
    )
