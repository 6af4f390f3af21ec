"""Names on the command line: what each stands for, and what is wrong with those that stand for nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from vistune.errors import UnknownName, UsageError
from vistune.serve.roster import Lineage, LocalAdapter, LocalModel, Roster, read_roster


def read(*models: str, adapters: tuple[str, ...] = (), **options) -> Roster:
    return read_roster(models, adapters, environment={}, **options)


def test_a_model_is_called_as_its_folder_or_as_one_says(tmp_path: Path):
    (tmp_path / "llava").mkdir()
    roster = read(str(tmp_path / "llava"), f"two={tmp_path}/llava", "owner/name@v2", "assistant")
    assert [(model.names, model.source) for model in roster.models] == [
        (("llava",), f"{tmp_path}/llava"),
        (("two",), f"{tmp_path}/llava"),
        (("owner/name@v2",), "owner/name@v2"),
        (("assistant",), "assistant"),
    ]
    assert roster.lineage["two"] == Lineage("llava")
    assert read("assistant", names=("a", "b", "a")).models == (LocalModel(("a", "b"), "assistant"),)


def test_a_folder_may_have_an_equals_sign_in_its_name(tmp_path: Path):
    (tmp_path / "lr=2").mkdir()
    assert read(str(tmp_path / "lr=2")).models == (LocalModel(("lr=2",), str(tmp_path / "lr=2")),)


def test_an_adapter_stands_on_the_first_model_or_on_the_one_that_it_names():
    roster = read("far=http://host/v1", "a=assistant", "b=owner/name@v2", adapters=("poet=./poet", "critic@b=./critic"))
    assert roster.adapters == (LocalAdapter("poet", "./poet", "a"), LocalAdapter("critic", "./critic", "b"))
    assert list(roster.lineage.items()) == [
        ("a", Lineage("assistant")),
        ("poet", Lineage("./poet", "a")),
        ("b", Lineage("owner/name@v2")),
        ("critic", Lineage("./critic", "b")),
        ("far", Lineage("far")),
    ]


def test_an_address_is_another_servers_model_under_our_name_or_its_own():
    environment = {"KEY": "sk-secret-of-the-upstream", "OTHER": "stays"}
    roster = read_roster(
        ["near=http://localhost:8001/v1", "far=https://gpu.example/api/v1/#owner/big%20model", "http://[::1]:1/v1#small"],
        keys_from=["far=KEY"],
        environment=environment,
    )
    assert [(each.name, each.address, each.model, each.key.reveal()) for each in roster.upstreams] == [
        ("near", "http://localhost:8001/v1", "near", ""),
        ("far", "https://gpu.example/api/v1/", "owner/big model", "sk-secret-of-the-upstream"),
        ("small", "http://[::1]:1/v1", "small", ""),
    ]
    assert environment == {"OTHER": "stays"}
    assert "sk-secret" not in repr(roster)
    assert roster.lineage["far"] == Lineage("owner/big model")


@pytest.mark.parametrize(
    ("models", "options", "complaint"),
    [
        (["a=x/y", "a=assistant"], {}, "Two models are called 'a'"),
        (["assistant", "assistant"], {}, "Two models are called 'assistant'"),
        (["a=assistant"], {"adapters": ["a=./x"]}, "Two models are called 'a'"),
        (["a=assistant", "a=http://host/v1"], {}, "Two models are called 'a'"),
        (["=assistant", "a="], {}, "names no model"),
        ([" a=assistant"], {}, "cannot be called"),
        (["a\n=assistant"], {}, "cannot be called"),
        ([f"{'a' * 200}=assistant"], {}, "cannot be called"),
        (["assistant", "x/y"], {"names": ["a"]}, "--name is for one model"),
        (["http://host/v1#a"], {"names": ["b"]}, "--name is for one model"),
        (["assistant"], {"adapters": ["./x"]}, "is no adapter"),
        (["assistant"], {"adapters": ["a@=./x"]}, "is no adapter"),
        (["http://host/v1#a"], {"adapters": ["b=./x"]}, "needs a model on this machine"),
        (["assistant"], {"adapters": ["a@assistent=./x"]}, "Did you mean 'assistant'"),
        (["a=http://host"], {}, "write http://host/v1"),
        (["http://host/v1"], {}, "What is the model"),
        (["a=http:///v1"], {}, "is no address of a server"),
        (["a=http://host:99999/v1"], {}, "is no address of a server"),
        (["a=http://[::1/v1"], {}, "is no address of a server"),
        (["a=http://good\\@evil/v1"], {}, "is no address of a server"),
        (["a=http://user:secret@host/v1"], {}, "--key-from"),
        (["a=http://host/v1?key=secret"], {}, "--key-from"),
        (["a=http://host/v1"], {"keys_from": ["a"]}, "--key-from NAME=VARIABLE"),
        (["a=http://host/v1"], {"keys_from": ["a=NOT_THERE"]}, "NOT_THERE is not set"),
    ],
)
def test_a_roster_that_cannot_be_is_refused_with_what_to_write_instead(models: list[str], options: dict, complaint: str):
    with pytest.raises(UsageError) as refused:
        read(*models, **options)
    assert complaint in str(refused.value)
    assert "secret" not in str(refused.value)


def test_a_key_for_a_server_that_is_not_there_is_refused():
    with pytest.raises(UnknownName, match="Did you mean 'far'"):
        read_roster(["far=http://host/v1"], keys_from=["fra=KEY"], environment={"KEY": "sk-secret"})
