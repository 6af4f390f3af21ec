"""Recognises text that shows how the data was made, or that was never an answer: scaffolding, echoes of injected orders, links, code.

The teacher reads captions and boxes but must write as if it saw the picture. A model trained on "the caption says" learns to speak of
captions that nobody gave it. Where the annotations themselves use such a word (a book page *with a caption*), the picture may hold one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from vistune.datagen.quoting import injection_flags, text_flags
from vistune.types import ImageAnnotations

_SCAFFOLDING = {
    "caption": re.compile(
        r"\b(?:the|these|those|your|given|provided|first|second|third|fourth|fifth|last|each|other|several|five|both|all|image|of the"
        r"|any) captions?\b(?! (?:below|under|beneath|above|on|of the (?:meme|photo|cartoon|poster)))"
        r"|\bcaptions? (?:say|mention|describe|state|indicate|suggest|note|tell|only|do(?:es)? not)|\b(?:in|from|by|per|to) (?:the "
        r"|its )?captions?\b|\bcaption [1-9]\b",
        re.IGNORECASE,
    ),
    "description": re.compile(
        r"\b(?:based on|according to|given|from|per|in|by|as described in|using) (?:the|this|these|your|all(?: of)? the) (?:(?:given"
        r"|provided|available|above|textual|image|scene|short|brief) )*"
        r"(?:descriptions?|information|details? (?:given|provided)|sentences?|context|text descriptions?|annotations?|data|metadata"
        r"|labels?|input|prompt)\b(?! (?:of the (?:game|museum)|on|board|sign|panel|plate|below|under))"
        r"|\bthe (?:\w+ )?(?:descriptions?|annotations?|sentences|metadata|context) (?:say|mention|describe|state|indicate|suggest"
        r"|provide|do(?:es)? not|list|give|include)"
        r"|\b(?:provided|given|supplied|available) (?:descriptions?|sentences?|annotations?|context|information|text|data|labels?)\b"
        r"|\bfive (?:sentences|descriptions|captions)\b|\b(?:information|details|data|context|text) (?:given|provided|supplied)\b"
        r"|\bthe (?:prompt|input) (?:only |also )?(?:gives?|says?|lists?|contains?|mentions?|provides?)\b|\bimage (?:is"
        r"|was) described\b|\bas (?:described|stated|mentioned) in the\b"
        r"|\bthe (?:image|scene|picture) is described as\b",
        re.IGNORECASE,
    ),
    "mention": re.compile(
        r"\b(?:not|n't|never|isn't|aren't) (?:explicitly |specifically |directly |actually )?(?:mentioned|specified|stated|described"
        r"|listed)\b|\bno (?:explicit |specific |direct )?mention\b|\b(?:is|are|was|were) (?:also |explicitly "
        r"|specifically )?mentioned\b(?! on)|\bdoes(?:n't| not) (?:mention|specify|state)\b",
        re.IGNORECASE,
    ),
    "box": re.compile(
        r"\bbounding[ -]?box\w*|\bbox (?:coordinates?|annotations?|labels?)\b|\b(?:object|detection|detected) (?:list|boxes|labels"
        r"|detector|detections?|annotations?)\b|\b(?:list of (?:detected |given )?objects|(?:detected|annotated|listed) objects"
        r"|labels? of (?:the|its|this) box\w*|(?:first|second|third|fourth|fifth|last) sentence of the|object detection"
        r"|segmentation mask"
        r"|ground[ -]truth|annotated (?:as|objects?))\b"
        r"|\b(?:labell?ed|annotated|tagged) (?:as|with) (?:a |an )?[\"'“]",
        re.IGNORECASE,
    ),
    "coordinates": re.compile(
        r"[\[(]\s*[01]?\.\d+\s*(?:,\s*[01]?\.\d+\s*){1,3}[\])]|\b0\.\d{2,3}\b[^.!?\n]{0,30}\b[01]\.\d{2,3}\b"
        r"|\[\s*\d{1,4}\s*(?:,\s*\d{1,4}\s*){3}\]|\bx1\b|\by1\b|\bx ?= ?0?\.\d"
        r"|\b(?:the|its|their|his|her|given|provided|normali[sz]ed|relative|exact|pixel|spatial|these|by|with|at|image|object|x"
        r"|y)[- ]coordinates\b(?! (?:her|his|their|the (?:team|event|traffic)))|\bcoordinates? (?:of|at|for|indicate|show|suggest|say"
        r"|place|range|given|provided|\[|\()|\bnormali[sz]ed (?:values?|positions?)\b",
        re.IGNORECASE,
    ),
}
# What the annotations must say themselves for the word to be about the picture.
_EXCUSED_BY = {"caption": "caption", "description": "description", "mention": "mention", "box": "bounding", "coordinates": "coordinate"}

_LINK = re.compile(
    r"\b(?:https?|ftp|file)://\S|\bwww\.\w|\]\([^)\s]{1,200}\)|\bmailto:|\b[\w.+-]{1,64}@[\w-]{1,63}\.\w{2,}|\bdata:\w+/\w+"
    r"|\bjavascript:|\b[a-z0-9-]{2,63}\.(?:com|org|net|io|ai|gov|edu|co\.uk|ru|cn)(?:/\S*)?(?=\W|$)(?!['’])",
    re.IGNORECASE,
)
_CODE = re.compile(
    r"```|~~~|</?(?:script|div|span|img|a|p|br|html|body|iframe|b|i|table|svg|style|h[1-6])\b[^<>\n]{0,200}>|<!--"
    r"|\bdef \w{1,60}\(|\bclass [A-Z]\w{0,60}[(:]|\bfrom [\w.]{1,60} import \w|^[ \t]{0,20}#include\b"
    r"|\bimport (?:os|sys|re|json|math|time|random|numpy|torch|pandas|requests|subprocess)\b|\b(?:var|let|const) \w{1,60} ?="
    r"|\bfunction ?\w{0,60} ?\([^)\n]{0,80}\) ?\{|\b(?:console\.log|print|printf|System\.out\.println|alert|eval|exec|os\.system) ?\("
    r"|\bSELECT\b.{1,80}\bFROM\b|\bDROP TABLE\b|[{\[]\s?\"[^\"\n]{1,60}\"\s?:|\"[^\"\n]{1,60}\": ?[\[{\"]|\}\s?[\]},]|\{\{.{0,80}\}\}"
    r"|\$\{.{0,80}\}"
    r"|;[ \t]{0,20}\n[ \t]{0,20}\w[^\n]{0,200};[ \t]{0,20}$|=> ?\{|\w ?[=!]== ?\w|\\(?:frac|begin|text)\{",
    re.MULTILINE,
)
_ORDER_ECHO = re.compile(
    r"\b(?:ignor\w+|disregard\w*|forget\w*|overrid\w+) (?:all |any |the |my |your |these |those )*(?:above|previous|prior|earlier"
    r"|preceding|instructions?|prompts?|system)\b|\b(?:system|developer|hidden|initial) (?:prompt|message|instructions?)\b"
    r"|\b(?:new|secret|updated|injected|embedded) instructions?\b|\b(?:as|per) (?:instructed|your instructions"
    r"|requested by the caption)\b|\bthe (?:task|prompt|instructions?) (?:is|was|asks?|says?|requires?|given)\b|\bjailbreak\w*"
    r"|\bprompt injection\b|\bDAN mode\b|\bdeveloper mode\b|\byou are (?:now|no longer) (?:a|an|in|bound)\b",
    re.IGNORECASE,
)
# A word of capitals, digits and joints that no sentence has by itself: PWNED-7731, CANARY_42, zx9Q-aa81.
_TOKEN = re.compile(r"(?<![\w-])(?=[\w-]*\d)(?=[\w-]*[A-Za-z])[A-Za-z0-9]+(?:[-_][A-Za-z0-9]+)*(?![\w-])")
# A text of the annotations that does not pass for an attempt because of these alone: COCO's captions end in newlines, lists may be long.
_HARMLESS_FLAGS = frozenset({"line_break", "overlong"})
_MIN_ECHO_LETTERS = 6


def scaffolding_in(text: str, annotations: ImageAnnotations) -> str | None:
    """The first words that give away the captions or boxes behind a text, or None."""
    known = " ".join((*annotations.captions, *(box.label for box in annotations.boxes))).lower()
    for name, expression in _SCAFFOLDING.items():
        if (match := expression.search(text)) and _EXCUSED_BY[name] not in known:
            return f"it speaks of what the teacher was given ({match.group().strip()[:60]!r})"
    return None


def injection_in(texts: Iterable[str], annotations: ImageAnnotations) -> str | None:
    """A trace of an order hidden in the annotations, in them or in what was written, or None.

    A row whose annotations look like an attempt is dropped whatever the answer: an order that was followed cannot be told from an answer.
    """
    if flags := [flag for flag in injection_flags(annotations) if flag not in _HARMLESS_FLAGS]:
        return f"the annotations look like an attempt to steer the teacher ({', '.join(flags)})"
    sources = (*annotations.captions, *(box.label for box in annotations.boxes), annotations.image)
    tokens = {token for source in sources for token in _TOKEN.findall(source) if len(token) >= _MIN_ECHO_LETTERS}
    for text in texts:
        if match := _ORDER_ECHO.search(text):
            return f"it repeats an order ({match.group()[:60]!r})"
        if flags := [flag for flag in text_flags(text) if flag in ("hidden_characters", "role_marker", "mixed_script", "encoded")]:
            return f"it holds what no answer needs ({', '.join(flags)})"
        if echoed := tokens & set(_TOKEN.findall(text)):
            return f"it repeats a code of the annotations ({min(echoed)[:60]!r})"
    return None


def link_or_code_in(text: str) -> str | None:
    """The first link, address or piece of code or markup, or None."""
    for name, expression in (("a link", _LINK), ("code", _CODE)):
        if match := expression.search(text):
            return f"it holds {name} ({match.group().strip()[:60]!r})"
    return None
