"""Annotations as quoted data: what is written about a picture must not read as an order to the teacher.

Captions, labels and file names come from strangers. `quoted` makes one line of plain text of any of them, in which nothing can end the
quotation or pass for a chat role; `injection_flags` names what looks like an attempt, so that a run can mark or drop the row. The first
is the protection, the second only a report: a clever text may go unflagged, but it stays inside its line.
"""

from __future__ import annotations

import re
import unicodedata

from vistune.types import ImageAnnotations

MAX_LINE = 1000
"""Characters of a caption or label that a teacher is shown. The longest of COCO's captions has 250, of Visual Genome's and CC3M's fewer
than 700."""

# Angle and square brackets are what chat templates write their roles with (<|im_start|>, [INST], </s>) and what our own box lines end
# with, so text has none. Tokenizers turn such markers into control tokens even inside a message, which no wording could undo.
_LOOK_ALIKES = str.maketrans({"<": "‹", ">": "›", "[": "(", "]": ")", "＜": "‹", "＞": "›", "［": "(", "］": ")", "｜": "|"})
_SPACES = re.compile(r"[\s\u0085\u2028\u2029]+")
_SEPARATOR = re.compile(r"={2,}")
_UNSEEN_CATEGORIES = frozenset({"Cc", "Cf", "Co", "Cs", "Cn", "Zl", "Zp"})


def quoted(text: str) -> str:
    """One line of visible text: no control or zero-width characters, no brackets, no run of "=", at most `MAX_LINE` characters."""
    if not (text.isascii() and text.isprintable()):
        text = "".join(character for character in text if not is_unseen(character))
    text = _SEPARATOR.sub("=", _SPACES.sub(" ", text).translate(_LOOK_ALIKES)).strip()
    return text if len(text) <= MAX_LINE else text[: MAX_LINE - 1].rstrip() + "…"


def is_unseen(character: str) -> bool:
    """Whether a character takes no place on the page: zero-width, bidirectional, tags, variation selectors, private use, unassigned."""
    code = ord(character)
    if 0xFE00 <= code <= 0xFE0F or 0xE0100 <= code <= 0xE01EF or code in (0x034F, 0x115F, 0x1160, 0x3164, 0xFFA0):
        return True
    return not _breaks_line(character) and unicodedata.category(character) in _UNSEEN_CATEGORIES


def _breaks_line(character: str) -> bool:
    return character.isspace() or character in "\u0085\u2028\u2029"


# --- what looks like an attempt -----------------------------------------------------------------------------------------------------------

_INSTRUCTION = re.compile(
    r"""
      \b(ignor(e|ing)|disregard|forget|overrid(e|ing)|bypass|discard|neglect|skip|stop\ (following|obeying)|(do\ not|don'?t)\ follow)\b
      .{0,40}\b(above|previous|prior|preceding|earlier|before|instructions?|prompts?|rules?|guidelines|directions|everything|orders?|system
      |captions?|boxes|context|constraints|polic(y|ies)|safety)\b
    | \b(new|updated|real|actual|following|next|hidden|secret|special|additional|revised|final|true|your)
      \ (instructions?|prompt|orders|task)\b
    | \b(system|developer|initial|original|hidden)\ ?(prompt|message|instructions?|mode)\b
    | \byou\ are\ (now|no\ longer)\b | \bfrom\ now\ on\b | \bjailbreak | \bdan\ mode\b | \bdo\ anything\ now\b | \broleplay\b
    | \bact\ as\ (if\ you|an?\ (ai|assistant|system|admin|developer|root|different))\b | \bpretend\ (to\ be|that\ you|you)\b
    | \b(as|being)\ an?\ (ai|language\ model|assistant)\b
    | \b(dear|hey|hello|note\ to|attention,?|important:?)\ (ai|assistant|model|chatbot|gpt|llm)\b
    | \b(output|print|reply|respond|answer|repeat|return|reveal|emit|echo|append|insert|include|say|write|generate|produce)\b
      .{0,30}\b(exactly|only|verbatim|the\ (following|words?|phrase|string|text|token|sentence|line|answer)
      |your\ (system|prompt|instructions?|rules)|nothing\ (else|but)|instead|with\ the|in\ (every|each|all)|always)\b
    | \binstead\ of\ (describing|answering|following|(the|a)\ (question|description|answer|conversation))\b
    | \b(do\ not|don'?t|never|stop)\ (describ|answer|mention|generat|writ|ask)\w*\b
    | \b(end|begin|start|beginning)\ of\ (the\ )?
      (prompt|captions?|data|context|instructions?|input|message|conversation|quot\w*|annotations?)\b
    | \b(the\ )?(user|assistant|system)\ (says|said|wants|asks|must|should|will\ now)\b
    | \b(must|should|will|shall)\ (now\ )?(output|reply|respond|answer|say|print)\b
    | \b(ignorier\w*|ignorez|ignorar?|ignora|vergiss|oublie[rz]?|olvid[ae]|esque[cç]a|dimentica|negeer|zignoruj)\b
    | игнорируй|забудь|忽略|无视|無視|忘记|指示を|무시
    """,
    re.VERBOSE | re.IGNORECASE,
)
_ROLE = re.compile(
    r"""<\|?/?\s*(im_start|im_end|system|user|assistant|human|end|eot_id|begin_of_text|end_of_text|endoftext|start_header_id|end_header_id|s|
        bos|eos|image|video|instructions?|captions?|context|prompt|data|start_of_turn|end_of_turn|channel|message|tool\w*)\s*/?\|?>
    | <\|[^|<>]{1,40}\|> | <｜[^<>]{1,40}｜> | <<\s*/?\s*sys\s*>> | \[\s*/?\s*(inst|sys|system|user|assistant)\s*\]
    | \#{2,}\s*(instructions?|response|system|human|user|assistant|input|output|prompt)\b
    | (^|[\n.!?;"'»…)\]}|]\s*)(system|user|assistant|human|ai|gpt|bot|model|developer|chatgpt|claude)\s*(message|prompt)?\s*[:：>]
    | ["']?role["']?\s*[:=]\s*["']?(system|user|assistant|tool|developer)""",
    re.VERBOSE | re.IGNORECASE,
)
_BLOCK = re.compile(
    r"""={3,}|-{3,}|`{3}|~{3}|\*{4,}|\#{3,}|\"{3}|'{3}|^\s*> | (^|\W)(question|answer)\s*[:：] | (^|\W)[qa]\s*[:：]\s""",
    re.VERBOSE | re.IGNORECASE,
)
_DATA = re.compile(
    r"[{}]|[\"']\s*[,:]\s*[\"']|[\"']\s*\]|\[\s*[\"']|\]\s*,\s*\[|</?\w+[^>]*>|<!--|-->|\]\]>|<!\[|\\n|\\u00|%0a|&#", re.IGNORECASE
)
_LINK = re.compile(r"!?\[[^\]]*\]\([^)]*\)|\b(https?|ftp|file|javascript|data):\S|\bwww\.\w", re.IGNORECASE)
_ENCODED = re.compile(r"[A-Za-z0-9+/_-]{48,}={0,2}|(?:\b[A-Za-z] ){5,}[A-Za-z]\b|(?:\\x[0-9a-f]{2}){3,}|\b(base64|rot13)\b", re.IGNORECASE)

_PATTERNS = {
    "instruction": _INSTRUCTION, "role_marker": _ROLE, "separator": _BLOCK, "data_syntax": _DATA, "link": _LINK, "encoded": _ENCODED,
}  # fmt: skip
FLAGS = (*_PATTERNS, "hidden_characters", "line_break", "mixed_script", "overlong")


def text_flags(text: str) -> tuple[str, ...]:
    """What in a caption or label looks like an attempt to steer the teacher: names from `FLAGS`, none for ordinary text."""
    text = text.strip()
    found = set()
    if len(text) > MAX_LINE:
        found.add("overlong")
        text = text[: 20 * MAX_LINE]  # patterns on what could ever be read, not on megabytes
    if "\n" in text or "\r" in text or any(_breaks_line(c) and c not in " \t\u00a0\u202f\u3000\u2009" for c in text):
        found.add("line_break")
    if any(is_unseen(character) for character in text if character > "~" or character < " "):
        found.add("hidden_characters")
    if not text.isascii():
        if _mixes_scripts(text):
            found.add("mixed_script")
        visible = "".join(character for character in text if not is_unseen(character))
        found |= _matching(unicodedata.normalize("NFKC", visible))
    found |= _matching(text)
    return tuple(flag for flag in FLAGS if flag in found)


def injection_flags(annotations: ImageAnnotations) -> tuple[str, ...]:
    """The flags of all captions, labels and the file name of an image, in the order of `FLAGS`; empty for an ordinary row."""
    found = {flag for text in (*annotations.captions, *(box.label for box in annotations.boxes)) for flag in text_flags(text)}
    # File names use dashes, dots and underscores for spaces, and may be long codes: only what nobody names a picture by accident counts.
    name_flags = {*text_flags(annotations.image), *text_flags(re.sub(r"[-_./+]+|%20", " ", annotations.image))}
    found |= name_flags & {"instruction", "role_marker", "data_syntax", "hidden_characters", "line_break", "mixed_script"}
    return tuple(flag for flag in FLAGS if flag in found)


def _matching(text: str) -> set[str]:
    return {name for name, pattern in _PATTERNS.items() if pattern.search(text)}


def _mixes_scripts(text: str) -> bool:
    """Whether one word holds Latin letters beside Cyrillic or Greek ones, as look-alike spellings do."""
    for word in text.split():
        scripts = {unicodedata.name(character, "").split(" ")[0] for character in word if character.isalpha()}
        if "LATIN" in scripts and scripts & {"CYRILLIC", "GREEK", "CHEROKEE", "ARMENIAN"}:
            return True
    return False
