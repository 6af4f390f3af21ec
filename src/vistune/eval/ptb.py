"""The tokenisation of COCO's caption metrics, in Python: words as in the Penn Treebank, lower case, most punctuation left out.

The official one is a program in Java (Stanford's tokeniser 3.4.1 as `pycocoevalcap` calls it). This is written after its behaviour, not
after its code: rules are tried at each place, the longest match wins and the first of equals. Known differences: characters younger than
the Java program's tables are letters here and dropped there; a caption stays one caption, whatever line separators it holds, where the
official program would hand its rest to the next caption; and whether a dot belongs to a last "no." or "I." is not read off the caption
that follows. Of random strings of signs about one in ten comes out differently, of random captions one in two hundred.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

# What pycocoevalcap drops after tokenising. Brackets are in its list in capitals, which never occur after lower-casing, so they stay.
DROPPED = frozenset(["", "''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"])

_SYMBOLS = (
    "¡¥-©¬®-±´¶-¸¿×÷;·։־׀׃׆׳-؃؆-،ؔ؛؞؟٪٭۔܀-܍߶-߸।॥฿๏᾽‖‗\u2020-\u2023\u2030-\u2038※\u203e-\u2042⁺-⁾₊-₎₤℀℁℃-℆℈℉℔№-℘℞-℣℥℧℩℮℺℻⅀-⅄⅊-⅍⅏"
    "⅕-⅞←-⯿、。〒・！-／：-＠［-｀｛-･￠￡￥￦‚„‟"
)
_MARKS = (
    "\u02c2-\u02c5\u02d2-\u02df\u02e5-\u02eb\u02ed\u02ef-\u036f\u0375\u0378-\u0379\u0384-\u0385\u03f6\u0483-\u0487\u055a-\u055f"
    "\u0591-\u05bd\u05bf\u05c1-\u05c2\u05c4-\u05c5\u05c7\u0615-\u061a\u064b-\u065e\u0670\u06d6-\u06e4\u06e7-\u06ed\u06fd-\u06fe\u070f"
    "\u0711\u0730-\u074c\u07a6-\u07b0\u07eb-\u07f3\u0900-\u0903\u093c\u093e-\u094e\u0951-\u0955\u0962-\u0963\u0981-\u0983\u09bc"
    "\u09be-\u09cd\u09d7\u09e2-\u09e3\u0a01-\u0a03\u0a3c-\u0a4f\u0a81-\u0a83\u0abc\u0abe-\u0acf\u0b82\u0bbe-\u0bcd\u0c01-\u0c03"
    "\u0c3e-\u0c56\u0d3e-\u0d48\u0e31\u0e34-\u0e3a\u0e47-\u0e4e\u0eb1\u0eb4-\u0ebc\u0ec8-\u0ecd"
)
_SYMBOL = re.compile(f"[{_SYMBOLS}]")
_MARK = re.compile(f"[{_MARKS}]")
_SUPERSCRIPTS = "²³¹⁰⁴-⁹₀-₉"
# Characters that are written as something else once they are a token of their own.
_WRITTEN = {
    "¢": "cents", "£": "#", "¤": "$", "₠": "$", "€": "$", "…": "...", "—": "--",
    "½": "1/2", "¼": "1/4", "¾": "3/4", "⅓": "1/3",
    "⅔": "2/3", "‘": "`", "’": "'", "“": "``", "”": "''", "(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-",
    "}": "-rcb-", '"': "''", "‐": "", "٫": "", "٬": "",
    "&lt;": "<", "&gt;": ">", "&amp;": "&", "&quot;": "''", "&apos;": "'", "&nbsp;": "", "&mdash;": "--", "&ndash;": "--",
}  # fmt: skip
_CANONICAL = {
    "\u0080": "€", "\u0091": "‘", "‛": "‘", "‹": "‘", "\u0092": "’", "\u0093": "“", "«": "“", "\u0094": "”", "»": "”", "›": " ” ",
    "\u0096": "—", "\u0097": "—", "–": "—", "―": "—", "\u00ad": "", "\u058a": "‐", "‑": "‐",
}  # fmt: skip
_KEPT = frozenset("—‘’“”…⁄²³¹‐٫٬" + "".join(map(chr, (0x2070, *range(0x2074, 0x207A), *range(0x2080, 0x208A)))))


class _Characters(dict[int, str]):
    """A table for `str.translate`: what each character is to the rules. Dropped ones become blanks, and symbols stand alone."""

    def __missing__(self, code: int) -> str:
        self[code] = self._meaning(chr(code))
        return self[code]

    @staticmethod
    def _meaning(character: str) -> str:
        if character in _CANONICAL:
            return _CANONICAL[character]
        if character in _KEPT or "!" <= character <= "~":
            return character
        if character > "\uffff" or character.isspace():
            return " "
        if character in _WRITTEN or _SYMBOL.match(character):
            return f" {character} "
        known = character.isalpha() or character.isdecimal() or _MARK.match(character)
        return character if known else " "


_CHARACTERS = _Characters()

_OTHER = rf"\s!-/:-@\[-`{{-~—‘’“”…⁄{_SUPERSCRIPTS}‐٫٬"
_L = rf"[^\d{_OTHER}]"  # a letter
_A = f"[^{_OTHER}]"  # a letter or digit
_APOS = "(?:['’]|&apos;)"
_TICK = "(?:['’`‘]|&apos;)"
_ACRONYM = r"[A-Za-z](?:\.[A-Za-z]){0,99}\."
_WORD = rf"{_L}{_A}{{0,9999}}+(?:[.!?]{_L}{_A}{{0,999}}+){{0,99}}"
_CLITIC = rf"{_APOS}(?i:[msd]|re|ve|ll)"
_PART = rf"(?:[dDoOlL]{_TICK}{_L})?{_A}{{1,9999}}+"
_SLASHED = r"[A-Za-z0-9]{1,9999}+(?:-[A-Za-z]+){0,2}"

_ABBREVIATIONS = frozenset(
    # not a list of literals: a hundred of them would hide the rules
    """adj adm adv al ala alex apr ariz assn assoc asst atty attys aug ave bancorp bhd bldg blvd brig bros calif capt cf cie cmdr co col
    colo comdr conn corp cos cpl ct dak dec dept det dr drs elec ens esq est etc ext feb fla fri ft ga gen gov govs hon inc ind insp
    intl invt jan jos jr jul jun kan kans ky lieut lt ltd maj mar md messrs mfg mich minn mlle mme mo mon mont mr mrs ms msgr mt mtg
    natl neb nev nov oct okla penn pfc ph plc pres prof profs pte ptys pty pvt rd rep reps rev rt sen sens sep sept seq sfc sgt spc sq
    sr st ste supt supts sys tel tenn thu thurs treas tue tues univ va vs vt wed wis wisc wm wyo ph.d ed.d""".split()  # noqa: SIM905
)
# Words that, with a capital, show that the single letter with a dot before them ended a sentence: "type O. The".
_STARTERS = (
    "A|About|According|Additionally|After|An|As|At|But|He|Her|Here|However|If|In|It|Last|Many|More|Now|Once|One|Other|Our|She|Since|So|Some"
    "|Such|That|The|Their|Then|There|These|They|This|We|What|When|While|Yet|You"
)
_URL_END = r"[^\s\"<>|.!?(){},-]"
_SITE = (
    r"(?:(?i:www)\.(?:[^\s\"<>|.!?(){},/]{1,100}\.){1,9}[a-zA-Z]{2,4}"
    r"|(?:[^\s\"`'<>|!?(){}$,-_]{1,100}\.){1,9}(?i:com|net|org|edu))"
)
_URL_PATH = rf"/[^\s\"<>|()]{{2,400}}(?<={_URL_END})"

_FILES = "bat|bmp|c|class|cgi|cpp|dll|docx?|exe|gif|gz|h|html?|jar|java|jpe?g|mov|mp3|pdf|php|pl|png|ppt|ps|py|sql|tar|txt|wav|x|xml|zip"

_FILE = rf"({_A}{{1,100}}(?:\.{_A}{{1,100}}){{0,20}}\.(?i:{_FILES}))(?:\s|[.?!,]|\Z)"

# Repetitions are bounded, so that no junk is slow; words of a hundred parts do not occur.
# Each rule has the token as its group 1; what it matches after that only decides which rule is the longest.
_STARTING_WITH_A_LETTER = (
    r"((?i:can))(?i:not)",
    r"((?i:gon|got|lem|gim|wan))(?:(?<=(?i:n))(?i:na)|(?<=(?i:t))(?i:ta)|(?<=(?i:m))(?i:me))",
    rf"({_WORD}){_CLITIC}",
    rf"({_L}{{1,100}})(?i:n){_TICK}(?i:t)",
    rf"({_WORD})",
    rf"((?i:dunkin{_APOS}|somethin{_APOS}|ol{_APOS}|c'mon|c{_APOS}est|cap{_APOS}n|s'mores|li'l|e'er))",
    rf"([A-HJ-XZn]{_TICK}{_L}{_L}+)",
    rf"({_L}{{2,100}}(?<=[aeiouyAEIOUY]){_APOS}[aeiouA-Z]{_L}*)",
    rf"([lLdDjJ]{_APOS})",
    rf"([yY]{_APOS}){_L}",
    rf"((?i:n){_TICK}(?i:t))",
    r"((?i:c\+\+|c#|f#))",
    rf"({_SLASHED}(?:\\?/{_SLASHED}){{1,2}})",
    r"([A-Z]+\$)",
    rf"({_A}[A-Za-z0-9.,]{{0,200}}(?:-(?:[A-Za-z](?:\.[A-Za-z])+\.|[A-Za-z0-9]++)){{1,99}})",
    rf"({_PART}(?:[-_‐]{_PART}){{0,99}})",
    r"([A-Z]+(?:(?:&amp;|[+&])[A-Z]+){1,99})",
    rf"({_ACRONYM})",
    _FILE,
    rf"({_WORD}\.)[,;:]",
    rf"({_PART}(?:[-_‐]{_PART}){{0,99}}\.)[,;:]",
)
_STARTING_WITH_A_DIGIT = (
    r"(\d{1,9999}+(?:[.:,٫٬]\d+){0,99})",
    r"((?:\d{1,4}[- ])?\d{1,4}(?:\\?/|⁄)\d{1,4})",
    r"((?:\d{2,4}[- ])?\d{2,4}[- ]\d{3,4}[- ]?\d{3,5})",
    r"(\d{1,2}[-/]\d{1,2}[-/]\d{2,4})",
    rf"({_SLASHED}(?:\\?/{_SLASHED}){{1,2}})",
    rf"({_A}[A-Za-z0-9.,]{{0,200}}(?:-(?:[A-Za-z](?:\.[A-Za-z])+\.|[A-Za-z0-9]++)){{1,99}})",
    rf"({_PART}(?:[-_‐]{_PART}){{0,99}})",
    rf"({_PART}(?:[-_‐]{_PART}){{0,99}}\.)[,;:]",
    _FILE,
)
_SIGNS = (
    r"(<(?:[!?][A-Za-z-][^<>]*|/?[A-Za-z][A-Za-z0-9_:.@-]*(?: +[A-Za-z][A-Za-z0-9_:.-]*(?: *= *(?:'[^'<>]*'|\"[^\"<>]*\"))?)* */?)>)",
    r"(&(?i:amp|lt|gt|quot|apos|nbsp|mdash|ndash);)",
    r"(&#\d+;)",
    rf"({_CLITIC})(?:[^A-Za-z]|\Z)",
    r"(’(?i:[msd]|re|ve|ll))",
    rf"({_APOS}(?i:n){_APOS})",
    rf"({_APOS}(?i:n))(?!{_L})",
    rf"({_APOS}(?i:em|till?|cause))",
    rf"({_APOS}[2-9]0s)(?!\d)",
    rf"({_APOS}\d\d)(?:\s|\Z)",
    r"('(?i:t))(?i:is|was)",
    r"(@[A-Za-z_][A-Za-z_0-9]*)",
    rf"(#{_L}+)",
    r"(@@+)",
    r"(-(?i:[lr][rcs]b)-)",
    r"([-+]?\d{0,99}+(?:[.:,٫٬]\d+){1,99}|[-+]\d+)",
    r"((?:\(\d{2,3}\) ?|\+\+?(?:\d{2,4}[- ])?\d{2,4}[- ])\d{3,4}[- ]?\d{3,5})",
    rf"([{_SUPERSCRIPTS[:3]}⁰⁴-⁹]+|[₀-₉]+)",
    r"([<>]?[:;=][-o']?[()\[\]{|\\dDpPO])(?:[^A-Za-z]|\Z)",
    r"([-^x=~<>']_[-^x=~<>']|\([-^x=~<>'][_.]?[-^x=~<>']\))",
    r"([?!]+)",
    r"(-{5,})",
    r"(-{1,4}|\.{3,5})",
    r"(\*+|(?:\\\*){1,3})",
    r"(_+|#+|<<|>>)",
    r"(''|``)",
    r"(\S)",
)
_ANYWHERE = {
    "@": r"([A-Za-z0-9][^\s\"<>|(){}]{0,200}@(?:[^\s\"<>|(){}.@]{1,200}\.){0,20}[^\s\"<>|(){}.@,;:!?]{1,200})",
    "://": rf"((?i:https?)://[^\s\"<>|()]{{2,400}}(?<={_URL_END}))",
    "/": rf"({_SITE}{_URL_PATH})",
    "www.": r"((?i:www)\.(?:[^\s\"<>|.!?(){},/]{1,100}\.){1,9}[a-zA-Z]{2,4})",
}


def _compiled(*patterns: str) -> tuple[re.Pattern[str], ...]:
    return tuple(re.compile(pattern) for pattern in patterns)


_LETTER_RULES = _compiled(*_STARTING_WITH_A_LETTER)
_DIGIT_RULES = _compiled(*_STARTING_WITH_A_DIGIT)
_SIGN_RULES = _compiled(*_SIGNS)
_RARE_RULES = {needle: re.compile(pattern) for needle, pattern in _ANYWHERE.items()}

_PLAIN = re.compile(r"[A-Za-z]+(?:[,.]? +[A-Za-z]+)*[,.]? *")
_PLAIN_WORD = re.compile(r"([A-Za-z]+)([,.]?)")
_WORD_ALONE = re.compile(rf"{_L}{_A}{{0,9999}}+(?=,? |,?\Z)")
_ABBREVIATION = re.compile(r"((?i:ph\.d|ed\.d)|[A-Za-z]{2,10})\.")
_BEFORE_A_NUMBER = re.compile(r"((?i:ca|figs?|nos?|prop|art|pp|op)\.) ?\d")
_ENDS_SENTENCE = re.compile(rf" +(?=[A-Z])(?:(?i:{_STARTERS})(?=\s|\Z)|Mr\.)| *</?[A-Za-z]")
_SPLIT = frozenset(["cannot", "gonna", "gotta", "lemme", "gimme", "wanna"])
_DASHES_OR_DOTS = re.compile(r"-{2,4}|\.{3,5}")
_CLITICS = re.compile(r"’(?:[msd]|re|ve|ll)|n’t")
_BRACKETS = str.maketrans({"(": "-lrb-", ")": "-rrb-"})


def tokenize(caption: str) -> str:
    """The caption's tokens, lower-cased, without punctuation, one blank between them. A token may hold no-break spaces."""
    plain = _plain_tokens(caption)
    tokens = _scan(caption.translate(_CHARACTERS)) if plain is None else plain
    return " ".join(token for token in tokens if token not in DROPPED)


def _plain_tokens(caption: str) -> list[str] | None:
    """The tokens of a caption made of plain words, commas and full stops; None where a word calls for the rules."""
    if not _PLAIN.fullmatch(caption):
        return None
    tokens = []
    for word, sign in _PLAIN_WORD.findall(caption.lower()):
        dotted = sign == "." and (len(word) == 1 or word in _ABBREVIATIONS)
        if word in _SPLIT or dotted:
            return None
        tokens.append(word)
    return tokens


def _scan(text: str) -> Iterator[str]:
    rare = tuple(rule for needle, rule in _RARE_RULES.items() if needle in text)
    place = 0
    while place < len(text):
        first = text[place]
        if first.isspace():
            place += 1
            continue
        token, place = _longest(text, place, rare)
        yield _written(token)


def _longest(text: str, place: int, rare: tuple[re.Pattern[str], ...]) -> tuple[str, int]:
    alone = _WORD_ALONE.match(text, place)
    if alone and alone[0].lower() not in _SPLIT:
        return alone[0], alone.end()
    first = text[place]
    if first.isdecimal():
        rules = _DIGIT_RULES
    elif first.isalpha() or _MARK.match(first):
        rules = _LETTER_RULES
    else:
        rules = _SIGN_RULES
    best: re.Match[str] | None = None
    for rule in (*rules, *rare):
        found = rule.match(text, place)
        if found and (best is None or found.end() > best.end()):
            best = found
    assert best is not None  # any sign is a token, and so is any word
    return _with_its_dot(text, best)


def _with_its_dot(text: str, found: re.Match[str]) -> tuple[str, int]:
    """The token found and where it ends; with a dot that belongs to it, or without one that ends the sentence."""
    token, end = found[1], found.end(1)
    if len(token) == 2 and token[1] == "." and token[0].isalpha() and _ENDS_SENTENCE.match(text, end):
        return token[0], end
    place = found.start()
    for rule in (_ABBREVIATION, _BEFORE_A_NUMBER):
        abbreviation = rule.match(text, place)
        if abbreviation and abbreviation.end() > found.end() and (rule is _BEFORE_A_NUMBER or abbreviation[1].lower() in _ABBREVIATIONS):
            return text[place : place + len(abbreviation[1].rstrip(".")) + 1], place + len(abbreviation[1].rstrip(".")) + 1
    return token, end


def _written(token: str) -> str:
    if token in _WRITTEN:
        return _WRITTEN[token]
    if _DASHES_OR_DOTS.fullmatch(token):
        return "--" if token[0] == "-" else "..."
    token = token.lower()
    token = _WRITTEN.get(token, token)
    if not (token[0] == "<" and token[-1] == ">"):
        token = token.translate(_BRACKETS)
    token = token.replace("&amp;", "&").replace("&apos;", "'").replace("‘", "`").replace(" ", "\u00a0")
    return token.replace("’", "'") if _CLITICS.fullmatch(token) else token
