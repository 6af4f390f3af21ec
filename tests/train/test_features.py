"""The store of frozen features: what went in comes out, whole or not at all, for exactly this tower and picture."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from vistune.model.config import ImageConfig, ModelConfig
from vistune.model.inputs import ModelInputs
from vistune.train.features import FeatureStore, FrozenFeatures, digest_of, open_store, picture_keys
from vistune.types import Conversation, ImagePart, Message


@pytest.fixture
def make_store(tmp_path: Path) -> Iterator[Callable[[], FeatureStore]]:
    stores: list[FeatureStore] = []

    def make() -> FeatureStore:
        stores.append(FeatureStore(tmp_path / "store", tokens=4, width=3, dtype=torch.bfloat16))
        return stores[-1]

    yield make
    for store in stores:
        store.close()


def features(views: int, seed: int) -> Tensor:
    return torch.randn(views, 4, 3, generator=torch.Generator().manual_seed(seed)).bfloat16()


def test_features_come_back_bit_for_bit_also_after_reopening(make_store: Callable[[], FeatureStore]):
    first = make_store()
    first.put("a", features(1, 0))
    first.put("b", features(3, 1))
    for store in (first, make_store()):
        assert torch.equal(store.get("a"), features(1, 0))  # type: ignore[arg-type]
        assert torch.equal(store.get("b"), features(3, 1))  # type: ignore[arg-type]
        assert store.get("c") is None
        assert "c" not in store


def test_two_writers_take_turns_and_lose_nothing(make_store: Callable[[], FeatureStore]):
    one, other = make_store(), make_store()
    one.put("a", features(2, 0))
    other.put("b", features(1, 1))
    one.put("c", features(1, 2))
    fresh = make_store()
    assert [torch.equal(fresh.get(key), features(views, seed)) for key, views, seed in (("a", 2, 0), ("b", 1, 1), ("c", 1, 2))] == [
        True
    ] * 3  # type: ignore[arg-type]


@pytest.mark.parametrize("cut", [1, 7, 23])
def test_a_writer_killed_in_the_middle_costs_only_its_own_entry(make_store: Callable[[], FeatureStore], cut: int):
    store = make_store()
    store.put("a", features(1, 0))
    with (store.folder / "features.bin").open("ab") as file:
        file.write(b"x" * cut)
    with (store.folder / "index.txt").open("ab") as file:
        file.write(b"b 1 1 0000000"[:cut])
    after = make_store()
    assert "b" not in after
    after.put("c", features(1, 2))
    assert torch.equal(make_store().get("c"), features(1, 2))  # type: ignore[arg-type]
    assert torch.equal(make_store().get("a"), features(1, 0))  # type: ignore[arg-type]


def test_a_flipped_bit_is_noticed(make_store: Callable[[], FeatureStore]):
    make_store().put("a", features(1, 0))
    path = make_store().folder / "features.bin"
    data = bytearray(path.read_bytes())
    data[5] ^= 1
    path.write_bytes(data)
    assert make_store().get("a") is None


def test_the_tower_runs_once_per_picture_and_in_batches(make_store: Callable[[], FeatureStore]):
    calls: list[int] = []

    def encode(pixels: Tensor) -> Tensor:
        calls.append(len(pixels))
        return pixels.mean(dim=(1, 2, 3)).reshape(-1, 1, 1).expand(-1, 4, 3)

    def shows(*pictures: int) -> tuple[tuple[str, ...], Callable[[], ModelInputs]]:
        pixels = torch.stack([torch.full((3, 2, 2), float(number)) for number in pictures])
        nothing = torch.zeros(1, dtype=torch.int64)
        inputs = ModelInputs(
            nothing, nothing.bool(), pixel_values=pixels, views=(1,) * len(pictures), image_sizes=((2, 2),) * len(pictures)
        )
        return tuple(str(number) for number in pictures), lambda: inputs

    frozen = FrozenFeatures(encode, make_store(), views_per_forward=3)
    frozen.fill([shows(1), shows(1, 2), shows(2), shows(3)], on_done=lambda: None)
    assert calls == [2, 1]
    keys, load = shows(3, 1, 4)
    attached = frozen.attach(replace(load(), pixel_values=None), keys, load)
    assert attached.image_features is not None
    assert attached.image_features[:, 0, 0].tolist() == [3.0, 1.0, 4.0]
    assert calls == [2, 1, 1]


def config(**changes: Any) -> ModelConfig:
    return replace(ModelConfig(vision_tower="clip", text_config={}), **changes)


def test_a_changed_tower_layer_or_format_has_a_store_of_its_own(tmp_path: Path):
    def place(tower: nn.Module, dtype: torch.dtype = torch.float32, **changes: Any) -> Path:
        store = open_store(tmp_path, tower, config(**changes), tokens=4, width=3, dtype=dtype)
        store.close()
        return store.folder

    tower = nn.Linear(2, 2)
    changed = nn.Linear(2, 2)
    places = [place(tower), place(changed), place(tower, feature_layer=-1), place(tower, dtype=torch.bfloat16), place(tower)]
    assert len(set(places)) == 4
    assert places[0] == places[-1]
    assert digest_of(tower.state_dict().items()) != digest_of(changed.state_dict().items())


def test_a_key_changes_with_the_bytes_the_preprocessing_and_the_company(tmp_path: Path):
    for name, colour in (("a.png", "red"), ("b.png", "red"), ("c.png", "blue")):
        Image.new("RGB", (8, 8), colour).save(tmp_path / name)

    def keys(*pictures: str, **changes: Any) -> tuple[str, ...]:
        parts = tuple(ImagePart(tmp_path / name) for name in pictures)
        return picture_keys(Conversation((Message("user", parts),)), config(**changes))

    assert keys("a.png") == keys("b.png") != keys("c.png")
    assert keys("a.png") != keys("a.png", image=ImageConfig(mode="square"))
    assert keys("a.png")[0] != keys("a.png", "c.png")[0]
    assert keys("a.png") == keys("a.png", template="plain")
