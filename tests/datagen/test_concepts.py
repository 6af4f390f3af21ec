"""Noun phrases and nouns of captions."""

from __future__ import annotations

import time

import pytest

from vistune.datagen.concepts import lemma, noun_phrases, nouns, parse_noun_phrases


@pytest.mark.parametrize(
    ("caption", "phrases"),
    [
        ("A small brown dog sits near the red fire hydrants.", ["small brown dog", "red fire hydrant"]),
        ("a man and a woman", ["man", "woman"]),
        ("Young woman's hands, close up", ["young woman", "hand"]),
        ("A black and white cat next to a teddy bear", ["black and white cat", "teddy bear"]),
        ("an orange beside the stop sign", ["orange", "stop sign"]),
        ("three stuffed animals in the parked car", ["stuffed animal", "parked car"]),
        ("a man rides a wave while two men check their watches", ["man", "wave", "man", "watch"]),
        ("a man's two rides", ["man", "ride"]),
        ("the dogs don't see her, it's dark", ["dog"]),
        ("A Man Riding A Horse", ["man", "horse"]),
        ("", []),
        ("... ?! 12 / \x00 \ud800", []),
    ],
)
def test_a_caption_names_its_things_and_nothing_else(caption: str, phrases: list[str]):
    assert noun_phrases(caption) == phrases


def test_nouns_are_the_heads_of_the_phrases_or_every_noun_in_them():
    caption = "The city streets are full of tall people"
    assert nouns(caption) == ["street", "person"]
    assert nouns(caption, which="all") == ["city", "street", "person"]


def test_each_step_of_normalisation_can_be_left_out():
    (phrase,) = parse_noun_phrases("Two Old Dogs")
    assert phrase.normalised() == "old dog"
    assert phrase.normalised(strip_determiners=False) == "two old dog"
    assert phrase.normalised(lemmatise=False) == "old dogs"
    assert phrase.normalised(lower_case=False, lemmatise=False, strip_determiners=False) == "Two Old Dogs"


@pytest.mark.parametrize(
    ("plural", "singular"),
    [
        ("women", "woman"),
        ("knives", "knife"),
        ("ties", "tie"),
        ("toes", "toe"),
        ("buses", "bus"),
        ("scissors", "scissors"),
        ("sheep", "sheep"),
    ],
)
def test_a_plural_gets_its_singular(plural: str, singular: str):
    assert lemma(plural) == singular


def test_a_singular_is_left_alone():
    assert lemma("bus", "NN") == "bus"


def test_every_text_is_read_in_time_that_grows_with_its_length_only():
    for text in ("very " * 4_000, "a " * 4_000, "big and " * 4_000, "x" * 20_000, "dog " * 4_000, "don" * 6_000):
        started = time.perf_counter()
        noun_phrases(text)
        assert time.perf_counter() - started < 2
