"""Captions: the tokens by known output of the official program, the metrics against the formulas written out again."""

from __future__ import annotations

import math
import random
import shutil
import time
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vistune import errors
from vistune.errors import MissingDependency, ScoringError
from vistune.eval.benchmarks import captions
from vistune.eval.ptb import DROPPED

Rouge = pytest.importorskip("pycocoevalcap.rouge.rouge").Rouge

# What Stanford's tokeniser 3.4.1 made of these, with what pycocoevalcap drops left out.
TOKENISED = [
    ("A dog, two cats. And a BIRD.", "a dog two cats and a bird"),
    ("", ""),
    ("...", ""),
    ("don't can't it's dogs' he'll CANNOT gonna", "do n't ca n't it 's dogs he 'll can not gon na"),
    ("don’t it’s ’90s '90s", "do n't it 's ’90s '90s"),
    ("black-and-white t-shirt mid-air x-ray", "black-and-white t-shirt mid-air x-ray"),
    ("a - b -- c — d – e", "a b c d e"),
    ("well...ok wow!! really?! hey!", "well ok wow !! really ?! hey"),
    ("(left) [x] {y}", "-lrb- left -rrb- -lsb- x -rsb- -lcb- y -rcb-"),
    ("a \"STOP\" sign says 'go' “hi” `x`", "a stop sign says go hi x"),
    ("Mr. Smith, St. Louis etc.", "mr. smith st. louis etc."),
    ("the U.S. flag at 5 p.m.", "the u.s. flag at 5 p.m."),
    ("vitamin C. it is", "vitamin c. it is"),
    ("type O. The end", "type o the end"),
    ("on a mass. the no. 5 bus. no.", "on a mass the no. 5 bus no"),
    ("hello,world hello.world it., x", "hello world hello.world it. x"),
    ("1,000 3.5 .5 -5 12:30 10:30am 1/2 2nd", "1,000 3.5 .5 -5 12:30 10:30 am 1/2 2nd"),
    ("1 1/2 cups ½ cup", "1\u00a01/2 cups 1/2 cup"),
    ("(555) 123-4567", "-lrb-555-rrb-\u00a0123-4567"),
    ("$5 US$5 £5 €6 5¢ 50% #1 #tag @home", "$ 5 us$ 5 # 5 $ 6 5 cents 50 % # 1 #tag @home"),
    ("a/b w/ w/o and/or 1/2/3/4", "a/b w / w/o and/or 1/2/3 / 4"),
    ("AT&T R&B b&b &amp; &lt;", "at&t r&b b & b & <"),
    ("rock 'n' roll O'Brien o'clock 'tis y'all ma'am", "rock 'n' roll o'brien o'clock 't is y' all ma'am"),
    (":) :-( <b>x</b> < 3", ":-rrb- :--lrb- <b> x </b> < 3"),
    ("http://a.com/b. www.x.com/yz me@x.com", "http://a.com/b www.x.com/yz me@x.com"),
    ("dog😀cat café 20°C x²", "dog cat café 20 ° c x ²"),
    ("a_b __ x_", "a_b __ x _"),
    ("they cannot go", "they can not go"),
    ("a/b/c/d", "a/b/c / d"),
    ("12a.png img_1.png C++ c#", "12a.png img_1 png c++ c#"),
    ("1,000-foot hello,world-x", "1,000-foot hello,world-x"),
]


@pytest.mark.parametrize(("caption", "tokens"), TOKENISED)
def test_tokens_are_those_of_the_official_program(caption: str, tokens: str):
    assert captions.ptb_tokenize(caption) == tokens


@pytest.mark.nightly
@pytest.mark.skipif(shutil.which("java") is None, reason="needs Java")
def test_the_official_program_agrees_with_the_table():
    assert captions.ptb_tokenize([caption for caption, _ in TOKENISED], "stanford") == [tokens for _, tokens in TOKENISED]


@pytest.mark.nightly
@pytest.mark.skipif(shutil.which("java") is None, reason="needs Java")
def test_meteor_is_there_with_java():
    items = [("a dog runs in the park", ["a dog runs in the park"]), ("a cat", ["two dogs"])]
    scores = captions.detail(items, tokenise=False)
    assert scores.corpus["METEOR"] == pytest.approx(0.5, abs=0.5)
    assert scores.per_item[0]["METEOR"] == pytest.approx(1.0)
    assert scores.protocol == "raw"


@given(st.text())
def test_tokens_of_any_text_are_lower_case_and_none_is_dropped_punctuation(caption: str):
    tokens = captions.ptb_tokenize(caption).split(" ")
    assert tokens == [""] or not DROPPED & set(tokens)
    assert captions.ptb_tokenize(caption) == " ".join(tokens)


@given(st.text("aB1 .,'’-!?&/:;()<>@#$\"`_+=*", max_size=60))
def test_signs_in_any_order_are_tokens(caption: str):
    assert captions.ptb_tokenize(caption) == captions.ptb_tokenize(f"  {caption} ")


@pytest.mark.parametrize("junk", ["a" * 200_000, "a'" * 3_000, "a," * 5_000, "<!" * 3_000, "1-" * 3_000, ". " * 5_000, "a." * 5_000])
def test_junk_takes_no_squared_time(junk: str):
    started = time.perf_counter()
    captions.ptb_tokenize(junk)
    assert time.perf_counter() - started < 3


def ngrams(text: str, n: int) -> Counter[tuple[str, ...]]:
    words = text.split()
    return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))


def bleu(items: list[tuple[str, list[str]]], order: int) -> float:
    product, test, reference = 1.0, 0, 0
    for hypothesis, references in items:
        length = len(hypothesis.split())
        test += length
        reference += min((abs(len(text.split()) - length), len(text.split())) for text in references)[1]
    for n in range(1, order + 1):
        correct = guess = 0
        for hypothesis, references in items:
            found = ngrams(hypothesis, n)
            guess += found.total()
            correct += sum(min(count, max(ngrams(text, n)[gram] for text in references)) for gram, count in found.items())
        product *= (correct + 1e-15) / (guess + 1e-9)
    ratio = (test + 1e-15) / (reference + 1e-9)
    return product ** (1 / order) * (math.exp(1 - 1 / ratio) if ratio < 1 else 1)


def longest_common(one: list[str], two: list[str]) -> int:
    row = [0] * (len(two) + 1)
    for word in one:
        diagonal = 0
        for j, other in enumerate(two, start=1):
            diagonal, row[j] = row[j], diagonal + 1 if word == other else max(row[j], row[j - 1])
    return row[-1]


def rouge(hypothesis: str, references: list[str]) -> float:
    words = hypothesis.split(" ")
    precision = max(longest_common(text.split(" "), words) / len(words) for text in references)
    recall = max(longest_common(text.split(" "), words) / len(text.split(" ")) for text in references)
    return (1 + 1.44) * precision * recall / (recall + 1.44 * precision) if precision and recall else 0.0


def cider(items: list[tuple[str, list[str]]]) -> float:
    total = 0.0
    for n in range(1, 5):
        holding = Counter(gram for _, references in items for gram in {gram for text in references for gram in ngrams(text, n)})

        def weights(text: str, n: int = n, holding: Counter[tuple[str, ...]] = holding) -> dict[tuple[str, ...], float]:
            return {gram: count * (math.log(len(items)) - math.log(max(1, holding[gram]))) for gram, count in ngrams(text, n).items()}

        for hypothesis, references in items:
            said = weights(hypothesis)
            for text in references:
                known = weights(text)
                value = sum(min(weight, known.get(gram, 0.0)) * known.get(gram, 0.0) for gram, weight in said.items())
                norm = math.sqrt(sum(weight**2 for weight in said.values())) * math.sqrt(sum(weight**2 for weight in known.values()))
                delta = max(len(hypothesis.split()) - 1, 0) - max(len(text.split()) - 1, 0)
                total += (value / norm if norm else value) * math.exp(-(delta**2) / 72) / 4 / len(references)
    return 10 * total / len(items)


def random_items(seed: int) -> list[tuple[str, list[str]]]:
    words = random.Random(seed)
    vocabulary = ["a", "the", "dog", "cat", "two", "runs", "on", "sits", "mat", "red"]
    texts = [" ".join(words.choices(vocabulary, k=words.randint(0, 9))) for _ in range(60)]
    return [(texts[i], texts[i + 1 : i + 2 + words.randint(0, 3)]) for i in range(0, 50, 5)]


@pytest.mark.parametrize("seed", range(5))
def test_the_scorers_are_the_formulas(seed: int):
    items = random_items(seed)
    scores = captions.detail(items, tokenise=False, meteor=False)
    for order in range(1, 5):
        assert scores.corpus[f"Bleu_{order}"] == pytest.approx(bleu(items, order), abs=1e-9)
        assert scores.per_item[3][f"Bleu_{order}"] == pytest.approx(bleu(items[3:4], order), abs=1e-9)
    assert scores.corpus["ROUGE_L"] == pytest.approx(sum(rouge(*item) for item in items) / len(items))
    assert scores.corpus["CIDEr"] == pytest.approx(cider(items))


@pytest.mark.parametrize("seed", range(3))
def test_rouge_is_pycocoevalcaps_to_the_bit(seed: int):
    official = Rouge()
    for said, references in [*random_items(seed), ("", ["a dog", ""]), ("a  dog", [" a", "dog a"]), ("word " * 200, ["a word " * 99])]:
        assert captions.rouge(said, references, tokenise=False) == official.calc_score([said], references)


def test_tokenising_decides_whether_case_and_full_stops_count():
    items = [("A dog.", ["a dog"]), ("Two cats.", ["two cats"])]
    assert captions.detail(items, tokenise=True, tokeniser="python", meteor=False).corpus["ROUGE_L"] == 1.0
    assert captions.detail(items, tokenise=False, meteor=False).corpus["ROUGE_L"] == 0.0


def test_with_one_item_cider_is_zero():
    assert captions.detail([("a dog", ["a dog"])], tokenise=False, meteor=False).corpus["CIDEr"] == 0.0


def test_references_without_a_word_are_zero_or_the_official_failure():
    assert captions.detail([("a", [""]), ("b", [" "])], tokenise=False, meteor=False).corpus["CIDEr"] == 0.0
    with pytest.raises(ScoringError):
        captions.detail([("a", [""])], tokenise=False, meteor=False, strict_official=True)


@pytest.mark.parametrize("items", [[], [("a", [])], [("a", "a dog")]])
def test_nothing_to_compare_is_named(items: list[tuple[str, list[str]]]):
    with pytest.raises(ScoringError):
        captions.score(items)


def test_without_java_meteor_is_missing_and_the_protocol_says_so(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(captions, "java_reason", lambda: "Java was not found")
    scores = captions.detail([("a dog.", ["A dog"]), ("x", ["y"])])
    assert list(scores.corpus) == list(captions.METRICS)
    assert scores.corpus["METEOR"] is None
    assert scores.per_item[0]["METEOR"] is None
    assert scores.protocol == "ptb-python, no METEOR (Java was not found)"
    with pytest.raises(MissingDependency, match=r"Java.*vistune\[eval\]"):
        captions.ptb_tokenize("a", "stanford")


def test_without_pycocoevalcap_the_extra_is_named(monkeypatch: pytest.MonkeyPatch):
    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(errors.importlib, "import_module", missing)
    with pytest.raises(MissingDependency, match=r"vistune\[eval\]"):
        captions.detail([("a", ["b"])], tokenise=False, meteor=False)
