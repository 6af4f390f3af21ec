"""The suite is frozen: the same questions and the same pixels as when it was named."""

from __future__ import annotations

from collections import Counter

import pytest

from vistune.errors import DataError
from vistune.eval.benchmarks import scenes_v1
from vistune.scenes.questions import KINDS
from vistune.scenes.write import TRAINING_SEED


def test_questions_and_decoded_pixels_have_the_frozen_digest():
    assert scenes_v1.suite_digest() == scenes_v1.DIGEST


def test_every_part_has_equally_many_questions_of_each_kind_in_both_phrasings():
    counts = Counter((item.group, item.question.kind) for item in scenes_v1.suite())
    for split, number in scenes_v1.PER_KIND.items():
        for kind in KINDS:
            assert counts[f"{split}/known_phrasing", kind] == counts[f"{split}/new_phrasing", kind] == number // 2


def test_yes_and_no_are_even_in_every_part():
    answers = Counter((item.group.split("/")[0], item.question.answer) for item in scenes_v1.suite() if item.question.kind == "yes_no")
    assert all(answers[split, "Yes."] == answers[split, "No."] == number // 2 for split, number in scenes_v1.PER_KIND.items())


def test_at_least_a_hundred_held_out_sprites_and_five_hundred_names_appear():
    things = [thing for item in scenes_v1.suite() for thing in item.scene.objects]
    assert len({(thing.name, thing.sprite.number) for thing in things if thing.sprite.split != "seen"}) >= 100
    assert len({thing.name for thing in things}) >= 500


def test_no_scene_has_a_seed_of_training():
    assert not any(str(item.scene.seed).startswith(TRAINING_SEED) for item in scenes_v1.suite())
    assert len({item.id for item in scenes_v1.suite()}) == len(scenes_v1.suite())


def test_another_sprite_bank_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(scenes_v1, "BANK_DIGEST", "0" * 64)
    with pytest.raises(DataError, match="frozen with sprite bank"):
        scenes_v1.suite.__wrapped__()
