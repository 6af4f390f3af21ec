"""The whole matrix with real sockets, in a network namespace where every address there is listens: fetch_lab.py."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.serve.ssrf_cases import FORMS, IPV6, LITERAL

import vistune

pytestmark = pytest.mark.nightly

NAMESPACE = ("unshare", "--user", "--map-root-user", "--net")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the lab reports."""
    for program in ("unshare", "ip", "openssl"):
        if not shutil.which(program):
            pytest.skip(f"needs {program}")
    if subprocess.run([*NAMESPACE, "ip", "link", "set", "lo", "up"], capture_output=True).returncode:
        pytest.skip("needs the right to make a network namespace")
    folder = tmp_path_factory.mktemp("lab")
    key, certificate = folder / "key", folder / "certificate"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=ok.test"
    names = ["-addext", "subjectAltName=DNS:ok.test"]
    subprocess.run([*command.split(), *names, "-keyout", str(key), "-out", str(certificate)], check=True, capture_output=True)
    (folder / "ok.test.pem").write_bytes(key.read_bytes() + certificate.read_bytes())
    root = Path(__file__).parents[2]
    finished = subprocess.run(
        [*NAMESPACE, sys.executable, "-m", "tests.serve.fetch_lab", str(folder)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join((str(Path(vistune.__file__).parents[1]), str(root)))},
        cwd=root, capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    return json.loads(finished.stdout)


def test_the_canary_hears_whoever_connects_to_what_is_forbidden(lab: dict[str, Any]):
    deaf = {"224.0.0.1", "255.255.255.255", "[ff02::1]", "[fe80::1]"}  # no kernel connects to these
    assert {*LITERAL, *IPV6} - deaf - set(lab["heard"]) == {"[fe80::1%25lo]"}
    assert {"2130706433", "0x7f.1", "0177.0.0.1", "127.1", "0", "①②⑦.⓪.⓪.①", "LOCALHOST", "8。8。8。8"} <= set(lab["heard"]) & set(FORMS)
    assert lab["good"] == [200, 200]
    assert lab["public"] > 300


def test_no_case_at_no_door_connects_to_anybody_but_the_public_host(lab: dict[str, Any]):
    assert lab["cases"] > 600
    assert lab["forbidden"] == []


def test_every_case_is_answered_with_the_one_text(lab: dict[str, Any]):
    data = lab["outcomes"].pop("static 'data:text/html;base64,PGI+'", None)  # not an address on the web: refused as no picture
    assert data is None or data["on"][1] == data["off"][1] == "invalid_image"
    told = {(door, *outcome[door]) for outcome in lab["outcomes"].values() for door in ("on", "off")}
    assert {(door, status, code) for door, status, code, _ in told} == {
        ("on", 400, "invalid_image_url"),
        ("off", 400, "unsupported_image_url"),
    }
    assert len(told) == 2
    assert {outcome["opened"] for outcome in lab["outcomes"].values()} == {"url"}


def test_a_refused_address_takes_no_less_than_one_that_does_not_answer(lab: dict[str, Any]):
    assert min(lab["seconds"].values()) >= 1.0


def test_nothing_is_left_of_all_that(lab: dict[str, Any]):
    assert lab["left"] == [0, 0]
    assert lab["grown_kib"] < 150 << 10
