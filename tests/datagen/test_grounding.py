"""What counts as claimed, and what supports a claim."""

from __future__ import annotations

import pytest

from vistune.datagen.grounding import unsupported_things
from vistune.types import Box, ImageAnnotations

STREET = ImageAnnotations(
    "street.jpg",
    640,
    480,
    ("A man walks his puppy past a parked car.", "Someone with a pet on a city street."),
    (Box("potted plant", (0, 0, 1, 1)),),
)


def unsupported(answer: str, question: str = "What can you see?", *, reasoning: bool = False) -> list[str]:
    return unsupported_things(STREET, ((question, answer),), reasoning=reasoning)


@pytest.mark.parametrize(
    "answer",
    [
        "A dog walks beside the man.",  # a synonym
        "There is an animal on the street.",  # its category
        "There are two plants in the picture.",  # the head of a label
        "The wheels of the vehicle stand still.",  # a part, and a category
        "A tall building is visible in the background.",  # what a city street always has
    ],
)
def test_synonyms_categories_and_parts_support_a_claim(answer: str):
    assert unsupported(answer) == []


@pytest.mark.parametrize(
    ("answer", "things"),
    [
        ("There is a cat on the car.", ["cat"]),
        ("The man carries an umbrella and a suitcase.", ["umbrella", "suitcase"]),
        ("Two bicycles lean against a wall.", ["bicycle"]),
        ("We can also see a fire hydrant in the distance.", ["fire hydrant"]),
        ("No, but there is a horse.", ["horse"]),
    ],
)
def test_a_thing_that_nobody_knows_of_is_named(answer: str, things: list[str]):
    assert unsupported(answer) == things


@pytest.mark.parametrize(
    "answer",
    [
        "No, there is no cat in the picture.",
        "There are no cats, horses or sheep.",
        "The man is not holding an umbrella.",
        "The car stands there without a trailer.",
        "It might rain later, so he could need an umbrella.",
        "The plant looks like a fountain.",
        "He watches the dog.",  # a verb
    ],
)
def test_what_is_denied_supposed_or_compared_is_no_claim(answer: str):
    assert unsupported(answer) == []


def test_general_knowledge_may_name_anything_but_not_put_it_into_the_picture():
    question = "Why do people keep dogs?"
    assert unsupported("Dogs guard sheep and keep foxes away from chickens.", question) == []
    assert unsupported("Dogs are good company. In the picture, a cat is sitting next to it.", question) == ["cat"]
    assert unsupported("A leash keeps the dog from running after cats.", "Tell me.", reasoning=True) == []


def test_a_yes_claims_what_was_asked_and_a_question_what_it_takes_for_granted():
    assert unsupported("Yes.", "Is there a horse in the picture?") == ["horse"]
    assert unsupported("No.", "Is there a horse in the picture?") == []
    assert unsupported("Brown.", "What color is the horse?") == ["horse"]
    assert unsupported("There is no horse.", "What color is the horse?") == []


def test_a_category_is_not_doubted_where_the_annotations_name_what_no_list_has():
    gadget = ImageAnnotations("g.jpg", 1, 1, ("A quokka.",))
    assert unsupported_things(gadget, (("What is it?", "It is an animal."),), reasoning=False) == []
