"""The store of frozen features: what went in comes out, whole or not at all, for exactly this tower and picture."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from vistune.model.config import ImageConfig, ModelConfig
from vistune.model.inputs import ModelInputs
from vistune.train.features import Costs, FeatureStore, FrozenFeatures, digest_of, open_store, picture_keys
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


def counting(calls: list[int]) -> Callable[[Tensor], Tensor]:
    """A tower whose features are the picture's mean, and that notes how many pictures it saw at a time."""

    def encode(pixels: Tensor) -> Tensor:
        calls.append(len(pixels))
        return pixels.mean(dim=(1, 2, 3)).reshape(-1, 1, 1).expand(-1, 4, 3)

    return encode


def shows(*pictures: int) -> tuple[tuple[str, ...], Callable[[], ModelInputs]]:
    """A conversation about pictures that are each one number."""
    pixels = torch.stack([torch.full((3, 2, 2), float(number)) for number in pictures])
    nothing = torch.zeros(1, dtype=torch.int64)
    inputs = ModelInputs(nothing, nothing.bool(), pixel_values=pixels, views=(1,) * len(pictures), image_sizes=((2, 2),) * len(pictures))
    return tuple(str(number) for number in pictures), lambda: inputs


def shown(frozen: FrozenFeatures, *pictures: int) -> list[float]:
    """What the features of a conversation's pictures say that they are."""
    keys, load = shows(*pictures)
    attached = frozen.attach(replace(load(), pixel_values=None), keys, load)
    assert attached.image_features is not None
    assert attached.pixel_values is None
    return attached.image_features[:, 0, 0].tolist()


def test_the_tower_runs_once_per_picture_and_in_batches(make_store: Callable[[], FeatureStore]):
    calls: list[int] = []
    encode = counting(calls)
    frozen = FrozenFeatures(encode, make_store(), views_per_forward=3)
    frozen.fill([shows(1), shows(1, 2), shows(2), shows(3)], on_done=lambda: None)
    assert calls == [2, 1]
    assert shown(frozen, 3, 1, 4) == [3.0, 1.0, 4.0]
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


# --- A cache with a limit ---


def bytes_below(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def test_a_cache_never_holds_more_than_it_may_and_pictures_beyond_it_are_encoded_when_met(tmp_path: Path):
    limit = 500
    (tmp_path / "another tower").mkdir()
    (tmp_path / "another tower" / "features.bin").write_bytes(bytes(200))
    store = FeatureStore(tmp_path / "store", tokens=4, width=3, dtype=torch.float32, max_bytes=limit)
    calls: list[int] = []
    frozen = FrozenFeatures(counting(calls), store, views_per_forward=2)
    done: list[int] = []
    frozen.fill((shows(number) for number in range(20)), on_done=lambda: done.append(1))
    assert len(done) == 20
    assert frozen.full
    assert 1 <= len(store) <= 5
    assert limit - 150 < bytes_below(tmp_path) <= limit
    assert len(calls) < 5  # nothing is encoded in vain once it is full
    kept, before = len(store), len(calls)
    assert shown(frozen, 0, 19, 0) == [0.0, 19.0, 0.0]
    assert shown(frozen, 19) == [19.0]
    assert len(calls) == before + 2
    assert len(store) == kept
    assert bytes_below(tmp_path) <= limit
    store.close()


def test_two_stores_below_one_folder_keep_to_its_limit_together(tmp_path: Path):
    stores = [FeatureStore(tmp_path / name, tokens=4, width=3, dtype=torch.bfloat16, max_bytes=600) for name in ("one", "other")]
    room = [store.put(str(number), features(1, number)) for number in range(10) for store in stores]
    assert True in room
    assert False in room
    assert bytes_below(tmp_path) <= 600
    for store in stores:
        store.close()


def test_threads_that_add_and_read_at_once_lose_nothing(make_store: Callable[[], FeatureStore]):
    store = make_store()
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda number: store.put(str(number % 40), features(1, number % 40)), range(120)))
        found = list(threads.map(lambda number: store.get(str(number)), range(40)))
    again = make_store()
    for number, each in enumerate(found):
        assert torch.equal(each, features(1, number))  # type: ignore[arg-type]
        assert torch.equal(again.get(str(number)), features(1, number))  # type: ignore[arg-type]
    assert bytes_below(store.folder) < 40 * (24 + 50)


# --- Whether it pays ---


def costs(**changes: Any) -> Costs:
    return replace(Costs(encode_ms=10.0, write_ms=1.0, read_ms=0.5, pictures=100, stored=0, meetings=300), **changes)


def test_a_cache_pays_where_pictures_are_met_again_or_are_in_it_already():
    assert costs().pays
    assert not costs(meetings=100).pays  # each picture once: encoded either way
    assert costs(meetings=100, stored=100).pays  # unless an earlier run left them there
    assert not costs(read_ms=10.0).pays
    assert not costs(encode_ms=0.3).pays  # a tower that is quicker than the disk
    assert costs(pictures=100, stored=40, meetings=150).seconds_with == pytest.approx((60 * 11 + 150 * 0.5) / 1000)


def test_costs_count_pictures_by_what_they_show_and_say_what_was_decided(
    make_store: Callable[[], FeatureStore], monkeypatch: pytest.MonkeyPatch
):
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now.append(now[-1] + 0.001) or now[-1])  # every look at the clock takes 1 ms

    def slow(pixels: Tensor) -> Tensor:
        now.append(now[-1] + 0.02 * len(pixels))
        return counting([])(pixels)

    frozen = FrozenFeatures(slow, make_store())
    training, validation = [shows(1), shows(1, 2), shows(3), ((), shows(9)[1])], [shows(3), shows(4)]
    found = frozen.costs((training, 3.0), (validation, 10.0))
    assert (found.pictures, found.meetings) == (4, 3 * 4 + 10 * 2)
    assert found.stored == 0
    assert found.encode_ms == pytest.approx(20.5)
    assert found.read_ms == pytest.approx(0.25)
    assert found.pays
    assert str(found).startswith("Features are cached: this run meets 4 pictures (0 stored before) 32 times")
    assert frozen.costs((training, 3.0), (validation, 10.0)).stored == 4  # what was measured is kept
    once = frozen.costs(([shows(7)], 1.0))
    assert str(once).startswith("Features are not cached")


def test_a_run_without_pictures_has_nothing_to_cache(make_store: Callable[[], FeatureStore]):
    nothing = FrozenFeatures(counting([]), make_store()).costs(([((), shows(1)[1])], 1.0))
    assert (nothing.pictures, nothing.meetings, nothing.pays) == (0, 0, False)
