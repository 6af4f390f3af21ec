"""`vistune data split`: a data file in parts, such that no picture is in two of them.

Rows that share a picture, directly or through other rows, form a group, and a group stays together. Groups are put in an order that depends
on the seed and on what they show, not on the file, and dealt out until each part has its share. Rows stream, twice; in memory stay a digest
of each picture and the group of each row, about 200 bytes a row.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path
from typing import Literal

from vistune.data.convert import rewriting
from vistune.data.pictures import absolute_folder
from vistune.errors import DataError, UsageError
from vistune.formats import Losses, example_from_row, format_of, read_rows
from vistune.journal import atomic_folder
from vistune.media import image_bytes, image_digest, open_image
from vistune.types import ImageSource, InstructionExample

Identity = Literal["bytes", "pixels", "name"]
"""When two pictures are the same: equal files, equal decoded pixels (slower; sees through a change of format without loss), equal names."""


def parse_shares(text: str) -> dict[str, Fraction]:
    """`train=0.9,test=0.1` as shares that add up to 1. Raises UsageError for what does not."""
    shares: dict[str, Fraction] = {}
    for piece in text.split(","):
        name, _, share = piece.strip().partition("=")
        try:
            shares[name] = Fraction(share)
        except (ValueError, ZeroDivisionError):
            raise UsageError(f"{piece!r} is no share; write --parts train=0.9,test=0.1.") from None
        if not name.replace("-", "").replace("_", "").isalnum() or not 0 < shares[name] < 1:
            raise UsageError(f"{piece!r}: a part has a plain name and a share between 0 and 1.")
    if sum(shares.values()) != 1 or len(shares) != len(text.split(",")):
        raise UsageError(f"The shares of {text!r} must have different names and add up to 1.")
    return shares


def split(
    source: Path,
    out: Path,
    shares: Mapping[str, Fraction],
    *,
    images: Path,
    identity: Identity = "bytes",
    seed: int = 0,
    losses: Losses = "refuse",
) -> dict[str, int]:
    """Writes `out/<part>` for every part, in the format and kind of file that `source` is, and returns how many rows each has.

    The folder appears complete or not at all. Picture names go on to start from `images`.

    Raises DataError for the first row, or picture, that cannot be used, and where a part would be empty.
    """
    images = absolute_folder(images)
    groups = _Groups()
    found: set[str] = set()
    identify = _Identifier(images, identity)
    for number, row in enumerate(read_rows(source)):
        found.add(format_of(row))
        example = example_from_row(row, images, row_number=number, losses=losses)
        groups.add([identify(image.source) for image in example.conversation.images] or [_text_digest(example)])
    # A row of plain text looks alike in LLaVA JSON and ShareGPT, so one that can only be ShareGPT decides.
    format = next((name for name in ("messages", "sharegpt") if name in found), "llava")
    part_of = deal(groups.of_rows(), shares, seed=seed)
    counts = dict.fromkeys(shares, 0)
    with atomic_folder(out) as folder, ExitStack() as stack:
        writers: dict[str, Callable[[InstructionExample], None]] = {}
        for name in shares:
            # Parquet rows had their pictures inside, or not; as they were read, they are written.
            writers[name], _ = stack.enter_context(
                rewriting(folder / f"{name}{source.suffix}", images, format=format, pictures="paths" if not identify.embedded else "auto")
            )
        for number, row in enumerate(read_rows(source)):
            name = part_of[number]
            writers[name](example_from_row(row, images, row_number=number, losses=losses))
            counts[name] += 1
    return counts


class _Identifier:
    """The identity of a picture; each file is looked at once."""

    def __init__(self, images: Path, how: Identity):
        self._images, self._how = images, how
        self._known: dict[ImageSource, bytes] = {}
        self.embedded = False

    def __call__(self, source: ImageSource) -> bytes:
        if not isinstance(source, Path):
            self.embedded = True
            return self._digest(source)
        if source not in self._known:
            self._known[source] = self._digest(source)
        return self._known[source]

    def _digest(self, source: ImageSource) -> bytes:
        if self._how == "pixels":
            return bytes.fromhex(image_digest(open_image(source, root=self._images)))[:16]
        if self._how == "bytes" or not isinstance(source, Path):
            return hashlib.sha256(image_bytes(source, root=self._images)).digest()[:16]
        return hashlib.sha256(str(source.relative_to(self._images)).encode(errors="surrogatepass")).digest()[:16]


def _text_digest(example: InstructionExample) -> bytes:
    """The identity of a row without pictures: what is asked and answered, so that copies stay together."""
    words = "\0".join(message.text for message in example.conversation.messages)
    return hashlib.sha256(b"text" + words.encode()).digest()[:16]


class _Groups:
    """Rows joined by what they share: a forest in which every picture leads to the root of its group."""

    def __init__(self) -> None:
        self._parent: dict[bytes, bytes] = {}
        self._rows: list[bytes] = []

    def add(self, shown: Sequence[bytes]) -> None:
        """The next row, with the identities of what it shows."""
        roots = [self._root(each) for each in shown]
        for root in roots:
            # The smaller digest leads, so that a group has one name whatever the order of its rows.
            self._join(roots[0], root)
        self._rows.append(shown[0])

    def of_rows(self) -> list[bytes]:
        """The group of every row, in order."""
        return [self._root(row) for row in self._rows]

    def _root(self, each: bytes) -> bytes:
        parent = self._parent.setdefault(each, each)
        while parent != self._parent[parent]:
            self._parent[parent] = self._parent[self._parent[parent]]
            parent = self._parent[parent]
        self._parent[each] = parent
        return parent

    def _join(self, one: bytes, other: bytes) -> None:
        low, high = sorted((self._root(one), self._root(other)))
        self._parent[high] = low


def deal(groups: Sequence[bytes], shares: Mapping[str, Fraction], *, seed: int) -> list[str]:
    """The part of every row, given its group: groups in an order drawn by the seed, each to the part that lacks most rows.

    Raises DataError where there are fewer groups than parts.
    """
    members: defaultdict[bytes, int] = defaultdict(int)
    for group in groups:
        members[group] += 1
    if len(members) < len(shares):
        raise DataError(f"The rows form {len(members)} group(s) that share no picture, too few for {len(shares)} parts.")
    order = sorted(members, key=lambda group: hashlib.sha256(f"{seed}:".encode() + group).digest())
    wanted = {name: share * len(groups) for name, share in shares.items()}
    filled = dict.fromkeys(shares, 0)
    part_of: dict[bytes, str] = {}
    for place, group in enumerate(order):
        empty = [name for name in shares if not filled[name]]
        candidates = empty if len(order) - place <= len(empty) else list(shares)
        name = max(candidates, key=lambda each: wanted[each] - filled[each])
        part_of[group] = name
        filled[name] += members[group]
    return [part_of[group] for group in groups]
