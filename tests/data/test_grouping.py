"""The official order, against a transcription of the rule it was published as."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vistune.data.grouping import length_grouped, modality_grouped, official_length
from vistune.data.sampler import Sampler, shuffled
from vistune.types import Conversation, ImagePart, Message, TextPart


def permutation(size: int, key: str) -> list[int]:
    """In place of torch.randperm, whose draws depend on whatever was drawn before."""
    return [shuffled(place, size, key) for place in range(size)]


def even_chunks(places: list[int], lengths: list[int], devices: int) -> list[list[int]]:
    """The rule's split of a run among devices: the next one to the chunk with the smallest total; a chunk with its share is closed."""
    if len(places) % devices:
        return [places[device::devices] for device in range(devices)]
    chunks: list[list[int]] = [[] for _ in range(devices)]
    totals = [0.0] * devices
    for place in places:
        shortest = totals.index(min(totals))
        chunks[shortest].append(place)
        totals[shortest] += lengths[place]
        if len(chunks[shortest]) == len(places) // devices:
            totals[shortest] = float("inf")
    return chunks


def rule_length_grouped(lengths: list[int], batch: int, devices: int, key: str) -> list[int]:
    order = permutation(len(lengths), key)
    size = devices * batch
    mega_batches = [order[start : start + size] for start in range(0, len(lengths), size)]
    mega_batches = [sorted(mega_batch, key=lambda place: lengths[place], reverse=True) for mega_batch in mega_batches]
    split = [even_chunks(mega_batch, lengths, devices) for mega_batch in mega_batches]
    return [place for mega_batch in split for chunk in mega_batch for place in chunk]


def rule_modality_grouped(lengths: list[int], batch: int, devices: int, key: str) -> list[int]:
    if all(length > 0 for length in lengths) or all(length < 0 for length in lengths):
        return rule_length_grouped([abs(length) for length in lengths], batch, devices, f"{key}:all")
    shown = [(place, length) for place, length in enumerate(lengths) if length > 0]
    said = [(place, -length) for place, length in enumerate(lengths) if length < 0]
    size = devices * batch
    mega_batches = []
    last = []
    for name, rows in (("pictures", shown), ("text", said)):
        order = [rows[each][0] for each in rule_length_grouped([length for _, length in rows], batch, devices, f"{key}:{name}")]
        cut = [order[start : start + size] for start in range(0, len(order), size)]
        mega_batches += cut[:-1]
        last += cut[-1]
    return [place for number in permutation(len(mega_batches), f"{key}:runs") for place in mega_batches[number]] + sorted(last)


LENGTHS = st.lists(st.integers(-30, 30).filter(bool), min_size=1, max_size=80)


@given(LENGTHS, st.integers(1, 9), st.text(max_size=4))
def test_the_order_is_that_of_the_rule(lengths: list[int], batch: int, key: str):
    assert modality_grouped(lengths, batch, key) == rule_modality_grouped(lengths, batch, 1, key)
    assert length_grouped([abs(length) for length in lengths], batch, key) == rule_length_grouped(list(map(abs, lengths)), batch, 1, key)


@given(LENGTHS, st.integers(1, 4), st.integers(1, 4), st.text(max_size=4))
def test_dividing_a_step_among_devices_changes_no_step(lengths: list[int], batch: int, devices: int, key: str):
    size = batch * devices
    ours, theirs = modality_grouped(lengths, size, key), rule_modality_grouped(lengths, batch, devices, key)
    assert len(ours) == len(theirs)
    for start in range(0, len(ours), size):
        assert sorted(ours[start : start + size]) == sorted(theirs[start : start + size])


@pytest.mark.parametrize("text_rows", [0, 30, 70, 100])
def test_steps_show_pictures_or_none_except_at_the_end_of_the_epoch(text_rows: int):
    lengths = [-5 - place if place < text_rows else 5 + place for place in range(100)]
    sampler = Sampler(100, 8, seed=1, epoch_order=lambda key: modality_grouped(lengths, 8, key))
    for epoch in (0, 1):
        steps = [sampler.rows(epoch * sampler.steps_per_epoch + step).rows for step in range(sampler.steps_per_epoch)]
        assert sorted(place for step in steps for place in step) == list(range(100))
        mixed = [number for number, step in enumerate(steps) if len({lengths[place] > 0 for place in step}) > 1]
        assert set(mixed) <= {len(steps) - 1, len(steps) - 2}


def test_a_grouped_order_is_that_of_its_seed_and_epoch_whatever_was_asked_before():
    lengths = [(-1) ** (place % 3 == 0) * (1 + place % 17) for place in range(60)]

    def sampler(seed: int) -> Sampler:
        return Sampler(60, 7, seed, epoch_order=lambda key: modality_grouped(lengths, 7, key))

    forwards = [sampler(3).rows(step) for step in range(27)]
    one = sampler(3)
    assert [one.rows(step) for step in reversed(range(27))] == forwards[::-1]
    assert {row for step in forwards[:9] for row in step.rows} == set(range(60))
    assert forwards[0].rows != forwards[9].rows != sampler(4).rows(0).rows


def test_the_official_length_counts_words_and_is_negative_without_a_picture():
    question = Message("user", (ImagePart(b""), TextPart("\nWhat is  this?")))
    answer = Message("assistant", (TextPart("A cat."),))
    assert official_length(Conversation((question, answer))) == 1 + 3 + 2  # `<image>` is a word of the official file
    assert official_length(Conversation((Message("user", (TextPart("Hi"),)), answer))) == -3
