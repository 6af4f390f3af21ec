"""ColonINST-v1: labels letter for letter, boxes with corners inclusive."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vistune.errors import ScoringError, UnknownName
from vistune.eval.benchmarks import coloninst


def item(gold: object, prediction: object) -> dict:
    values = {"human": "<image>\nWhat is it?", "gpt": gold, "prediction": prediction}
    return {"id": "x.jpg", "conversations": [{"from": speaker, "value": value} for speaker, value in values.items()]}


def part(task: str, *pairs: tuple[str, str], **more) -> coloninst.ColonINSTScore:
    return coloninst.score(task, [item(*pair) for pair in pairs], check_counts=False, **more)


@pytest.mark.parametrize(
    ("gold", "prediction", "right"),
    [
        ("Polyp", "pOLYP", True),
        ("polyp", "polyp<|endoftext|>", True),
        ("polyp", "<|EndOfText|>po<|endoftext|>lyp", True),  # lower-cased first, then removed wherever it stands
        ("polyp", "polyp.", False),
        ("polyp", " polyp", False),  # no trimming
        ("polyp", "polyp\n", False),
        ("polyp<|endoftext|>", "polyp", False),  # the gold label keeps it
        ("polyp", "", False),
    ],
)
def test_labels_are_compared_lower_cased_and_letter_for_letter(gold: str, prediction: str, right: bool):
    assert part("CLS", (gold, prediction)).accuracy == part("reg", (gold, prediction)).accuracy == right


def test_accuracy_is_a_fraction_of_the_items():
    found = part("cls", ("a", "a"), ("b", "a"), ("c", "c"))
    assert (found.accuracy, found.n, found.iou) == (2 / 3, 3, None)


@pytest.mark.parametrize(
    ("text", "box"),
    [
        ("{<1><2><3><4>}", (1, 2, 3, 4)),
        ("< 1 >,<2\n> <3>  <04>", (1, 2, 3, 4)),
        ("at <<1><2><3><4>> there", (1, 2, 3, 4)),
        ("<\u0661><2><3><4>", (1, 2, 3, 4)),  # digits of any script
        ("<1><2><3>", None),
        ("<1><2><3><4><5>", None),
        ("<1><2><3><4.5>", None),
        ("<1><2><3><-4>", None),
        ("<1 2><2><3><4>", None),
        ("1, 2, 3, 4", None),
        ("<1><2><3><" + "9" * 5000 + ">", None),
        ("", None),
    ],
)
def test_a_box_is_exactly_four_numbers_in_angle_brackets(text: str, box: tuple[int, ...] | None):
    assert coloninst.parse_box(text) == box


@pytest.mark.parametrize(
    ("box", "other", "overlap"),
    [
        ((0, 0, 9, 9), (0, 0, 9, 9), 1.0),
        ((0, 0, 9, 9), (5, 0, 14, 9), 50 / 150),
        ((0, 0, 9, 9), (9, 9, 18, 18), 1 / 199),  # a shared pixel overlaps: corners are inclusive
        ((0, 0, 9, 9), (10, 0, 19, 9), 0.0),
        ((0, 0, 9, 9), (20, 20, 29, 29), 0.0),  # apart in both directions
        ((5, 5, 5, 5), (5, 5, 5, 5), 1.0),
        ((9, 9, 0, 0), (9, 9, 0, 0), 0.0),  # swapped corners
        ((1, 0, 0, 9), (1, 0, 0, 9), 0.0),  # no width at all, so the union is zero
        ((0, 0, 9, 9), (0, 0, 9), 0.0),
        ((), (), 0.0),
    ],
)
def test_overlap_counts_whole_pixels(box: tuple[int, ...], other: tuple[int, ...], overlap: float):
    assert coloninst.box_iou(box, other) == coloninst.box_iou(other, box) == overlap


def test_boxes_score_mean_overlap_precision_above_a_half_and_a_recall_of_four_numbers():
    gold = "{<0><0><9><9>}"
    found = part("REC", (gold, gold), (gold, "{<5><0><14><9>}"), (gold, "{<0><0><9><4>}"), (gold, "nowhere"))
    assert found.iou == pytest.approx((1 + 1 / 3 + 1 / 2 + 0) / 4)
    assert (found.precision, found.recall, found.accuracy) == (0.25, 0.0625, None)  # exactly a half is no hit


def test_a_gold_box_that_cannot_be_read_overlaps_nothing():
    assert part("rec", ("nowhere", "{<0><0><9><9>}")).iou == 0
    assert part("rec", ("<1><2>", "<1><2>")).iou == 0


def test_without_items_the_scores_are_zero_or_officially_a_failure():
    assert part("cls").accuracy == part("rec").iou == part("rec").recall == 0
    with pytest.raises(ScoringError):
        part("cls", strict_official=True)


@pytest.mark.parametrize(("gold", "prediction"), [("nowhere", "<1>"), ("<1><2><3><4>", f"<{'9' * 5000}>")])
def test_strictly_a_gold_text_without_numbers_and_an_endless_number_fail(gold: str, prediction: str):
    assert part("rec", (gold, prediction)).iou == 0
    with pytest.raises(ScoringError):
        part("rec", (gold, prediction), strict_official=True)


def test_the_counts_of_the_official_splits_are_required():
    items = [item("a", "a")] * 4874
    assert coloninst.score("REG", items).accuracy == 1
    assert coloninst.score("rec", items, split="val").iou == 0
    with pytest.raises(ScoringError, match="37631"):
        coloninst.score("reg", items, split="test")
    with pytest.raises(ScoringError, match="8929 or 45284"):
        coloninst.score("cls", items)
    with pytest.raises(ScoringError, match="4873"):
        coloninst.score("reg", items[1:])


def test_captions_and_unknown_splits_are_named():
    with pytest.raises(UnknownName, match="cls, rec, reg"):
        part("CAP")
    with pytest.raises(UnknownName, match="test, val"):
        part("cls", split="seen")


@pytest.mark.parametrize(
    "bad",
    [
        {},
        {"conversations": None},
        {"conversations": ["x"]},
        {"conversations": item("a", "b")["conversations"][:2]},
        item("a", None),
        item(1, "a"),
    ],
)
def test_a_dialogue_without_gold_or_prediction_is_refused(bad: dict):
    with pytest.raises(ScoringError):
        coloninst.score("cls", [bad], check_counts=False)


@given(st.text() | st.lists(st.sampled_from(["<", ">", "12", " ", "x"])).map("".join))
@settings(max_examples=60, deadline=None)
def test_any_text_has_a_box_or_none(text: str):
    box = coloninst.parse_box(text)
    assert box is None or len(box) == 4
    assert 0 <= (part("rec", ("<1><2><3><4>", text)).iou or 0) <= 1
