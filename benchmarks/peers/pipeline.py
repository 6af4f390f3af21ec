"""From a JPEG file and its conversation to a batch that a model can read: vistune's way, transformers' way, and the least there is to do.

One core, one thread. The least is to decode the file and to resize it, with the same library and filter as both sides use: what comes on
top (opening safely, normalising, text, labels, collating) is each side's own cost.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from peers.job import Files, Job, Measured, peak_bytes, resident_bytes, template_of
from peers.workload import batches_of, model_config

Batch = dict[str, Any]


def run(job: Job, files: Files, scratch: Path) -> Measured:
    """Passes over all rows: the side's own and the floor's take turns. Rows without a picture are left out."""
    torch.set_num_threads(1)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    measured = Measured(import_bytes=resident_bytes())
    rows, read = _rows(job, files)
    batches = batches_of(range(len(rows)), job.batch)
    make = _transformers(files, rows) if job.peer == "hf_processor" else read
    size = _resized_size(job)
    floors, drafts = [], []
    for _ in range(job.warm + job.steps):
        measured.seconds.append(_seconds(lambda: [make(batch) for batch in batches]))
        floors.append(_seconds(lambda: [_decode(row["path"], size) for row in rows]))
        drafts.append(_seconds(lambda: [_decode(row["path"], size, draft=True) for row in rows]))
    measured.seconds, floors, drafts = measured.seconds[job.warm :], floors[job.warm :], drafts[job.warm :]
    measured.peak_bytes = peak_bytes()
    measured.notes = {
        "pictures": len(rows),
        "floor_seconds": statistics.median(floors),
        "draft_seconds": statistics.median(drafts),
        "draft_error": _draft_error([row["path"] for row in rows[:8]], size),
    }
    if job.peer == "hf_processor":
        measured.notes |= _compared(read(batches[0]), make(batches[0]))
    return measured


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _rows(job: Job, files: Files) -> tuple[list[Batch], Callable[[Sequence[int]], Batch]]:
    """The rows with a picture, and vistune's way to a batch of some of them: what its trainer does for a step."""
    from dataclasses import replace

    from vistune.checkpoint.assemble import read_tokenizer
    from vistune.data.collate import collate
    from vistune.formats import example_from_row, read_rows
    from vistune.model.processor import Processor

    raw = [row for row in read_rows(files.data / "rows.json") if "image" in row]
    examples = [example_from_row(row, files.pictures, row_number=number) for number, row in enumerate(raw)]
    config = replace(model_config(job.shape), template=template_of(job.stage))
    processor = Processor(read_tokenizer(files.model), config)
    rows = [{"path": files.pictures / row["image"], "conversations": row["conversations"]} for row in raw]

    def read(places: Sequence[int]) -> Batch:
        batch = collate([processor(examples[place].conversation, train=True) for place in places])
        return {"pixel_values": batch.pixel_values, "input_ids": batch.input_ids, "labels": batch.labels}

    return rows, read


def _transformers(files: Files, rows: Sequence[Batch]) -> Callable[[Sequence[int]], Batch]:
    """A user's usual collator: open the pictures, write the turns by the chat template, call the processor, mask padding and pictures."""
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(files.model)
    image_id = processor.image_token_id

    def read(places: Sequence[int]) -> Batch:
        chosen = [rows[place] for place in places]
        pictures = [Image.open(row["path"]).convert("RGB") for row in chosen]
        texts = [processor.apply_chat_template(_messages(row["conversations"]), tokenize=False) for row in chosen]
        batch = processor(images=pictures, text=texts, padding=True, return_tensors="pt")
        labels = batch["input_ids"].clone()
        labels[batch["attention_mask"] == 0] = -100
        labels[labels == image_id] = -100
        return {**batch, "labels": labels}

    return read


def _messages(turns: Sequence[dict[str, str]]) -> list[dict[str, Any]]:
    messages = []
    for turn in turns:
        text = turn["value"]
        picture: list[dict[str, str]] = [{"type": "image"}] if text.startswith("<image>") else []
        text = text.removeprefix("<image>\n")
        messages.append({"role": "user" if turn["from"] == "human" else "assistant", "content": [*picture, {"type": "text", "text": text}]})
    return messages


def _compared(mine: Batch, theirs: Batch) -> dict[str, bool]:
    ids = theirs["input_ids"][theirs["attention_mask"].bool()]
    return {
        "equal_pixels": torch.equal(mine["pixel_values"], theirs["pixel_values"]),
        "equal_ids": torch.equal(mine["input_ids"], ids),
    }


# --- the least ---


def _resized_size(job: Job) -> tuple[int, int]:
    """What a 640x480 picture is resized to before the centre is cut out: CLIP keeps its shape, SigLIP does not."""
    from peers.workload import PICTURE_SIZE

    image = model_config(job.shape).image
    width, height = PICTURE_SIZE
    return (int(image.size * width / height), image.size) if image.resize == "shortest_edge" else (image.size, image.size)


def _decode(path: Path, size: tuple[int, int], *, draft: bool = False) -> Image.Image:
    """`draft` lets the JPEG decoder leave out the finest detail (half or quarter size): quicker, and not the same pixels."""
    with Image.open(path) as image:
        if draft:
            image.draft("RGB", size)
        image.load()
        return image.resize(size, Image.Resampling.BICUBIC)


def _draft_error(paths: Sequence[Path], size: tuple[int, int]) -> float:
    """Mean difference of a pixel, of 255."""
    pairs = [(_decode(path, size), _decode(path, size, draft=True)) for path in paths]
    return float(np.mean([np.abs(np.asarray(one, np.int16) - np.asarray(other, np.int16)).mean() for one, other in pairs]))
