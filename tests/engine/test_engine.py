"""The engine as its callers see it: same words as a plain loop, alone or in company, streamed, cancelled, continued."""

from __future__ import annotations

import asyncio
import copy
import threading
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from tests.engine.conftest import ask, byte_tokenizer, picture, run, tiny_config, tiny_model

from vistune.chat_model import ChatModel, ScoringChatModel, SynchronousChatModel, sample
from vistune.engine import scheduler
from vistune.engine.engine import Engine, best_dtype
from vistune.errors import ContextLengthError, ImageError, NonFiniteError, OutOfMemory, UsageError
from vistune.model.config import ImageConfig
from vistune.model.inputs import lay_end_to_end
from vistune.model.llava import Llava
from vistune.model.processor import Processor
from vistune.types import Conversation, ImagePart, Reply, SamplingParams

SHORT = SamplingParams(max_new_tokens=12)
ENDLESS = SamplingParams(max_new_tokens=600)  # greedy, the tiny model never ends a reply by itself
MakeEngine = Callable[..., Engine]


def reference_tokens(model: Llava, processor: Processor, conversation: Conversation, count: int) -> list[int]:
    """Greedy decoding without cache, chunks or batches: the whole sequence again for each token."""
    inputs = processor(conversation)
    generated: list[int] = []
    while len(generated) < count and not set(generated) & processor.stop_ids:
        ids = torch.cat([inputs.input_ids, torch.tensor(generated, dtype=torch.int64)])
        mask = torch.cat([inputs.image_mask, torch.zeros(len(generated), dtype=torch.bool)])
        with torch.inference_mode():
            logits = model(lay_end_to_end([replace(inputs, input_ids=ids, image_mask=mask)]))
        generated.append(int(logits[-1].argmax()))
    return generated


CONVERSATIONS = [
    ask("What is this?", image=picture(1)),
    ask("Say something."),
    ask("And " * 90, image=picture(2)),
    ask("x"),
    ask("What is this?", image=picture(3)),
    ask("What is that, then?", image=picture(1)),
    ask("A long question " * 20),
    ask("Bye."),
]


def test_greedy_words_equal_those_of_a_loop_without_cache(make_engine: MakeEngine, model: Llava, processor: Processor):
    engine = make_engine()
    for conversation in CONVERSATIONS[:4]:
        tokens = [token for token in reference_tokens(model, processor, conversation, 12) if token not in processor.stop_ids]
        expected = processor.tokenizer.decode(tokens, skip_special_tokens=True)
        reply = run(engine.generate(conversation, SHORT))
        assert reply.text.strip() == expected.strip()
        assert reply.prompt_tokens == processor(conversation).num_tokens


@pytest.mark.parametrize("deterministic", [False, True])
def test_eight_at_once_say_the_same_as_each_alone(make_engine: MakeEngine, deterministic: bool):
    params = SamplingParams(max_new_tokens=12, logprobs=1)
    alone = [run(make_engine(deterministic=deterministic).generate(conversation, params)) for conversation in CONVERSATIONS]

    async def together() -> list[Reply]:
        engine = make_engine(deterministic=deterministic)
        return await asyncio.gather(*(engine.generate(conversation, params) for conversation in CONVERSATIONS))

    for one, other in zip(alone, run(together()), strict=True):
        assert one.text == other.text
        assert one.completion_tokens == other.completion_tokens
        if one.cached_tokens == other.cached_tokens:  # else a prefix was read by another request, in other pieces
            assert one.logprobs == other.logprobs


def test_deterministic_mode_gives_the_same_bits_in_bf16_after_anything(make_engine: MakeEngine, model: Llava, processor: Processor):
    bf16 = copy.deepcopy(model).bfloat16()
    params = SamplingParams(max_new_tokens=8, logprobs=2)
    busy = make_engine(model=bf16, deterministic=True)

    async def in_company() -> list[Reply]:
        return await asyncio.gather(*(busy.generate(conversation, params) for conversation in CONVERSATIONS))

    run(in_company())
    for conversation, again in zip(CONVERSATIONS, run(in_company()), strict=True):
        cold = run(make_engine(model=bf16, deterministic=True).generate(conversation, params))
        assert cold.logprobs == again.logprobs
    assert any(reply.cached_tokens for reply in run(in_company()))


def test_the_arithmetic_is_named_for_records(make_engine: MakeEngine):
    assert make_engine().arithmetic == "float32 on cpu"
    assert make_engine(deterministic=True).arithmetic == "float32 on cpu, deterministic"


def test_streamed_pieces_join_to_the_reply(make_engine: MakeEngine):
    with SynchronousChatModel(make_engine()) as chat:
        deltas = list(chat.stream(CONVERSATIONS[0], SHORT))
    assert "".join(delta.text for delta in deltas) == deltas[-1].reply.text  # type: ignore[union-attr]
    assert [delta.reply is None for delta in deltas] == [True] * (len(deltas) - 1) + [False]


def test_a_second_question_reads_only_its_own_words(make_engine: MakeEngine, rows_read: list[list[int]], processor: Processor):
    engine = make_engine()
    first = ask("What is this?", image=picture())
    reply = run(engine.generate(first, SHORT))
    rows_read.clear()
    second = first.then("assistant", "Noted.").then("user", "And now?")
    answer = run(engine.generate(second, SamplingParams(max_new_tokens=1)))
    prompt = processor(second).num_tokens
    # What follows the first question differs from what the engine itself said; up to there nothing is read again.
    assert answer.cached_tokens >= reply.prompt_tokens
    assert rows_read == [[prompt - answer.cached_tokens]]


def test_the_tower_does_not_look_again_at_a_known_picture(make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch):
    looked: list[int] = []
    original = Llava.encode_images
    monkeypatch.setattr(Llava, "encode_images", lambda self, pixels: looked.append(len(pixels)) or original(self, pixels))
    engine = make_engine()
    for question in (ask("One?", image=picture(1)), ask("Two?", image=picture(1)), ask("Two?", image=picture(2))):
        run(engine.generate(question, SHORT))
    assert looked == [1, 1]


def test_another_picture_in_the_same_words_is_another_prompt(make_engine: MakeEngine, processor: Processor):
    engine = make_engine()
    warm = [run(engine.generate(ask("What?", image=picture(seed)), SHORT)) for seed in (1, 2, 1)]
    cold = [run(make_engine().generate(ask("What?", image=picture(seed)), SHORT)) for seed in (1, 2)]
    assert [reply.text for reply in warm] == [cold[0].text, cold[1].text, cold[0].text]
    first_row = int(processor(ask("What?", image=picture())).image_mask.nonzero()[0])
    assert warm[1].cached_tokens == first_row
    assert warm[2].cached_tokens > first_row + 4


@pytest.mark.parametrize("mode", ["pad", "anyres"])
def test_a_picture_in_a_later_turn_is_the_only_one_looked_at(make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch, mode: str):
    tokenizer = byte_tokenizer()
    pinpoints = ((28, 56), (56, 28)) if mode == "anyres" else ()
    settings = ImageConfig(size=28, mode=mode, pinpoints=pinpoints, several_images="anyres")
    processor = Processor(tokenizer, tiny_config(tokenizer, image=settings, image_newline=mode == "anyres"))
    model = tiny_model(processor)
    engine = make_engine(model=model, processor=processor)
    first = Conversation(()).then("user", picture(1), "and", picture(2), "What?")
    second = first.then("assistant", run(engine.generate(first, SHORT)).text).then("user", "And", picture(3), "this?")
    cold = run(make_engine(model=model, processor=processor).generate(second, SHORT))
    looked: list[int] = []
    original = Llava.encode_images
    monkeypatch.setattr(Llava, "encode_images", lambda self, pixels: looked.append(len(pixels)) or original(self, pixels))
    warm = run(engine.generate(second, SHORT))
    assert warm.text == cold.text
    assert looked == [processor(second).views[-1]]


def test_deterministic_reuse_may_end_inside_a_picture(make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch, processor: Processor):
    monkeypatch.setattr(scheduler, "CHUNK", 19)
    conversation = ask("What?", image=picture(1))
    rows = processor(conversation).image_mask.nonzero().flatten().tolist()
    assert rows[0] < 38 <= rows[-1]
    params = replace(SHORT, logprobs=1)
    cold = run(make_engine(deterministic=True).generate(conversation, params))
    engine = make_engine(deterministic=True)
    run(engine.generate(ask("Who?", image=picture(1)), params))
    warm = run(engine.generate(conversation, params))
    assert warm.cached_tokens == 38
    assert warm.logprobs == cold.logprobs


def test_many_questions_about_one_picture_at_once_read_it_once(make_engine: MakeEngine, rows_read: list[list[int]]):
    engine = make_engine()
    shared = "Look at this carefully. " * 12

    async def together() -> list[Reply]:
        questions = (ask(f"{shared}{number}", image=picture()) for number in range(4))
        return await asyncio.gather(*(engine.generate(question, SamplingParams(max_new_tokens=1)) for question in questions))

    replies = run(together())
    assert sorted(reply.cached_tokens > len(shared) for reply in replies) == [False, True, True, True]
    assert sum(map(sum, rows_read)) == sum(reply.prompt_tokens - reply.cached_tokens for reply in replies)


def test_a_seed_gives_the_same_words_in_any_company(make_engine: MakeEngine):
    params = SamplingParams(max_new_tokens=12, temperature=1.5, top_p=0.95, seed=7)
    alone = run(make_engine().generate(CONVERSATIONS[0], params))

    async def together() -> list[Reply]:
        engine = make_engine()
        others = (engine.generate(each, replace(params, seed=None)) for each in CONVERSATIONS[1:])
        return await asyncio.gather(engine.generate(CONVERSATIONS[0], params), *others)

    assert run(together())[0].text == alone.text
    assert len({run(make_engine().generate(CONVERSATIONS[0], replace(params, seed=seed))).text for seed in range(4)}) > 1


def test_several_draws_differ_and_repeat(make_engine: MakeEngine):
    params = SamplingParams(max_new_tokens=12, temperature=2.0, seed=1, n=3)
    engine = make_engine()
    first, second = (run(sample(engine, CONVERSATIONS[0], params)) for _ in range(2))
    assert [reply.text for reply in first] == [reply.text for reply in second]
    assert len({reply.text for reply in first}) == 3
    with pytest.raises(UsageError, match="n=3"):
        run(engine.generate(CONVERSATIONS[0], params))


def test_closing_a_stream_frees_its_slot(make_engine: MakeEngine, rows_read: list[list[int]]):
    async def leave_early() -> Reply:
        engine = make_engine(max_sequences=1)
        endless = engine.stream(CONVERSATIONS[1], ENDLESS)
        await anext(endless)
        await endless.aclose()
        return await engine.generate(CONVERSATIONS[3], SHORT)

    assert run(leave_early()).completion_tokens <= 12
    assert len(rows_read) < 300


def test_a_cancelled_task_cancels_the_work(make_engine: MakeEngine, rows_read: list[list[int]]):
    async def cancel() -> int:
        engine = make_engine()
        task = asyncio.ensure_future(engine.generate(CONVERSATIONS[1], ENDLESS))
        while not rows_read:
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await engine.generate(CONVERSATIONS[3], SHORT)
        return len(rows_read)

    assert run(cancel()) < 300


def test_length_limits_say_length(make_engine: MakeEngine, processor: Processor):
    engine = make_engine()
    params = SamplingParams(max_new_tokens=5, temperature=5.0, seed=1)
    assert run(engine.generate(CONVERSATIONS[1], params)).finish_reason == "length"
    nearly_full = ask("a" * 600)
    room = processor.config.max_length - processor(nearly_full).num_tokens
    reply = run(engine.generate(nearly_full, SamplingParams(max_new_tokens=500, temperature=5.0, seed=1)))
    assert (reply.finish_reason, reply.completion_tokens) == ("length", room)


def test_a_prompt_without_room_for_a_reply_is_refused(make_engine: MakeEngine, processor: Processor):
    engine = make_engine()
    overhead = processor(ask("")).num_tokens
    for length in (processor.config.max_length - overhead, 900):
        with pytest.raises(ContextLengthError, match="700"):
            run(engine.generate(ask("a" * length), SHORT))
    assert run(engine.generate(ask("a" * (processor.config.max_length - overhead - 1)), SHORT)).completion_tokens == 1


def test_a_stop_string_ends_the_reply_before_itself(make_engine: MakeEngine):
    engine = make_engine()
    whole = run(engine.generate(CONVERSATIONS[0], SHORT)).text
    stop = whole[3:6]
    reply = run(engine.generate(CONVERSATIONS[0], replace(SHORT, stop=(stop,))))
    assert (reply.text, reply.finish_reason) == (whole[: whole.index(stop)].rstrip(), "stop")


def test_one_bad_request_does_not_disturb_the_others(make_engine: MakeEngine, model: Llava, monkeypatch: pytest.MonkeyPatch):
    expected = run(make_engine().generate(CONVERSATIONS[1], SHORT)).text
    original = Llava.hidden_states

    def hidden_states(self: Llava, batch, **arguments):
        if int(batch.position_ids.max()) > 150:
            raise RuntimeError("a row that no kernel likes")
        return original(self, batch, **arguments)

    monkeypatch.setattr(Llava, "hidden_states", hidden_states)

    async def together() -> list[Reply | BaseException]:
        engine = make_engine()
        bad = ask("a" * 150)
        calls = (
            engine.generate(each, SHORT) for each in (CONVERSATIONS[1], bad, ask("", image=ImagePart(b"no picture")), CONVERSATIONS[1])
        )
        return await asyncio.gather(*calls, return_exceptions=True)

    good, failed, unreadable, also_good = run(together())
    assert isinstance(good, Reply)
    assert isinstance(also_good, Reply)
    assert good.text == also_good.text == expected
    assert isinstance(failed, RuntimeError)
    assert isinstance(unreadable, ImageError)


def test_logits_that_are_not_finite_are_an_error_that_names_the_request(make_engine: MakeEngine, model: Llava):
    broken = copy.deepcopy(model)
    with torch.no_grad():
        broken.causal_lm.model.norm.weight[0] = float("nan")
    with pytest.raises(NonFiniteError, match="request 1"):
        run(make_engine(model=broken).generate(CONVERSATIONS[1], SHORT))


def test_what_does_not_fit_the_memory_limit_waits_or_is_refused(make_engine: MakeEngine):
    bytes_per_token = 2 * 2 * 2 * 8 * 4

    async def crowd() -> list[Reply]:
        engine = make_engine(kv_bytes=bytes_per_token * 640)
        return await asyncio.gather(*(engine.generate(conversation, SHORT) for conversation in CONVERSATIONS))

    alone = [run(make_engine().generate(conversation, SHORT)).text for conversation in CONVERSATIONS]
    assert [reply.text for reply in run(crowd())] == alone
    with pytest.raises(OutOfMemory, match="limit"):
        run(make_engine(kv_bytes=bytes_per_token * 64).generate(CONVERSATIONS[2], SHORT))


def test_a_conversation_that_ends_in_an_assistant_message_goes_on(make_engine: MakeEngine):
    engine = make_engine()
    params = SamplingParams(max_new_tokens=10)
    whole = run(engine.generate(CONVERSATIONS[0], params)).text
    half = whole[:4]
    rest = run(engine.generate(CONVERSATIONS[0].then("assistant", half), params)).text
    assert half + rest[: len(whole) - 4] == whole


def test_given_continuations_get_the_probabilities_that_generation_reports(make_engine: MakeEngine):
    engine = make_engine()
    assert isinstance(engine, ChatModel)
    assert isinstance(engine, ScoringChatModel)
    continuations = ("a", "no, it is not", "Zebra")
    scores = run(engine.logprobs(CONVERSATIONS[0], continuations))
    assert [len(tokens) for tokens in scores] == [1, 13, 5]
    assert ["".join(token.token for token in tokens) for tokens in scores] == list(continuations)
    reply = run(engine.generate(CONVERSATIONS[0], SamplingParams(max_new_tokens=1, logprobs=20)))
    alternatives = dict(reply.logprobs[0].top)  # type: ignore[index]
    own = run(engine.logprobs(CONVERSATIONS[0], tuple(letter for letter in alternatives if len(letter) == 1 and letter.isascii())))
    for (token,) in own:
        assert token.logprob == pytest.approx(alternatives[token.token], abs=1e-4)


def test_a_closed_engine_says_so_also_to_calls_under_way(make_engine: MakeEngine):
    async def close_while_busy() -> None:
        engine = make_engine()
        stream = engine.stream(CONVERSATIONS[1], ENDLESS)
        await anext(stream)
        engine.close()
        with pytest.raises(UsageError, match="closed"):
            async for _ in stream:
                pass
        with pytest.raises(UsageError, match="closed"):
            await engine.generate(CONVERSATIONS[1])

    run(close_while_busy())


def test_the_counters_tell_what_was_done_and_what_is_held(make_engine: MakeEngine):
    engine = make_engine(max_sequences=2, kv_bytes=1 << 20)
    replies = [run(engine.generate(ask(text, image=picture(1)), SHORT)) for text in ("One?", "Two?")]
    counters = engine.counters()
    assert (counters.running, counters.waiting) == (0, 0)
    assert counters.prompt_tokens == sum(reply.prompt_tokens for reply in replies)
    assert counters.cached_tokens == replies[1].cached_tokens > 0
    assert counters.completion_tokens == sum(reply.completion_tokens for reply in replies)
    assert counters.steps == counters.completion_tokens  # these prompts are read in one step, which gives the first token
    assert (counters.images_encoded, counters.kept_prefixes) == (1, 2)
    assert 0 < counters.kv_bytes_used <= counters.kv_bytes_limit == 1 << 20  # type: ignore[operator]


def test_requests_that_run_and_wait_are_counted(make_engine: MakeEngine):
    async def look() -> tuple[int, int]:
        engine = make_engine(max_sequences=2)
        streams = [engine.stream(CONVERSATIONS[1], replace(ENDLESS, temperature=5.0, seed=seed)) for seed in range(5)]
        first = [asyncio.ensure_future(anext(stream)) for stream in streams]
        async with asyncio.timeout(30):  # each is read by a thread of the loop's pool before the engine has it
            while not (counters := engine.counters()).running or counters.running + counters.waiting < 5:
                await asyncio.sleep(0.001)
        engine.close()
        await asyncio.gather(*first, return_exceptions=True)
        return counters.running, counters.waiting

    running, waiting = run(look())
    assert running + waiting == 5
    assert 1 <= running <= 2


def test_an_engine_is_alive_while_it_moves(make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch):
    stuck, go_on = threading.Event(), threading.Event()
    original = Llava.hidden_states

    def hidden_states(self: Llava, batch, **arguments):
        stuck.set()
        assert go_on.wait(30)
        return original(self, batch, **arguments)

    async def look() -> None:
        engine = make_engine()
        assert engine.alive  # nothing to do yet
        monkeypatch.setattr(Llava, "hidden_states", hidden_states)
        task = asyncio.ensure_future(engine.generate(CONVERSATIONS[1], SHORT))
        while not stuck.is_set():
            await asyncio.sleep(0.001)
        assert engine.alive
        monkeypatch.setattr("vistune.engine.engine.LONGEST_STEP", 0.0)
        assert not engine.alive
        go_on.set()
        await task
        monkeypatch.undo()
        assert engine.alive
        engine.close()
        assert not engine.alive

    run(look())


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(max_new_tokens=0),
        SamplingParams(temperature=-1.0),
        SamplingParams(temperature=float("nan")),
        SamplingParams(top_p=1.5),
        SamplingParams(stop=("",)),
        SamplingParams(logprobs=21),
        SamplingParams(frequency_penalty=2.5),
        SamplingParams(presence_penalty=float("nan")),
        SamplingParams(logit_bias=((10**6, 1.0),)),
        SamplingParams(logit_bias=((-1, 1.0),)),
        SamplingParams(logit_bias=((1, float("inf")),)),
        SamplingParams(logit_bias=tuple((token, 1.0) for token in range(200)) * 2),
        SamplingParams(top_k=-1),
        SamplingParams(min_p=1.5),
        SamplingParams(response_schema='{"type": "nothing"}'),
        SamplingParams(response_schema="{"),
        SamplingParams(response_schema='{"title": "%s"}' % ("x" * 100_000)),
    ],
)
def test_sampling_parameters_out_of_range_are_refused(make_engine: MakeEngine, params: SamplingParams):
    with pytest.raises(UsageError):
        run(make_engine().generate(CONVERSATIONS[1], params))


@pytest.mark.parametrize(
    ("capabilities", "dtype"), [({"avx512_bf16": True}, torch.bfloat16), ({"avx512_f": True, "amx_bf16": False}, torch.float32)]
)
def test_bf16_is_chosen_only_where_the_processor_multiplies_it(
    monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, bool], dtype: torch.dtype
):
    assert torch.cpu.get_capabilities()["architecture"]
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert best_dtype("cpu") == dtype
