"""Evaluation under faults: judges that misbehave, kills, spoiled caches, hostile replies, other orders, two runs at once.

The letters and numbers are those of the list of evaluation faults: E1 what judges say, E2 kills, E3 the cache, E4 canaries, E6 order, E7
parsers, E8 two runs at once; E5, contamination, is tests/data/test_overlap.py. Some have a `nightly` tier with the full counts.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import random
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from tests.eval.small import benchmark_of

from vistune.calls import CallLimits, Calls
from vistune.chat_model import ScriptedChatModel
from vistune.errors import DataError, EvaluationIncomplete, Locked, RemoteError
from vistune.eval.benchmark import Benchmark
from vistune.eval.judge import Judge, JudgeRules
from vistune.eval.own import SCORERS, parse_grade
from vistune.eval.results import BenchmarkResult, evaluate
from vistune.eval.shared import mean_percent
from vistune.journal import Journal
from vistune.types import Conversation, Question, Reply, SamplingParams

ITEMS = 40
QUESTIONS = tuple(
    Question(f"q{number}", Conversation(()).then("user", f"Say {number}"), (f"answer {number}",), image_group=f"p{number // 4}")
    for number in range(ITEMS)
)
LIMITS = CallLimits(concurrency=4, backoff=0.001, max_backoff=0.002, max_attempts=2, call_timeout=0.2)


def ask(question: Question, reply: Reply, protocol: str) -> Sequence[Conversation]:
    return (Conversation(()).then("user", f"{question.id}|{question.answers[0]}|{reply.text}"),)


def judged(*, canaries: bool = False, questions: Sequence[Question] = QUESTIONS) -> Benchmark:
    return benchmark_of(
        "judged",
        questions,
        judge=JudgeRules(ask, parse_grade, SamplingParams(max_new_tokens=8), canaries=canaries),
        summarise=lambda graded, protocol: (mean_percent("grade", graded, headline=True),),
    )


class Ledger:
    """Writes a line for every request that is received, in whatever process."""

    def __init__(self, path: Path):
        self.path = path

    def note(self, what: str) -> None:
        with self.path.open("a") as file:
            file.write(f"{what}\n")

    def lines(self) -> list[str]:
        return self.path.read_text().splitlines() if self.path.exists() else []


def answering(ledger: Ledger, pause: float = 0.0) -> ScriptedChatModel:
    def answer(conversation: Conversation, params: SamplingParams) -> str:
        number = int(conversation.messages[-1].text.split()[-1])
        ledger.note(f"asked {number}")
        return f"answer {number if number % 3 else 0}"

    return ScriptedChatModel(answer, pause=pause)


def judging(ledger: Ledger, pause: float = 0.0) -> ScriptedChatModel:
    def judge(conversation: Conversation, params: SamplingParams) -> str:
        _, answer, reply = conversation.messages[-1].text.split("|")
        ledger.note(f"judged {answer}")
        return "10" if answer == reply else str(len(answer) % 5)

    return ScriptedChatModel(judge, pause=pause)


def measure(
    folder: Path, model: ScriptedChatModel, judge: ScriptedChatModel, *, benchmark: Benchmark | None = None, name: str = "judge",
    most_unscored: float = 0.02, concurrency: int = 4,
) -> BenchmarkResult:  # fmt: skip
    async def run() -> BenchmarkResult:
        results: list[BenchmarkResult] = []
        with Calls(judge, name=name, log=folder / "judge.calls", limits=LIMITS) as calls:
            await evaluate(
                model, benchmark or judged(), folder, model_name="m", judges=(Judge(name, calls),), concurrency=concurrency,
                most_unscored=most_unscored, on_result=results.append,
            )  # fmt: skip
        return results[0]

    folder.mkdir(parents=True, exist_ok=True)
    return asyncio.run(run())


def rows(folder: Path, name: str = "judged.by-judge") -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]


# --- E1: what judges say ------------------------------------------------------------------------------------------------------------------

SAID: dict[str, tuple[str | Exception, float | None]] = {
    "a number": ("7", 0.7),
    "of ten": ("9/10", 0.9),
    "in words": ("Score: ten", None),
    "two numbers": ("7 or 8", None),
    "NaN": ("NaN", None),
    "too much": ("11", None),
    "less than nothing": ("-1", None),
    "nothing": ("", None),
    "JSON and prose": ('{"score": 7} since 2 of 3 are right', None),
    "a refusal": ("I'm sorry, but I can't help with that.", None),
    "a timeout": (RemoteError("gave no answer"), None),
    "too many requests": (RemoteError("slow down", status=429), None),
}


def test_e1_whatever_a_judge_says_is_a_score_or_a_failure_that_is_counted(tmp_path: Path):
    questions = [dataclasses.replace(QUESTIONS[number], id=name) for number, name in enumerate(SAID)]

    def judge(conversation: Conversation, params: SamplingParams) -> str:
        said, _ = SAID[conversation.messages[-1].text.split("|")[0]]
        if isinstance(said, Exception):
            raise said
        return said

    ledger = Ledger(tmp_path / "ledger")
    with pytest.raises(EvaluationIncomplete, match="10 of 12") as raised:
        measure(tmp_path, answering(ledger), ScriptedChatModel(judge), benchmark=judged(questions=questions))
    assert raised.value.exit_code == 10
    found = {str(row["id"]): row for row in rows(tmp_path)}
    assert {name: row["score"] for name, row in found.items()} == {name: value for name, (_, value) in SAID.items()}
    assert all(found[name]["note"] for name, (_, value) in SAID.items() if value is None)
    written = json.loads((tmp_path / "judged.by-judge.json").read_text())
    assert (written["n"], written["n_unscored"], written["metrics"][0]["n"]) == (12, 10, 2)
    assert written["bounds"] == [pytest.approx(100 * 1.6 / 12), pytest.approx(100 * 11.6 / 12)]


# --- E2: kills ----------------------------------------------------------------------------------------------------------------------------


def killed_after(seconds: float, run: Callable[[], object]) -> bool:
    """Runs in a process of its own that is killed after a while; False where it had ended before."""
    child = os.fork()
    if child == 0:
        try:
            run()
            os._exit(0)
        finally:
            os._exit(1)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


def survive(tmp_path: Path, kills: int, seed: int) -> None:
    """Kills at random moments, then runs to the end: the same bytes as without a kill, and no answer paid for twice but those under way."""
    quiet, ledger = Ledger(tmp_path / "quiet"), Ledger(tmp_path / "ledger")
    measure(tmp_path / "whole", answering(quiet), judging(quiet))
    chance, killed = random.Random(seed), 0
    for _ in range(kills):
        wait = chance.uniform(0.0, 0.5)
        killed += killed_after(wait, lambda: measure(tmp_path / "cut", answering(ledger, pause=0.005), judging(ledger, pause=0.005)))
    measure(tmp_path / "cut", answering(ledger), judging(ledger))
    samples = "judged.by-judge.jsonl"
    assert (tmp_path / "cut" / samples).read_bytes() == (tmp_path / "whole" / samples).read_bytes()
    whole, cut = (json.loads((tmp_path / each / "judged.by-judge.json").read_text()) for each in ("whole", "cut"))
    assert {**whole, "seconds": None} == {**cut, "seconds": None}
    for kind in ("asked", "judged"):
        requests = [line for line in ledger.lines() if line.startswith(kind)]
        assert ITEMS <= len(requests) <= ITEMS + 4 * killed
    assert killed


def test_e2_a_run_that_is_killed_ends_with_the_same_bytes(tmp_path: Path):
    survive(tmp_path, kills=6, seed=1)


@pytest.mark.nightly
def test_e2_a_hundred_kills(tmp_path: Path):
    for seed in range(5):
        survive(tmp_path / str(seed), kills=20, seed=seed)


# --- E3: the cache ------------------------------------------------------------------------------------------------------------------------


def spoil(path: Path, change: Callable[[list[bytes]], list[bytes]]) -> None:
    path.write_bytes(b"".join(change(path.read_bytes().splitlines(keepends=True))))


def flip(lines: list[bytes]) -> list[bytes]:
    place = next(number for number, line in enumerate(lines) if b'"event":"answer"' in line)
    return [*lines[:place], lines[place].replace(b'"text":"', b'"text":"1', 1), *lines[place + 1 :]]


def swap_replies(lines: list[bytes]) -> list[bytes]:
    """Gives two answers each other's checksum and key, as somebody would who edits the file by hand."""
    first, second = [number for number, line in enumerate(lines) if b'"event":"answer"' in line][:2]
    lines[first], lines[second] = lines[first][:60] + lines[second][60:], lines[second][:60] + lines[first][60:]
    return lines


@pytest.mark.parametrize("change", [flip, swap_replies])
@pytest.mark.parametrize("file", ["judge.calls", "judged.answers"])
def test_e3_a_spoiled_log_is_noticed_and_nothing_of_it_is_believed(change: Callable[..., list[bytes]], file: str, tmp_path: Path):
    ledger = Ledger(tmp_path / "ledger")
    measure(tmp_path, answering(ledger), judging(ledger))
    if file == "judged.answers":
        spoil(tmp_path / file, lambda lines: [*lines[:5], lines[5].replace(b"answer", b"anzwer"), *lines[6:]])
    else:
        spoil(tmp_path / file, change)
    with pytest.raises(DataError, match="damaged at byte"):
        measure(tmp_path, answering(ledger), judging(ledger))


def test_e3_another_judge_or_another_prompt_is_asked_anew_and_a_failure_too(tmp_path: Path):
    ledger = Ledger(tmp_path / "ledger")

    def count(**options: object) -> int:
        before = len(ledger.lines())
        measure(tmp_path, answering(ledger), judging(ledger), **options)  # type: ignore[arg-type]
        return sum(line.startswith("judged") for line in ledger.lines()[before:])

    def fails(conversation: Conversation, params: SamplingParams) -> str:
        raise RemoteError("down", status=400)

    with pytest.raises(EvaluationIncomplete):
        measure(tmp_path, answering(ledger), ScriptedChatModel(fails))
    assert count() == ITEMS  # a failure was not kept for an answer
    assert count() == 0
    assert count(name="other") == ITEMS
    rules = judged().judge
    assert rules is not None
    politely = dataclasses.replace(rules, ask=lambda *item: (ask(*item)[0].then("user", "|".join(["Please", "a", "b"])),))
    assert count(benchmark=dataclasses.replace(judged(), judge=politely)) == ITEMS


def test_e3_four_draws_are_four_samples_and_come_back_as_they_were(tmp_path: Path):
    async def draws() -> list[str]:
        drawn = iter(range(100))
        with Calls(ScriptedChatModel(lambda *_: f"draw {next(drawn)}"), name="j", log=tmp_path / "log", limits=LIMITS) as calls:
            asked = Conversation(()).then("user", "Draw")
            return [(await calls.ask(asked, SamplingParams(temperature=1.0), sample_index=each)).reply.text for each in range(4)]

    first = asyncio.run(draws())
    assert len(set(first)) == 4
    assert asyncio.run(draws()) == first


# --- E4: canaries -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("fooled", "void"), [(0, False), (1, False), (2, True), (10, True)])
def test_e4_a_judge_that_praise_fools_more_than_once_makes_the_run_void(fooled: int, void: bool, tmp_path: Path):
    ledger, fell = Ledger(tmp_path / "ledger"), set[str]()

    def judge(conversation: Conversation, params: SamplingParams) -> str:
        id, answer, reply = conversation.messages[-1].text.split("|")
        if "perfect" in reply and (id in fell or len(fell) < fooled):
            fell.add(id)
            return "10"
        return "10" if answer == reply else "3"

    run = lambda: measure(tmp_path, answering(ledger), ScriptedChatModel(judge), benchmark=judged(canaries=True))  # noqa: E731
    if void:
        with pytest.raises(EvaluationIncomplete, match=f"cannot be believed: in {fooled} of 20 trials"):
            run()
    else:
        run()


# --- E6: order ----------------------------------------------------------------------------------------------------------------------------


def test_e6_neither_the_order_of_questions_nor_how_many_are_asked_at_once_changes_a_score(tmp_path: Path):
    def scores(folder: str, questions: Sequence[Question], concurrency: int) -> tuple[dict[str, object], BenchmarkResult]:
        ledger = Ledger(tmp_path / f"{folder}.ledger")
        result = measure(
            tmp_path / folder, answering(ledger), judging(ledger), benchmark=judged(questions=questions), concurrency=concurrency
        )
        return {str(row["id"]): row["score"] for row in rows(tmp_path / folder)}, result

    one, first = scores("one", QUESTIONS, 1)
    eight, second = scores("eight", random.Random(3).sample(QUESTIONS, ITEMS), 8)
    assert one == eight
    assert first.metrics[0].value == second.metrics[0].value
    assert first.metrics[0].interval == pytest.approx(second.metrics[0].interval)


# --- E7: parsers --------------------------------------------------------------------------------------------------------------------------

PIECES = (
    "7",
    "10",
    "/",
    "-",
    ".",
    ",",
    "e",
    "(A)",
    "B.",
    "yes",
    "no",
    "NaN",
    "inf",
    "\n",
    "\0",
    "\u2028",
    "é",
    "١",
    "½",
    "🙂",
    "\ud800",
    " ",
)


def hostile(chance: random.Random) -> str:
    return "".join(chance.choice(PIECES) for _ in range(chance.randrange(12)))


def read_all(text: str) -> None:
    row = Question("q", Conversation(()), ("yes", *["no"] * 9), ("yes", "no", "maybe"))
    assert 0 <= (parse_grade(text, row, "").value or 0) <= 1
    for scorer in SCORERS.values():
        if scorer.score:
            value = scorer.score(row, Reply(text, "stop"), "").value
            assert value is not None
            assert 0 <= value <= 1


@pytest.mark.parametrize("count", [2_000, pytest.param(100_000, marks=pytest.mark.nightly)])
def test_e7_no_reply_breaks_a_shared_scorer(count: int):
    chance = random.Random(count)
    for _ in range(count):
        read_all(hostile(chance))


@pytest.mark.parametrize("junk", ["7" * 50_000, "7 " * 25_000, "." * 50_000, "/10" * 20_000, "(" * 50_000, " \n" * 25_000])
def test_e7_a_grade_is_read_in_time_that_grows_with_the_reply(junk: str):
    started = time.thread_time()
    parse_grade(junk, QUESTIONS[0], "")
    assert time.thread_time() - started < 0.1


# --- E8: two runs at once -----------------------------------------------------------------------------------------------------------------


def test_e8_two_runs_into_one_folder_are_refused_and_a_result_says_what_it_is_of(tmp_path: Path):
    ledger = Ledger(tmp_path / "ledger")
    result = measure(tmp_path, answering(ledger), judging(ledger))
    with Journal(tmp_path / "judged.answers"), pytest.raises(Locked):
        measure(tmp_path, answering(ledger), judging(ledger))
    written = json.loads((tmp_path / "judged.by-judge.json").read_text())
    assert {"model", "checkpoint", "questions", "protocol", "scorer", "judge", "params", "revision", "vistune"} <= set(written)
    assert len(result.questions) == 64
    assert "seed" in written["params"]
