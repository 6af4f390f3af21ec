"""What a run counts, and what a question is about in two words."""

from __future__ import annotations

from pathlib import Path

import pytest

from vistune.datagen.tally import SAMPLES, Rejected, Tally, base_form, verb_and_noun
from vistune.types import Conversation, ImagePart, InstructionExample


def example(number: int, *turns: tuple[str, str], kind: str = "conversation") -> InstructionExample:
    conversation = Conversation(())
    for place, (question, answer) in enumerate(turns or ((f"What is thing {number}?", "A dog."),)):
        first = (ImagePart(Path(f"{number}.jpg")), f"\n{question}") if place == 0 else (question,)
        conversation = conversation.then("user", *first).then("assistant", answer)
    return InstructionExample(str(number), conversation, kind)


@pytest.mark.parametrize(
    ("question", "pair"),
    [
        ("What is the man holding in his hand?", ("hold", "hand")),
        ("How many dogs are there?", ("be", "dog")),
        ("Describe the following image.", ("describe", "image")),
        ("Why might the child be wearing a helmet?", ("wear", "helmet")),
        ("Is there a cat on the sofa?", ("be", "cat")),
        ("Which vehicle uses the bike lane?", ("use", "lane")),
        ("Where does the man wait for the traffic light?", ("wait", "light")),
        ("Please tell me what is shown in this picture.", ("tell", "picture")),
        ("Hm?", None),
        ("", None),
    ],
)
def test_a_question_is_about_its_first_full_verb_and_the_noun_after_it(question: str, pair: tuple[str, str] | None):
    assert verb_and_noun(question) == pair


@pytest.mark.parametrize(
    ("verb", "base"),
    [("running", "run"), ("riding", "ride"), ("makes", "make"), ("stopped", "stop"), ("catches", "catch"), ("seen", "see"), ("see", "see")],
)
def test_verbs_are_counted_in_one_form(verb: str, base: str):
    assert base_form(verb) == base


def test_figures_count_rows_questions_and_rejections_by_reason():
    tally = Tally()
    tally.add(example(1, ("What is it?", "A dog."), ("And behind it?", "A red car.")))
    tally.add(example(2, ("Describe the picture.", "It shows a dog."), kind="detail"))
    tally.reject(
        Rejected("3.jpg", "detail", "refusal", "The teacher refuses.", "I cannot see.", objections={"refusal": "", "too_short": ""})
    )
    tally.reject(Rejected("", "", "source_image_missing", "There is no 4.jpg.", row="4"))
    assert tally.figures() == {
        "rows": 2,
        "rows_by_kind": {"conversation": 1, "detail": 1},
        "questions": 3,
        "asked": 3,
        "repaired": 0,
        "rejected": {"refusal": 1, "source_image_missing": 1},
        "objections": {"refusal": 1, "too_short": 1},
        "reject_rate": 0.3333,
    }
    assert dict(tally.turns) == {2: 1, 1: 1}
    assert dict(tally.answer_words["conversation"]) == {2: 1, 3: 1}


def test_samples_are_few_drawn_from_all_rows_and_the_same_each_time():
    def samples() -> list[str]:
        tally = Tally(seed=5)
        for number in range(500):
            tally.add(example(number))
        return [each.id for each in tally.samples]

    drawn = samples()
    assert len(set(drawn)) == SAMPLES
    assert drawn == samples()
    assert max(map(int, drawn)) > 250
