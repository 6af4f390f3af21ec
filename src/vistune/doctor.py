"""Says what is installed, what this machine can do, which weights are there, and what is wrong with the fix beside it.

Stands beside `cli.py` at the top of the house and is called by nobody else; below it only `pull` and `journal` (which weights are there,
and whether they are whole). It must work where the rest does not, so versions are read from package metadata and torch is loaded only to
measure; what does not work is a finding with a remedy, never a crash.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vistune.errors import VistuneError
from vistune.speed import Speed, measure_speed

ASSISTANT = Path(__file__).parent / "assets" / "assistant"
PACKAGES = ("torch", "transformers", "peft", "tokenizers", "safetensors", "gguf", "numpy", "pillow")
CPU_FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_tile", "amx_bf16", "amx_int8")
"""The instruction sets that decide how fast a matrix product is, and whether bf16 is fast or emulated."""

GIB = 2**30
SMALL_MEMORY = 3 * GIB  # the bundled assistant with its base in fp32, torch itself and a batch
SMALL_DISK = 1 * GIB  # the assistant's base and tower, downloaded and converted


@dataclass(frozen=True)
class Problem:
    found: str
    fix: str


@dataclass(frozen=True)
class Machine:
    system: str
    cpu: str
    cpu_flags: tuple[str, ...]
    cores: int
    memory_bytes: int | None
    gpus: tuple[str, ...] | None
    """Names of the accelerators; None where torch could not be asked."""


@dataclass(frozen=True)
class Weights:
    name: str
    state: str
    """`ready` (there and verified), `missing`, or what is wrong with it."""
    path: str


@dataclass(frozen=True)
class Report:
    python: str
    vistune: str
    packages: dict[str, str | None]
    machine: Machine
    cache: str
    weights: tuple[Weights, ...]
    speed: Speed | None
    problems: tuple[Problem, ...]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def examine(*, measure: bool = True) -> Report:
    """Looks at everything. `measure=False` leaves the two seconds of measuring out."""
    from vistune import __version__

    packages = {name: installed_version(name) for name in PACKAGES}
    problems = package_problems(packages)
    torch_works, torch_problem = try_torch(packages)
    problems += torch_problem
    machine = describe_machine(ask_torch=torch_works)
    problems += machine_problems(machine)
    cache, weights, weight_problems = examine_weights()
    problems += weight_problems
    return Report(
        python=platform.python_version(),
        vistune=__version__,
        packages=packages,
        machine=machine,
        cache=str(cache),
        weights=weights,
        speed=measure_speed() if measure and torch_works else None,
        problems=tuple(problems),
    )


# --- packages -------------------------------------------------------------------------------------------------------------------------


def installed_version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def package_problems(packages: dict[str, str | None]) -> list[Problem]:
    """What is missing, or outside the range that vistune's own metadata asks for; and a torchvision, which nothing here needs."""
    problems = [Problem(f"{name} is not installed", f"pip install {name}") for name, version in packages.items() if version is None]
    problems += unmet_requirements()
    if (torchvision := installed_version("torchvision")) is not None:
        problems.append(
            Problem(
                f"torchvision {torchvision} is installed: unused here, and one that does not fit torch breaks transformers' import",
                "pip uninstall torchvision, unless something else here needs it",
            )
        )
    return problems


def unmet_requirements() -> list[Problem]:
    try:
        lines = importlib.metadata.requires("vistune") or []
    except importlib.metadata.PackageNotFoundError:
        return [Problem("vistune runs from a folder and is not installed", "pip install -e . in that folder")]
    from packaging.requirements import Requirement

    requirements = [Requirement(line) for line in lines]
    needed = [each for each in requirements if each.marker is None or each.marker.evaluate({"extra": ""})]
    return [
        Problem(f"{each.name} is {version}, vistune needs {each.specifier}", f"pip install '{each.name}{each.specifier}'")
        for each in needed
        if (version := installed_version(each.name)) is not None and not each.specifier.contains(version, prereleases=True)
    ]


def try_torch(packages: dict[str, str | None]) -> tuple[bool, list[Problem]]:
    """Whether torch can be imported; a broken installation is a finding here, not a crash."""
    if packages["torch"] is None:
        return False, []
    try:
        import torch  # noqa: F401
    except (ImportError, OSError) as error:  # OSError: a shared library that does not load
        fix = "pip install --force-reinstall torch, from the index that fits this machine (https://pytorch.org)"
        return False, [Problem(f"torch {packages['torch']} does not import: {error}", fix)]
    return True, []


# --- machine --------------------------------------------------------------------------------------------------------------------------


def describe_machine(*, ask_torch: bool) -> Machine:
    model, flags = _cpu_info()
    return Machine(
        system=f"{platform.system()} {platform.release()}, {platform.machine()}",
        cpu=model,
        cpu_flags=tuple(flag for flag in CPU_FLAGS if flag in flags),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        memory_bytes=_memory_bytes(),
        gpus=_gpus() if ask_torch else None,
    )


def _cpu_info() -> tuple[str, frozenset[str]]:
    """(model name, flags) from Linux' /proc/cpuinfo; elsewhere the platform's name and no flags."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        return platform.processor() or platform.machine(), frozenset()
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = fields.get("flags") or fields.get("Features") or ""  # `Features` on ARM
    return fields.get("model name") or platform.processor() or platform.machine(), frozenset(flags.split())


def _memory_bytes() -> int | None:
    """Physical memory, or the container's limit where that is lower."""
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return None
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.is_file() else "max"
    return min(physical, int(text)) if text.isdigit() else physical


def _gpus() -> tuple[str, ...]:
    import torch

    if torch.cuda.is_available():
        properties = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
        return tuple(f"{each.name}, {each.total_memory / GIB:.0f} GiB" for each in properties)
    return ("Apple GPU (mps)",) if torch.backends.mps.is_available() else ()


def machine_problems(machine: Machine) -> list[Problem]:
    problems = []
    if machine.memory_bytes is not None and machine.memory_bytes < SMALL_MEMORY:
        found = f"only {machine.memory_bytes / GIB:.1f} GiB of memory"
        problems.append(Problem(found, "close other programs; the bundled assistant needs about 3 GiB"))
    threads = os.environ.get("OMP_NUM_THREADS", "")
    if threads.isdigit() and int(threads) < machine.cores:
        problems.append(Problem(f"OMP_NUM_THREADS={threads} uses {threads} of {machine.cores} cores", "unset OMP_NUM_THREADS"))
    return problems


# --- weights --------------------------------------------------------------------------------------------------------------------------


def examine_weights() -> tuple[Path, tuple[Weights, ...], list[Problem]]:
    """The cache folder, what lies there (every file's sha256 compared), and what to do about it."""
    from vistune.journal import verify_manifest
    from vistune.pull import PULLABLE, cache_dir, pulled

    cache = cache_dir()
    problems = _cache_problems(cache)
    weights = [Weights("assistant", "ready" if ASSISTANT.is_dir() else "missing", str(ASSISTANT))]
    if not ASSISTANT.is_dir():
        problems.append(Problem("this copy of vistune carries no assistant", "make assistant (trains one), or chat with --model FOLDER"))
    for name in PULLABLE:
        folder = pulled(name)
        if folder is None:
            weights.append(Weights(name, "missing", ""))
            problems.append(Problem(f"{name} was not fetched yet", f"vistune pull {name}"))
            continue
        try:
            verify_manifest(folder)
            weights.append(Weights(name, "ready", str(folder)))
        except VistuneError as error:
            weights.append(Weights(name, str(error), str(folder)))
            problems.append(Problem(f"{name} is damaged", f"vistune pull {name} (fetches it again)"))
    return cache, tuple(weights), problems


def _cache_problems(cache: Path) -> list[Problem]:
    # The cache itself may not exist yet; the nearest folder that does decides.
    existing = next(folder for folder in (cache, *cache.absolute().parents) if folder.is_dir())
    problems = []
    if not os.access(existing, os.W_OK):
        problems.append(Problem(f"the cache {cache} cannot be written", "name another folder in VISTUNE_CACHE"))
    if (free := shutil.disk_usage(existing).free) < SMALL_DISK:
        problems.append(Problem(f"only {free / GIB:.1f} GiB free for {cache}", "free some space, or name another folder in VISTUNE_CACHE"))
    return problems


# --- as text --------------------------------------------------------------------------------------------------------------------------


def render(report: Report) -> str:
    """The report for a person: what there is, then what is wrong with the fix beside it."""
    machine, speed = report.machine, report.speed
    packages = "  ".join(f"{name} {version or 'MISSING'}" for name, version in report.packages.items())
    memory = f"{machine.memory_bytes / GIB:.1f} GiB" if machine.memory_bytes is not None else "unknown"
    gpus = "not asked (no torch)" if machine.gpus is None else "; ".join(machine.gpus) or "none"
    rows = [
        ("vistune", f"{report.vistune} on Python {report.python}"),
        ("packages", packages),
        ("system", machine.system),
        ("CPU", f"{machine.cpu}, {machine.cores} cores; {' '.join(machine.cpu_flags) or 'flags unknown'}"),
        ("memory", memory),
        ("GPU", gpus),
    ]
    if speed is not None:
        products = f"fp32 {speed.gflops_fp32:g}, bf16 {speed.gflops_bf16:g} GFLOP/s on {speed.threads} threads"
        rows.append(("speed", f"{products}; memory {speed.memory_gb_per_second:g} GB/s"))
    rows.append(("cache", report.cache))
    rows += [("weights", f"{each.name}: {each.state}") for each in report.weights]
    text = "\n".join(f"{name:<9} {value}" for name, value in rows)
    findings = [f"- {problem.found}\n  fix: {problem.fix}" for problem in report.problems] or ["Nothing wrong was found."]
    return "\n".join([text, "", *findings])
