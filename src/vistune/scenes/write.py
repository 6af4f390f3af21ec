"""Scenes as a folder of training data: pictures, annotations for the teacher and for alignment, and LLaVA JSON.

images/000000.jpg ...     the pictures
annotations.jsonl         one line a picture: an ImageAnnotations, and what only a drawn scene knows (places, colours, background)
align.jsonl               the same pictures for the `align` objective: what words belong to which part of the picture
captions.json             LLaVA JSON: one description of each picture
instruct.json             LLaVA JSON: several questions and answers about each picture
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vistune.errors import DataError, UsageError
from vistune.journal import atomic_folder, atomic_write
from vistune.scenes.bank import sprite_bank
from vistune.scenes.draw import Scene, SceneSpec, plan_scene, render_scene
from vistune.scenes.questions import SceneQuestion, ask, dialogue
from vistune.types import Box, ImageAnnotations

TRAINING_SEED = "scenes-train"
"""Seeds of training scenes begin with this; the suite's begin with its name, so that no scene is ever in both."""


@dataclass(frozen=True)
class AnnotatedScene:
    """A line of annotations.jsonl. `places`, `categories` and `colours` (None: as in nature) follow the order of the boxes."""

    annotations: ImageAnnotations
    background: str
    pattern: str
    places: tuple[str, ...]
    categories: tuple[str, ...]
    colours: tuple[str | None, ...]


def write_scenes(folder: Path, count: int, *, seed: int = 0, spec: SceneSpec = SceneSpec(), turns: int = 7) -> Path:  # noqa: B008 (frozen)
    """Draws `count` scenes into a new folder and returns it. A crash leaves no folder.

    Raises:
        UsageError: the spec would show held-out sprites, which no training may see.
        SaveError: the folder cannot be written.
    """
    if set(spec.splits) != {"seen"} or any(sprite.split != "seen" for sprite in spec.focus):
        raise UsageError("Training scenes are drawn from seen sprites only; the others are held out for the suite scenes-v1.")
    bank = sprite_bank()
    instruct: list[dict[str, Any]] = []
    captions: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    align: list[dict[str, Any]] = []
    folder.parent.mkdir(parents=True, exist_ok=True)
    with atomic_folder(folder) as temporary:
        (temporary / "images").mkdir()
        for number in range(count):
            scene = plan_scene(f"{TRAINING_SEED}/{seed}/{number}", spec, bank)
            image = f"images/{number:06}.jpg"
            render_scene(scene, bank).save(temporary / image, quality=92, subsampling=0)
            annotations.append(_annotation_row(scene, image))
            align.append(_align_row(scene, image))
            rng = random.Random(f"{scene.seed}/questions")
            instruct.append(_llava_row(image, number, dialogue(scene, rng, bank, turns=turns)))
            caption = ask("describe", scene, rng, bank)
            captions.append(_llava_row(image, number, [caption] if caption else []))
        for name, lines in (("annotations.jsonl", annotations), ("align.jsonl", align)):
            atomic_write(temporary / name, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode())
        for name, rows in (("captions.json", captions), ("instruct.json", instruct)):
            atomic_write(temporary / name, json.dumps(rows, ensure_ascii=False, indent=0).encode())
    return folder


def read_annotated_scenes(path: Path) -> Iterator[AnnotatedScene]:
    """Reads the annotations.jsonl that `write_scenes` wrote."""
    if not path.is_file():
        raise DataError(f"There is no {path}; draw scenes first (vistune.scenes.write.write_scenes).")
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        boxes = tuple(Box(box["label"], tuple(box["xyxy"])) for box in row["boxes"])
        annotations = ImageAnnotations(row["image"], row["width"], row["height"], tuple(row["captions"]), boxes, row["source"])
        yield AnnotatedScene(
            annotations, row["background"], row["pattern"], tuple(row["places"]), tuple(row["categories"]), tuple(row["colours"])
        )


def _annotation_row(scene: Scene, image: str) -> dict[str, Any]:
    known = scene.annotations(image)
    return {
        "image": known.image,
        "width": known.width,
        "height": known.height,
        "captions": known.captions,
        "boxes": [{"label": box.label, "xyxy": [round(edge, 5) for edge in box.xyxy]} for box in known.boxes],
        "source": known.source,
        "background": scene.background.colour,
        "pattern": scene.background.pattern,
        "places": [thing.place for thing in scene.objects],
        "categories": [thing.thing.category for thing in scene.objects],
        "colours": [thing.colour for thing in scene.objects],
    }


def _align_row(scene: Scene, image: str) -> dict[str, Any]:
    """The scene's parts and their words. Boxes of the same place share it: a painted thing is its name and its colour, the ground is a box
    as large as the picture."""
    words = [((0.0, 0.0, 1.0, 1.0), word) for word in ("background", scene.background.colour)]
    for thing, box in zip(scene.objects, scene.annotations(image).boxes, strict=True):
        words += [(box.xyxy, word) for word in (thing.name, thing.colour) if word]
    boxes = [{"label": word, "xyxy": [round(edge, 5) for edge in xyxy]} for xyxy, word in words]
    return {"image": image, "width": scene.size, "height": scene.size, "boxes": boxes, "source": "scenes"}


def _llava_row(image: str, number: int, questions: Sequence[SceneQuestion]) -> dict[str, Any]:
    messages = []
    for turn, question in enumerate(questions):
        messages.append({"from": "human", "value": f"<image>\n{question.text}" if turn == 0 else question.text})
        messages.append({"from": "gpt", "value": question.answer})
    return {"id": f"scene-{number:06}", "image": image, "conversations": messages}
