"""The same words again, nearly the same, and no more memory than was allowed."""

from __future__ import annotations

import random

from vistune.datagen.duplicates import Deduplicator, Duplicate

SHORT = "What is it? A small brown dog on a mat."


WORDS = ("red", "green", "cat", "dog", "sits", "stands", "near", "under", "the", "a", "big", "small", "house", "tree")


def long_text(seed: int, words: int = 80) -> str:
    draw = random.Random(seed)
    return " ".join(draw.choice(WORDS) for _ in range(words))


def test_the_same_words_are_found_whatever_their_capitals_and_signs():
    seen = Deduplicator()
    seen.keep("a.jpg", SHORT)
    assert seen.find("a.jpg", "WHAT is it -- a small, brown dog on a mat!") == Duplicate(1.0, 0)


def test_a_short_text_may_be_true_of_two_pictures_a_long_one_not():
    seen = Deduplicator()
    seen.keep("a.jpg", SHORT)
    seen.keep("a.jpg", long_text(1))
    assert seen.find("b.jpg", SHORT) is None
    assert seen.find("b.jpg", long_text(1)) == Duplicate(1.0, 1)


def test_a_text_with_a_few_words_changed_is_found_and_its_overlap_told():
    seen = Deduplicator()
    for seed in range(50):
        seen.keep(f"{seed}.jpg", long_text(seed))
    words = long_text(7).split()
    words[20] = words[60] = "blue"
    found = seen.find("new.jpg", " ".join(words))
    assert found is not None
    assert found.earlier == 7
    assert 0.7 < found.similarity < 0.9


def test_texts_of_their_own_are_new():
    seen = Deduplicator()
    for seed in range(200):
        assert seen.find(f"{seed}.jpg", long_text(seed)) is None
        seen.keep(f"{seed}.jpg", long_text(seed))


def test_the_oldest_rows_are_forgotten_beyond_the_capacity():
    seen = Deduplicator(capacity=10)
    for seed in range(100):
        seen.keep(f"{seed}.jpg", long_text(seed))
    assert len(seen) == 10
    assert seen.find("x.jpg", long_text(99)) == Duplicate(1.0, 99)
    assert seen.find("x.jpg", long_text(5)) is None
    assert len(seen._filed) <= 10 * 21


def test_texts_without_words_are_compared_too():
    seen = Deduplicator()
    seen.keep("a.jpg", "...")
    assert seen.find("a.jpg", "!?") == Duplicate(1.0, 0)
    assert seen.find("b.jpg", "") is None
