"""Intervals that hold what they promise where questions share pictures, and a test for two models on the same questions."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from vistune.eval.benchmark import Metric
from vistune.eval.intervals import interval, paired, t_quantile, wilson, with_intervals
from vistune.types import Conversation, Graded, Question, Reply, Score


def graded(values: Sequence[float], pictures: Sequence[str]) -> list[Graded]:
    return [
        Graded(Question(f"q{number}", Conversation(()), image_group=picture), Reply("", "stop"), Score(value))
        for number, (value, picture) in enumerate(zip(values, pictures, strict=True))
    ]


def mean(items: Sequence[Graded]) -> tuple[Metric, ...]:
    return (Metric("accuracy", 100 * sum(item.score.value or 0.0 for item in items) / len(items), len(items), headline=True),)


def interval_of(items: list[Graded]) -> tuple[float, float]:
    found = with_intervals(mean(items), items, mean)[0].interval
    assert found is not None
    return found


def coverage(*, clustered: bool, runs: int = 300, pictures: int = 60, each: int = 5) -> float:
    """How often the interval holds the true accuracy, where a picture is hard or easy for all of its questions."""
    random_numbers = random.Random(7)
    held = 0
    for _ in range(runs):
        chances = [random_numbers.betavariate(1.2, 0.8) for _ in range(pictures)]
        values = [float(random_numbers.random() < chance) for chance in chances for _ in range(each)]
        names = [f"p{picture}" if clustered else "" for picture in range(pictures) for _ in range(each)]
        low, high = interval_of(graded(values, names))
        held += low <= 60.0 <= high
    return held / runs


def test_ninety_five_percent_intervals_hold_where_questions_share_pictures_and_plain_ones_do_not():
    by_picture, plain = coverage(clustered=True), coverage(clustered=False)
    print(f"coverage: {by_picture:.3f} by picture, {plain:.3f} as if independent")
    assert by_picture >= 0.93
    assert plain < 0.90


def test_for_a_mean_of_few_pictures_it_is_the_cluster_robust_error():
    values = [10.0, 20.0, 60.0]
    left_out = [40.0, 35.0, 15.0]  # the mean of the two others
    low, high = interval(Metric("points", 30.0, 3, "points"), left_out, 3) or (0.0, 0.0)
    standard_error = (sum((value - 30.0) ** 2 for value in values) / 2 / 3) ** 0.5
    assert (low, high) == (pytest.approx(30 - 4.303 * standard_error), pytest.approx(30 + 4.303 * standard_error))


def test_the_order_of_the_questions_changes_nothing():
    items = graded([float(number % 3 == 0) for number in range(90)], [f"p{number // 4}" for number in range(90)])
    shuffled = random.Random(1).sample(items, len(items))
    assert interval_of(shuffled) == pytest.approx(interval_of(items), abs=1e-12)


def test_all_right_is_not_certainty_and_pictures_count_once():
    alone = interval_of(graded([1.0] * 40, [""] * 40))
    shared = interval_of(graded([1.0] * 40, [f"p{number // 8}" for number in range(40)]))
    assert alone == (pytest.approx(100 * wilson(1.0, 40)[0]), 100.0)
    assert shared[0] == pytest.approx(100 * wilson(1.0, 5)[0])


def test_an_interval_of_percents_stays_between_its_ends():
    low, high = interval_of(graded([1.0] * 59 + [0.0], [""] * 60))
    assert 80 < low < 98.4 < high < 100


def test_what_rests_on_one_picture_has_no_interval():
    items = graded([1.0, 0.0, 1.0], ["a", "a", "a"])
    assert with_intervals(mean(items), items, mean)[0].interval is None


def test_a_category_that_vanishes_with_a_part_has_no_interval_and_others_keep_theirs():
    def summarise(items: Sequence[Graded]) -> tuple[Metric, ...]:
        rare = [item for item in items if item.question.image_group == "p0"]
        return mean(items) + ((Metric("accuracy/rare", 100.0, len(rare)),) if rare else ())

    items = graded([float(number % 3 > 0) for number in range(20)], [f"p{number // 2}" for number in range(20)])
    overall, rare = with_intervals(summarise(items), items, summarise)
    assert overall.interval is not None
    assert rare.interval is None


@pytest.mark.parametrize(("degrees", "expected"), [(1, 12.706), (4, 2.776), (5, 2.571), (10, 2.228), (59, 2.001), (1000, 1.962)])
def test_the_quantile_of_t_is_that_of_the_tables(degrees: int, expected: float):
    assert t_quantile(degrees) == pytest.approx(expected, abs=0.004)


def test_wilson_is_that_of_the_textbook():
    assert wilson(0.5, 10) == (pytest.approx(0.2366, abs=1e-4), pytest.approx(0.7634, abs=1e-4))


def test_paired_differences_of_one_picture_are_one_piece_of_evidence():
    alone = paired([(f"q{number}", 1.0) for number in range(10)])
    shared = paired([("p", 1.0)] * 10)
    assert (alone.difference, alone.p) == (1.0, 2 / 1024)
    assert (shared.difference, shared.p, shared.interval) == (1.0, 1.0, None)


def test_no_difference_is_no_evidence_and_nothing_to_compare_neither():
    assert paired([(f"q{number}", 0.0) for number in range(10)]).p == 1.0
    assert (paired([]).n, paired([]).p) == (0, 1.0)


def test_the_test_by_lot_agrees_with_the_exact_one_and_gives_the_same_twice():
    differences = [(f"q{number}", 1.0 if number < 20 else -1.0) for number in range(27)]
    found = paired(differences)
    exact = 2 * 0.00957862  # binomial: 20 or more of 27
    assert found.p == pytest.approx(exact, abs=0.005)
    assert paired(differences) == found
