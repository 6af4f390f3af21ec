from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from vistune.checkpoint.tensors import LazyTensor, open_weights, read_header, write_file, write_weights
from vistune.errors import CheckpointError, TensorError, VistuneError

ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
DATA = struct.pack("<2f", 1.0, 2.0)


def safetensors(header: object, data: bytes = DATA, *, length: int | None = None) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(raw) if length is None else length).to_bytes(8, "little") + raw + data


def test_what_we_write_the_library_reads_and_the_other_way_round(tmp_path):
    tensors = {
        "a.weight": torch.randn(3, 5),
        "b": torch.arange(4, dtype=torch.int64),
        "c": torch.randn(7).bfloat16(),
        "d.scale": torch.ones(()),
        "e": torch.randn(4, 6).t(),
        "f": torch.tensor([True, False]),
    }
    write_file(tmp_path / "ours", tensors)
    theirs = load_file(tmp_path / "ours")
    save_file(theirs, tmp_path / "theirs")
    ours = {name: slot.read() for name, slot in read_header(tmp_path / "theirs").items()}
    for name, tensor in tensors.items():
        assert torch.equal(theirs[name], tensor)
        assert torch.equal(ours[name], tensor)


HOSTILE = {
    "empty file": b"",
    "header of 2^63 bytes": safetensors({"w": ENTRY}, length=1 << 63),
    "header longer than the file": safetensors({"w": ENTRY}, length=10_000),
    "not JSON": safetensors(b"{nonsense"),
    "a list": safetensors(b"[1]"),
    "deeply nested": safetensors(b'{"w":' * 100_000),
    "the same name twice": safetensors(b'{"w":%s,"w":%s}' % ((json.dumps(ENTRY).encode(),) * 2)),
    "the same key twice in an entry": safetensors(b'{"w":{"dtype":"F32","shape":[2],"shape":[2],"data_offsets":[0,8]}}'),
    "a name that is a path": safetensors({"../../etc/x": ENTRY}),
    "a name with a line break": safetensors({"w\n": ENTRY}),
    "an unknown dtype": safetensors({"w": {**ENTRY, "dtype": "F8_E4M3"}}),
    "a field too many": safetensors({"w": {**ENTRY, "extra": 1}}),
    "a shape that overflows": safetensors({"w": {**ENTRY, "shape": [1 << 40, 1 << 40]}}),
    "a negative size": safetensors({"w": {**ENTRY, "shape": [-2]}}),
    "a fraction": safetensors({"w": {**ENTRY, "shape": [2.0]}}),
    "a truth value": safetensors({"w": {**ENTRY, "shape": [True, 2]}}),
    "zero size": safetensors({"w": {**ENTRY, "shape": [0], "data_offsets": [0, 0]}}, b""),
    "shape and bytes disagree": safetensors({"w": {**ENTRY, "shape": [3]}}),
    "overlapping tensors": safetensors({"v": ENTRY, "w": ENTRY}),
    "a hole": safetensors({"w": {**ENTRY, "data_offsets": [8, 16]}}, DATA * 2),
    "truncated": safetensors({"w": ENTRY}, DATA[:-1]),
    "something appended": safetensors({"w": ENTRY}, DATA + b"PK\x05\x06"),
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_an_irregular_file_is_refused(content, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(TensorError, match=r"model\.safetensors"):
        open_weights(tmp_path)


@given(st.binary(max_size=200))
def test_random_bytes_are_refused_or_read_but_never_crash(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("fuzz") / "model.safetensors"
    path.write_bytes(content)
    try:
        read_header(path)
    except VistuneError:
        return
    assert content.startswith((2).to_bytes(8, "little"))  # only `{}` is valid by chance


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_a_value_that_is_not_finite_is_named_with_its_place(value, dtype, tmp_path):
    tensor = torch.zeros(10, dtype=dtype)
    tensor[7] = value
    save_file({"layer.weight": tensor}, tmp_path / "model.safetensors")
    with pytest.raises(TensorError, match=r"layer\.weight holds .* at position 7 of 10"):
        open_weights(tmp_path)["layer.weight"].read()


def sharded(folder: Path, **index) -> Path:
    """Two shards with an index; `index` replaces the shard of single tensors."""
    save_file({"a": torch.ones(2)}, folder / "model-00001-of-00002.safetensors")
    save_file({"b": torch.ones(2)}, folder / "model-00002-of-00002.safetensors")
    weight_map = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"} | index
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def test_shards_are_read_as_one(tmp_path):
    assert sorted(open_weights(sharded(tmp_path))) == ["a", "b"]


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({"a": "../outside.safetensors"}, "plain names"),
        ({"a": "/etc/passwd"}, "passwd"),
        ({"a": "link.safetensors"}, "outside the checkpoint"),
        ({"a": "model-00003-of-00002.safetensors"}, "missing"),
        ({"a": "model-00002-of-00002.safetensors"}, "does not list"),
        ({"c": "model-00002-of-00002.safetensors"}, "promises c"),
        ({"a": "sub/model.safetensors"}, "plain names"),
        ({"a": "weights.bin"}, "no safetensors file"),
        ({"a": 3}, "weight_map"),
    ],
    ids=str,
)
def test_an_index_that_leads_astray_is_refused(index, message, tmp_path):
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    save_file({"a": torch.ones(2)}, tmp_path / "outside.safetensors")
    (folder / "link.safetensors").symlink_to(tmp_path / "outside.safetensors")
    with pytest.raises(CheckpointError, match=message):
        open_weights(sharded(folder, **index))


def test_one_tensor_in_two_shards_is_refused_by_name(tmp_path):
    sharded(tmp_path)
    save_file({"a": torch.zeros(2), "b": torch.ones(2)}, tmp_path / "model-00002-of-00002.safetensors")
    with pytest.raises(TensorError, match="a is in two shards"):
        open_weights(tmp_path)


def test_links_of_the_hub_cache_into_its_own_blobs_are_followed(tmp_path):
    snapshot, blobs = tmp_path / "snapshots" / "abc", tmp_path / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    save_file({"a": torch.ones(2)}, blobs / "0123")
    (snapshot / "model.safetensors").symlink_to("../../blobs/0123")
    assert list(open_weights(snapshot)) == ["a"]


@pytest.mark.parametrize("make", [lambda path: path.mkdir(), lambda path: path.symlink_to(path)], ids=["folder", "loop"])
def test_weights_that_are_no_regular_file_are_refused(make, tmp_path):
    make(tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        open_weights(tmp_path)


def test_shards_fill_up_to_the_limit_and_tensors_are_read_one_at_a_time(tmp_path):
    read: list[str] = []

    def source(name: str) -> LazyTensor:
        def compute() -> torch.Tensor:
            read.append(name)
            return torch.ones(10)

        return LazyTensor(torch.float32, (10,), compute)

    digests = write_weights(tmp_path, {name: source(name) for name in "abcde"}, max_shard_bytes=80)
    assert [len(read_header(tmp_path / shard)) for shard in sorted(digests)] == [2, 2, 1]
    assert read == list("abcde")
    assert sorted(open_weights(tmp_path)) == list("abcde")
