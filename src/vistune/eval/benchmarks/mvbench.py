"""MVBench: twenty tasks about short videos; how a question is written, which frames are looked at, and when a reply is right.

Follows the benchmark's own notebook (`qa_template`, `get_index`, `check_ans`), and for `match_lmms` and `match_vlmevalkit` those two
suites, which match differently. No video is opened here: the frames are decoded when a question is asked. The headline is the mean over
all items of all tasks, not over tasks.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from vistune.errors import ScoringError, VideoError
from vistune.eval.benchmark import About, Benchmark, Metric, Protocol
from vistune.eval.benchmarks.mmbench import infer_option
from vistune.eval.benchmarks.vqa import remove_punctuation
from vistune.eval.official_files import Pictures, Row, json_rows, require_count
from vistune.eval.shared import about_pictures, mean_percent, mean_percents, unanswered
from vistune.types import Graded, ImagePart, Question, Reply, SamplingParams, Score, VideoPart
from vistune.video import frame_numbers

_LETTER = re.compile(r"\b([A-E])\b", re.IGNORECASE)
_LETTERED_OPTION = re.compile(r"[A-E]\.", re.IGNORECASE)


def format(data: Mapping[str, Any]) -> tuple[str, str]:
    """The question with its options, and the answer as `(X) text`.

    The letter is that of the last candidate equal to the answer; where none is, it is `@`, the sign before A.

    Args:
        data: an item of the benchmark: `question`, `candidates` (list of texts) and `answer` (text).

    Raises:
        ScoringError: a key is missing.
    """
    try:
        question, candidates, answer = data["question"], data["candidates"], data["answer"]
    except KeyError as missing:
        raise ScoringError(f"an MVBench item has no {missing}; expected question, candidates and answer") from None
    right = max((number for number, candidate in enumerate(candidates) if candidate == answer), default=-1)
    options = "".join(f"({_letter(number)}) {candidate}\n" for number, candidate in enumerate(candidates))
    return f"Question: {question}\nOptions:\n{options}".rstrip(), f"({_letter(right)}) {answer}"


def _letter(number: int) -> str:
    return chr(ord("A") + number)


def frame_indices(n: int, bound: Sequence[float] | None, fps: float, max_frame: int, first: int = 0) -> list[int]:
    """The indices of the `n` frames at the middles of equal parts of a video.

    Args:
        n: how many frames.
        bound: start and end in seconds; None for the whole video.
        fps: frames per second of the video (3 for folders of frames).
        max_frame: index of the last frame.
        first: index of the first frame (1 for folders of frames).

    Raises:
        ScoringError: no frames are asked for, or a time is not finite. A bound outside the video is no error: the official code then
            gives indices outside it, and so does this.
    """
    try:
        return frame_numbers(n, bound, fps, max_frame, first)
    except VideoError as error:
        raise ScoringError(str(error)) from None


def completed(reply: str) -> str:
    """The reply as the official code reads it: its first line, behind the bracket that the prompt had already opened."""
    return "(" + reply.strip().split("\n")[0]


def match(pred: str, gold: str, *, strict_official: bool = False) -> bool:
    """Whether a reply names the right option, by inclusion of first words.

    Only what stands before the first blank counts. An empty first word is part of everything, so it is right.

    Args:
        pred: the reply as `completed` gives it.
        gold: the answer as `format` gives it.
        strict_official: raise where the official code fails, which is where the gold has no text after its letter; otherwise False there.

    Raises:
        ScoringError: see `strict_official`.
    """
    first_word = pred.lower().split(" ", 1)[0]
    option, _, content = gold.lower().partition(" ")
    if not content:
        if strict_official:
            raise ScoringError(f"the gold answer {gold!r} has no text after its letter")
        return False
    return first_word.replace(".", "") in option or option in first_word


def match_lmms(pred: str, letter: str) -> bool:
    """Whether a reply names the right letter, as lmms-eval reads it: by its first stand-alone letter from A to E.

    Args:
        pred: the reply as the model wrote it. An empty one is never right; lmms-eval leaves it out of the denominator.
        letter: the letter of the right option.
    """
    return _read_lmms(pred) == _read_lmms(letter)


def _read_lmms(text: str) -> str:
    text = text.strip()
    # "A. text": blank lines may follow the dot, but the text is one line. Said without a pattern, which would need squared time.
    before, _, last_line = text[2:].rpartition("\n")
    if _LETTERED_OPTION.match(text) and last_line and not before.strip():
        return text[0].upper()
    text = remove_punctuation(text.replace("\n", " ").replace("\t", " ").strip())
    for sign in "'\")(":
        text = text.strip(sign)
    text = text.strip().lower()
    found = _LETTER.search(text)
    return found[1].upper() if found else text


def match_vlmevalkit(pred: str, gold: str, candidates: Sequence[str]) -> bool:
    """Whether a reply names the right option, as VLMEvalKit reads it without a language model to help: by the notebook's rule, or else by
    its own search for one option's letter or text in the reply.

    Args:
        pred: the reply as the model wrote it, with no bracket put before it.
        gold: the answer as `format` gives it.
        candidates: the options' texts.
    """
    options = {_letter(number): candidate for number, candidate in enumerate(candidates)}
    return match(pred.strip(), gold) or infer_option(pred, options) == gold[1:2]


# --- the questions ------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Task:
    """Where a task's videos lie below `video/`; `bounded` where a question is about a piece of one; `folders` where they are frames."""

    name: str
    videos: str
    bounded: bool = False
    folders: bool = False

    @property
    def file(self) -> str:
        """`Fine-grained Action` → `fine_grained_action.json`."""
        return self.name.lower().replace(" ", "_").replace("-", "_") + ".json"


TASKS = (
    Task("Action Sequence", "star/Charades_v1_480", bounded=True),
    Task("Action Prediction", "star/Charades_v1_480", bounded=True),
    Task("Action Antonym", "ssv2_video"),
    Task("Fine-grained Action", "Moments_in_Time_Raw/videos"),
    Task("Unexpected Action", "FunQA_test/test"),
    Task("Object Existence", "clevrer/video_validation"),
    Task("Object Interaction", "star/Charades_v1_480", bounded=True),
    Task("Object Shuffle", "perception/videos"),
    Task("Moving Direction", "clevrer/video_validation"),
    Task("Action Localization", "sta/sta_video", bounded=True),
    Task("Scene Transition", "scene_qa/video"),
    Task("Action Count", "perception/videos"),
    Task("Moving Count", "clevrer/video_validation"),
    Task("Moving Attribute", "clevrer/video_validation"),
    Task("State Change", "perception/videos"),
    Task("Fine-grained Pose", "nturgbd"),
    Task("Character Order", "perception/videos"),
    Task("Egocentric Navigation", "vlnqa"),
    Task("Episodic Reasoning", "tvqa/frames_fps3_hq", bounded=True, folders=True),
    Task("Counterfactual Inference", "clevrer/video_validation"),
)
PER_TASK = 200
FRAMES = {"official": 16, "official-4": 4, "lmms": 16, "vlmevalkit": 8}
FOLDER_FPS = 3.0
_INSTRUCTION = (
    "Watch the video with care. Pay attention to what causes what and in which order things happen, to the objects and how they move, and "
    "to what people do and how they hold themselves. Going by what you saw, choose the option that answers the question best.\n"
)
_ONLY_OPTION = "Only give the best option."
_OPENED = "Best option:("


def load(folder: Path, protocol: str, *, check_counts: bool = True) -> list[Question]:
    """The questions of the twenty tasks; the category is the task. Videos are looked up, not opened.

    Raises:
        DataError: a file or video is missing, a field is not there, or a task has not 200 questions.
        VideoError: a folder of frames is missing or has not the frames that a question names.
    """
    questions = []
    for task in TASKS:
        rows = json_rows(folder / "json" / task.file)
        if check_counts:
            require_count(len(rows), PER_TASK, f"{folder / 'json' / task.file}: questions")
        videos = Pictures(folder / "video" / task.videos)
        for number, row in enumerate(rows):
            shown = _frames(folder, task, row, FRAMES[protocol]) if task.folders else [_video(videos, task, row, FRAMES[protocol])]
            questions.append(_question(task, number, row, shown, protocol))
    return questions


def _question(task: Task, number: int, row: Row, shown: Sequence[ImagePart | VideoPart], protocol: str) -> Question:
    candidates = row.texts("candidates")
    item = {"question": row.text("question"), "candidates": candidates, "answer": row.text("answer")}
    text, gold = format(item)
    if protocol == "lmms":
        options = "".join(f"({_letter(place)}) {candidate}\n" for place, candidate in enumerate(candidates))
        conversation = about_pictures(shown, f"Question:{item['question']}\nOption:\n{options}{_ONLY_OPTION}\n")
    elif protocol == "vlmevalkit":
        conversation = about_pictures(shown, f"{_INSTRUCTION}{text}\n{_ONLY_OPTION}\n{_OPENED}")
    else:
        conversation = about_pictures(shown, f"{_INSTRUCTION}{text}\n{_ONLY_OPTION}").then("assistant", _OPENED)
    return Question(
        f"{task.file.removesuffix('.json')}-{number}",
        conversation,
        answers=(gold,),
        choices=candidates,
        category=task.name,
        image_group=f"{task.videos}/{row.name('video')}",
        facts={"gold": gold, "letter": _first_letter(item["answer"], candidates), "seconds": _seconds(task, row)},
    )


def _first_letter(answer: str, candidates: Sequence[str]) -> str:
    """Of equal candidates lmms-eval takes the first for the right one, and the notebook the last; `@` where none is, as in `format`."""
    return next((_letter(number) for number, candidate in enumerate(candidates) if candidate == answer), _letter(-1))


def _seconds(task: Task, row: Row) -> tuple[float, float] | None:
    return (row.number("start"), row.number("end")) if task.bounded else None


def _video(videos: Pictures, task: Task, row: Row, frames: int) -> VideoPart:
    return VideoPart(videos.part(row.name("video"), row).source, frames, _seconds(task, row))


def _frames(folder: Path, task: Task, row: Row, frames: int) -> list[ImagePart]:
    """The frames 00001.jpg, 00002.jpg, ... that the notebook takes of a folder; as many as it has files are counted."""
    name = row.name("video")
    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        raise row.wrong("video", "the name of a folder of frames")
    place = folder / "video" / task.videos / name
    if not place.is_dir():
        raise VideoError("missing", f"{row.where}: there is no folder of frames {str(place)!r}.")
    numbers = frame_indices(frames, _seconds(task, row), FOLDER_FPS, sum(1 for _ in place.iterdir()), first=1)
    files = Pictures(place)
    return [files.part(f"{number:05d}.jpg", row) for number in numbers]


def score(question: Question, reply: Reply, protocol: str) -> Score:
    """Whether a reply names the right option."""
    if missing := unanswered(reply):
        return missing
    if protocol == "lmms":
        if not reply.text.strip():
            return Score(None, note="the reply is empty; lmms-eval leaves it out of the denominator")
        return Score(float(match_lmms(reply.text, question.facts["letter"])), extracted=_read_lmms(reply.text))
    if protocol == "vlmevalkit":
        right = match_vlmevalkit(reply.text, question.facts["gold"], question.choices)
        return Score(float(right), extracted=reply.text.strip())
    said = completed(reply.text)
    return Score(float(match(said, question.facts["gold"])), extracted=said)


def summarise(graded: Sequence[Graded], protocol: str) -> tuple[Metric, ...]:
    tasks = mean_percents("accuracy", graded, lambda item: item.question.category)
    mean = sum(task.value for task in tasks) / max(len(tasks), 1)
    whole = mean_percent("accuracy", graded, headline=True)
    return (whole, Metric("mean of tasks", mean, whole.n), *tasks)


BENCHMARK = Benchmark(
    "mvbench",
    "1",
    about=About(
        title="MVBench: twenty kinds of question about short videos",
        source="https://huggingface.co/datasets/OpenGVLab/MVBench (json and the unpacked videos; some need permission of their owners)",
        licence="MIT (questions); the videos under the terms of their sources",
        layout="json/action_sequence.json and nineteen more\n" + "\n".join(sorted({f"video/{task.videos}/" for task in TASKS})),
        metric="accuracy over all items of the twenty tasks",
        paper="https://arxiv.org/abs/2311.17005",
    ),
    protocols=(
        Protocol(
            "official",
            "16 frames as in the notebook, whole (scaling is the model's own); its prompt in our words, the answer begun for the model; "
            "its match by first words",
        ),
        Protocol("official-4", "the same with 4 frames, for a model whose context has no room for sixteen pictures"),
        Protocol("lmms", "16 frames; lmms-eval's prompt and its search for a letter; an empty reply has no score"),
        Protocol("vlmevalkit", "8 frames; the notebook's prompt; its match or VLMEvalKit's search for an option, with no model to help"),
    ),
    load=load,
    score=score,
    summarise=summarise,
    params=SamplingParams(max_new_tokens=100, stop=("###",)),
    sizes=dict.fromkeys(FRAMES, PER_TASK * len(TASKS)),
)
