"""Tokenises rendered text so that markers a template wrote are special tokens and the same letters in someone's words are not.

A run of text (what stands between two pictures) is encoded in one call, because pieces encoded one by one get other ids than the
checkpoints were trained on. To tell the two kinds of text apart inside one call, the encoder uses a second tokenizer over the same
vocabulary in which every marker is spelled in a secret way: template text is rewritten to that spelling, typed text is left alone, ids and
the places at which text is cut stay the tokenizer's own. For text that spells no marker, ids are those of an ordinary call (tested).
"""

from __future__ import annotations

import re
import secrets
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerBase

from vistune.errors import CheckpointError, DataError
from vistune.model.templates import Segment


class Token(NamedTuple):
    """An id and the segments it came from: one normally, several where the tokenizer merged across a border."""

    id: int
    segments: tuple[Segment, ...]
    is_image: bool = False


class TextEncoder:
    """Segments to tokens, one picture being one token. Holds no state between calls; may be shared by threads."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, image_token: str):
        if not tokenizer.is_fast:
            raise CheckpointError(
                f"{type(tokenizer).__name__} is not a fast tokenizer; character offsets are needed to build the loss mask. Save the folder "
                f"with a tokenizer.json."
            )
        backend: Tokenizer = tokenizer.backend_tokenizer  # type: ignore[attr-defined]
        added = backend.get_added_tokens_decoder()
        markers = {token.content: id for id, token in added.items() if token.special or _looks_like_a_marker(token.content)}
        _check_markers_cannot_be_spelled(backend, markers)
        nonce = secrets.token_hex(12)  # nobody can type it: it is drawn anew for each encoder, and replaced by ids before anyone sees it
        spelling = {marker: f"<{nonce}|{index}>" for index, marker in enumerate(dict.fromkeys([*markers, image_token]))}
        self._image_spelling = spelling[image_token]
        self._break_spelling = f"<{nonce}|break>"
        self._tokenizer, self._own_ids = _respelled(backend, added, spelling)
        self._tokenizer.add_special_tokens([self._image_spelling, self._break_spelling])
        self._break_id = self._tokenizer.token_to_id(self._break_spelling)
        self._marker = re.compile("|".join(re.escape(marker) for marker in sorted(spelling, key=len, reverse=True)))
        self._spell: Callable[[re.Match[str]], str] = lambda match: spelling[match[0]]
        self.marker_ids = markers
        """Ids of the markers that template text may spell."""
        ids = tokenizer("").input_ids
        self.prefix_ids: list[int] = [ids[0]] if ids and ids[0] == tokenizer.bos_token_id else []
        """What the tokenizer puts before a text: BOS or nothing. (An EOS that some append is the template's business.)"""

    def encode(self, segments: Sequence[Segment], *, chunked: bool) -> list[Token]:
        """The tokens of `segments`, after `prefix_ids`, which are not repeated if the text itself begins with them.

        Args:
            chunked: True tokenises the text on each side of a picture as a text of its own, without BOS, as the original does: a
                SentencePiece tokenizer then begins each with its dummy blank (29871 before a line break). False takes the whole as one
                text in which the picture is a special token, as transformers' processors do.
        """
        tokens: list[Token] = []
        for run in _runs(segments) if chunked else [list(segments)]:
            tokens += [Token(-1, tuple(run), is_image=True)] if chunked and run[0].image is not None else self._encode_run(run)
        prefix = [Token(id, ()) for id in self.prefix_ids]
        return tokens if [token.id for token in tokens[: len(prefix)]] == self.prefix_ids else prefix + tokens

    def single_id(self, text: str) -> int | None:
        """The id of a marker or of a text that is one token; None if it is several."""
        if text in self.marker_ids:
            return self.marker_ids[text]
        ids = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids[0] if len(ids) == 1 else None

    def _encode_run(self, run: Sequence[Segment], break_after: frozenset[int] = frozenset()) -> list[Token]:
        """One call of the tokenizer.

        If a token straddles the place where a reply opens, the model would never see that token in use, because a generation prompt ends
        there: then, and only then, the run is encoded anew with a cut at that place. (An answer that begins with a line break, after
        ChatML's header, is such a case.)

        Raises DataError for text that is no Unicode (a lone surrogate, which JSON can spell and a terminal can pass on).
        """
        text, spans = "", []
        for index, segment in enumerate(run):
            start = len(text)
            text += self._rewritten(segment)
            spans.append((start, len(text), segment))
            if index in break_after:
                text += self._break_spelling
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise DataError(
                f"A text of the conversation holds half a character ({error.object[error.start : error.end]!r}), as files read in a wrong "
                f"encoding do; write it in UTF-8."
            ) from error
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        ids, offsets = encoding.ids, encoding.offsets
        owners = _owners(spans, offsets)
        straddled = {
            index
            for (start, end), owned in zip(offsets, owners, strict=True)
            if len(owned) > 1
            for index in owned
            if spans[index][2].opens_reply and index not in break_after and start < spans[index][1] < end
        }
        if straddled:
            return self._encode_run(run, break_after | straddled)
        alone = [((segment,), segment.image is not None) for segment in run]
        own_ids, break_id, tokens = self._own_ids, self._break_id, []
        for id, owned in zip(ids, owners, strict=True):
            if id == break_id:
                continue
            if len(owned) == 1:
                segments, is_image = alone[owned[0]]
            else:
                segments = tuple(run[index] for index in owned)
                is_image = any(segment.image is not None for segment in segments)
            tokens.append(Token(own_ids.get(id, id), segments, is_image))
        return tokens

    def _rewritten(self, segment: Segment) -> str:
        if segment.image is not None:
            return self._image_spelling
        return segment.text if segment.typed else self._marker.sub(self._spell, segment.text)


def _runs(segments: Sequence[Segment]) -> list[list[Segment]]:
    """Runs of text without a picture, and single pictures, in order."""
    runs: list[list[Segment]] = []
    for segment in segments:
        if segment.image is None and runs and runs[-1][0].image is None:
            runs[-1].append(segment)
        else:
            runs.append([segment])
    return runs


def _owners(spans: Sequence[tuple[int, int, Segment]], offsets: Sequence[tuple[int, int]]) -> list[tuple[int, ...]]:
    """For each token the places of the segments that it shares a character with.

    A token without characters (a dummy blank) belongs to what follows it. Spans ascend, and so do nearly all tokens, so that one walk along
    both finds them; a token that goes back makes it begin anew.
    """
    owners: list[tuple[int, ...]] = []
    if not offsets:
        return owners
    here, place, last = (0,), 0, len(spans) - 1
    first, end_of_first = spans[0][:2]
    firsts = [span[0] for span in spans]
    for start, end in offsets:
        stop = end if end > start else start + 1
        if start < first:
            here, place = (0,), 0
            first, end_of_first = spans[0][:2]
        while start >= end_of_first and place < last:
            place += 1
            here = (place,)
            first, end_of_first = spans[place][:2]
        if first < stop <= end_of_first:
            owners.append(here)
        else:
            owners.append(tuple(index for index in range(place, bisect_left(firsts, stop)) if start < spans[index][1]))
    return owners


def _looks_like_a_marker(content: str) -> bool:
    """Whether an added token that is not declared special is written like one (`<tool_call>`).

    Others are words, or runs of blanks that the language model met in ordinary text, and stay what they are.
    """
    content = content.strip()
    return content[:1] + content[-1:] in ("<>", "[]")


def _respelled(backend: Tokenizer, added: Mapping[int, AddedToken], spelling: Mapping[str, str]) -> tuple[Tokenizer, dict[int, int]]:
    """A tokenizer over the same vocabulary whose markers are spelled anew, and the true ids of its added tokens.

    No post-processor: BOS is added by hand, and offsets must include the blank that belongs to a token.
    """
    tokenizer = Tokenizer(backend.model)
    if backend.normalizer is not None:
        tokenizer.normalizer = backend.normalizer
    if backend.pre_tokenizer is not None:
        tokenizer.pre_tokenizer = backend.pre_tokenizer
    own_ids: dict[int, int] = {}
    for id, token in sorted(added.items()):
        content = spelling.get(token.content, token.content)
        flags = {flag: getattr(token, flag) for flag in ("single_word", "lstrip", "rstrip", "normalized", "special")}
        tokenizer.add_tokens([AddedToken(content, **flags)])
        here = tokenizer.token_to_id(content)
        assert here is not None  # it was added just now
        own_ids[here] = id
    return tokenizer, own_ids


def _check_markers_cannot_be_spelled(backend: Tokenizer, markers: Mapping[str, int]) -> None:
    """Refuses a vocabulary that makes a marker out of plain letters (Unigram does, where the marker is one of its pieces)."""
    for marker, id in markers.items():
        if any(token.id == id for token in backend.model.tokenize(marker)):
            raise CheckpointError(
                f"This tokenizer's {type(backend.model).__name__} model reads the letters {marker!r} as token {id} wherever they stand, so "
                f"a user's text could not be told from the template's. Use a language model with a BPE tokenizer."
            )
