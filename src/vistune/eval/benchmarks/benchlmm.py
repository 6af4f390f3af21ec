"""BenchLMM's rules: the judge's prompt and reply, the rows of a file's scores, and the means of the results table.

Follows the evaluation scripts of BenchLMM with two modes. In `official` the judge sees the word `None` where the question belongs, because
the scripts look it up under a key that the files do not have; the published numbers were made so. `fixed` shows the question. The wording
of the prompt and its examples are our own.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from vistune.errors import ScoringError, UnknownName
from vistune.eval.benchmark import About, Benchmark, Metric, Protocol
from vistune.eval.judge import JudgeRules
from vistune.eval.official_files import Pictures, json_rows, jsonl_rows, require_count, unique
from vistune.eval.shared import about_pictures, mean_percent
from vistune.types import Conversation, Graded, Question, Reply, SamplingParams, Score

Mode = Literal["official", "fixed"]
Row = Mapping[str, Any]

ATTEMPTS = 3
# Sub-styles as the files are named (Benchmark_<name>.jsonl), by the groups of the results table.
GROUPS: dict[str, tuple[str, ...]] = {
    "artistic": ("style_cartoon", "style_handmake", "style_painting", "style_sketch", "style_tattoo"),
    "sensor": ("infrard", "xray", "Med-X-RAY", "MRI", "CT"),
    "application": ("RS", "AD", "Robots", "game", "defect_detection"),
}

_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_INSTRUCTION = (
    "You grade short answers to questions about pictures. Compare the prediction with the ground truth and give a correctness score "
    "from 0.0 to 1.0 in steps of 0.1. Ignore case and the difference between singular and plural; a prediction that means much the same "
    "earns 1.0. A slash in the ground truth separates alternatives, any one of which earns 1.0."
)
_COUNTS = (("How many lamps are there?", "4", "6", "0.0"), ("How many lamps are there?", "4", "4", "1.0"))
_FENCE = ("What stands around the yard?", "fence/railing", "A railing.", "1.0")
_NUMERALS = (
    ("How many boats are there?", "3", "three", "1.0"),
    ("How many boats are there?", "3", "There are three boats.", "1.0"),
)
# What each script shows the judge before the item; files that are not named here use the default.
_EXAMPLES: dict[str, tuple[tuple[str, str, str, str], ...]] = {
    "default": (
        *_COUNTS,
        _FENCE,
        ("What colour is the traffic light?", "red", "The light is red", "1.0"),
        ("What colour is the traffic light?", "red", "green", "0.0"),
        ("What colour is the traffic light?", "red", "red or green", "0.5"),
        ("Which organ is shown?", "lung", "lungs", "1.0"),
    ),
    "AD": (
        *_COUNTS,
        ("What is the car ahead doing?", "It is turning left.", "turning left", "1.0"),
        ("What is the car ahead doing?", "It is turning left.", "It turns", "0.5"),
        ("May the car go on?", "No, someone is crossing.", "yes", "0.0"),
        ("What should the car do?", "slow down/brake", "It should brake", "1.0"),
        ("How far away is the van?", "near", "far away", "0.0"),
    ),
    "RS": (*_NUMERALS, ("Is there a bridge?", "yes", "Yes, over the river.", "1.0"), ("How many boats are there?", "3", "5", "0.0")),
    "style": (*_NUMERALS, _FENCE),
    "xray": (
        ("Which forbidden object is in the bag?", "scissors", "a pair of scissors", "1.0"),
        ("Which forbidden object is in the bag?", "knife", "a bottle", "0.0"),
    ),
}


def prompt(question: str, reference: str, prediction: str, *, file: str = "default") -> str:
    """What the judge is asked about one answer.

    Args:
        file: the sub-style, which decides the examples; as in `GROUPS`.

    Raises:
        UnknownName: a file that the benchmark does not have.
    """
    if file not in _EXAMPLES and not any(file in names for names in GROUPS.values()):
        raise UnknownName("BenchLMM file", file, known={*_EXAMPLES, *(name for names in GROUPS.values() for name in names)})
    examples = _EXAMPLES.get("style" if file.startswith("style_") else file, _EXAMPLES["default"])
    table = "\n".join(" | ".join(row) for row in (("Question", "Ground truth", "Prediction", "Correctness"), *examples))
    item = f"Question: {question}\nGround Truth: {reference}\nPrediction: {prediction}\nScore:"
    return f"{_INSTRUCTION}\n\n{table}\n\n{item}\n\nReply with the number only."


def parse_judge(reply: str | None) -> float | None:
    """The score in a judge's reply, from 0 to 1; None unless exactly one unsigned number is there and it is in range.

    A sign or a leading dot is not part of a number: `-1` is read as 1, `.5` as 5.
    """
    if not isinstance(reply, str):
        return None
    numbers = _NUMBER.finditer(reply)
    first = next(numbers, None)
    if first is None or next(numbers, None) is not None:
        return None
    value = float(first[0])
    return value if 0 <= value <= 1 else None


def parse_action(reply: str | None, *, strict_official: bool = False) -> float | None:
    """The action score in a judge's reply about Robots and game: what stands behind the last colon of its second line.

    Lines are cut at line feeds and empty ones dropped; a line of blanks counts. The value is not checked, as officially: whoever adds
    scores up should leave out what is neither 0 nor 1.

    Args:
        strict_official: raise where the official code fails and asks again; otherwise None there.

    Raises:
        ScoringError: see `strict_official`.
    """
    try:
        lines = [line for line in (reply or "").split("\n") if line]
        return float(lines[1].rpartition(":")[2])
    except (IndexError, ValueError):
        if strict_official:
            raise ScoringError(f"the judge's reply {str(reply)[:200]!r} has no action score on its second line") from None
        return None


def run(
    predictions: Iterable[Row],
    references: Iterable[Row],
    judge: Callable[[str], str | None],
    *,
    mode: Mode = "official",
    file: str = "default",
    api_errors: tuple[type[Exception], ...] = (Exception,),
) -> list[dict[str, Any]]:
    """Has every prediction judged, up to three times, and returns a row for each that got a score.

    Predictions or references that are the empty text are skipped, and so is what the judge could not score in three attempts: such items
    are in no row, and so not in the mean; the caller can tell them by their absence. A number or null is turned into its Python text
    first, so `0` and null are judged.

    Args:
        predictions: rows with `question_id` and `model_output`.
        references: rows with `question_id`, `image`, `text` (the question) and `answer`; the last row of an id is the one that counts.
        judge: maps a prompt to a reply, and raises one of `api_errors` where it has none; that uses up an attempt.
        mode: `official` (the judge sees None for the question) or `fixed`.
        file: the sub-style, which decides the examples in the prompt.
        api_errors: what counts as a failed attempt. Anything else that the judge raises ends the run.

    Returns:
        Rows with `question_id`, `image` and `model_response`, the score from 0 to 1.

    Raises:
        UnknownName: a mode or file that the benchmark does not have.
    """
    if mode not in ("official", "fixed"):
        raise UnknownName("BenchLMM mode", mode, known=("official", "fixed"))
    by_id = {reference["question_id"]: reference for reference in references}
    rows = []
    for prediction in predictions:
        reference = by_id.get(prediction["question_id"], {})
        said, expected = str(prediction.get("model_output", "")), str(reference.get("answer", ""))
        if not said or not expected:
            continue
        # The official key, which no file has.
        question = str(reference.get("prompt" if mode == "official" else "text"))
        score = _judged(judge, prompt(question, expected, said, file=file), api_errors)
        if score is not None:
            rows.append({"question_id": prediction["question_id"], "image": reference.get("image"), "model_response": score})
    return rows


def _judged(judge: Callable[[str], str | None], text: str, api_errors: tuple[type[Exception], ...]) -> float | None:
    for _ in range(ATTEMPTS):
        try:
            reply = judge(text)
        except api_errors:
            continue
        score = parse_judge(reply)
        if score is not None:
            return score
    return None


def mean(rows: Iterable[Row]) -> float | None:
    """The mean of the rows' `model_response`, from 0 to 1; rows whose value is no number are left out. None without any."""
    values = [value for value in (_number(row.get("model_response")) for row in rows) if value is not None]
    return sum(values) / len(values) if values else None


def _number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return None


def action_choices(actions: Sequence[str]) -> str:
    """The actions of a Robots or game item in one line: `(A) go left (B) wait`."""
    return " ".join(action_choice(actions, number) for number in range(len(actions)))


def action_choice(actions: Sequence[str], number: int) -> str:
    """One of them, with its letter."""
    return f"({chr(ord('A') + number)}) {actions[number]}"


def action_prompt(meta: Row, model_output: str) -> str:
    """What the judge is asked about a Robots or game item: whether the answer takes the right action.

    Args:
        meta: an item of the meta file, with `actions` and `answer_index`.
        model_output: the model's answer.

    Raises:
        ScoringError: the item's right action is none of its actions.
    """
    actions, right = meta["actions"], meta["answer_index"]
    if not 0 <= right < len(actions):
        raise ScoringError(f"action {right} of item {meta.get('index')!r} is none of its {len(actions)}")
    return (
        "Decide whether the agent's answer settles on the correct action.\n\n"
        f"[Action Choices]\n{action_choices(actions)}\n\n[Agent Answer]\n{model_output}\n\n"
        f"[Correct Action]\n{action_choice(actions, right)}\n\n"
        "Reply with exactly two lines: first the words of the answer that show it, then `action score: ` and 1 if it does, 0 if not."
    )


def group_means(styles: Mapping[str, float]) -> dict[str, float]:
    """The mean of each group's five sub-styles.

    Raises:
        ScoringError: a sub-style is missing.
    """
    missing = [name for names in GROUPS.values() for name in names if name not in styles]
    if missing:
        raise ScoringError(f"BenchLMM's means need all fifteen sub-styles; missing: {', '.join(missing)}")
    return {group: sum(styles[name] for name in names) / len(names) for group, names in GROUPS.items()}


def headline(groups: Mapping[str, float]) -> float:
    """The benchmark's one number: the mean of the three groups' means, not of the fifteen sub-styles, and without the common column.

    Raises:
        ScoringError: the groups are not the three.
    """
    if set(groups) != set(GROUPS):
        raise ScoringError(f"the groups {sorted(groups)} are not BenchLMM's: {', '.join(GROUPS)}")
    return sum(groups.values()) / len(groups)


# --- the questions of all fifteen files ---------------------------------------------------------------------------------------------------

ACTIONS = ("Robots", "game")
_SIZES = {"infrard": 200, "xray": 200, "RS": 200, "AD": 250, "game": 117}
_FOLDERS = {"xray": "Xray", "Med-X-RAY": "Med", "MRI": "Med", "CT": "Med", "game": "open_game"}
QUESTIONS = 1_967


def load(folder: Path, protocol: str, *, check_counts: bool = True) -> list[Question]:
    """The questions of all fifteen sub-styles; the category is the sub-style.

    Raises:
        DataError: a file or picture is missing, an id comes twice in a file, an action has no record in the meta file, or a file has not
            its number of questions.
    """
    return [question for styles in GROUPS.values() for style in styles for question in _load_style(folder, style, check_counts)]


def _load_style(folder: Path, style: str, check_counts: bool) -> list[Question]:
    file = folder / "jsonl" / f"Benchmark_{style}.jsonl"
    rows = unique(jsonl_rows(file), lambda row: row.name("question_id"))
    if check_counts:
        require_count(len(rows), _SIZES.get(style, 100), f"{file}: questions")
    place = _FOLDERS.get(style, "style" if style.startswith("style_") else style)
    pictures = Pictures(folder / "images" / place)
    actions = _load_actions(folder, style) if style in ACTIONS else {}
    questions = []
    for name, row in rows.items():
        if style in ACTIONS and name not in actions:
            raise row.error(f"{style}_meta_data.json has no record of index {name}")
        facts: dict[str, Any] = {"style": style, "question": row.text("text"), **actions.get(name, {})}
        answer = action_choice(facts["actions"], facts["answer_index"]) if style in ACTIONS else str(row.get("answer"))
        conversation = about_pictures(pictures.part(row.name("image"), row), row.text("text"))
        image = f"{place}/{row.name('image')}"
        questions.append(Question(f"{style}/{name}", conversation, (answer,), category=style, image_group=image, facts=facts))
    return questions


def _load_actions(folder: Path, style: str) -> dict[str, dict[str, Any]]:
    rows = unique(json_rows(folder / "jsonl" / f"{style}_meta_data.json"), lambda row: row.name("index"))
    return {
        name: {"actions": row.texts("actions"), "answer_index": row.index("answer_index", len(row.texts("actions")))}
        for name, row in rows.items()
    }


def ask(question: Question, reply: Reply, protocol: str) -> tuple[Conversation, ...]:
    """What the judge is shown; nothing for an empty reply or reference, which the official scripts leave out."""
    said, expected = reply.text.strip(), question.answers[0]
    if question.facts["style"] in ACTIONS:
        return (Conversation(()).then("user", action_prompt(question.facts, said)),)
    if not said or not expected:
        return ()
    shown = question.facts["question"] if protocol == "fixed" else "None"
    return (Conversation(()).then("user", prompt(shown, expected, said, file=question.facts["style"])),)


def read_verdict(text: str, question: Question, protocol: str) -> Score:
    """The score in a judge's reply: from 0 to 1, for an action 0 or 1; anything else is none."""
    if question.facts["style"] not in ACTIONS:
        value = parse_judge(text)
    else:
        action = parse_action(text)
        value = action if action in (0.0, 1.0) else None
    return Score(value, extracted=None if value is None else f"{value:g}", note="" if value is not None else f"no score in {text[:60]!r}")


def combine(scores: Sequence[Score], question: Question) -> Score:
    """The score of the one request; of none, where there was nothing to judge."""
    return scores[0] if scores else Score(None, note="the reply is empty; the official scripts leave it out")


def vary(params: SamplingParams, question: Question, attempt: int) -> SamplingParams:
    """As the scripts ask: at temperature 0 and then 0.7 about actions, elsewhere at the API's own 1. Seeds make it repeatable."""
    if question.facts["style"] not in ACTIONS:
        return dataclasses.replace(params, temperature=1.0, seed=attempt)
    return dataclasses.replace(params, max_new_tokens=512, temperature=0.7 if attempt else 0.0, seed=attempt)


def summarise(graded: Sequence[Graded], protocol: str) -> tuple[Metric, ...]:
    """Means of sub-styles, of each group's sub-styles, and of the groups, which is the headline; those without a score are in no mean."""
    kept = [item for item in graded if item.score.value is not None]
    styles = {}
    for style in (style for names in GROUPS.values() for style in names):
        mean_of = mean_percent(f"score/{style}", [item for item in kept if item.question.category == style])
        styles |= {style: mean_of} if mean_of.n else {}
    groups = []
    for group, names in GROUPS.items():
        there = [styles[style] for style in names if style in styles]
        if there:
            groups.append(Metric(f"group/{group}", sum(each.value for each in there) / len(there), sum(each.n for each in there)))
    return (
        Metric("mean of groups", sum(group.value for group in groups) / max(len(groups), 1), len(kept), headline=True),
        *groups,
        *styles.values(),
    )


BENCHMARK = Benchmark(
    "benchlmm",
    "1",
    about=About(
        title="BenchLMM: fifteen visual styles, from cartoons to X-rays",
        source="https://github.com/AIFEG/BenchLMM (jsonl) and https://huggingface.co/datasets/AIFEG/BenchLMM (BenchLMM.zip, the pictures)",
        licence="Apache-2.0; the pictures under the terms of their sources",
        layout="jsonl/Benchmark_{style}.jsonl (fifteen)\njsonl/Robots_meta_data.json\njsonl/game_meta_data.json\nimages/{folder}/...",
        metric="mean of the three groups' means of a judge's scores; published with gpt-3.5-turbo as the judge",
        paper="https://arxiv.org/abs/2312.02896",
    ),
    protocols=(
        Protocol("official", "the judge sees the word None for the question, as in the published figures; greedy replies"),
        Protocol("fixed", "the judge sees the question"),
    ),
    load=load,
    score=lambda question, reply, protocol: Score(None, note="a judge scores this"),
    summarise=summarise,
    params=SamplingParams(max_new_tokens=1024),
    sizes={"official": QUESTIONS, "fixed": QUESTIONS},
    judge=JudgeRules(ask, read_verdict, SamplingParams(max_new_tokens=64), attempts=ATTEMPTS, combine=combine, vary=vary),
)
