"""`eval check`: what is found in a data folder before a run."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.eval.official_data import uncounted, write_json, write_pictures
from tests.eval.small import benchmark_of
from tests.test_video import write_video

from vistune.errors import DataError, MissingDependency
from vistune.eval.benchmarks import captions, scanqa
from vistune.eval.check import check, in_words, require_no_problem
from vistune.types import Conversation, ImagePart, Question, VideoPart


def asked(name: str, *parts: ImagePart | VideoPart) -> Question:
    return Question(name, Conversation(()).then("user", *parts, "What?"), ("x",))


def test_every_picture_and_video_is_opened_and_those_that_cannot_be_are_named(tmp_path: Path):
    write_pictures(tmp_path, "good.png")
    (tmp_path / "bad.png").write_bytes((tmp_path / "good.png").read_bytes()[:40])
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    good, bad = ImagePart(tmp_path / "good.png"), ImagePart(tmp_path / "bad.png")
    video = write_video(tmp_path / "good.mp4", 4)
    questions = [asked("a", good, bad), asked("b", bad), asked("c", VideoPart(video, 2)), asked("d", VideoPart(tmp_path / "bad.mp4", 2))]
    found = check(benchmark_of("some", questions), None)
    assert [problem.partition(":")[0] for problem in found[0].problems] == ["a", "b", "d"]
    assert "bad.mp4" in found[0].problems[2]
    assert "some (exact): 4 questions about 4 pictures" in in_words("some", found)
    with pytest.raises(DataError, match="3 questions of some"):
        require_no_problem("some", found)


def test_a_video_too_short_for_its_question_is_found(tmp_path: Path):
    video = write_video(tmp_path / "short.mp4", 4)
    (found,) = check(benchmark_of("some", [asked("a", VideoPart(video, 2, (5.0, 9.0)))]), None)
    assert "there is no frame" in found.problems[0]


def test_protocols_that_need_what_is_not_installed_are_passed_over_unless_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    row = {"question_id": "val-0", "scene_id": "scene0011_00", "question": "What color is it?", "answers": ["brown"]}
    write_json(tmp_path / "scanqa" / scanqa.FILE, [row])
    write_pictures(tmp_path / "scanqa/scans/scene0011_00/color", "0.jpg")
    monkeypatch.setattr(captions, "java_reason", lambda: "Java was not found")
    found = check(uncounted(scanqa.BENCHMARK), tmp_path)
    assert [(each.protocol, each.n) for each in found] == [("ll3da", 1), ("ll3da-java", 0), ("scanqa", 1), ("scanqa-java", 0)]
    assert "scanqa (ll3da-java): not looked at. This protocol uses programs in Java" in in_words("scanqa", found)
    with pytest.raises(MissingDependency):
        check(uncounted(scanqa.BENCHMARK), tmp_path, "ll3da-java")
