"""Makes the five pictures of `make demo`: two photographs from scikit-image, three scenes whose seeds no training uses.

Run once, by hand: python tools/make_demo_pictures.py SKIMAGE_DATA_FOLDER. The result is in `src/vistune/assets/demo/`.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

from PIL import Image

from vistune.scenes import PLACES, plan_scene, render_scene
from vistune.scenes.questions import NUMBER_WORDS

OUT = Path(__file__).parent.parent / "src/vistune/assets/demo"
PHOTOGRAPHS = {
    "coffee": (
        "What is in the picture?",
        ["coffee", "cup", "mug"],
        "CC0, Rachel Michetti, courtesy of Pikolo Espresso Bar",
    ),
    "chelsea": ("Which animal is in the picture?", ["cat", "kitten"], "CC0, Stefan van der Walt"),
}
SCENES = {
    "one-thing": ("demo/17", "What is in the picture?"),
    "some-things": ("demo/9", "Where is the fairy?"),
    "counting": ("demo/7", "How many objects are there?"),
}


def main() -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    entries = []
    for name, (question, answers, licence) in PHOTOGRAPHS.items():
        file = OUT / f"{name}.jpg"
        with Image.open(Path(sys.argv[1]) / f"{name}.png") as photograph:
            picture = photograph.convert("RGB")
        picture.thumbnail((448, 448), Image.Resampling.LANCZOS)
        picture.save(file, quality=85)
        source = f"scikit-image 0.26, data/{name}.png"
        entries.append(_entry(file, question, answers, licence, source))
    for name, (seed, question) in SCENES.items():
        scene = plan_scene(seed)
        file = OUT / f"{name}.png"
        render_scene(scene).save(file, optimize=True)
        first = scene.objects[0]
        answers = {
            "one-thing": [first.name],
            "some-things": [PLACES[first.place]],
            "counting": [str(len(scene.objects)), NUMBER_WORDS[len(scene.objects)]],
        }[name]
        entries.append(_entry(file, question, answers, "as the sprites: ../sprites/LICENCES.md", f"vistune scene, seed {seed}"))
    (OUT / "demo.json").write_text(json.dumps(entries, indent=1) + "\n", encoding="utf-8")


def _entry(file: Path, question: str, answers: list[str], licence: str, source: str) -> dict[str, object]:
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    return {"picture": file.name, "question": question, "answers": answers, "licence": licence, "source": source, "sha256": digest}


if __name__ == "__main__":
    main()
