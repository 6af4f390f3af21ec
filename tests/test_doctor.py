"""The doctor: what it finds on a machine that is well, and on ones that are not."""

from __future__ import annotations

import importlib.metadata
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from vistune import doctor
from vistune.__main__ import main


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VISTUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def fixes(problems: list[doctor.Problem] | tuple[doctor.Problem, ...]) -> str:
    return "\n".join(f"{problem.found} → {problem.fix}" for problem in problems)


def test_json_holds_versions_machine_weights_and_problems(capsys: pytest.CaptureFixture[str]):
    assert main(["doctor", "--json", "--no-measure"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["packages"]["torch"] == importlib.metadata.version("torch")
    assert report["machine"]["cores"] >= 1
    assert report["speed"] is None
    assert {each["name"]: each["state"] for each in report["weights"]}["efficientnet-lite0"] == "missing"
    assert {"found": "efficientnet-lite0 was not fetched yet", "fix": "vistune pull efficientnet-lite0"} in report["problems"]


def test_the_text_says_what_is_wrong_and_how_to_fix_it(capsys: pytest.CaptureFixture[str]):
    assert main(["doctor", "--no-measure"]) == 0
    assert "fix: vistune pull smollm2-135m-instruct" in capsys.readouterr().out


def test_a_report_without_problems_says_so():
    report = replace(doctor.examine(measure=False), problems=())
    assert doctor.render(report).endswith("Nothing wrong was found.")


def test_measured_speeds_are_numbers_of_this_machine():
    speed = doctor.measure_speed(size=64, megabytes=1, repeats=2)
    assert speed.gflops_fp32 > 0
    assert speed.memory_gb_per_second > 0


def test_a_torch_that_does_not_import_is_a_finding(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    report = doctor.examine()
    assert report.speed is None
    assert report.machine.gpus is None
    assert "does not import" in fixes(report.problems)
    assert "not asked" in doctor.render(report)


def test_missing_and_unfit_packages_are_found(monkeypatch: pytest.MonkeyPatch):
    versions = {"torch": "2.13.0+cpu", "pillow": "99.0", "torchvision": "0.28.0"}
    lines = ["torch>=2.11,<3", "pillow>=11.3,<13", "pytest>=999; extra == 'dev'"]
    monkeypatch.setattr(doctor, "installed_version", versions.get)
    monkeypatch.setattr(importlib.metadata, "requires", lambda _: lines)
    found = fixes(doctor.package_problems({"torch": "2.13.0+cpu", "peft": None}))
    assert "peft is not installed → pip install peft" in found
    assert "pillow is 99.0, vistune needs <13,>=11.3" in found
    assert "torchvision 0.28.0" in found
    assert "torch is" not in found
    assert "pytest" not in found


def test_damaged_weights_are_found_by_their_digest(empty_cache: Path):
    from vistune.journal import write_manifest
    from vistune.pull import PULLABLE

    folder = empty_cache / f"efficientnet-lite0-r{PULLABLE['efficientnet-lite0'].revision}"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"weights")
    write_manifest(folder)
    assert {each.name: each.state for each in doctor.examine_weights()[1]}["efficientnet-lite0"] == "ready"
    (folder / "model.safetensors").write_bytes(b"weighty")
    _, weights, problems = doctor.examine_weights()
    assert next(each for each in weights if each.name == "efficientnet-lite0").state != "ready"
    assert "efficientnet-lite0 is damaged → vistune pull efficientnet-lite0" in fixes(problems)


def test_a_small_machine_is_told_what_it_lacks(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    machine = doctor.Machine("Linux", "a CPU", (), 4, 2**30, ())
    found = fixes(doctor.machine_problems(machine))
    assert "only 1.0 GiB of memory" in found
    assert "OMP_NUM_THREADS=1 uses 1 of 4 cores" in found
