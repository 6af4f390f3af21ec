"""Bad input, end to end: each mistake is one paragraph with the way out and an exit code of its own, and leaves nothing behind.

A table of what people do wrong, run through the command line on a tiny model. What each room says in detail is tested in its own folder.
"""

from __future__ import annotations

import json
import resource
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tests.checkpoint.tiny import tiny_llava

from vistune.__main__ import main
from vistune.checkpoint.folder import save_model

Arguments = list[object]
Mistake = Callable[[Path], Arguments]


@pytest.fixture(scope="session")
def saved_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bad input") / "model"
    save_model(*tiny_llava(), folder)
    return folder


@pytest.fixture
def room(saved_once: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to make mistakes in: `model/`, `cat.png`, and `rows.json` with one good row. It is also where the command runs."""
    shutil.copytree(saved_once, tmp_path / "model")
    Image.new("RGB", (40, 30), "red").save(tmp_path / "cat.png")
    write_rows(tmp_path, row())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VISTUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path


def row(question: str = "<image>\nWhat?", answer: Any = "A cat.", **changes: Any) -> dict[str, Any]:
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {"id": "1", "image": "cat.png", "conversations": turns, **changes}


def write_rows(room: Path, *rows: object) -> None:
    (room / "rows.json").write_text(json.dumps(rows))


def edit_json(path: Path, **changes: Any) -> None:
    values = json.loads(path.read_text())
    for name, value in changes.items():
        *objects, leaf = name.split("__")
        inner = values
        for each in objects:
            inner = inner[each]
        inner[leaf] = value
    path.write_text(json.dumps(values))


# --- mistakes ---


def chat(*arguments: object, before: Callable[[Path], object] = lambda room: None, model: object = "model") -> Mistake:
    def mistake(room: Path) -> Arguments:
        before(room)
        return ["chat", "--model", model, "--dtype", "float32", "--device", "cpu", "--max-new-tokens", "4", *arguments]

    return mistake


def train(*settings: str, before: Callable[[Path], object] = lambda room: None) -> Mistake:
    def mistake(room: Path) -> Arguments:
        before(room)
        tiny = (
            "model.init_from=model",
            "model.template=vicuna_v1",
            "output=run",
            "feature_cache=",
            "data.dataset=rows.json",
            "max_steps=1",
        )
        changes = (*tiny, "data.validation_rows=0", "trainable=projector", "device=cpu", *settings)
        return ["train", "smol_tune", *(part for change in changes for part in ("--set", change))]

    return mistake


def rows(*written: object) -> Callable[[Path], None]:
    return lambda room: write_rows(room, *written)


def setting(file: str, **changes: Any) -> Callable[[Path], None]:
    """A change to one of the model's JSON files; what vistune itself wrote down beside it is taken away, as in a folder of others."""

    def change(room: Path) -> None:
        (room / "model" / "vistune.json").unlink()
        edit_json(room / "model" / file, **changes)

    return change


def tensor(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Path], None]:
    def write(room: Path) -> None:
        (room / "model" / "vistune.json").unlink()
        path = room / "model" / "model.safetensors"
        tensors = load_file(path)
        save_file({**tensors, name: change(tensors[name])}, path)

    return write


def bytes_of(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    return lambda room: (room / name).write_bytes(change((room / name).read_bytes()))


def pickled(room: Path) -> None:
    torch.save(load_file(room / "model" / "model.safetensors"), room / "model" / "pytorch_model.bin")
    (room / "model" / "model.safetensors").unlink()


def export_over(room: Path) -> Arguments:
    (room / "taken").mkdir()
    return ["export", "model", "taken"]


def native_for_transformers(room: Path) -> Arguments:
    save_model(*tiny_llava(projector="linear"), room / "linear")
    return ["export", "linear", "out"]


PROJECTOR = "multi_modal_projector.linear_1.weight"
WEIGHTS = "model/model.safetensors"

MISTAKES: dict[str, tuple[Mistake, int, str]] = {
    # pictures
    "a picture that is not there": (chat("gone.png", "What?"), 12, "check the path"),
    "a picture cut in half": (chat("cat.png", "What?", before=bytes_of("cat.png", lambda data: data[:60])), 12, "complete copy"),
    "a picture without bytes": (chat("cat.png", "What?", before=bytes_of("cat.png", lambda data: b"")), 12, "complete copy"),
    "a text called .png": (chat("cat.png", "What?", before=bytes_of("cat.png", lambda data: b"hello")), 12, "convert it"),
    # names
    "a folder that is not there": (chat("Hi", model="no/such/model"), 13, "check the path"),
    "a folder without a checkpoint": (chat("Hi", model="."), 13, "config.json"),
    "an unknown model": (chat("Hi", model="smollm"), 11, "smollm2-135m-instruct"),
    "an unknown template": (chat("Hi", "--template", "vicuna"), 11, "Did you mean 'vicuna_v1'?"),
    "another template than the model's": (chat("Hi", "--template", "qwen_2"), 2, "leave template 'qwen_2' out"),
    "an unknown recipe": (lambda room: ["train", "smol_tuna"], 11, "Did you mean 'smol_tune'?"),
    "an unknown setting": (train("optim.lrr=1"), 11, "Did you mean 'optim.lr'?"),
    "an unknown part": (train("trainable=projektor"), 11, "projector"),
    "an unknown dataset": (train("data.dataset=scenes_instrukt"), 11, "scenes_instruct"),
    "a setting that is no number": (train("optim.lr=fast"), 2, "a number"),
    # conversations
    "a prompt longer than the context": (chat("word " * 200), 15, "Shorten the text"),
    "a question that is no Unicode": (chat("What is \udcff?"), 21, "UTF-8"),
    # data
    "a data file that is not there": (lambda room: ["data", "check", "gone.json"], 21, "gone.json"),
    "a data file that is no JSON": (train(before=bytes_of("rows.json", lambda data: b"id,image\n1,cat.png\n")), 21, "not JSON"),
    "a data file that is no text": (train(before=bytes_of("rows.json", lambda data: b"\xff\xfe\x00")), 21, "UTF-8"),
    "a data file nested without end": (train(before=bytes_of("rows.json", lambda data: b"[" * 100_000)), 21, "not JSON"),
    "a data file that is no list": (train(before=bytes_of("rows.json", lambda data: b"{}")), 21, "list of rows"),
    "more places than pictures": (train(before=rows(row("<image> <image>\nWhat?"))), 21, "image_count"),
    "an empty answer": (train(before=rows(row(answer="  "))), 21, "empty_answer"),
    "an answer that is a number": (train(before=rows(row(answer=7))), 21, "bad_row"),
    "an answer that is no Unicode": (train(before=rows(row(answer="\ud83d"))), 21, "half a character"),
    "a picture outside the folder": (train(before=rows(row(image="../cat.png"))), 21, "outside the image folder"),
    "a row that is too long": (train(before=rows(row(answer="word " * 200))), 21, "too_long"),
    "a row whose picture is gone": (train(before=rows(row(image="gone.png"))), 21, "gone.png"),
    # checkpoints
    "a tensor of another shape": (chat("Hi", before=tensor(PROJECTOR, lambda each: each[:, :-1].contiguous())), 14, "wrong shape"),
    "a tensor that is not finite": (chat("Hi", before=tensor(PROJECTOR, lambda each: each / 0)), 14, "must be finite"),
    "weights cut in half": (chat("Hi", before=bytes_of(WEIGHTS, lambda data: data[: len(data) // 2])), 14, "truncated"),
    "weights that are noise": (chat("Hi", before=bytes_of(WEIGHTS, lambda data: b"noise" * 99)), 14, "not a complete safetensors"),
    "a bit that flipped": (chat("Hi", before=bytes_of(WEIGHTS, lambda data: data[:-1] + bytes([data[-1] ^ 1]))), 14, "sha256"),
    "pickled weights": (chat("Hi", before=pickled), 8, "vistune convert"),
    "a configuration that is no JSON": (chat("Hi", before=bytes_of("model/config.json", lambda data: b"{")), 13, "not readable as JSON"),
    "a language model outside the tested ones": (chat("Hi", before=setting("config.json", text_config__model_type="gpt2")), 19, "'gpt2'"),
    "a RoPE that looks at its neighbours": (
        chat("Hi", before=setting("config.json", text_config__rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0})),
        19,
        "'dynamic'",
    ),
    "a tower outside the table": (chat("Hi", before=setting("config.json", vision_config__model_type="dinov2")), 19, "'dinov2'"),
    "a tokenizer that is noise": (chat("Hi", before=bytes_of("model/tokenizer.json", lambda data: b"{}")), 13, "tokenizer"),
    "a Hugging Face folder of what it has no place for": (native_for_transformers, 19, "--to native"),
    "an original layout for an unknown tower": (lambda room: ["export", "model", "out", "--to", "original"], 13, "--tower-id"),
    "an export over a folder": (export_over, 2, "never overwrites"),
}


def content(folder: Path) -> dict[str, bytes]:
    """Every file below a folder but locks, which are meant to stay."""
    files = (path for path in folder.rglob("*") if path.is_file() and not path.name.endswith(".lock"))
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_paragraph_with_its_own_exit_code_and_leaves_nothing(
    name: str, room: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    mistake, code, hint = MISTAKES[name]
    arguments = mistake(room)
    before = content(room)
    found = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    paragraph = captured.err.strip().splitlines()[-1]
    assert (found, captured.out) == (code, ""), captured.err
    assert paragraph.startswith("error: ")
    assert hint in paragraph
    assert "Traceback" not in captured.err
    left = content(room)
    for name in ("run/data.json", "run/data.npy"):
        left.pop(name, None)  # the list of rows that cannot be used is what the message points at
    assert left == before


@contextmanager
def full_disk(at: int) -> Iterator[None]:
    """No file may grow beyond `at` bytes, for this process and for a while."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (at, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize(
    ("verb", "room_left"),
    [
        ("export", 0),
        ("export", 100),
        ("export", 20_000),
        ("export original", 100),
        ("convert", 100),
        ("train", 0),
        ("train", 100),
        ("train", 20_000),
    ],
)
def test_a_disk_that_is_full_leaves_nothing_half_written(verb: str, room_left: int, room: Path, capsys: pytest.CaptureFixture[str]):
    if verb == "convert":
        pickled(room)
    to = ["--to", "original", "--tower-id", "tiny/tower"] if verb == "export original" else []
    arguments = train()(room) if verb == "train" else [verb.split()[0], "model", "out", *to]
    before = content(room)
    with full_disk(at=room_left):
        assert main([str(argument) for argument in arguments]) == 4
    assert "choose another place" in capsys.readouterr().err.splitlines()[-1]
    assert not (room / "out").exists()
    left = {name for name in content(room).keys() - before.keys() if not name.startswith("run/checkpoints/step-")}
    assert left <= {"run/data.json", "run/data.npy", "run/config.json", "run/metrics.jsonl"}  # small files, each complete
