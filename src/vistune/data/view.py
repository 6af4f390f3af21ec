"""`vistune data view`: rows of a data file with their pictures, as one self-contained HTML page.

What is in the data is shown, never obeyed: all of it is escaped, the page may load nothing and run nothing (its content security policy
says so, should an escape be forgotten), characters that hide or reorder text are drawn as their code points, and a picture is a thumbnail
of our own making, never the bytes of the file. Rows that cannot be used are shown with the reason.
"""

from __future__ import annotations

import base64
import http.server
import io
import itertools
import json
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from vistune.data.check import without_bytes
from vistune.data.pictures import absolute_folder
from vistune.data.sampler import shuffled
from vistune.data.validate import reason_of
from vistune.errors import DataError, ImageError
from vistune.formats import example_from_row, format_of, read_rows
from vistune.media import open_image
from vistune.types import ImageSource, InstructionExample, Message, TextPart

THUMBNAIL = 320
"""Longest side of a picture on the page, in pixels; about 15 kB each."""
MAX_TEXT = 20_000
"""Characters of one text on the page."""


@dataclass(frozen=True)
class ViewedRow:
    """A row of the file with its number, and the record or the reason why it is none."""

    number: int
    raw: Any
    example: InstructionExample | None
    problem: DataError | None


def select_rows(
    path: Path,
    images: Path,
    *,
    count: int,
    choice: Literal["first", "random"] = "first",
    seed: int = 0,
    containing: str | None = None,
) -> list[ViewedRow]:
    """The first or `count` random rows of a file, in its order; only those whose JSON contains a text, if one is given.

    The file streams; random rows are found in a first pass that counts.
    """
    images = absolute_folder(images)
    matching = (numbered for numbered in enumerate(read_rows(path)) if _contains(numbered[1], containing))
    if choice == "random":
        size = sum(1 for _ in matching)
        wanted = {shuffled(place, size, str(seed)) for place in range(min(count, size))}
        matching = (numbered for numbered in enumerate(read_rows(path)) if _contains(numbered[1], containing))
        chosen: Iterable[tuple[int, Any]] = (numbered for place, numbered in enumerate(matching) if place in wanted)
    else:
        chosen = itertools.islice(matching, count)
    return [_viewed(number, row, images) for number, row in chosen]


def _contains(row: Any, text: str | None) -> bool:
    return text is None or text.casefold() in json.dumps(without_bytes(row), ensure_ascii=False).casefold()


def _viewed(number: int, row: Any, images: Path) -> ViewedRow:
    try:
        return ViewedRow(number, row, example_from_row(row, images, row_number=number), None)
    except DataError as error:
        return ViewedRow(number, row, None, error)


def render_view(rows: Sequence[ViewedRow], *, title: str, images: Path) -> Iterator[str]:
    """The page, piece by piece: it may be larger than one would like to hold twice."""
    images = absolute_folder(images)
    shown = f"{len(rows)} row" + "s" * (len(rows) != 1)
    yield _HEAD.format(title=_text(title), shown=shown, style=_STYLE)
    for row in rows:
        yield _bad_card(row) if row.example is None else _card(row, row.example, images)
    yield "</main>\n</body>\n</html>\n"


def _card(row: ViewedRow, example: InstructionExample, images: Path) -> str:
    figures = "".join(_figure(number, image.source, images) for number, image in enumerate(example.conversation.images, 1))
    numbers = itertools.count(1)
    turns = "\n".join(_turn(message, numbers) for message in example.conversation.messages)
    known = {"kind": example.kind, "format": format_of(row.raw)}
    tags = "".join(f"<span class=tag>{name}: {_text(value)}</span>" for name, value in known.items() if value)
    provenance = json.dumps(dict(example.provenance), ensure_ascii=False, indent=2) if example.provenance else ""
    details = f"<details><summary>provenance</summary><pre>{_text(provenance)}</pre></details>" if provenance else ""
    return (
        f"<article id=row-{row.number}>\n<header><a href=#row-{row.number}>{row.number}</a> <b>{_text(example.id)}</b>{tags}</header>\n"
        f"<div class=body><div class=pictures>{figures}</div>\n<div class=talk>\n{turns}\n{details}</div></div>\n</article>\n"
    )


def _bad_card(row: ViewedRow) -> str:
    raw = json.dumps(without_bytes(row.raw), ensure_ascii=False, indent=2)
    reason = f"cannot be used: {reason_of(row.problem)}" if row.problem else ""
    return (
        f"<article class=bad id=row-{row.number}>\n<header><a href=#row-{row.number}>{row.number}</a> <b>{_text(reason)}</b>"
        f"</header>\n<p>{_text(str(row.problem))}</p>\n<details open><summary>as it stands</summary><pre>{_text(raw)}</pre></details>\n"
        "</article>\n"
    )


def _turn(message: Message, numbers: Iterator[int]) -> str:
    text = "".join(
        _text(part.text) if isinstance(part, TextPart) else f"<span class=picture>picture {next(numbers)}</span>" for part in message.parts
    )
    return f'<section class={message.role}><h3>{message.role}</h3><p dir="auto">{text}</p></section>'


def _figure(number: int, source: ImageSource, images: Path) -> str:
    name = str(source.relative_to(images)) if isinstance(source, Path) and source.is_relative_to(images) else "embedded"
    try:
        picture = open_image(source, root=images)
    except ImageError as error:
        # The page may be handed on, and is about the data: where on this machine it lies is nobody's business.
        found = str(error).replace(f"{images}/", "")
        return f"<figure class=missing><p>{_text(found)}</p><figcaption>picture {number}: {_text(error.reason)}</figcaption></figure>"
    caption = f"picture {number}: {_text(name)}, {picture.width} × {picture.height}"
    picture.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=85)
    data = base64.b64encode(file.getvalue()).decode()
    return (
        f'<figure><img src="data:image/jpeg;base64,{data}" width={picture.width} height={picture.height} alt="picture {number}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _text(text: str) -> str:
    """Text for the page: escaped, with what would be invisible or change the order of others made visible, and cut where it is endless."""
    visible = "".join(
        character if character in "\n\t" or unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Co") or character == "\u200d"
        else f"⟨U+{ord(character):04X}⟩"
        for character in text[:MAX_TEXT]
    )  # fmt: skip
    more = len(text) - MAX_TEXT
    return escape(visible) + (f" <i>… and {more:,} more characters</i>" if more > 0 else "")


_HEAD = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<h1>{title} <small>{shown}</small></h1>
<main>
"""

_STYLE = """
:root { --ground: #f6f7f9; --card: #fff; --ink: #1c2128; --faint: #5f6b7a; --line: #dfe3e8; --user: #eaf2ff; --assistant: #eefaf0;
  --system: #f4effc; --bad: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --ground: #14171b; --card: #1d2126; --ink: #e6e9ed; --faint: #9aa5b1; --line: #333a42;
  --user: #1f2d42; --assistant: #1e3326; --system: #2b2440; --bad: #ff8a80; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 72rem; padding: 1rem; background: var(--ground); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.3rem; overflow-wrap: anywhere; }
small, figcaption, summary { color: var(--faint); font-weight: normal; font-size: .8rem; }
article { background: var(--card); border: 1px solid var(--line); border-radius: .6rem; margin: 0 0 1rem; padding: .8rem 1rem; }
article.bad { border-color: var(--bad); }
article.bad b { color: var(--bad); }
header { display: flex; flex-wrap: wrap; gap: .6rem; align-items: baseline; margin-bottom: .6rem; overflow-wrap: anywhere; }
header a { color: var(--faint); }
.tag { border: 1px solid var(--line); border-radius: 1rem; padding: 0 .6rem; font-size: .8rem; color: var(--faint); }
.body { display: flex; flex-wrap: wrap; gap: 1rem; }
.pictures { flex: 0 1 320px; display: flex; flex-direction: column; gap: .6rem; }
.pictures:empty { display: none; }
.talk { flex: 1 1 20rem; min-width: 0; }
figure { margin: 0; }
figure img { max-width: 100%; height: auto; border-radius: .4rem; border: 1px solid var(--line); display: block; }
figcaption { overflow-wrap: anywhere; }
figure.missing { border: 1px dashed var(--bad); border-radius: .4rem; padding: .6rem; color: var(--bad); overflow-wrap: anywhere; }
section { border-radius: .5rem; padding: .4rem .7rem; margin-bottom: .4rem; }
section.user { background: var(--user); }
section.assistant { background: var(--assistant); }
section.system { background: var(--system); }
h3 { margin: 0; font-size: .75rem; font-weight: 600; color: var(--faint); }
section p, pre { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; }
.picture { border: 1px solid var(--line); border-radius: .3rem; padding: 0 .4rem; font-size: .8rem; color: var(--faint);
  background: var(--card); }
pre { font-size: .8rem; }
"""


class ViewServer(http.server.HTTPServer):
    """Serves one page to this machine alone, under one address, until it is closed."""

    def __init__(self, page: bytes, port: int = 0):
        self.page = page
        super().__init__(("127.0.0.1", port), _Handler)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/"


class _Handler(http.server.BaseHTTPRequestHandler):
    timeout = 10

    def do_GET(self) -> None:  # the name that http.server calls
        # A page of another site may point its own name at this machine (DNS rebinding); its browser then asks for that name.
        host = self.headers.get("Host", "").rpartition(":")[0]
        if host not in ("127.0.0.1", "localhost") or self.path != "/" or not isinstance(self.server, ViewServer):
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(self.server.page)))
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Referrer-Policy", "no-referrer")
        self.end_headers()
        self.wfile.write(self.server.page)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Says nothing: the command line already printed the address."""
