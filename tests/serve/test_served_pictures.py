"""Pictures that clients send are decoded outside the server, and what goes wrong there stays with the request that sent them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from tests.checkpoint.tiny import tiny_llava
from tests.engine.conftest import byte_tokenizer, tiny_config, tiny_model
from tests.serve.live import ask, data_address, live, png, until

from faulty_decoders import ENDLESS, decode_by, faulty_child, gone
from image_files import encode, photo
from vistune import cli_model, decoding
from vistune.checkpoint.folder import save_model
from vistune.decoding import DecodePool
from vistune.engine.engine import Engine
from vistune.model.processor import Processor
from vistune.serve.api import Settings
from vistune.serve.roster import read_roster

HOSTILE = encode(photo(64, 48), "PNG")  # 64 wide: for it the tests' decoders do what `decode_by` says


def about(picture: bytes) -> dict[str, object]:
    parts = [{"type": "image_url", "image_url": data_address(picture)}, {"type": "text", "text": "What is this?"}]
    return ask(parts, max_tokens=2, temperature=0)


@pytest.fixture
def engine() -> Iterator[Engine]:
    processor = Processor(byte_tokenizer(), tiny_config(byte_tokenizer()))
    with DecodePool(seconds=0.5) as pool, Engine(tiny_model(processor), processor.opening_with(pool.open_image)) as engine:
        yield engine


def pool_of(engine: Engine) -> DecodePool:
    return engine.processor.open_image.__self__  # type: ignore[attr-defined]


def test_models_of_a_roster_have_their_pictures_decoded_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(decoding, "_CHILD", faulty_child("import ctypes\n" + decode_by("ctypes.string_at(0)")))
    save_model(*tiny_llava(0), tmp_path / "llava")
    roster = read_roster([f"scripted={tmp_path}/llava"], environment={})
    with cli_model.loaded_roster(roster, "float32", "cpu") as served, live(served, Settings()) as server:
        refused = server.post(about(HOSTILE))
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "invalid_image")
        assert server.post(about(png())).status_code == 200
        engine = served["scripted"]
        assert isinstance(engine, Engine)
        processes = [decoder._process.pid for decoder in pool_of(engine)._idle]
        assert len(processes) == 2
        assert all(Path(f"/proc/{process}").exists() for process in processes)
    assert all(gone(process) for process in processes)


def test_a_client_that_leaves_while_its_picture_is_decoded_frees_the_decoder(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
):
    monkeypatch.setattr(decoding, "_CHILD", faulty_child(ENDLESS))
    engine: Engine = request.getfixturevalue("engine")
    with live(engine, Settings()) as server:
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(3):
            with pytest.raises(httpx2.TimeoutException):
                server.post(about(HOSTILE), timeout=0.2)
        assert server.post(about(png())).status_code == 200
        until(lambda: server.gate.num_admitted == 0)
        until(lambda: len(pool_of(engine)._idle) == 2)
        assert server.post(about(png("blue"))).status_code == 200
        until(lambda: len(os.listdir("/proc/self/fd")) <= before)
