"""The conversion of pickles: what is converted equals what torch would load; what does anything else does nothing."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import sys
import tarfile
import zipfile
from collections import OrderedDict
from functools import partial
from importlib import import_module
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.checkpoint.tiny import digests, tiny_llava

from vistune.checkpoint.convert import ConversionLimits, convert, convert_file, safetensors_name
from vistune.checkpoint.folder import load_model
from vistune.checkpoint.original import save_original
from vistune.errors import CheckpointError, ConversionError, TensorError, UsageError

STATE = OrderedDict(
    {
        "model.weight": torch.randn(3, 4),
        "model.half": torch.randn(5).bfloat16(),
        "model.steps": torch.tensor(7),
        "model.transposed": torch.randn(2, 6).t(),
        "model.slice": torch.arange(20.0)[4:11],
        "model.flag": torch.tensor([True, False]),
    }
)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "stream of pickles"])
def test_a_state_dict_is_converted_to_the_tensors_that_torch_would_load(zipped, tmp_path):
    torch.save(STATE, tmp_path / "weights.bin", _use_new_zipfile_serialization=zipped)
    converted = load_file(convert(tmp_path / "weights.bin", tmp_path / "weights.safetensors"))
    assert converted.keys() == STATE.keys()
    for name, tensor in STATE.items():
        assert torch.equal(converted[name], tensor)
        assert converted[name].dtype == tensor.dtype


def test_parameters_shared_storages_and_one_wrapping_are_understood(tmp_path):
    weight = torch.nn.Parameter(torch.randn(4, 4))
    torch.save({"state_dict": {"a.weight": weight, "b.weight": weight}}, tmp_path / "weights.pt")
    converted = load_file(convert(tmp_path / "weights.pt", tmp_path / "out.safetensors"))
    assert torch.equal(converted["a.weight"], weight)
    assert torch.equal(converted["b.weight"], weight)


def test_a_folder_is_converted_to_one_that_loads(tmp_path):
    model, processor = tiny_llava()
    save_original(model, processor, tmp_path / "plain", vision_tower="openai/clip-vit-large-patch14-336")
    tensors = load_file(tmp_path / "plain" / "model.safetensors")
    (tmp_path / "plain" / "model.safetensors").unlink()
    names = sorted(tensors)
    for number, part in enumerate((names[:20], names[20:]), start=1):
        torch.save({name: tensors[name] for name in part}, tmp_path / "plain" / f"pytorch_model-{number:05d}-of-00002.bin")
    (tmp_path / "plain" / "training_args.bin").write_bytes(b"never opened")
    convert(tmp_path / "plain", tmp_path / "converted")
    assert digests(load_model(tmp_path / "converted")[0]) == digests(model)
    record = json.loads((tmp_path / "converted" / "conversion.json").read_text())
    assert record["sources"].keys() == {"pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"}
    assert not (tmp_path / "converted" / "training_args.bin").exists()


def test_names_of_converted_files():
    assert safetensors_name("pytorch_model.bin") == "model.safetensors"
    assert safetensors_name("pytorch_model-00001-of-00002.bin") == "model-00001-of-00002.safetensors"
    assert safetensors_name("non_lora_trainables.bin") == "non_lora_trainables.safetensors"


def test_nothing_is_overwritten_and_what_is_missing_is_said(tmp_path):
    torch.save(STATE, tmp_path / "weights.bin")
    (tmp_path / "taken").write_text("")
    with pytest.raises(UsageError, match="never overwrites"):
        convert(tmp_path / "weights.bin", tmp_path / "taken")
    with pytest.raises(UsageError, match="does not exist"):
        convert(tmp_path / "nothing", tmp_path / "out")
    with pytest.raises(ConversionError, match="nothing to convert"):
        convert(Path(__file__).parent, tmp_path / "out")


# --- hostile files ----------------------------------------------------------------------------------------------------------------------


class Call:
    """Pickles to a call of anything."""

    def __init__(self, function, *arguments):
        self.reduced = (function, arguments)

    def __reduce__(self):
        return self.reduced


class Build(Call):
    """A call by way of BUILD: an object whose state is set from a call's result."""

    def __reduce__(self):
        return (OrderedDict, (), {"x": Call(*self.reduced[0:1], *self.reduced[1])})


def command(canary: Path) -> str:
    return f"touch {canary}"


def stack_global(module: str, name: str, argument: str) -> bytes:
    def text(value: str) -> bytes:
        return b"\x8c" + bytes([len(value)]) + value.encode()

    return b"\x80\x04" + text(module) + text(name) + b"\x93" + text(argument) + b"\x85R."


def memo_trick(canary: Path) -> bytes:
    """The function's name is put in the memo, overwritten on the stack, and fetched again."""
    return b"\x80\x02cos\nsystem\nq\x000h\x00X" + struct.pack("<I", len(command(canary))) + command(canary).encode() + b"\x85R."


def payloads(canary: Path) -> dict[str, bytes]:
    shell = command(canary)
    calls = {
        "os.system": Call(os.system, shell),
        "getattr of an import": Call(getattr, Call(import_module, "os"), "system"),
        "builtins.eval": Call(eval, f"__import__('os').mknod({str(canary)!r})"),
        "builtins.exec": Call(exec, f"import os; os.mknod({str(canary)!r})"),
        "builtins.open": Call(open, str(canary), "w"),
        "path.touch": Call(Path.touch, canary),
        "partial": Call(partial(os.system), shell),
        "in a state": Build(os.system, shell),
        "as a value": {"w": Call(os.system, shell)},
        "in a list": [Call(os.mkdir, str(canary))],
    }
    raw = {name: pickle.dumps(value, 4) for name, value in calls.items()}
    protocols = {f"protocol {number}": pickle.dumps(Call(os.system, shell), number) for number in range(6)}
    opcodes = {
        "GLOBAL and REDUCE": b"cos\nsystem\n(S'" + shell.encode() + b"'\ntR.",
        "INST": b"(S'" + shell.encode() + b"'\nios\nsystem\n.",
        "OBJ": b"(cos\nsystem\nS'" + shell.encode() + b"'\no.",
        "STACK_GLOBAL": stack_global("os", "system", shell),
        "runpy": stack_global("runpy", "_run_code", shell),
        "pty.spawn": stack_global("pty", "spawn", shell),
        "operator.attrgetter": stack_global("operator", "attrgetter", "system"),
        "numpy.f2py": stack_global("numpy.f2py.crackfortran", "getlincoef", shell),
        "torch.load": stack_global("torch", "load", str(canary)),
        "dotted name": stack_global("collections", "OrderedDict.fromkeys", shell),
        "importlib": stack_global("importlib", "import_module", "antigravity"),
        "memo": memo_trick(canary),
        "extension code": b"\x80\x02\x82\x01.",
        "persistent id": b"Pos.system\n.",
        "stack underflow": b"\x80\x02RRR.",
        "no end": b"\x80\x02(((",
        "long integer": b"\x80\x02\x8b" + struct.pack("<i", 1 << 30) + b"\xff" * 64,
        "huge memo index": b"\x80\x02Nr\xff\xff\xff\x7f.",
    }
    return {**raw, **protocols, **opcodes}


def in_zip(data: bytes, *, root: str = "archive", extra: dict[str, bytes] | None = None, compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        archive.writestr(f"{root}/data.pkl", data)
        for name, content in (extra or {"archive/version": b"3\n"}).items():
            archive.writestr(name, content)
    return buffer.getvalue()


def refused(path: Path, content: bytes) -> str:
    """Runs the child on a hostile file and returns what the error says."""
    path.write_bytes(content)
    with pytest.raises((ConversionError, TensorError)) as caught:
        convert_file(path, path.with_suffix(".safetensors"), limits=ConversionLimits(memory_bytes=1 << 29, base_seconds=10))
    return str(caught.value)


def test_the_payloads_work_where_pickles_are_loaded(tmp_path):
    canary = tmp_path / "canary"
    for name in ("os.system", "builtins.eval", "in a state", "STACK_GLOBAL", "memo", "INST"):
        pickle.loads(payloads(canary)[name])  # the control: these do fire where nothing guards
        assert canary.exists(), name
        canary.unlink()


def test_no_payload_in_either_container_leaves_a_canary(tmp_path):
    canary = tmp_path / "canary"
    tried = payloads(canary)
    assert len(tried) >= 30
    for number, (name, data) in enumerate(tried.items()):
        content = in_zip(data) if number % 2 else data  # a child process costs 50 ms; the nightly test takes both for each
        message = refused(tmp_path / f"{number}.bin", content)
        assert "was not converted" in message, name
        assert "Traceback" not in message, name
        assert not canary.exists(), name


@pytest.mark.nightly
def test_no_payload_in_any_container_leaves_a_canary(tmp_path):
    canary = tmp_path / "canary"
    header = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2) + pickle.dumps({"little_endian": True}, 2)
    for number, (name, data) in enumerate(payloads(canary).items()):
        for kind, content in enumerate((data, in_zip(data), header + data)):
            refused(tmp_path / f"{number}-{kind}.bin", content)
            assert not canary.exists(), name


def tensor_pickle(**changes) -> bytes:
    """data.pkl of {"w": tensor} with parts of the tensor's description replaced."""
    parts = {"key": "0", "numel": 4, "offset": 0, "shape": (4,), "stride": (1,), "storage": "FloatStorage"} | changes

    class Pickler(pickle._Pickler):
        def persistent_id(self, obj):
            return ("storage", Global("torch", parts["storage"]), parts["key"], "cpu", parts["numel"]) if obj is Pickler else None

        def save_global(self, obj, name=None):
            self.write(b"c" + obj.module.encode() + b"\n" + obj.name.encode() + b"\n")

        def save(self, obj, save_persistent_id=True):
            return self.save_global(obj) if isinstance(obj, Global) else super().save(obj, save_persistent_id)

    buffer = io.BytesIO()
    pickler = Pickler(buffer, 2)
    pickler.write(b"\x80\x02}X\x01\x00\x00\x00w")
    pickler.framer.start_framing = lambda: None
    pickler.save(Global("torch._utils", "_rebuild_tensor_v2"))
    pickler.save((Pickler, parts["offset"], parts["shape"], parts["stride"], False, None))
    pickler.write(b"Rs.")
    return buffer.getvalue()


class Global:
    def __init__(self, module: str, name: str):
        self.module, self.name = module, name


LIES = {
    "offset out of range": {"offset": 1},
    "shape out of range": {"shape": (5,)},
    "stride out of range": {"shape": (2, 2), "stride": (4, 1)},
    "a negative offset": {"offset": -1},
    "an endless broadcast": {"shape": (1 << 30,), "stride": (0,)},
    "a size that overflows": {"shape": (1 << 62, 4), "stride": (0, 1)},
    "an empty tensor": {"shape": (0,)},
    "a storage that is longer than its data": {"numel": 1 << 20},
    "a storage that is not there": {"key": "7"},
    "a key that is a path": {"key": "../0"},
    "another element size": {"storage": "DoubleStorage"},
    "a storage of objects": {"storage": "UntypedStorage"},
}


def test_a_tensor_that_lies_about_its_storage_is_refused(tmp_path):
    good = in_zip(tensor_pickle(), extra={"archive/data/0": bytes(16)})
    (tmp_path / "good.bin").write_bytes(good)
    assert list(load_file(convert(tmp_path / "good.bin", tmp_path / "good.safetensors"))) == ["w"]
    for number, (name, changes) in enumerate(LIES.items()):
        message = refused(tmp_path / f"{number}.bin", in_zip(tensor_pickle(**changes), extra={"archive/data/0": bytes(16)}))
        assert "was not converted" in message, name


def flagged(content: bytes) -> bytes:
    """The encryption bit set in the directory's first entry."""
    at = content.index(b"PK\x01\x02") + 8
    return content[:at] + bytes([content[at] | 1]) + content[at + 1 :]


def tar_file() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("pickle"), io.BytesIO())
    return buffer.getvalue()


def containers() -> dict[str, bytes]:
    data = tensor_pickle()
    storage = {"archive/data/0": bytes(16)}
    good = in_zip(data, extra=storage)
    return {
        "tar": tar_file(),
        "empty": b"",
        "text": b"hello",
        "truncated zip": good[:-30],
        "compressed": in_zip(data, extra=storage, compression=zipfile.ZIP_DEFLATED),
        "encrypted": flagged(good),
        "zip in zip": in_zip(data, extra={"archive/data/inner.zip": good}),
        "TorchScript": in_zip(data, extra={**storage, "archive/code/__torch__.py": b"x"}),
        "a path": in_zip(data, extra={"../../data/0": bytes(16)}),
        "two roots": in_zip(data, extra={"other/data/0": bytes(16)}),
        "big endian": in_zip(data, extra={**storage, "archive/byteorder": b"big"}),
        "no pickle": in_zip(data, root="archive/data", extra=storage),
        "not a state dict": pickle.dumps([1, 2], 2),
    }


def test_a_container_that_torch_did_not_write_is_refused(tmp_path):
    for number, (name, content) in enumerate(containers().items()):
        assert "was not converted" in refused(tmp_path / f"{number}.bin", content), name


def test_values_that_are_not_finite_do_not_pass(tmp_path):
    torch.save({"w": torch.tensor([1.0, float("nan")])}, tmp_path / "weights.bin")
    with pytest.raises(TensorError, match="w holds nan"):
        convert(tmp_path / "weights.bin", tmp_path / "out.safetensors")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["weights.bin"]


def test_a_pickle_bomb_is_stopped_by_the_limits(tmp_path):
    doubled = b"\x80\x02X" + struct.pack("<I", 1 << 20) + b"A" * (1 << 20) + b"q\x00" + b"h\x00" * 10 + b"."
    nested = b"\x80\x02" + b"(" * 1_000_000 + b"t" * 1_000_000 + b"."
    lists = b"\x80\x02]q\x00(" + b"]" * 8_000_000 + b"e."
    for number, content in enumerate((doubled, nested, lists)):
        path = tmp_path / f"{number}.bin"
        path.write_bytes(in_zip(content))
        with pytest.raises(CheckpointError):
            convert_file(path, tmp_path / f"{number}.out", limits=ConversionLimits(memory_bytes=1 << 28, base_seconds=10))


@pytest.mark.skipif(sys.platform != "linux", reason="network namespaces are Linux's")
def test_the_child_gives_up_the_network_and_its_limits_hold(tmp_path):
    import subprocess

    from vistune.checkpoint.convert import CHILD

    probe = (
        f"import sys; sys.path.insert(0, {str(CHILD.parent)!r}); import convert_pickle as c, resource, socket\n"
        "c.confine(1 << 30, 30, 1 << 20)\n"
        "print(resource.getrlimit(resource.RLIMIT_AS)[0], [name for _, name in socket.if_nameindex()])"
    )
    finished = subprocess.run([sys.executable, "-I", "-c", probe], capture_output=True, text=True, env={}, check=True)
    assert finished.stdout.startswith(f"{1 << 30} ")
    if os.geteuid() == 0 or Path("/proc/sys/kernel/unprivileged_userns_clone").exists():
        assert "['lo']" in finished.stdout
