"""The dataset card: README.md of a finished run, in the form that the Hugging Face hub reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vistune.datagen.tally import Tally

_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"), (10_000_000, "1M<n<10M"))


def dataset_card(tally: Tally, run: Mapping[str, Any]) -> str:
    """The card of a run, from its tally and its `run.json`."""
    settings, licence = run["settings"], run["licence"]
    kinds = "\n".join(f"| {name} | {tally.rows[name]:,} | `{digest[:16]}` |" for name, digest in settings["kinds"].items())
    rejected = "\n".join(f"| `{reason}` | {count:,} |" for reason, count in tally.rejected.most_common())
    size = next((name for limit, name in _SIZES if tally.total_rows < limit), "n>10M")
    synthetic = "by grammar, offline" if settings["teacher"] == "template" else "a language model"
    return f"""---
license: other
license_name: see-below
language:
- en
task_categories:
- image-text-to-text
- visual-question-answering
size_categories:
- {size}
tags:
- visual-instruction-tuning
- llava
- synthetic
---

# Visual instruction data from {settings["source"]}

{tally.total_rows:,} rows with {tally.pairs:,} questions, written by a teacher that saw captions and boxes and never the pictures (LLaVA,
Liu et al. 2023, section 3), with vistune {run["vistune"]}.

| kind | rows | prompt (sha256) |
| --- | ---: | --- |
{kinds}

- **File**: `{run["file"]}` ({settings["format"]} format). Pictures are named relative to {_folder_in_words(settings)}.
- **Teacher**: {settings["teacher"]} ({synthetic}), temperature {settings["temperature"]:g}, seed {settings["seed"]}.
- **Licence of the annotations and pictures**: {licence}. The words are the teacher's: its provider's terms apply to them as well.
- **Every row** carries its provenance: source, licence, teacher, prompt hash, sha256 of the picture, and the filters that it passed.

## What was left out

{tally.rejected.total():,} rejections, {tally.reject_rate:.1%} of {tally.asked:,} replies; each with its reason and the raw reply in
`rejects.jsonl`.

| reason | count |
| --- | ---: |
{rejected or "| none | 0 |"}

Filters: {", ".join(f"`{name}`" for name in settings["filters"]) or "none"}.

## What to know before use

The teacher never saw a picture. What captions and boxes do not say, it cannot know; what they say wrongly, it repeats. The filters drop
replies with words that the annotations do not support, as far as a parser of nouns can tell, and they miss some. Look at `report.html` and
read rows before you train, and do not put pictures of your evaluation into your training data.
"""


def _folder_in_words(settings: Mapping[str, Any]) -> str:
    return "the image folder that the run was given" if settings["images"] else "this folder"
