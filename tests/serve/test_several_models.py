"""Several models and adapters, from folders to answers: loaded by name, over one set of weights, in one budget of memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tests.checkpoint.test_adapters import small_adapter
from tests.checkpoint.tiny import tiny_llava
from tests.serve.live import Live, ask, data_address, live, png

from vistune import cli_model
from vistune.__main__ import main
from vistune.chat_model import ScriptedChatModel
from vistune.checkpoint.folder import save_model
from vistune.engine.engine import Engine
from vistune.engine.neighbours import DEFAULT_KV_BYTES
from vistune.errors import CheckpointError, RemoteError, TensorError, UnknownName, UsageError
from vistune.serve import server as serving
from vistune.serve.api import Settings
from vistune.serve.keys import ApiKeys
from vistune.serve.roster import read_roster


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models, and two adapters for the first."""
    place = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("llava", "other")):
        save_model(*tiny_llava(seed), place / name)
    torch.manual_seed(0)
    prefix = "base_model.model.model.layers.1.mlp.up_proj"
    for name in ("poet", "critic"):
        halves = {f"{prefix}.lora_A.weight": torch.randn(2, 32), f"{prefix}.lora_B.weight": torch.randn(48, 2)}
        small_adapter(place / name, halves, base_model_name_or_path="/elsewhere/llava")
    return place


@pytest.fixture(scope="module")
def engines(folders: Path) -> Iterator[dict[str, Engine]]:
    adapters = [f"poet={folders}/poet", f"critic@first={folders}/critic"]
    roster = read_roster([f"first={folders}/llava", f"{folders}/other"], adapters, environment={})
    with cli_model.loaded_roster(roster, "float32", "cpu") as served:
        yield {name: engine for name, engine in served.items() if isinstance(engine, Engine)}


@pytest.fixture
def server(engines: dict[str, Engine]) -> Iterator[Live]:
    with live(engines, Settings()) as running:
        yield running


def test_each_name_answers_with_its_own_weights(server: Live, engines: dict[str, Engine]):
    assert list(engines) == ["first", "poet", "critic", "other"]
    picture = {"type": "image_url", "image_url": data_address()}
    replies = {}
    for name in engines:
        body = ask([picture, {"type": "text", "text": "What is this?"}], max_tokens=1, temperature=0, logprobs=True, top_logprobs=2)
        choice = server.post(body | {"model": name}).json()["choices"][0]
        replies[name] = choice["logprobs"]["content"][0]["logprob"]
    assert len(set(replies.values())) == 4


def test_adapters_share_their_bases_weights_and_all_engines_one_budget_and_one_turn(engines: dict[str, Engine]):
    def places(name: str) -> set[int]:
        return {tensor.untyped_storage().data_ptr() for tensor in engines[name].model.state_dict().values()}

    assert len(places("poet") - places("first")) == len(places("critic") - places("first")) == 2
    assert not places("other") & places("first")
    limits = [engine.counters().kv_bytes_limit or 0 for engine in engines.values()]
    assert 0 < sum(limits) <= DEFAULT_KV_BYTES
    assert len({id(engine._worker._turn._turns) for engine in engines.values()}) == 1  # type: ignore[attr-defined]


def test_a_name_may_have_another(folders: Path):
    roster = read_roster([str(folders / "llava")], names=["a", "b"], environment={})
    with cli_model.loaded_roster(roster, "float32", "cpu") as served:
        assert served["a"] is served["b"]


def test_another_servers_model_needs_no_weights_here(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cli_model, "_engines", lambda *_, **__: pytest.fail("weights were loaded"))
    with cli_model.loaded_roster(read_roster(["far=http://127.0.0.1:9/v1"], environment={}), "auto", "auto") as served:
        assert list(served) == ["far"]


@pytest.mark.parametrize(
    ("arguments", "error", "complaint"),
    [
        (["a={here}/none"], CheckpointError, "There is no folder"),
        (["nothing-like-that"], UnknownName, "nothing-like-that"),
        (["{here}/llava", "--adapter", "poet={here}/none"], CheckpointError, "There is no folder"),
        (["{here}/llava", "--adapter", "poet={here}/other"], CheckpointError, "holds no adapter"),
        (["{here}/llava", "--adapter", "poet@other={here}/poet"], UnknownName, "Known: llava"),
        (["{here}/llava", "{here}/other", "--base", "{here}/llava"], UsageError, "--base"),
        (["{here}/llava", "--adapter", "wide={here}/wide"], TensorError, "does not fit"),
        (["a={here}/llava", "a={here}/other"], UsageError, "Two models are called 'a'"),
    ],
)
def test_what_cannot_be_served_is_said_before_a_socket_is_opened(
    folders: Path, arguments: list[str], error: type, complaint: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    if not (folders / "wide").exists():
        halves = {f"base_model.model.model.layers.0.self_attn.q_proj.lora_{half}.weight": torch.ones(2, 2) for half in "AB"}
        small_adapter(folders / "wide", halves)
    monkeypatch.setattr(serving, "serve", lambda *_, **__: pytest.fail("it was served"))
    monkeypatch.delenv("VISTUNE_API_KEY", raising=False)
    assert main(["serve", *(argument.format(here=folders) for argument in arguments)]) == error.exit_code
    assert complaint in capsys.readouterr().err


def test_an_adapter_of_another_model_by_name_gets_a_note(folders: Path, capsys: pytest.CaptureFixture[str]):
    for base, noted in (("llava", False), ("other", True)):
        roster = read_roster([str(folders / base)], [f"poet={folders}/poet"], environment={})
        with cli_model.loaded_roster(roster, "float32", "cpu"):
            assert ("says that it was trained on '/elsewhere/llava'" in capsys.readouterr().err) is noted


# --- a terminal at such a server ----------------------------------------------------------------------------------------------------------

KEY = "sk-canary-0123456789"


@pytest.fixture
def others_server() -> Iterator[Live]:
    models = {name: ScriptedChatModel(lambda conversation, _, name=name: f"{name}: {len(conversation.images)}") for name in ("one", "two")}
    with live(models, Settings(keys=ApiKeys([KEY]))) as running:
        yield running


def test_the_terminal_talks_to_a_model_of_a_server(
    others_server: Live, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    (tmp_path / "a.png").write_bytes(png())
    monkeypatch.setenv("THE_KEY", KEY)
    there = ["chat", "--server", f"{others_server.address}/v1", "--key-from", "THE_KEY", str(tmp_path / "a.png"), "What?"]
    assert main(there) == 0
    assert main([*there, "-m", "two"]) == 0
    assert capsys.readouterr().out == "one: 1\ntwo: 1\n"
    assert main([*there, "-m", "three"]) == UnknownName.exit_code
    assert "Known: one, two" in capsys.readouterr().err


def test_a_server_that_cannot_be_talked_to_says_why(others_server: Live, capsys: pytest.CaptureFixture[str]):
    for arguments, code, complaint in (
        (["--server", f"{others_server.address}/v1"], RemoteError.exit_code, "--key-from VARIABLE"),
        (["--server", f"{others_server.address}/web"], RemoteError.exit_code, "does not list its models"),
        (["--server", others_server.address], UsageError.exit_code, "/v1"),
        (["--server", "127.0.0.1:8000/v1"], UsageError.exit_code, "is no address of a server"),
        (["--server", f"{others_server.address}/v1", "--key-from", "NOT_THERE"], UsageError.exit_code, "NOT_THERE is not set"),
        (["--server", f"{others_server.address}/v1", "--template", "vicuna_v1"], UsageError.exit_code, "on this machine"),
        (["--key-from", "NOT_THERE"], UsageError.exit_code, "--server"),
    ):
        assert main(["chat", *arguments, "Hi"]) == code
        assert complaint in capsys.readouterr().err
