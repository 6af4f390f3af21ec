"""One line of JSON per question: what was sent, what came back, what was read in it, its score and why."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vistune.eval.intervals import cluster_of
from vistune.eval.judge import Verdict
from vistune.eval.runner import picture_id
from vistune.journal import atomic_file
from vistune.types import Conversation, Graded, Question, Score, TextPart


def write_samples(path: Path, graded: Sequence[Graded], found: Sequence[Mapping[str, Verdict]]) -> None:
    with atomic_file(path) as file:
        for item in graded:
            row = _sample(item) | _said(item.question.id, found)
            file.write((json.dumps(row, ensure_ascii=False) + "\n").encode("utf-8", "surrogatepass"))


def _sample(item: Graded) -> dict[str, Any]:
    question, reply, score = item.question, item.reply, item.score
    return {
        "id": question.id,
        "prompt": _prompt(question.conversation),
        "reply": reply.text,
        "finish_reason": reply.finish_reason,
        "extracted": score.extracted,
        "score": score.value,
        "note": score.note,
        "answers": list(question.answers),
        "choices": list(question.choices),
        "category": question.category,
        "group": question.group,
        "image_group": question.image_group,
    }


def _prompt(conversation: Conversation) -> list[dict[str, Any]]:
    """The messages as they were sent; of a picture, its digest."""
    return [
        {
            "role": message.role,
            "content": [part.text if isinstance(part, TextPart) else {"picture": picture_id(part)} for part in message.parts],
        }
        for message in conversation.messages
    ]


def _said(id: str, found: Sequence[Mapping[str, Verdict]]) -> dict[str, Any]:
    """What the judges said, word for word, and the second one's score."""
    verdicts = [each[id] for each in found if id in each]
    if not verdicts:
        return {}
    second = {"second_score": verdicts[1].score.value, "second_judge": list(verdicts[1].replies)} if len(verdicts) > 1 else {}
    return {"judge": list(verdicts[0].replies)} | second


@dataclass(frozen=True)
class Sample:
    """What comparing needs of one line of a samples file."""

    id: str
    reply: str
    score: Score
    cluster: str


def read_samples(path: Path) -> list[Sample]:
    """The samples of a file, in order. Raises ValueError, KeyError or TypeError for what is none."""
    lines = path.read_text(encoding="utf-8", errors="surrogatepass").split("\n")  # not splitlines: a reply may hold a line separator
    return [_read_sample(json.loads(line)) for line in lines if line]


def _read_sample(row: Mapping[str, Any]) -> Sample:
    value = row["score"]
    if not (value is None or (isinstance(value, int | float) and math.isfinite(value))):
        raise ValueError(f"the score of {row['id']} is {value!r}")
    cluster = cluster_of(Question(str(row["id"]), Conversation(()), image_group=str(row["image_group"])))
    return Sample(str(row["id"]), str(row["reply"]), Score(value, row["extracted"], str(row["note"])), cluster)
