"""Questions about scenes: true, balanced, and never giving the answer away."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from vistune.eval.scoring import matches, normalise
from vistune.scenes import PLACES, plan_scene, sprite_bank
from vistune.scenes.questions import FULL_SENTENCE, KINDS, MORE_KINDS, NEW_PHRASINGS, NUMBER_WORDS, SEEN_PHRASINGS, ask, dialogue

SCENES = [plan_scene(f"questions/{number}") for number in range(150)]


@pytest.fixture
def rng() -> random.Random:
    return random.Random(0)


def asked(kind: str, rng: random.Random):
    pairs = [(scene, ask(kind, scene, rng, sprite_bank())) for scene in SCENES for _ in range(3)]
    return [(scene, question) for scene, question in pairs if question is not None]


@pytest.mark.parametrize("kind", [*KINDS, *MORE_KINDS])
def test_the_taught_answer_is_among_the_accepted_ones(kind: str, rng: random.Random):
    questions = asked(kind, rng)
    assert len(questions) > 50
    assert all(matches(question.answer, question.accepted) for _, question in questions)


def test_what_names_the_one_thing_at_that_place(rng: random.Random):
    for scene, question in asked("what", rng):
        there = [
            thing for thing in scene.objects if f"{PLACES[thing.place]}?" in question.text or f"{PLACES[thing.place]}." in question.text
        ]
        assert len(there) == 1 or len(scene.objects) == 1
        assert matches((there or scene.objects)[0].name, question.accepted)


def test_where_is_asked_only_of_things_that_occur_once(rng: random.Random):
    for scene, question in asked("where", rng):
        things = [thing for thing in scene.objects if normalise(PLACES[thing.place]) == normalise(question.answer)]
        assert len(things) == 1
        assert scene.names.count(things[0].name) == 1
        assert things[0].name in question.text


def test_how_many_counts_objects_or_things_of_a_name(rng: random.Random):
    for scene, question in asked("how_many", rng):
        named = [
            name
            for name in set(scene.names)
            if f" {sprite_bank().things[name].plural} " in question.text.replace(".", " ").replace("?", " ")
        ]
        expected = {NUMBER_WORDS[scene.names.count(name)] for name in named if sprite_bank().things[name].plural} or {
            NUMBER_WORDS[len(scene.objects)]
        }
        assert question.answer.lower().rstrip(".") in expected


def test_colour_is_asked_only_of_painted_things(rng: random.Random):
    for scene, question in asked("colour", rng):
        assert any(thing.colour and thing.name in question.text and matches(thing.colour, question.accepted) for thing in scene.objects)


def test_yes_and_no_are_balanced_and_no_means_absent(rng: random.Random):
    questions = asked("yes_no", rng)
    answers = Counter(question.answer for _, question in questions)
    assert abs(answers["Yes."] - answers["No."]) < 0.15 * len(questions)
    for scene, question in questions:
        if question.answer == "No." and question.text.startswith("Can you see a "):
            assert not any(question.text == f"Can you see {name.thing.phrase()}?" for name in scene.objects)


def test_held_out_phrasings_are_not_training_phrasings():
    known = {normalise(text) for texts in SEEN_PHRASINGS.values() for text in texts}
    assert not known & {normalise(text) for texts in NEW_PHRASINGS.values() for text in texts}


def test_a_dialogue_repeats_no_question_and_answers_sentences_only_when_asked(rng: random.Random):
    for scene in SCENES:
        turns = dialogue(scene, rng, sprite_bank())
        assert len({turn.text for turn in turns}) == len(turns) >= 3
        for turn in turns:
            if turn.kind not in ("describe", "list") and FULL_SENTENCE not in turn.text:
                assert len(turn.answer.split()) <= 6
