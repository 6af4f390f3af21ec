"""The suite `scenes-v1`: drawn scenes, six kinds of question, equally many of each; frozen by this file and its digest.

Three parts: `seen` sprites in new scenes, a `new_picture` of a known name, a picture of a `new_name`. Within each, half of the questions
use phrasings that training has (`known_phrasing`), half others (`new_phrasing`). Changing anything here, or the sprite bank, makes another
suite: take another name.
"""

from __future__ import annotations

import hashlib
import io
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from vistune.errors import DataError
from vistune.eval.benchmark import About, Benchmark, Protocol, by_kind
from vistune.eval.scoring import SCORER_VERSION, exact_match
from vistune.scenes import Scene, SceneSpec, Split, Sprite, plan_scene, render_scene, sprite_bank
from vistune.scenes.questions import KINDS, NEW_PHRASINGS, SEEN_PHRASINGS, SceneQuestion, ask
from vistune.types import Conversation, ImagePart, Message, Question, TextPart

NAME = "scenes-v1"
PER_KIND: dict[Split, int] = {"seen": 200, "new_picture": 60, "new_name": 20}
KINDS_OF_A_SCENE = (("what", "yes_no"), ("where", "how_many"), ("describe", "colour"))
BANK_DIGEST = "94845c71ef3f5380efe6728a9d50be7c311bc8b0fe98311f593fb7fa2a0b8fdd"
DIGEST = "7432ad9c8c342ad088781ace70efa680ee684a7b5a411b7bdb738b0e2ae4dd5c"
"""sha256 over every question, its accepted answers and the decoded pixels of its picture, in order."""


@dataclass(frozen=True)
class SuiteItem:
    id: str
    scene: Scene
    question: SceneQuestion
    group: str


@cache
def suite() -> tuple[SuiteItem, ...]:
    """All items of the suite, without pixels.

    Raises:
        DataError: the sprite bank is not the one that the suite was frozen with.
    """
    found = sprite_bank().digest
    if found != BANK_DIGEST:
        raise DataError(f"{NAME} was frozen with sprite bank {BANK_DIGEST[:12]}, but this is {found[:12]}; reinstall vistune.")
    return tuple(item for split in PER_KIND for item in _part(split))


def _part(split: Split) -> Iterator[SuiteItem]:
    """Scenes one after the other, each asked two kinds in turn, until every kind has its number and yes and no are even."""
    bank = sprite_bank()
    focus = [sprite for sprite in bank.sprites if sprite.split == split]
    random.Random(f"{NAME}/{split}").shuffle(focus)
    wanted = PER_KIND[split]
    counts: Counter[str] = Counter()
    answers: Counter[str] = Counter()
    number = 0
    while any(counts[kind] < wanted for kind in KINDS):
        seed = f"{NAME}/{split}/{number}"
        shown: tuple[Sprite, ...] = () if split == "seen" else (focus[number % len(focus)],)
        scene = plan_scene(seed, SceneSpec(focus=shown), bank)
        rng = random.Random(f"{seed}/questions")
        for kind in KINDS_OF_A_SCENE[number % len(KINDS_OF_A_SCENE)]:
            new = counts[kind] % 2 == 1
            about = shown[0].thing.name if shown and kind in ("what", "where", "yes_no") else None
            question = ask(kind, scene, rng, bank, phrasings=NEW_PHRASINGS if new else SEEN_PHRASINGS, about=about)
            if question is None or counts[kind] == wanted or (kind == "yes_no" and answers[question.answer] == wanted // 2):
                continue
            counts[kind] += 1
            answers[question.answer if kind == "yes_no" else ""] += 1
            yield SuiteItem(f"{seed}/{kind}", scene, question, f"{split}/{'new' if new else 'known'}_phrasing")
        number += 1


@cache
def load() -> tuple[Question, ...]:
    """The suite as questions; pictures are PNG bytes in memory, shared by the questions about the same scene."""
    pictures: dict[int | str, bytes] = {}
    questions = []
    for item in suite():
        if item.scene.seed not in pictures:
            pictures[item.scene.seed] = _png(item.scene)
        parts = (ImagePart(pictures[item.scene.seed]), TextPart(f"\n{item.question.text}"))
        conversation, scene = Conversation((Message("user", parts),)), str(item.scene.seed)
        questions.append(Question(item.id, conversation, item.question.accepted, (), item.question.kind, item.group, scene))
    return tuple(questions)


def suite_digest() -> str:
    """Draws every picture and digests the whole suite; equal to DIGEST wherever drawing is faithful."""
    digest = hashlib.sha256()
    for item in suite():
        words = (item.id, item.group, item.question.kind, item.question.text, *item.question.accepted)
        digest.update("\0".join(words).encode())
        digest.update(render_scene(item.scene).tobytes())
    return digest.hexdigest()


def _png(scene: Scene) -> bytes:
    file = io.BytesIO()
    render_scene(scene).save(file, "PNG", compress_level=1)
    return file.getvalue()


SCENES_V1 = Benchmark(
    NAME,
    "1",
    about=About(
        title="scenes-v1: drawn scenes of seen things, new pictures of known things and new things",
        source="drawn by vistune",
        licence="Apache-2.0; its drawings as in assets/sprites/LICENCES.md",
        layout="",
        metric="exact match, mean over six kinds of question",
        paper="docs/evaluation.md",
    ),
    protocols=(Protocol("exact", "the question as it is; exact match after normalising form"),),
    load=lambda folder, protocol: load(),
    score=exact_match,
    summarise=by_kind,
    scorer=SCORER_VERSION,
    needs_data=False,
)
