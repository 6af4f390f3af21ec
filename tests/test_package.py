"""What is shipped: every asset goes into the wheel, is small, and has its licence beside it; and what an installation brings along."""

from __future__ import annotations

import glob
import json
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import vistune

HOUSE = Path(vistune.__file__).parent
ROOT = HOUSE.parent.parent
ASSETS = HOUSE / "assets"
LARGE = ("sprites/sprites.bin", "assistant/model.safetensors", "assistant/adapter_model.safetensors")
MEGABYTE = 1 << 20

pytestmark = pytest.mark.skipif(not (ROOT / "pyproject.toml").is_file(), reason="vistune is installed without its source tree")


def pyproject() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def data_files() -> set[str]:
    files = (path for path in HOUSE.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(HOUSE).as_posix() for path in files if path.suffix != ".py"}


def packed() -> set[str]:
    """What the patterns of package-data match, by the rules of setuptools: `**` is any number of folders."""
    patterns = pyproject()["tool"]["setuptools"]["package-data"]["vistune"]
    found = (name for pattern in patterns for name in glob.glob(pattern, root_dir=HOUSE, recursive=True))
    return {Path(name).as_posix() for name in found if (HOUSE / name).is_file()}


def test_every_file_that_is_no_code_goes_into_the_package():
    assert data_files() == packed()
    assert {"assets/sprites/sprites.bin", "assets/demo/demo.json", "assets/text_prompts.txt"} <= packed()


def test_only_sprites_and_the_assistants_weights_are_large():
    large = {path.relative_to(ASSETS).as_posix() for path in ASSETS.rglob("*") if path.is_file() and path.stat().st_size > MEGABYTE}
    assert large <= set(LARGE)
    assert sum((ASSETS / name).stat().st_size for name in large) <= 32 * MEGABYTE


def licensed(path: Path) -> bool:
    """Whether a LICENCES.md or a card in its folder speaks for it, or the demo's list does."""
    texts = [path.parent / name for name in ("LICENCES.md", "README.md")]
    if any("licen" in text.read_text(encoding="utf-8").lower() for text in texts if text.is_file()):
        return True
    listed = path.parent / "demo.json"
    rows = json.loads(listed.read_text(encoding="utf-8")) if listed.is_file() else []
    return any(row["picture"] == path.name and row.get("licence") for row in rows)


def test_every_picture_and_every_weight_has_its_licence_beside_it():
    kinds = {".bin", ".safetensors", ".jpg", ".png", ".webp", ".gif"}
    bare = [path.relative_to(ASSETS).as_posix() for path in ASSETS.rglob("*") if path.suffix in kinds and not licensed(path)]
    assert not bare
    assert not licensed(ASSETS / "unknown.png")


def closure(requirements: list[str]) -> dict[str, set[str]]:
    """Every distribution that these requirements lead to on this machine, with those that ask for it; by declared metadata only."""
    asked_by: dict[str, set[str]] = {}
    followed: set[tuple[str, str]] = set()  # (distribution, extra)
    waiting = [(Requirement(text), "vistune", "") for text in requirements]
    while waiting:
        requirement, parent, extra = waiting.pop()
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
            continue
        name = canonicalize_name(requirement.name)
        asked_by.setdefault(name, set()).add(parent)
        for each in ("", *requirement.extras):
            if (name, each) not in followed:
                followed.add((name, each))
                waiting += [(Requirement(text), name, each) for text in declared(name)]
    return asked_by


def declared(name: str) -> list[str]:
    try:
        return metadata.requires(name) or []
    except metadata.PackageNotFoundError:
        return []  # an optional one that is not installed here


def test_the_closure_follows_extras_and_markers_and_ends_in_circles(monkeypatch: pytest.MonkeyPatch):
    shelf = {"a": ["b[fast]", "never; python_version < '3'"], "b": ["plain", "quick; extra == 'fast'", "slow; extra == 'safe'"]}
    shelf["quick"] = ["a"]
    monkeypatch.setattr(metadata, "requires", lambda name: shelf.get(name))
    assert closure(["A"]) == {"a": {"vistune", "quick"}, "b": {"a"}, "plain": {"b"}, "quick": {"b"}}


def test_no_dependency_brings_torchvision_or_a_triton_of_its_own():
    asked_by = closure(pyproject()["project"]["dependencies"])
    assert {"torch", "transformers", "numpy", "tokenizers"} <= set(asked_by)
    assert "torchvision" not in asked_by, asked_by["torchvision"]
    assert asked_by.get("triton", set()) <= {"torch"}  # a CUDA build of torch names the one that it was made with


def test_every_distribution_that_is_needed_is_pinned_by_the_constraints():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {canonicalize_name(Requirement(line).name) for line in lines if line and not line.startswith("#")}
    project = pyproject()["project"]
    wanted = closure([*project["dependencies"], *(text for texts in project["optional-dependencies"].values() for text in texts)])
    brought_by_torch = {
        name for name, parents in wanted.items() if parents == {"torch"} and name.startswith(("nvidia-", "triton", "cuda-"))
    }
    assert set(wanted) - pinned - brought_by_torch - {"vistune", "setuptools"} == set()


@pytest.mark.nightly
def test_the_wheel_holds_every_file_of_the_house(tmp_path: Path):
    source = tmp_path / "source"
    shutil.copytree(ROOT / "src", source / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copyfile(ROOT / name, source / name)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", tmp_path, source]
    subprocess.run(command, check=True)
    with zipfile.ZipFile(next(tmp_path.glob("vistune-*.whl"))) as wheel:
        names = {name for name in wheel.namelist() if name.startswith("vistune/")}
    assert names == {path.relative_to(source / "src").as_posix() for path in (source / "src" / "vistune").rglob("*") if path.is_file()}
