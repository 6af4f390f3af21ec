"""`vistune convert`: pickled weights (`.bin`, `.pt`, `.pth`, `.ckpt`) to safetensors, in a child process that can do nothing else.

The parent never reads the pickle. It starts `convert_pickle.py` with an empty environment in an empty folder, kills it at a deadline, and
reads what it wrote with the same strict reader as any other checkpoint. There is no second way if that fails.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from vistune.checkpoint import tensors
from vistune.errors import ConversionError, TensorError, UsageError
from vistune.journal import atomic_folder

CHILD = Path(__file__).with_name("convert_pickle.py")
RECORD_NAME = "conversion.json"
_PICKLED = (".bin", ".pt", ".pth", ".ckpt")
_KEPT = (".json", ".jinja", ".model", ".txt", ".md", ".safetensors")
_NOT_WEIGHTS = ("training_args.bin", "optimizer.bin", "optimizer.pt", "scheduler.pt", "scheduler.bin", "scaler.pt")
_DROPPED = ("pytorch_model.bin.index.json", "trainer_state.json")


@dataclass(frozen=True)
class ConversionLimits:
    """What the child may use. Its own needs are small and do not grow with the tensors, which are copied in pieces."""

    memory_bytes: int = 2 << 30
    seconds_per_gigabyte: int = 60
    base_seconds: int = 60

    def seconds(self, size: int) -> int:
        return self.base_seconds + self.seconds_per_gigabyte * (size >> 30)


def convert(source: Path, out: Path, *, limits: ConversionLimits | None = None) -> Path:
    """Converts a pickled file to the file `out`, or a checkpoint folder with pickled weights to the folder `out`; returns `out`.

    In a folder, `pytorch_model*.bin` become `model*.safetensors` with a fresh index, other weight files keep their stem, configuration and
    tokenizer files are copied, optimizer and trainer states are left behind, and `conversion.json` records sha256 of what went in and
    came out. Raises ConversionError when a file is refused or its conversion is killed, UsageError when `out` exists.
    """
    limits = limits or ConversionLimits()
    if out.exists() or out.is_symlink():
        raise UsageError(f"{out} exists already; choose another place, a conversion never overwrites.")
    if source.is_dir():
        _convert_folder(source, out, limits)
    elif source.is_file():
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as scratch:
            converted = Path(scratch) / "converted.safetensors"
            convert_file(source, converted, limits=limits)
            os.replace(converted, out)
    else:
        raise UsageError(f"{source} does not exist; give a pickled weight file or a checkpoint folder.")
    return out


def convert_file(source: Path, out: Path, *, limits: ConversionLimits) -> dict[str, tensors.TensorSlot]:
    """Runs the child on one file and verifies what it wrote: strict header, finite values. Returns the tensors of `out`."""
    size = source.stat().st_size
    seconds = limits.seconds(size)
    with tempfile.TemporaryDirectory() as empty:
        command = [sys.executable, "-I", str(CHILD), str(source.resolve()), str(out.absolute()), str(limits.memory_bytes), str(seconds)]
        try:
            child = subprocess.run(
                command,
                env={},
                cwd=empty,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=seconds + 30,  # the child's own CPU limit comes first, unless it only sleeps
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise ConversionError(
                f"{source} was not converted: the child process made no end in {seconds + 30} s and was killed."
            ) from error
    if child.returncode != 0:
        said = child.stdout.decode("utf-8", "replace").strip()[:400]
        ended = f"the child process was killed by signal {-child.returncode}" if child.returncode < 0 else "the child process failed"
        trouble = child.stderr.decode("utf-8", "replace").strip().rpartition("\n")[2][:200]
        raise ConversionError(
            f"{source} was not converted: {said or f'{ended} ({trouble})' if trouble else said or ended}. "
            "Only state dicts of plain tensors are; ask the publisher for safetensors."
        )
    slots = tensors.read_header(out)
    for slot in slots.values():
        slot.read()
    return slots


def safetensors_name(pickled_name: str) -> str:
    """The file name after conversion: `pytorch_model-00001-of-00002.bin` becomes `model-00001-of-00002.safetensors`."""
    return re.sub(r"^pytorch_model(?=[.-])", "model", pickled_name).rpartition(".")[0] + ".safetensors"


def _convert_folder(source: Path, out: Path, limits: ConversionLimits) -> None:
    files = sorted(path for path in source.iterdir() if path.is_file())
    pickled = [path for path in files if path.suffix in _PICKLED and path.name not in _NOT_WEIGHTS]
    pickled = [path for path in pickled if not path.name.startswith("rng_state")]
    if not pickled:
        raise ConversionError(f"{source} holds no pickled weights ({', '.join('*' + suffix for suffix in _PICKLED)}); nothing to convert.")
    kept = [path for path in files if path.suffix in _KEPT and path.name not in _DROPPED]
    clashes = {path.name for path in kept} & {safetensors_name(path.name) for path in pickled}
    if clashes:
        raise ConversionError(
            f"{source} has {', '.join(sorted(clashes))} beside its pickled twin; load it as it is, or remove one of them."
        )
    with atomic_folder(out) as partial:
        record: dict[str, dict[str, str]] = {"sources": {}, "results": {}}
        weight_map: dict[str, str] = {}
        for path in pickled:
            name = safetensors_name(path.name)
            slots = convert_file(path, partial / name, limits=limits)
            record["sources"][path.name] = tensors.file_digest(path)
            record["results"][name] = tensors.file_digest(partial / name)
            if name.startswith("model-"):
                twice = sorted(weight_map.keys() & slots.keys())
                if twice:
                    raise TensorError(f"{tensors.listed(twice)}: in two shards of {source}; one of them is a leftover.")
                weight_map.update(dict.fromkeys(slots, name))
        if weight_map:
            total = sum(path.stat().st_size for path in partial.glob("model-*.safetensors"))
            tensors.write_index(partial, weight_map, total_size=total)
        for path in kept:
            shutil.copyfile(path, partial / path.name)
        (partial / RECORD_NAME).write_text(json.dumps(record, indent=2) + "\n")
