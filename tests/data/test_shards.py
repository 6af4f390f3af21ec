"""Pictures in tars are found by name, and nothing else than what a header says is given out."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

from vistune.data.shards import MEMBER, PictureShards, tars_at
from vistune.errors import DataError, ImageError
from vistune.formats import example_from_row


def write_tar(path: Path, files: dict[str, bytes], format: int = tarfile.PAX_FORMAT) -> Path:
    with tarfile.open(path, "w", format=format) as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def member_of(path: Path, name: str, type: bytes, link: str = "") -> Path:
    with tarfile.open(path, "w") as tar:
        member = tarfile.TarInfo(name)
        member.type, member.linkname = type, link
        tar.addfile(member)
    return path


LONG = "folder/" + "n" * 150 + ".jpg"


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_pictures_are_found_in_a_folder_of_tars_by_names_of_any_kind(tmp_path: Path, format: int):
    first = {"a/1.png": b"one", "./a/2.png": b"two", LONG: b"long"}
    write_tar(tmp_path / "0.tar", first, format)
    write_tar(tmp_path / "1.tar", {"b/grün.png": b"green", "b/empty": b""}, format)
    shards = PictureShards(tmp_path)
    assert len(shards) == 5
    names = {"a/1.png": b"one", "a/2.png": b"two", LONG: b"long", "b/grün.png": b"green", "b/empty": b""}
    assert {name: shards.read(tmp_path / name) for name in names} == names
    with pytest.raises(ImageError, match=r"'.*/a/3\.png': no such file in the 2 tars") as error:
        shards.read(tmp_path / "a/3.png")
    assert error.value.reason == "missing"


def test_a_row_gets_its_pictures_out_of_the_tar_with_their_names(tmp_path: Path):
    tar = write_tar(tmp_path / "pictures.tar", {"a/1.png": b"one"})
    row = {"id": "r", "image": "a/1.png", "conversations": [{"from": "human", "value": "<image>?"}, {"from": "gpt", "value": "!"}]}
    (picture,) = PictureShards(tar).filled(example_from_row(row, tar)).conversation.images
    assert (picture.source, getattr(picture.source, "name", "")) == (b"one", "a/1.png")


def test_a_folder_counts_as_tars_only_if_it_holds_nothing_else(tmp_path: Path):
    assert tars_at(tmp_path) == []
    (tmp_path / ".hidden").touch()
    for name in ("b.tar", "a.tar"):
        (tmp_path / name).touch()
    assert tars_at(tmp_path) == [tmp_path / "a.tar", tmp_path / "b.tar"]
    (tmp_path / "1.png").touch()
    assert tars_at(tmp_path) == []


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: write_tar(path, {"../out.png": b"x"}), "lies outside"),
        (lambda path: write_tar(path, {"/etc/x.png": b"x"}), "lies outside"),
        (lambda path: member_of(path, "x.png", tarfile.SYMTYPE, "/etc/passwd"), "is a link or a device"),
        (lambda path: member_of(path, "x.png", tarfile.LNKTYPE, "y.png"), "is a link or a device"),
        (lambda path: member_of(path, "x.png", tarfile.FIFOTYPE), "is a link or a device"),
        (lambda path: path.write_bytes(b"no tar at all" * 100), "cannot be read as a tar"),
        (lambda path: path.write_bytes(b""), "cannot be read as a tar"),
    ],
)
def test_a_tar_with_anything_but_files_of_its_own_is_refused(tmp_path: Path, make, words: str):
    make(tmp_path / "x.tar")
    with pytest.raises(DataError, match=words):
        PictureShards(tmp_path / "x.tar")


def test_a_name_that_is_there_twice_is_refused_with_both_places(tmp_path: Path):
    write_tar(tmp_path / "0.tar", {"1.png": b"one"})
    write_tar(tmp_path / "1.tar", {"2.png": b"two", "./1.png": b"other"})
    with pytest.raises(DataError, match=r"'1\.png' is 2 times in .*0\.tar and .*1\.tar"):
        PictureShards(tmp_path)


def test_a_tar_cut_anywhere_is_refused(tmp_path: Path):
    whole = write_tar(tmp_path / "x.tar", {f"{number}.png": bytes([number]) * (300 * number) for number in range(1, 5)}).read_bytes()
    end = whole.rfind(b"\x04") // 512 * 512 + 512
    for size in [*range(512, end, 512), *range(700, end, 611), end]:
        (tmp_path / "x.tar").write_bytes(whole[:size])
        with pytest.raises(DataError):
            PictureShards(tmp_path / "x.tar")


def test_a_header_broken_in_the_middle_does_not_pass_for_the_end(tmp_path: Path):
    tar = write_tar(tmp_path / "x.tar", {"1.png": b"one", "2.png": b"two", "3.png": b"three"})
    data = bytearray(tar.read_bytes())
    data[1024 + 5] ^= 1
    tar.write_bytes(data)
    with pytest.raises(DataError, match="breaks off at byte 1024"):
        PictureShards(tar)


def test_an_index_is_made_once_and_again_when_a_tar_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    tar, index = write_tar(tmp_path / "x.tar", {"1.png": b"one"}), tmp_path / "pictures.npy"
    PictureShards(tar, index=index)
    with monkeypatch.context() as patch:
        patch.setattr("vistune.data.shards._files_of", lambda path: pytest.fail("read again"))
        assert PictureShards(tar, index=index).read(tar / "1.png") == b"one"
    write_tar(tar, {"1.png": b"one", "2.png": b"second"})
    assert PictureShards(tar, index=index).read(tar / "2.png") == b"second"
    index.write_bytes(index.read_bytes()[:-1])
    assert PictureShards(tar, index=index).read(tar / "2.png") == b"second"


@pytest.mark.parametrize(("column", "lie"), [("start", 1536), ("start", 10**9), ("start", 3), ("size", 2), ("size", 10**12)])
def test_an_index_that_lies_is_an_error_that_names_tar_and_picture(tmp_path: Path, column: str, lie: int):
    tar, index = write_tar(tmp_path / "x.tar", {"1.png": b"one", "2.png": b"two"}), tmp_path / "pictures.npy"
    PictureShards(tar, index=index)
    members = np.load(index)
    assert members.dtype == MEMBER
    members[column] = lie
    np.save(index, members)
    page = json.loads(index.with_suffix(".json").read_text())
    page["table"] = hashlib.sha256(members.tobytes()).hexdigest()
    index.with_suffix(".json").write_text(json.dumps(page))
    with pytest.raises(DataError, match=r"x\.tar holds no file '1\.png' at byte .* Remove .*pictures\.npy"):
        PictureShards(tar, index=index).read(tar / "1.png")


def test_a_tar_that_is_cut_after_it_was_indexed_is_an_error(tmp_path: Path):
    tar = write_tar(tmp_path / "x.tar", {"1.png": b"one" * 1000})
    shards = PictureShards(tar)
    tar.write_bytes(tar.read_bytes()[:2000])
    with pytest.raises(DataError, match=r"x\.tar ends in the middle of '1\.png'"):
        shards.read(tar / "1.png")
