"""Decoders that misbehave at a picture 64 pixels wide, as programs for `vistune.decoding._CHILD`."""

from __future__ import annotations

from pathlib import Path


def faulty_child(statements: str) -> str:
    """The program of a decoder that runs some statements before it begins."""
    head = "import sys; sys.path += sys.argv[4:]\nimport mmap, os, socket\nfrom vistune import decode_child as child, media\n"
    return f"{head}from vistune.errors import ImageError\n{statements}\nchild.main()"


def decode_by(body: str) -> str:
    """Statements that replace media's `decode(header)` for pictures that are 64 wide, as PICTURE is; others are decoded as ever."""
    lines = "".join(f"\n        {line}" for line in body.splitlines())
    return f"real = media.decode\ndef decode(header):\n    if header.width == 64:{lines}\n    return real(header)\nmedia.decode = decode"


def gone(process: int) -> bool:
    """Whether a process is no more, or only its entry is."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


ENDLESS = decode_by("while True: pass")
