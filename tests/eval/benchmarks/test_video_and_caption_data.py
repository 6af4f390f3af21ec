"""MVBench, ScanQA and COCO captions from files in their official layouts, through a scripted model, to every figure."""

from __future__ import annotations

import asyncio
import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from pycocoevalcap.cider.cider import Cider
from tests.eval.official_data import figures, headline, run, uncounted, write_json, write_pictures
from tests.test_video import grey, write_video

from vistune.chat_model import ScriptedChatModel
from vistune.errors import DataError, ImageError, MissingDependency, RemoteError, VideoError
from vistune.eval.benchmarks import captions, coco_captions, mvbench, scanqa
from vistune.eval.results import evaluate
from vistune.types import ImagePart, Reply, VideoPart

LOST = RemoteError("the line is dead")

# --- MVBench --------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_video(tmp_path_factory.mktemp("video") / "grey.mp4").read_bytes()


def write_mvbench(root: Path, video: bytes) -> Path:
    """One question a task and a second of the first; the right option is always (A)."""
    folder = root / "mvbench"
    for task in mvbench.TASKS:
        item: dict[str, Any] = {"video": "scene" if task.folders else "clip.mp4", "candidates": ["red", "green"], "answer": "red"}
        if task.bounded:
            item |= {"start": 0 if task.folders else 0.5, "end": 2.5}
        count = 2 if task is mvbench.TASKS[0] else 1
        write_json(folder / "json" / task.file, [item | {"question": f"{task.name} {number}?"} for number in range(count)])
        place = folder / "video" / task.videos
        if task.folders:
            write_pictures(place / "scene", *(f"{number:05d}.jpg" for number in range(1, 11)))
        else:
            place.mkdir(parents=True, exist_ok=True)
            (place / "clip.mp4").write_bytes(video)
    return root


def mvbench_replies(**changes: Any) -> dict[str, Any]:
    replies: dict[str, Any] = {f"{task.file.removesuffix('.json')}-0": "A) red" for task in mvbench.TASKS}
    return replies | {"action_sequence-1": "B) green"} | {name.replace("__", "-"): reply for name, reply in changes.items()}


SAID = {
    "action_prediction__0": "B) green",
    "action_antonym__0": "red",
    "fine_grained_action__0": "",
    "unexpected_action__0": "The answer is A",
    "counterfactual_inference__0": LOST,
}


def test_mvbench_counts_items_and_shows_the_frames_of_the_notebook(tmp_path: Path, video: bytes):
    root = write_mvbench(tmp_path, video)
    result, questions, model = run(mvbench.BENCHMARK, root, mvbench_replies(**SAID))
    found = figures(result)
    # Of 20 with a reply, wrong: both "B) green", "(red" and "(the". The empty reply is "(", which is in "(a)".
    assert found["accuracy"] == 80.0
    assert found["mean of tasks"] == round(100 * 15.5 / 19, 9)  # half of Action Sequence
    assert {name: value for name, value in found.items() if value not in (80.0, 100.0)} == {
        "mean of tasks": round(100 * 15.5 / 19, 9),
        "accuracy/Action Sequence": 50.0,
        "accuracy/Action Prediction": 0.0,
        "accuracy/Action Antonym": 0.0,
        "accuracy/Unexpected Action": 0.0,
    }
    assert (len(found), result.n, result.n_unscored, headline(result)) == (2 + 19, 21, 1, "accuracy")
    assert result.bounds == pytest.approx((1600 / 21, 1700 / 21))
    shown = {words.split("?")[0].split("Question: ")[-1]: call[0] for call in model.calls for words in [call[0].messages[0].text]}
    bounded = [Image.open(io.BytesIO(image.source)) for image in shown["Action Sequence 0"].images if isinstance(image.source, bytes)]
    # 0.5 to 2.5 seconds at 10 a second: from 5, steps of 1.25, rounded steps 0, 1, 2 (2.5), 4 (3.75), 5, ... each + 0.625
    assert [round((grey(image) - 20) / 7) for image in bounded] == mvbench.frame_indices(16, (0.5, 2.5), 10.0, 29)
    assert [round((grey(image) - 20) / 7) for image in bounded][:5] == [5, 6, 7, 9, 10]
    frames = [image.source for image in shown["Episodic Reasoning 0"].images]
    # to 2.5 seconds at 3 a second: from the first, which is 1, to 8 (7.5 goes to the even neighbour), 7/16 apart
    assert [int(path.stem) for path in frames if isinstance(path, Path)] == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 5, 6, 6, 7, 7, 8]
    assert shown["Action Sequence 0"].messages[0].text.endswith("Options:\n(A) red\n(B) green\nOnly give the best option.")
    assert shown["Action Sequence 0"].last_reply == "Best option:("
    assert {question.image_group for question in questions[:3]} == {"star/Charades_v1_480/clip.mp4"}
    assert model.calls[0][1].stop == ("###",)


def test_mvbench_as_lmms_looks_for_a_letter_and_gives_an_empty_reply_no_score(tmp_path: Path, video: bytes):
    result, _, model = run(mvbench.BENCHMARK, write_mvbench(tmp_path, video), mvbench_replies(**SAID), protocol="lmms")
    assert figures(result)["accuracy"] == round(100 * 16 / 19, 9)  # wrong: both "B) green" and "red"
    assert result.n_unscored == 2
    texts = {call[0].messages[0].text.strip() for call in model.calls}
    assert "Question:Action Sequence 0?\nOption:\n(A) red\n(B) green\nOnly give the best option." in texts


def test_mvbench_as_vlmevalkit_also_looks_for_an_options_text(tmp_path: Path, video: bytes):
    result, _, model = run(mvbench.BENCHMARK, write_mvbench(tmp_path, video), mvbench_replies(**SAID), protocol="vlmevalkit")
    assert figures(result)["accuracy"] == 90.0  # of 20 only the two "B) green" are wrong
    assert len(model.calls[0][0].images) == 8


def test_mvbench_with_four_frames_is_matched_as_with_sixteen(tmp_path: Path, video: bytes):
    result, _, model = run(mvbench.BENCHMARK, write_mvbench(tmp_path, video), mvbench_replies(**SAID), protocol="official-4")
    assert figures(result)["accuracy"] == 80.0
    assert {len(call[0].images) for call in model.calls} == {4}


@pytest.mark.parametrize(
    ("pred", "right"),
    [("A", True), ("(A)", True), ("A. red", True), ("the red one", True), ("B", False), ("green or red", False), ("(B) green", False)],
)
def test_the_matcher_of_vlmevalkit_takes_letters_and_texts(pred: str, right: bool):
    assert mvbench.match_vlmevalkit(pred, "(A) red", ["red", "green"]) is right


def test_a_video_that_cannot_be_decoded_leaves_its_question_without_a_score(tmp_path: Path, video: bytes):
    root = write_mvbench(tmp_path, video)
    (root / "mvbench/video/ssv2_video/clip.mp4").write_bytes(b"no video at all")
    (root / "mvbench/video/vlnqa/clip.mp4").write_bytes(video[: len(video) // 2])
    result, *_ = run(mvbench.BENCHMARK, root, mvbench_replies())
    assert (result.n_unscored, figures(result)["accuracy"]) == (2, round(100 * 18 / 19, 9))
    samples = [json.loads(line) for line in (root / "out-" / result.samples).read_text().splitlines()]
    notes = {sample["id"]: sample["note"] for sample in samples if sample["note"]}
    assert set(notes) == {"action_antonym-0", "egocentric_navigation-0"}
    assert all(note.startswith("VideoError: ") and "clip.mp4" in note for note in notes.values())


def test_wrong_mvbench_files_are_named(tmp_path: Path, video: bytes):
    root = write_mvbench(tmp_path, video)
    asked = uncounted(mvbench.BENCHMARK)
    assert isinstance(asked.questions(root)[0].conversation.messages[0].parts[0], VideoPart)
    with pytest.raises(DataError, match=r"action_sequence\.json: questions: 2, but the benchmark has 200"):
        mvbench.BENCHMARK.questions(root)
    (root / "mvbench/video/tvqa/frames_fps3_hq/scene/00005.jpg").unlink()
    with pytest.raises(ImageError, match=r"00005\.jpg"):
        asked.questions(root)
    shutil.rmtree(root / "mvbench/video/tvqa/frames_fps3_hq/scene")
    with pytest.raises(VideoError, match="there is no folder of frames"):
        asked.questions(root)
    (root / "mvbench/video/nturgbd/clip.mp4").unlink()
    with pytest.raises(DataError, match=r"fine_grained_pose\.json, item 1: .*clip\.mp4"):
        asked.questions(root)
    item = {"video": "clip.mp4", "question": "q", "candidates": ["a"], "answer": "b", "start": "0:01", "end": 1}
    write_json(root / "mvbench/json/action_sequence.json", [item])
    with pytest.raises(DataError, match="'start' must be a number"):
        asked.questions(root)


def test_a_reply_goes_on_behind_the_bracket_of_the_prompt_and_ends_with_its_line(tmp_path: Path, video: bytes):
    question = uncounted(mvbench.BENCHMARK).questions(write_mvbench(tmp_path, video))[0]
    score = mvbench.score(question, Reply("C)\n(A) red", "stop"), "official")
    assert (score.value, score.extracted) == (0.0, "(C)")


def test_of_equal_options_the_notebook_takes_the_last_and_lmms_the_first(tmp_path: Path, video: bytes):
    root = write_mvbench(tmp_path, video)
    item = {"video": "clip.mp4", "question": "q", "candidates": ["x", "y", "x"], "answer": "x"}
    write_json(root / "mvbench/json/action_antonym.json", [item, item | {"answer": "z"}])
    same, none = (question for question in uncounted(mvbench.BENCHMARK).questions(root) if question.category == "Action Antonym")
    assert (same.facts["gold"], same.facts["letter"]) == ("(C) x", "A")
    assert (none.facts["gold"], none.facts["letter"]) == ("(@) z", "@")
    assert [mvbench.score(same, Reply(text, "stop"), "lmms").value for text in ("A", "C")] == [1.0, 0.0]
    assert [mvbench.score(none, Reply("A", "stop"), protocol).value for protocol in mvbench.FRAMES] == [0.0] * 4


# --- ScanQA ---------------------------------------------------------------------------------------------------------------------


def write_scanqa(root: Path) -> Path:
    rows = [
        {"question_id": "val-0", "scene_id": "scene0011_00", "question": "What color is it?", "answers": ["dark brown", "brown"]},
        {"question_id": "val-1", "scene_id": "scene0011_00", "question": "Where is the chair?", "answers": ["by the table"]},
        {"question_id": "val-2", "scene_id": "scene0015_00", "question": "How many chairs?", "answers": ["4"]},
        {"question_id": "val-3", "scene_id": "scene0015_00", "question": "What is on it?", "answers": ["a lamp"]},
    ]
    write_json(root / "scanqa" / scanqa.FILE, rows)
    write_pictures(root / "scanqa/scans/scene0011_00/color", *(f"{number}.jpg" for number in range(0, 240, 20)))
    write_pictures(root / "scanqa/scans/scene0015_00/color", "0.jpg", "20.jpg")
    return root


SCANQA_REPLIES = {"val-0": "Dark  brown.", "val-1": "by  the window", "val-2": "4", "val-3": LOST}


def coco_cider(said: list[str], references: list[list[str]]) -> float:
    expected, result = dict(enumerate(references)), {number: [text] for number, text in enumerate(said)}
    return round(100 * float(Cider().compute_score(expected, result)[0]), 9)


def test_scanqa_as_ll3da_compares_texts_as_they_are(tmp_path: Path):
    result, _, model = run(scanqa.BENCHMARK, write_scanqa(tmp_path), SCANQA_REPLIES)
    found = figures(result)
    references = [["dark brown", "brown"], ["by the table"], ["4"]]
    assert found["CIDEr"] == coco_cider(["Dark brown.", "by the window", "4"], references)
    assert found["Bleu_1"] == pytest.approx(100 * 3 / 6)  # by, the and 4 of six words; as long as the nearest references
    assert found["ROUGE_L"] == pytest.approx(100 * (0 + 2 / 3 + 1) / 3)  # the longest common part of the second is two words of three
    assert {name: value for name, value in found.items() if name.startswith(("EM", "F"))} == {
        "EM@1": round(100 / 3, 9),
        "EM@1/Color": 0.0,
        "EM@1/Number": 100.0,
        "EM@1/Place": 0.0,
        "F-value (no lemmas)": round(100 * (0 + 2 / 3 + 1) / 3, 9),
    }
    assert set(found) == {"CIDEr", "Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "ROUGE_L"} | {
        name for name in found if name.startswith(("EM", "F"))
    }
    assert (headline(result), result.n, result.n_unscored, result.n_pictures) == ("CIDEr", 4, 1, 2)
    views = {len(call[0].images) for call in model.calls}
    assert views == {6, 2}
    first = next(call[0] for call in model.calls if "color" in call[0].messages[0].text)
    # of 12 pictures, 0 to 11 in six parts of 11/6: 0.92, rounded steps 0, 2, 4, 6 (5.5), 7, 9
    assert [int(Path(str(image.source)).stem) // 20 for image in first.images] == [0, 2, 4, 6, 7, 9]


def test_scanqa_with_tokens_forgives_case_and_dots(tmp_path: Path):
    result, *_ = run(scanqa.BENCHMARK, write_scanqa(tmp_path), SCANQA_REPLIES, protocol="scanqa")
    found = figures(result)
    references = [["dark brown", "brown"], ["by the table"], ["4"]]
    assert found["CIDEr"] == coco_cider(["dark brown", "by the window", "4"], references)
    assert found["Bleu_1"] == pytest.approx(100 * 5 / 6)
    assert found["EM@1"] == round(100 / 3, 9)  # exact match is of the texts as they are, all the same


def test_wrong_scanqa_files_are_named(tmp_path: Path):
    root = write_scanqa(tmp_path)
    asked = uncounted(scanqa.BENCHMARK)
    with pytest.raises(DataError, match="4, but the benchmark has 4675"):
        scanqa.BENCHMARK.questions(root)
    (root / "scanqa/scans/scene0015_00/color/0.jpg").unlink()
    (root / "scanqa/scans/scene0015_00/color/20.jpg").unlink()
    with pytest.raises(VideoError, match="holds no frames"):
        asked.questions(root)
    row = {"question_id": "test-0", "scene_id": "scene0011_00", "question": "Where?"}
    for changes, says in (
        ({}, "no 'answers'"),
        ({"answers": []}, "not public"),
        ({"answers": ["x"], "scene_id": "../x"}, "name of a scan"),
    ):
        write_json(root / "scanqa" / scanqa.FILE, [row | changes])
        with pytest.raises(DataError, match=says):
            asked.questions(root)
    write_json(root / "scanqa" / scanqa.FILE, [row | {"answers": ["x"]}] * 2)
    with pytest.raises(DataError, match="was there before"):
        asked.questions(root)


def test_a_protocol_with_java_is_refused_before_anything_is_asked_where_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(captions, "java_reason", lambda: "Java was not found")
    with pytest.raises(MissingDependency, match="without -java"):
        uncounted(scanqa.BENCHMARK).questions(write_scanqa(tmp_path), "scanqa-java")


# --- COCO captions --------------------------------------------------------------------------------------------------------------


def write_coco(root: Path) -> Path:
    folder = root / "coco-captions"
    images = [
        {"cocoid": 7, "filepath": "val2014", "filename": "COCO_val2014_7.jpg", "split": "test"},
        {"cocoid": 8, "filepath": "val2014", "filename": "COCO_val2014_8.jpg", "split": "test"},
        {"cocoid": 9, "filepath": "train2014", "filename": "COCO_train2014_9.jpg", "split": "restval"},
    ]
    raw = [["A cat on a mat.", "The cat sleeps."], ["Two dogs, playing!"], ["Not asked."]]
    sentences = [[{"raw": text} for text in texts] for texts in raw]
    write_json(
        folder / coco_captions.KARPATHY_FILE, {"images": [image | {"sentences": s} for image, s in zip(images, sentences, strict=True)]}
    )
    annotations = [{"id": n, "image_id": 70 + n % 2, "caption": text} for n, text in enumerate(["A red bus.", "A boat.", "The bus."])]
    document = {"images": [{"id": 70, "file_name": "70.jpg"}, {"id": 71, "file_name": "71.jpg"}], "annotations": annotations}
    write_json(folder / coco_captions.VAL2017_FILE, document)
    write_pictures(folder / "val2014", "COCO_val2014_7.jpg", "COCO_val2014_8.jpg")
    write_pictures(folder / "val2017", "70.jpg", "71.jpg")
    return root


def unlike(root: Path, protocol: str) -> dict[str, str]:
    return {question.id: question.answers[0] for question in uncounted(coco_captions.BENCHMARK).questions(root, protocol)}


def test_coco_captions_are_karpathys_test_split_or_val2017(tmp_path: Path):
    root = write_coco(tmp_path)
    assert unlike(root, "karpathy") == {"7": "A cat on a mat.", "8": "Two dogs, playing!"}
    assert unlike(root, "val2017") == {"70": "A red bus.", "71": "A boat."}
    (question, _) = uncounted(coco_captions.BENCHMARK).questions(root, "val2017")
    assert question.answers == ("A red bus.", "The bus.")
    assert question.conversation.messages[0].text == "\nProvide a one-sentence caption for the provided image."


def captioned(root: Path, first: Any, second: Any, protocol: str = "") -> Any:
    """A run in which the two pictures get these captions: all are asked in the same words, so the script tells them by their picture."""

    def say(conversation: Any, params: Any) -> Any:
        (image,) = conversation.images
        assert isinstance(image, ImagePart)
        return first if str(image.source).endswith("_7.jpg") else second

    options: dict[str, Any] = {"data": root, "most_unscored": 0.5, "protocol": protocol}
    model = ScriptedChatModel(say, piece_size=500)
    result, _ = asyncio.run(evaluate(model, uncounted(coco_captions.BENCHMARK), root / f"out{protocol}", model_name="scripted", **options))
    return result


def test_captions_are_scored_over_all_pictures_after_tokenising(tmp_path: Path):
    result = captioned(write_coco(tmp_path), "a CAT on a mat", "Two cats playing")
    found = figures(result)
    references = [["a cat on a mat", "the cat sleeps"], ["two dogs playing"]]
    assert found["CIDEr"] == coco_cider(["a cat on a mat", "two cats playing"], references)
    assert found["Bleu_1"] == pytest.approx(100 * 7 / 8)
    assert found["ROUGE_L"] == pytest.approx(100 * (1 + 2 / 3) / 2)
    assert set(found) == {"CIDEr", "Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "ROUGE_L"}
    assert (headline(result), result.headline.interval) == ("CIDEr", None)


def test_a_caption_that_never_came_is_bounded_by_nothing_and_by_a_reference(tmp_path: Path):
    result = captioned(write_coco(tmp_path), "a CAT on a mat", LOST)
    assert (result.n, result.n_unscored) == (2, 1)
    low, high = result.bounds
    references = [["a cat on a mat", "the cat sleeps"], ["two dogs playing"]]
    assert round(low, 9) == coco_cider(["a cat on a mat", ""], references)
    assert round(high, 9) == coco_cider(["a cat on a mat", "two dogs playing"], references)


@pytest.mark.nightly
@pytest.mark.skipif(bool(captions.java_reason()), reason="needs Java")
def test_with_java_the_same_figures_come_with_meteor(tmp_path: Path):
    root = write_coco(tmp_path)
    without, with_java = (
        figures(captioned(root, "a CAT on a mat", "Two cats playing", protocol)) for protocol in ("karpathy", "karpathy-java")
    )
    assert 0 < with_java.pop("METEOR") < 100
    assert with_java == without


def test_wrong_caption_files_are_named(tmp_path: Path):
    root = write_coco(tmp_path)
    folder = root / "coco-captions"
    with pytest.raises(DataError, match="2, but the benchmark has 5000"):
        coco_captions.BENCHMARK.questions(root)
    document = json.loads((folder / coco_captions.VAL2017_FILE).read_text())
    write_json(folder / coco_captions.VAL2017_FILE, document | {"annotations": document["annotations"][:1]})
    with pytest.raises(DataError, match="it has no captions"):
        uncounted(coco_captions.BENCHMARK).questions(root, "val2017")
    write_json(folder / coco_captions.VAL2017_FILE, document | {"images": document["images"][:1]})
    with pytest.raises(DataError, match="a caption is of picture '71'"):
        uncounted(coco_captions.BENCHMARK).questions(root, "val2017")
    (folder / "val2014/COCO_val2014_8.jpg").unlink()
    with pytest.raises(ImageError, match=r"COCO_val2014_8\.jpg"):
        uncounted(coco_captions.BENCHMARK).questions(root)
