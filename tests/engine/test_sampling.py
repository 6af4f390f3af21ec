"""Drawing tokens, and holding text back until it is known what it is."""

from __future__ import annotations

import dataclasses
import gzip
import json
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tests.engine.conftest import byte_tokenizer
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from vistune.engine.sampling import Detokenizer, ReplyText, Sampler, StopStrings, token_logprob
from vistune.types import SamplingParams


@cache
def byte_level() -> PreTrainedTokenizerFast:
    return byte_tokenizer()


@cache
def byte_fallback() -> PreTrainedTokenizerFast:
    """Llama's own: words with a blank in front, bytes for what the vocabulary lacks."""
    data = json.loads(gzip.decompress((Path(__file__).parent.parent / "fixtures" / "llama_tokenizer.json.gz").read_bytes()))
    words, merges = data["vocabulary"], data["merges"]
    pairs = [(words[left], words[right]) for left, right in zip(merges[::2], merges[1::2], strict=True)]
    vocabulary = {word: index for index, word in enumerate(words)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=pairs, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>")


TEXTS = st.lists(st.sampled_from(["😀", "👩‍🚀", "日本", "é", " a", "cat", "\n", "  ", "𓀀𓀁", "."]) | st.text(max_size=3), max_size=8).map(
    "".join
)


# --- stop strings ---


def cut_at_first_completed(text: str, stops: list[str]) -> str:
    """The definition: read letter by letter; when a stop string is complete, the text ends before its beginning."""
    for end in range(len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            return text[: end - max(map(len, complete))]
    return text


@settings(deadline=None)
@given(
    st.text("abc", max_size=30),
    st.lists(st.text("abc", min_size=1, max_size=4), max_size=3),
    st.lists(st.integers(0, 30), max_size=8),
)
def test_stop_strings_cut_the_same_however_the_text_is_split(text: str, stops: list[str], cuts: list[int]):
    strings = StopStrings(stops)
    places = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    shown = ""
    for start, end in pairwise(places):
        shown += strings.push(text[start:end])
        assert cut_at_first_completed(text, stops).startswith(shown)
    assert shown + strings.flush() == cut_at_first_completed(text, stops)
    assert strings.stopped == (cut_at_first_completed(text, stops) != text or any(text.endswith(stop) for stop in stops))


def test_of_two_stop_strings_the_one_complete_first_counts():
    assert StopStrings(["abcd", "bc"]).push("abcd") == "a"
    assert StopStrings(["abc", "bc"]).push("abcd") == ""


def test_the_beginning_of_a_stop_string_is_held_until_it_is_something_else():
    strings = StopStrings(["###"])
    assert [strings.push(piece) for piece in ("a#", "#", "b", "##")] == ["a", "", "##b", ""]
    assert strings.flush() == "##"


# --- whole characters ---


@settings(deadline=None)  # the first example builds the tokenizer
@given(text=TEXTS)
@pytest.mark.parametrize("make_tokenizer", [byte_level, byte_fallback])
def test_pieces_join_to_the_text_and_never_show_half_a_character(make_tokenizer: Callable[[], PreTrainedTokenizerFast], text: str):
    assume("\ufffd" not in text)
    tokenizer = make_tokenizer()
    ids = tokenizer(text, add_special_tokens=False).input_ids
    whole = tokenizer.decode(ids, skip_special_tokens=True)
    detokenizer = Detokenizer(tokenizer, [])
    pieces = [detokenizer.push(token) for token in ids]
    assert not any("\ufffd" in piece for piece in pieces)
    assert "".join(pieces) + detokenizer.flush() == whole


def test_a_long_reply_is_never_decoded_anew(monkeypatch: pytest.MonkeyPatch):
    tokenizer = byte_tokenizer()
    decoded: list[int] = []
    decode = tokenizer.decode
    monkeypatch.setattr(tokenizer, "decode", lambda ids, **options: decoded.append(len(ids)) or decode(ids, **options))
    detokenizer = Detokenizer(tokenizer, [])
    for token in tokenizer("A long reply. 😀 " * 20).input_ids:
        detokenizer.push(token)
    assert max(decoded) < 12


def test_an_emoji_of_four_bytes_appears_with_its_last_one():
    ids = byte_level()("a😀b", add_special_tokens=False).input_ids
    detokenizer = Detokenizer(byte_level(), [])
    assert [detokenizer.push(token) for token in ids] == ["a", "", "", "", "😀", "b"]


def test_bytes_that_never_become_a_character_are_shown_as_such():
    broken = byte_level()("😀", add_special_tokens=False).input_ids[:2]
    detokenizer = Detokenizer(byte_level(), [])
    assert [detokenizer.push(token) for token in broken] == ["", ""]
    assert set(detokenizer.flush()) == {"\ufffd"}
    endless = Detokenizer(byte_level(), [])
    assert "".join(endless.push(broken[1]) for _ in range(100)).count("\ufffd") > 80


def test_ids_without_text_are_passed_over():
    detokenizer = Detokenizer(byte_level(), [-1, 10_000])
    end = byte_level().convert_tokens_to_ids("<|im_end|>")
    assert [detokenizer.push(token) for token in (10_000, end)] == ["", ""]


# --- the reply ---


def spoken(text: str, *, stops: tuple[str, ...] = (), continued: bool = False, reason: str = "stop", prompt: str = "") -> str:
    tokenizer = byte_level()
    reply = ReplyText(tokenizer, tokenizer(prompt).input_ids, stops, continued=continued)
    shown = ""
    for token in tokenizer(text, add_special_tokens=False).input_ids:
        shown += reply.push(token)
        if reply.stopped:
            break
    shown += reply.finish(reason)  # type: ignore[arg-type]
    assert shown == reply.text
    return shown


def test_blanks_around_a_reply_belong_to_the_template():
    assert spoken(" \n A cat.\n And  a dog. \n") == "A cat.\n And  a dog."
    assert spoken(" A cat. ", reason="length") == "A cat. "
    assert spoken(" sat. ", continued=True, prompt="The cat") == " sat."


def test_a_continued_word_keeps_its_blank_with_a_tokenizer_that_drops_the_first():
    tokenizer = byte_fallback()
    prompt, ids = tokenizer("The").input_ids, tokenizer("The cat").input_ids
    reply = ReplyText(tokenizer, prompt, (), continued=True)
    assert "".join(reply.push(token) for token in ids[len(prompt) :]) == " cat"


def test_a_stop_string_across_characters_and_blanks_is_not_shown():
    assert spoken("Fine. \n### Human:", stops=("###",)) == "Fine."
    assert spoken("是的。结束了", stops=("结束",)) == "是的。"


def test_a_stop_string_completed_by_the_last_bytes_still_stops():
    assert spoken("end\ufffd", stops=("d\ufffd",)) == "en"


# --- drawing ---


def test_temperature_zero_takes_the_likeliest_token():
    assert Sampler(SamplingParams()).draw(torch.tensor([0.0, 3.0, 1.0])) == 1


def test_draws_follow_the_probabilities():
    logits = torch.tensor([0.5, 0.3, 0.2]).log()
    sampler = Sampler(SamplingParams(temperature=1.0, seed=0))
    counts = torch.bincount(torch.tensor([sampler.draw(logits) for _ in range(4000)]), minlength=3) / 4000
    assert torch.allclose(counts, torch.tensor([0.5, 0.3, 0.2]), atol=0.03)


def test_top_p_keeps_the_likeliest_tokens_that_reach_it():
    logits = torch.tensor([0.1, 0.5, 0.15, 0.25]).log()
    for top_p, kept in ((0.0, {1}), (0.5, {1}), (0.6, {1, 3}), (0.8, {1, 3, 2}), (1.0, {0, 1, 2, 3})):
        sampler = Sampler(SamplingParams(temperature=1.0, top_p=top_p, seed=0))
        assert {sampler.draw(logits) for _ in range(300)} == kept


def test_top_p_over_many_equal_tokens_keeps_its_share_of_them():
    sampler = Sampler(SamplingParams(temperature=1.0, top_p=0.5, seed=0))
    assert 400 < len({sampler.draw(torch.zeros(1000)) for _ in range(3000)}) <= 501


@pytest.mark.parametrize("temperature", [1e-6, 1e6])
def test_extreme_temperatures_still_draw_a_token(temperature: float):
    sampler = Sampler(SamplingParams(temperature=temperature, seed=0))
    draws = {sampler.draw(torch.tensor([1.0, 2.0, 500.0])) for _ in range(100)}
    assert draws == ({2} if temperature < 1 else {0, 1, 2})


def test_top_k_and_min_p_keep_only_the_likeliest():
    logits = torch.tensor([0.1, 0.5, 0.15, 0.25]).log()
    for asked, kept in (({"top_k": 1}, {1}), ({"top_k": 3}, {1, 3, 2}), ({"min_p": 0.4}, {1, 3}), ({"min_p": 1.0}, {1})):
        sampler = Sampler(SamplingParams(temperature=1.0, seed=0, **asked))  # type: ignore[arg-type]
        assert {sampler.draw(logits) for _ in range(300)} == kept
    both = Sampler(SamplingParams(temperature=1.0, seed=0, top_k=3, top_p=0.6, min_p=0.1))
    assert {both.draw(logits) for _ in range(300)} == {1, 3}
    many = Sampler(SamplingParams(temperature=1.0, seed=0, top_k=400))
    assert 256 < len({many.draw(torch.zeros(1000)) for _ in range(3000)}) <= 400


@pytest.mark.parametrize("temperature", [0.0, 1e-3])
def test_penalties_are_taken_off_what_the_reply_has_already(temperature: float):
    logits = torch.tensor([0.0, 1.0, 1.9])
    params = SamplingParams(temperature=temperature, seed=0)
    frequency = Sampler(dataclasses.replace(params, frequency_penalty=0.5))
    assert [frequency.draw(logits) for _ in range(5)] == [2, 2, 1, 2, 1]  # 1.9, 1.4, then 0.9 against 1.0, ...
    presence = Sampler(dataclasses.replace(params, presence_penalty=1.2))
    assert [presence.draw(logits) for _ in range(4)] == [2, 1, 2, 2]  # once for all
    liked = Sampler(dataclasses.replace(params, frequency_penalty=-2.0, logit_bias=((0, 2.0),)))
    assert [liked.draw(logits) for _ in range(3)] == [0, 0, 0]
    assert logits.tolist() == [0.0, 1.0, pytest.approx(1.9)]


def test_a_bias_is_added_for_each_token_that_it_names():
    logits = torch.tensor([0.0, 1.0, 2.0])
    assert Sampler(SamplingParams(logit_bias=((2, -100.0), (0, 0.5)))).draw(logits) == 1
    assert Sampler(SamplingParams(logit_bias=((0, 100.0),))).draw(logits) == 0


def test_seeds_repeat_and_large_ones_are_taken():
    def draws(seed: int) -> list[int]:
        sampler = Sampler(SamplingParams(temperature=1.0, seed=seed))
        return [sampler.draw(torch.zeros(1000)) for _ in range(5)]

    assert draws(3) == draws(3) != draws(4)
    assert draws(2**64 - 1) == draws(2**64 - 1)


def test_logprobs_are_those_of_the_model_before_temperature():
    logits = torch.tensor([0.1, 0.2, 0.7]).log() + 5
    logprob = token_logprob(byte_level(), logits, 1, 2)
    assert logprob.logprob == pytest.approx(torch.tensor(0.2).log().item(), abs=1e-5)
    assert [token for token, _ in logprob.top] == [byte_level().decode([2]), byte_level().decode([1])]
