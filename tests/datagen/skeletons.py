"""What is left of a question when names, colors, places and numbers are taken out: how varied wordings are counted."""

from __future__ import annotations

import re

from vistune.scenes import COLOURS, PLACES, Scene, sprite_bank

_NUMBERS = "zero|one|two|three|four|five|six|seven|eight|nine|ten"
_PLACES = "|".join(PLACES.values())


def skeleton(question: str, scene: Scene) -> str:
    """The question with slots, agreement and articles evened out; lettered choices and lists of choices count as one slot."""
    text = question.split("\n")[0].lower()
    names = {thing.name.lower() for thing in sprite_bank().things.values() if thing.name.lower() in text}
    names |= {thing.plural.lower() for thing in sprite_bank().things.values() if thing.plural and thing.plural.lower() in text}
    for name in sorted(names, key=len, reverse=True):
        text = re.sub(rf"\b(?:an? |any )?{re.escape(name)}\b", "NAME", text)
    text = re.sub(rf"\b(?:an? )?(?:{'|'.join(COLOURS)})\b", "COLOUR", text)
    text = re.sub(rf"(?:{_PLACES})(?: (?:corner|part|side))?(?: of the (?:picture|image))?", "PLACE", text)
    text = re.sub(rf"\b(?:{_NUMBERS})\b", "NUMBER", text)
    text = re.sub(r"\b(?:striped|checkered|dotted|speckled)\b", "PATTERN", text)
    text = re.sub(r"\bNAME(?:(?:, | or | and )NAME)+", "NAMES", text)
    return re.sub(r"\bare\b", "is", re.sub(r"\bdo\b", "does", text))
