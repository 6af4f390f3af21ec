"""The web chat: a fixed table of files in memory, each at one address. Nothing in a request ever names a file on the disk.

    web/ ──read once, by the names below──► {address: Asset} ──one literal route each──► bytes, ETag, strict headers

The page is a client like any other: it uses the public API and this table, and keeps what it remembers in the browser.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from fastapi import APIRouter, Request
from fastapi.responses import Response

from vistune.errors import DataError
from vistune.serve.demo import read_demo
from vistune.serve.edge import log_of

WEB = Path(__file__).parent / "web"
DEMO = Path(__file__).parents[1] / "assets" / "demo"

SCRIPTS = (
    *(
        "actions",
        "api",
        "app",
        "camera",
        "chat",
        "composer",
        "dialogs",
        "dom",
        "editing",
        "errors",
        "feedback",
        "files",
        "history",
        "inline",
    ),
    *("keyboard", "markdown", "pictures", "settings", "sse", "store", "theme", "thread", "tree", "zip"),
)
FILES: Mapping[str, str] = {
    "/": "index.html",
    "/web/style.css": "style.css",
    "/web/icon.svg": "icon.svg",
    **{f"/web/{name}.js": f"{name}.js" for name in SCRIPTS},
}

_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".jpg": "image/jpeg",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".png": "image/png",
    ".svg": "image/svg+xml",
}

POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        # data: and blob: are pictures that the reader chose. None of another host: an address in a model's text could carry words away.
        "img-src 'self' data: blob:",
        "connect-src 'self'",
        "frame-ancestors 'none'",
        "base-uri 'none'",
        "form-action 'none'",
        # No script may turn a text into markup at all, ours included.
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)

HEADERS: Mapping[str, str] = {
    "content-security-policy": POLICY,
    "referrer-policy": "no-referrer",
    "x-frame-options": "DENY",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(self), microphone=(), geolocation=(), payment=(), usb=()",
    "x-dns-prefetch-control": "off",  # the host of a link in an answer is asked for when somebody follows it
    "cache-control": "no-cache",  # kept, but asked about each time: after an update nobody mixes old scripts with new ones
}


@dataclass(frozen=True)
class Asset:
    content: bytes
    type: str
    etag: str


def assets() -> dict[str, Asset]:
    """Everything that the page is made of, by address; without the examples where this copy was packed without them."""
    table = {address: _asset((WEB / name).read_bytes(), name) for address, name in FILES.items()}
    try:
        items = read_demo(DEMO)
        pictures = {f"/web/examples/{item.picture.name}": _asset(item.picture.read_bytes(), item.picture.name) for item in items}
    except (DataError, OSError):
        items, pictures = (), {}
    listed = [{"picture": item.picture.name, "question": item.question} for item in items]
    return table | pictures | {"/web/examples.json": _asset(json.dumps(listed).encode(), "examples.json")}


def page_router() -> APIRouter:
    """One route for each address of the table."""
    router = APIRouter()
    for address, asset in assets().items():
        router.add_route(address, _sends(address, asset), methods=["GET", "HEAD"])
    return router


def _sends(address: str, asset: Asset) -> Callable[[Request], Awaitable[Response]]:
    async def send(request: Request) -> Response:
        log_of(request.scope).route = address  # a plain route does not say its own
        headers = {**HEADERS, "etag": asset.etag}
        known = [tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")]
        if asset.etag in known:
            return Response(status_code=304, headers=headers)
        return Response(asset.content, media_type=None, headers=headers | {"content-type": asset.type})

    return send


def _asset(content: bytes, name: str) -> Asset:
    return Asset(content, _TYPES[Path(name).suffix], f'"{hashlib.sha256(content).hexdigest()[:32]}"')
