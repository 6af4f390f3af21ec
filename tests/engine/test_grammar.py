"""Replies that are instances of a schema, and schemas that nobody should compile."""

from __future__ import annotations

import asyncio
import json
import random
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.engine.conftest import ask, byte_tokenizer, run

from vistune.engine import grammar as grammar_module
from vistune.engine.engine import Engine
from vistune.engine.grammar import KEPT_GRAMMARS, NUM_COMPILERS, Grammar, Grammars, GrammarState
from vistune.engine.sampling import Sampler
from vistune.errors import MissingDependency, ResponseSchemaError
from vistune.types import ANY_OBJECT, SamplingParams

pytest.importorskip("llguidance")

TOKENIZER: Any = byte_tokenizer()
VOCABULARY = len(TOKENIZER) + 3  # embeddings are padded
END = TOKENIZER.eos_token_id
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 5}, "age": {"type": "integer", "minimum": 0, "maximum": 150}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
MakeEngine = Callable[..., Engine]


def made() -> Grammars:
    return Grammars(TOKENIZER, vocabulary=VOCABULARY, stop_ids={END})


@pytest.fixture(scope="module")
def grammars() -> Grammars:
    return made()


@pytest.fixture
def untried(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Compiles without the process that tries a schema first, and notes what would have been tried."""
    tried: list[str] = []
    monkeypatch.setattr(grammar_module, "tried", lambda grammar: tried.append(grammar) or "")
    return tried


def compiled(grammars: Grammars, schema: Any) -> Grammar:
    return run(grammars.compiled(schema if isinstance(schema, str) else json.dumps(schema)))


def written(grammar: Grammar, params: SamplingParams, *, longest: int = 2000) -> str:
    """What a model of pure chance writes; it need not end by itself."""
    state = grammar.begin()
    sampler, noise = Sampler(params, state), torch.Generator().manual_seed(params.seed or 0)
    tokens: list[int] = []
    while not sampler.complete and len(tokens) < longest:
        token = sampler.draw(torch.randn(VOCABULARY, generator=noise))
        if token == END:
            break
        tokens.append(token)
    return TOKENIZER.decode(tokens)


# --- random schemas, each with its own check ---

Check = Callable[[Any], bool]


def random_schema(chance: random.Random, depth: int = 0) -> tuple[dict[str, Any], Check]:
    kinds = [_string, _pattern, _integer, _number, _choice, _nothing]
    return chance.choice(kinds if depth > 2 else [*kinds, _array, _array, _object, _object, _object, _either])(chance, depth)


def _string(chance: random.Random, depth: int) -> tuple[dict[str, Any], Check]:
    most = chance.randint(0, 6)
    return {"type": "string", "maxLength": most}, lambda value: isinstance(value, str) and len(value) <= most


def _pattern(chance: random.Random, depth: int) -> tuple[dict[str, Any], Check]:
    return {"type": "string", "pattern": "^[a-c]{2,4}$"}, lambda value: 2 <= len(value) <= 4 and set(value) <= set("abc")


def _integer(chance: random.Random, depth: int) -> tuple[dict[str, Any], Check]:
    low = chance.randint(-50, 50)
    high = low + chance.randint(0, 99)
    return {"type": "integer", "minimum": low, "maximum": high}, lambda value: type(value) is int and low <= value <= high


def _number(chance: random.Random, depth: int) -> tuple[dict[str, Any], Check]:
    return {"type": "number", "minimum": 0, "maximum": 1}, lambda value: isinstance(value, int | float) and 0 <= value <= 1


def _choice(chance: random.Random, depth: int) -> tuple[dict[str, Any], Check]:
    values = chance.sample(["a", 'say "ä"', "", 3, -1.5, None, True, [1, {}]], 3)
    return {"enum": values}, lambda value: any(value == each and type(value) is type(each) for each in values)


def _nothing(chance: random.Random, depth: int) -> tuple[dict[str, Any], Check]:
    return {"type": chance.choice(["null", "boolean"])}, lambda value: value in (None, True, False)


def _array(chance: random.Random, depth: int) -> tuple[dict[str, Any], Check]:
    items, check = random_schema(chance, depth + 1)
    schema = {"type": "array", "items": items, "minItems": 1, "maxItems": 3}
    return schema, lambda value: isinstance(value, list) and 1 <= len(value) <= 3 and all(map(check, value))


def _object(chance: random.Random, depth: int) -> tuple[dict[str, Any], Check]:
    fields = {name: random_schema(chance, depth + 1) for name in chance.sample(["name", "größe", 'a "b"', "d\\e", "x"], 3)}
    required = [name for name in fields if chance.random() < 0.6]
    properties = {name: schema for name, (schema, _) in fields.items()}
    schema = {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
    return schema, lambda value: set(required) <= set(value) <= set(fields) and all(fields[name][1](value[name]) for name in value)


def _either(chance: random.Random, depth: int) -> tuple[dict[str, Any], Check]:
    (one, is_one), (other, is_other) = _integer(chance, depth), _object(chance, depth + 1)
    return {"anyOf": [one, other]}, lambda value: is_one(value) if isinstance(value, int) else is_other(value)


@pytest.mark.parametrize("number", range(25))
def test_every_reply_is_an_instance_of_its_schema(grammars: Grammars, untried: list[str], number: int):
    schema, check = random_schema(random.Random(number))
    grammar = compiled(grammars, schema)
    for seed, params in enumerate([SamplingParams(temperature=1.0), SamplingParams(temperature=2.0, top_p=0.9), SamplingParams()]):
        text = written(grammar, SamplingParams(temperature=params.temperature, top_p=params.top_p, seed=seed))
        assert check(json.loads(text)), (schema, text)


def test_any_object_is_an_object_of_any_shape(grammars: Grammars, untried: list[str]):
    grammar = compiled(grammars, ANY_OBJECT)
    texts = {
        written(grammar, SamplingParams(temperature=1.0, seed=seed, logit_bias=((TOKENIZER("}").input_ids[0], 2.0),))) for seed in range(5)
    }
    assert len(texts) > 1
    assert all(text.lstrip().startswith("{") for text in texts)


# --- where a grammar stands ---


def allowed(state: GrammarState) -> set[str]:
    return {TOKENIZER.decode([token]) for token in state.allowed(VOCABULARY).nonzero().flatten().tolist()}


def follow(state: GrammarState, text: str) -> GrammarState:
    for token in TOKENIZER(text, add_special_tokens=False).input_ids:
        state.accept(token)
    return state


def test_a_reply_may_end_only_where_it_is_whole(grammars: Grammars, untried: list[str]):
    number = compiled(grammars, {"type": "integer", "minimum": 1, "maximum": 17})
    assert allowed(number.begin()) == set("123456789 ")
    assert allowed(follow(number.begin(), "1")) == {*"01234567", "<|im_end|>"}
    assert allowed(follow(number.begin(), " 5")) == {"<|im_end|>"}
    assert follow(number.begin(), "5").complete
    assert not follow(number.begin(), "1").complete


def test_no_token_without_text_and_no_row_of_padding_is_ever_allowed(grammars: Grammars, untried: list[str]):
    mask = follow(compiled(grammars, {"type": "string"}).begin(), '"').allowed(VOCABULARY + 40)
    assert mask.sum() > 90
    assert not mask[[*TOKENIZER.convert_tokens_to_ids(["<|im_start|>", "<image>"]), END]].any()
    assert not mask[len(TOKENIZER) :].any()


def test_replies_with_one_grammar_do_not_move_each_other(grammars: Grammars, untried: list[str]):
    grammar = compiled(grammars, PERSON)
    first = follow(grammar.begin(), '{"name": "')
    assert allowed(grammar.begin()) == {"{", " "}
    assert "{" in allowed(first)


def test_neither_strings_nor_lists_can_go_on_in_blanks_for_ever(grammars: Grammars, untried: list[str]):
    state = follow(compiled(grammars, PERSON).begin(), '{"name": "')
    assert "\n" not in allowed(state)
    assert allowed(follow(state, '", ')) == {'"'}


def test_half_a_surrogate_pair_cannot_be_written(grammars: Grammars, untried: list[str]):
    assert "u" not in allowed(follow(compiled(grammars, {"type": "string"}).begin(), '"\\'))


# --- in the engine ---


def test_the_engine_holds_each_choice_to_the_schema_and_repeats_with_the_seed(make_engine: MakeEngine):
    engine = make_engine()
    params = [SamplingParams(max_new_tokens=200, temperature=1.5, seed=seed, response_schema=json.dumps(PERSON)) for seed in (1, 2, 1)]
    params.append(SamplingParams(max_new_tokens=200, response_schema=json.dumps(PERSON), logprobs=0))

    async def all_at_once() -> list[Any]:
        free = engine.generate(ask("Who?"), SamplingParams(max_new_tokens=10))
        return list(await asyncio.gather(free, *(engine.generate(ask("Who?"), each) for each in params)))

    free, *replies = run(all_at_once())
    assert not free.text.startswith("{")
    assert [reply.finish_reason for reply in replies] == ["stop"] * 4
    assert all(set(json.loads(reply.text)) == {"name", "age"} for reply in replies)
    assert replies[0].text == replies[2].text != replies[1].text
    assert replies[3].completion_tokens == len(replies[3].logprobs)  # no step for an end that nothing else could follow
    alone = run(engine.generate(ask("Who?"), params[1]))
    assert alone.text == replies[1].text


def test_a_reply_that_max_tokens_cuts_says_length(make_engine: MakeEngine):
    reply = run(make_engine().generate(ask("Who?"), SamplingParams(max_new_tokens=4, response_schema=json.dumps(PERSON))))
    assert (reply.finish_reason, reply.completion_tokens) == ("length", 4)


def test_log_probabilities_are_those_of_the_model_that_was_free_to_say_anything(make_engine: MakeEngine):
    engine = make_engine()
    held = run(engine.generate(ask("Who?"), SamplingParams(max_new_tokens=1, response_schema=json.dumps(PERSON), logprobs=1)))
    free = run(engine.generate(ask("Who?"), SamplingParams(max_new_tokens=1, logprobs=1)))
    assert held.logprobs is not None
    assert free.logprobs is not None
    ((likeliest, logprob),) = held.logprobs[0].top
    assert free.logprobs[0].top == ((likeliest, pytest.approx(logprob, abs=1e-4)),)  # another part of the prompt was in the cache
    assert held.logprobs[0].logprob < free.logprobs[0].logprob


def test_a_grammar_that_fails_midway_ends_its_own_reply_only(make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch):
    engine = make_engine()

    async def main() -> list[Any]:
        held = SamplingParams(max_new_tokens=50, response_schema=json.dumps(PERSON))
        await engine.generate(ask("Who?"), held)

        def fail(self: GrammarState, token: int) -> None:
            raise ResponseSchemaError("too costly")

        monkeypatch.setattr(GrammarState, "accept", fail)
        both = (engine.generate(ask("Who?"), each) for each in (held, SamplingParams(max_new_tokens=10)))
        return list(await asyncio.gather(*both, return_exceptions=True))

    failed, other = run(main())
    assert isinstance(failed, ResponseSchemaError)
    assert other.completion_tokens == 10


def test_a_continued_message_cannot_be_held_to_a_schema(make_engine: MakeEngine):
    conversation = ask("Who?").then("assistant", "It is")
    with pytest.raises(ResponseSchemaError, match="beginning"):
        run(make_engine().generate(conversation, SamplingParams(response_schema=ANY_OBJECT)))


# --- schemas that nobody should compile ---

HOSTILE = {
    "no type": {"type": "nothing"},
    "cannot be fulfilled": {"$ref": "#"},
    "a file": {"$ref": "file:///etc/passwd"},
    "another server": {"$ref": "http://127.0.0.1:9/x.json"},
    "keyword": {"not": {"type": "string"}},
    "look-ahead": {"type": "string", "pattern": "^(?!x).*$"},
    "deep": json.loads('{"items": ' * 200 + "{}" + "}" * 200),
    "product": {"allOf": [{"anyOf": [{"properties": {f"p{i}{j}": {"type": "string"}}} for i in range(10)]} for j in range(8)]},
    "our options": {"type": "string", "foo": 1, "not": {}, "x-guidance": {"lenient": True}},
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_no_usable_schema_is_refused_with_its_reason(grammars: Grammars, name: str):
    with pytest.raises(ResponseSchemaError, match=r"cannot be kept to this schema: \w.{10,}"):
        compiled(grammars, HOSTILE[name])


def test_what_compiles_for_ever_is_killed_and_remembered(grammars: Grammars, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(grammar_module, "TRIAL_CPU_SECONDS", 1)
    schema = {"type": "integer", "multipleOf": 99_999_999}
    for seconds in (60.0, 1.0):
        started = time.process_time()
        with pytest.raises(ResponseSchemaError, match="too long"):
            compiled(grammars, schema)
        assert time.process_time() - started < seconds  # none of it in this process


def test_a_trial_that_sleeps_is_given_up_by_the_clock(grammars: Grammars, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(grammar_module, "TRIAL_SECONDS", 0.01)
    with pytest.raises(ResponseSchemaError, match="too long"):
        compiled(grammars, {"title": "slow"})


def test_the_same_schema_is_tried_once_for_all_who_ask_and_old_ones_are_forgotten(untried: list[str]):
    grammars = made()

    async def main() -> None:
        same = await asyncio.gather(*(grammars.compiled(ANY_OBJECT) for _ in range(8)))
        assert len(set(map(id, same))) == 1
        for number in range(KEPT_GRAMMARS):
            await grammars.compiled(json.dumps({"const": number}))
        await grammars.compiled(json.dumps({"const": 1}))
        assert len(untried) == 1 + KEPT_GRAMMARS
        await grammars.compiled(ANY_OBJECT)
        assert len(untried) == 2 + KEPT_GRAMMARS

    run(main())


def test_who_leaves_while_it_waits_does_not_take_it_from_the_others(monkeypatch: pytest.MonkeyPatch):
    grammars, go_on = made(), threading.Event()
    monkeypatch.setattr(grammar_module, "tried", lambda _: "" if go_on.wait(30) else "late")

    async def main() -> None:
        busy = [asyncio.ensure_future(grammars.compiled(json.dumps({"const": number}))) for number in range(NUM_COMPILERS)]
        leaving, staying = (asyncio.ensure_future(grammars.compiled(ANY_OBJECT)) for _ in range(2))
        await asyncio.sleep(0.01)
        leaving.cancel()
        await asyncio.sleep(0.01)
        go_on.set()
        assert isinstance(await staying, Grammar)
        await asyncio.gather(*busy)

    run(main())


def test_without_the_package_the_extra_is_named(grammars: Grammars, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(MissingDependency, match=r"vistune\[serve\]"):
        compiled(grammars, ANY_OBJECT)
