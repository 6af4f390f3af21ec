"""Memory and time that the data engine takes for files of the size people have: COCO's instances, and three million captions.

    python benchmarks/data_engine.py [--coco-megabytes 450] [--captions 3000000] [--workers 2]

The files are made here. COCO's has its published layout and counts (118,287 images; 860,001 boxes with polygons; 591,753 captions in a
second file); its pictures are not there, so they are not looked at. Captions join two to four noun phrases, whose adjectives and nouns are
drawn by Zipf's law from TextBlob's English lexicon. Each measurement runs in a process of its own, whose highest resident memory Linux
keeps. The result is benchmarks/results/data_engine.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

RESULT = Path(__file__).resolve().parent / "results" / "data_engine.json"
IMAGES, BOXES, CAPTIONS = 118_287, 860_001, 591_753
CATEGORIES = 80
BATCH = 20_000


# Files ----------------------------------------------------------------------------------------------------------------------------------


def write_coco(folder: Path, megabytes: float) -> None:
    """instances.json of about this size, with pictures and boxes in proportion to COCO's, and the captions.json that belongs to it."""
    share = megabytes / 450
    rng = np.random.default_rng(0)
    images = [
        {
            "license": 3,
            "file_name": f"{number:012}.jpg",
            "coco_url": f"http://images.cocodataset.org/train2017/{number:012}.jpg",
            "height": 480,
            "width": 640,
            "date_captured": "2013-11-14 11:18:45",
            "flickr_url": "http://farm9.staticflickr.com/8186/8119368305_4e622c8349_z.jpg",
            "id": number,
        }
        for number in range(int(IMAGES * share))
    ]
    listed = json.dumps(images)[1:-1]
    categories = [{"supercategory": "thing", "id": number, "name": f"thing {number}"} for number in range(CATEGORIES)]
    with (folder / "instances.json").open("w") as file:
        file.write('{"info": {"year": 2017}, "licenses": [], "images": [' + listed + '], "annotations": [')
        for number in range(int(BOXES * share)):
            left, top, width, height = (round(float(edge), 2) for edge in rng.uniform((0, 0, 20, 20), (300, 200, 340, 280)))
            polygon = np.round(rng.uniform(0, 480, 2 * int(rng.integers(8, 40))), 2).tolist()
            row = {"segmentation": [polygon], "area": 702.1, "iscrowd": 0, "image_id": int(rng.integers(len(images)))}
            row |= {"bbox": [left, top, width, height], "category_id": int(rng.integers(CATEGORIES)), "id": number}
            file.write((", " if number else "") + json.dumps(row))
        file.write('], "categories": ' + json.dumps(categories) + "}")
    captions = (
        {"image_id": number % len(images), "id": number, "caption": caption}
        for number, caption in enumerate(zipf_captions(int(CAPTIONS * share), seed=1))
    )
    with (folder / "captions.json").open("w") as file:
        file.write('{"info": {"year": 2017}, "images": [' + listed + '], "licenses": [], "annotations": [')
        file.writelines((", " if row["id"] else "") + json.dumps(row) for row in captions)
        file.write("]}")


def write_captions(path: Path, count: int) -> None:
    with path.open("w") as file:
        file.writelines(f"{caption}\tpictures/{number:09}.jpg\n" for number, caption in enumerate(zipf_captions(count, seed=0)))


def zipf_captions(count: int, *, seed: int) -> Iterator[str]:
    """Sentences like "an old wooden dog near three benches with the lamp"."""
    rng = np.random.default_rng(seed)
    nouns, plurals, adjectives = (words_tagged(tag, rng) for tag in ("NN", "NNS", "JJ"))
    joints = ("near", "with", "on", "and", "in front of", "is next to", "holding", "behind", "looking at", "under")
    while count > 0:
        size = min(BATCH, count)
        count -= size
        slots = 4 * size
        singular, many, first, second = (zipf(rng, words, slots) for words in (nouns, plurals, adjectives, adjectives))
        shapes, kinds = rng.integers(0, 8, slots), rng.integers(0, len(joints), slots)
        lengths = rng.integers(2, 5, size)
        for number in range(size):
            caption = ""
            for slot in range(4 * number, 4 * number + int(lengths[number])):
                shape = shapes[slot]
                described = f"{second[slot]} {first[slot]} " if shape == 0 else f"{first[slot]} " if shape < 4 else ""
                thing = f"three {described}{many[slot]}" if shape in (3, 7) else f"a {described}{singular[slot]}"
                caption += f" {joints[kinds[slot]]} {thing}" if caption else thing
            yield caption


def words_tagged(tag: str, rng: np.random.Generator) -> list[str]:
    """The lower-case words of the lexicon with a part of speech, in a random order, which becomes their rank."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        from textblob.en import lexicon

        words = sorted(word for word, found in lexicon.items() if found == tag and word.isalpha() and word.islower() and len(word) > 2)
    return [words[place] for place in rng.permutation(len(words))]


def zipf(rng: np.random.Generator, words: list[str], count: int) -> list[str]:
    weights = np.cumsum(np.arange(1, len(words) + 1) ** -1.2)  # at 1.0, two of three phrases would be in one caption only
    return [words[place] for place in np.searchsorted(weights, rng.random(count) * weights[-1])]


# Measurements, each in a process of its own ---------------------------------------------------------------------------------------------


def measure_coco(folder: Path) -> dict[str, Any]:
    from vistune.datagen.sources import RejectedRow, read_annotations

    rows: Counter[str] = Counter()
    captions = boxes = 0
    files = [folder / "captions.json", folder / "instances.json"]
    for row in read_annotations("coco", files, folder, check_images=False):
        if isinstance(row, RejectedRow):
            rows[row.reason] += 1
        else:
            rows["good"] += 1
            captions += len(row.captions)
            boxes += len(row.boxes)
    return {"megabytes": [round(file.stat().st_size / 1e6) for file in files], "images": rows, "captions": captions, "boxes": boxes}


def measure_concepts(folder: Path, workers: int, *, compare: bool) -> dict[str, Any]:
    from vistune.datagen.concept_filter import filter_captions

    with tempfile.TemporaryDirectory(dir=folder) as out:
        report = filter_captions(folder / "captions.tsv", Path(out) / "pool", compare=compare, workers=workers)
    sizes = [asdict(size) for size in report.compared or (report.chosen,)]
    return {"captions": report.captions, "rejected": report.rejected, "workers": workers, "sizes": sizes}


def child(task: str, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    match task:
        case "files":
            write_coco(folder, arguments.coco_megabytes)
            write_captions(folder / "captions.tsv", arguments.captions)
            return {}
        case "coco":
            return measure_coco(folder)
        case "concepts":
            return measure_concepts(folder, arguments.workers, compare=False)
        case _:
            return measure_concepts(folder, arguments.workers, compare=True)


def peak_mb() -> float:
    """The highest resident memory of this process. (ru_maxrss would begin with that of the process that started it.)"""
    status = Path("/proc/self/status").read_text()
    return round(int(status.partition("VmHWM:")[2].split()[0]) / 1024, 1)


def in_child(task: str, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    command = [sys.executable, __file__, "--child", task, str(folder), "--workers", str(arguments.workers)]
    command += ["--captions", str(arguments.captions), "--coco-megabytes", str(arguments.coco_megabytes)]
    finished = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(finished.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--coco-megabytes", type=float, default=450)
    parser.add_argument("--captions", type=int, default=3_000_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--note", default="", help="What else the machine was doing; it goes into the result.")
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--child", nargs=2, metavar=("TASK", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        started, load = time.perf_counter(), os.getloadavg()[0]
        found = child(arguments.child[0], Path(arguments.child[1]), arguments)
        found |= {"seconds": round(time.perf_counter() - started, 1), "peak_mb": peak_mb(), "load_before": round(load, 1)}
        own, workers = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
        found["cpu_seconds"] = round(own.ru_utime + own.ru_stime + workers.ru_utime + workers.ru_stime, 1)
        found["largest_worker_peak_mb"] = round(workers.ru_maxrss / 1024, 1)
        print(json.dumps(found))
        return
    with tempfile.TemporaryDirectory() as folder:
        in_child("files", Path(folder), arguments)
        result: dict[str, Any] = {task: in_child(task, Path(folder), arguments) for task in ("coco", "concepts", "concepts_compared")}
    cores = len(os.sched_getaffinity(0))
    result["environment"] = {"python": platform.python_version(), "machine": platform.machine(), "cores": cores, "note": arguments.note}
    print(json.dumps(result, indent=1))
    arguments.out.parent.mkdir(exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
