"""Which rows two prompts have in common, and what is kept when memory is short."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.engine.conftest import ask, picture

from vistune.engine.kv_cache import KVArena, KVShape
from vistune.engine.prefixes import ImageSpan, PrefixCache, TokenPath
from vistune.model.processor import Processor


def text(words: str) -> TokenPath:
    return TokenPath(np.frombuffer(words.encode(), dtype=np.uint8).astype(np.int64))


def small_arena() -> KVArena:
    return KVArena(KVShape(layers=1, heads=1, head_dim=2), dtype=torch.float32)


def kept_entry(arena: KVArena, cache: PrefixCache, words: str) -> None:
    sequence = arena.allocate(reserve=len(words))
    arena.view([sequence]).commit([len(words)])
    cache.keep(text(words), sequence)


def test_a_path_knows_where_each_picture_is(processor: Processor):
    conversation = ask("What?", image=picture(1)).then("assistant", "That.").then("user", picture(2), picture(3), "And?")
    inputs = processor(conversation)
    path = TokenPath.of(inputs, processor.config)
    assert [image.end - image.start for image in path.images] == [4, 4, 4]
    assert all(bool(inputs.image_mask[image.start : image.end].all()) for image in path.images)
    assert [image.key for image in path.images] == list(inputs.image_keys)
    assert path.common_length(path) == len(path)


def test_paths_part_at_the_first_other_token_or_picture():
    assert text("abcde").common_length(text("abXde")) == 2
    assert text("abc").common_length(text("abcde")) == 3
    one = TokenPath(np.array([1, -1, -1, 2]), (ImageSpan(1, 3, "cat"),))
    assert one.common_length(replace(one, images=(ImageSpan(1, 3, "dog"),))) == 1
    assert one.common_length(one.extended([], 2)) == 2
    unknown = replace(one, images=(ImageSpan(1, 3, None),))
    assert unknown.common_length(unknown) == 1


def test_pictures_side_by_side_are_told_apart():
    def two(*keys: str) -> TokenPath:
        return TokenPath(np.array([1, -1, -1, -1, -1, 2]), tuple(ImageSpan(1 + 2 * at, 3 + 2 * at, key) for at, key in enumerate(keys)))

    assert two("cat", "dog").common_length(two("cat", "owl")) == 3
    assert two("cat", "dog").common_length(two("dog", "cat")) == 1


def test_paths_of_other_salt_have_nothing_in_common_and_their_continuations_keep_it():
    one = replace(text("a long way of forty rows, each of a letter"), salt="mine")
    assert (one.common_length(replace(one)), one.common_length(replace(one, salt=""))) == (len(one), 0)
    assert not set(one.digests) & set(replace(one, salt="yours").digests)
    assert one.extended([7], 20).common_length(one) == 20
    arena = small_arena()
    cache = PrefixCache(arena)
    sequence = arena.allocate(reserve=len(one))
    arena.view([sequence]).commit([len(one)])
    cache.keep(one, sequence)
    assert cache.longest(replace(one, salt="yours")) == (None, 0)
    assert cache.longest(replace(one))[1] == len(one)


def test_the_longest_match_is_found_and_a_continued_entry_is_replaced():
    arena = small_arena()
    cache = PrefixCache(arena)
    for words in ("hello", "help me", "hello world"):
        kept_entry(arena, cache, words)
    assert len(cache) == len(arena) == 2  # "hello" is part of "hello world"
    kept, length = cache.longest(text("hello wide"))
    assert kept is not None
    assert (len(kept.path), length) == (len("hello world"), len("hello w"))
    assert cache.longest(text("other")) == (None, 0)


def test_the_entry_unused_for_longest_goes_first():
    arena = small_arena()
    cache = PrefixCache(arena)
    for words in ("one", "two", "three"):
        kept_entry(arena, cache, words)
    kept, _ = cache.longest(text("one"))
    assert kept is not None
    cache.use(kept)
    assert cache.drop_oldest()
    assert cache.longest(text("two"))[1] == 1  # what it shares with "three"
    assert cache.drop_oldest(but=kept)
    assert not cache.drop_oldest(but=kept)
    assert (len(cache), len(arena)) == (1, 1)


def test_among_hundreds_the_longest_is_found_without_comparing_them_all(monkeypatch: pytest.MonkeyPatch):
    arena = KVArena(KVShape(layers=1, heads=1, head_dim=1), dtype=torch.float32)
    cache = PrefixCache(arena)
    random = np.random.default_rng(0)
    system = random.integers(0, 1000, 40)
    paths = [TokenPath(np.concatenate([system, random.integers(0, 1000, 100)])) for _ in range(300)]
    for each in paths:
        cache.keep(each, arena.allocate())
    assert len(cache) == 300
    compared: list[int] = []
    original = TokenPath.common_length
    monkeypatch.setattr(TokenPath, "common_length", lambda self, other: compared.append(1) or original(self, other))
    for wanted in (paths[3], paths[250]):
        found, length = cache.longest(TokenPath(np.concatenate([wanted.ids[:120], [5, 5]])))
        assert found is not None
        assert found.path is wanted
        assert length == 120
    found, length = cache.longest(TokenPath(np.concatenate([system, [1001] * 50])))
    assert 40 <= length < 48
    assert len(compared) < 100
    while cache.drop_oldest():
        pass
    assert cache.longest(paths[3]) == (None, 0)
    assert not cache._beginning
    assert not cache._whole
