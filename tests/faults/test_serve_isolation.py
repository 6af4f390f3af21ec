"""Nothing of one request reaches another: not through company, not through what is kept of earlier ones, not through those that left."""

from __future__ import annotations

import io
import itertools
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from PIL import Image
from tests.engine.conftest import byte_tokenizer, tiny_config
from tests.faults.serve_traffic import ask, leave, shown
from tests.faults.tiny_server import Options, TinyServer, tiny_server
from tests.serve.live import png

from vistune.model.config import ImageConfig
from vistune.model.processor import Processor
from vistune.types import Conversation, ImagePart

# --- S11: company, kept prefixes, cancellations -------------------------------------------------------------------------------------------


def conversations(count: int) -> list[dict[str, Any]]:
    """Much alike, so that whatever could be mixed up is: the same beginnings, pictures of one size, some drawn and some likeliest."""
    colours = ["red", "green", "blue", "white"]
    return [
        ask(
            shown(f"What do you see in number {number // 2}?", png(colours[number % 4])) if number % 3 else f"Tell me about {number}.",
            max_tokens=24, temperature=0.0 if number % 4 == 0 else 1.0, seed=number, logprobs=True, stream=False,
        )
        for number in range(count)
    ]  # fmt: skip


def said(server: TinyServer, body: dict[str, Any]) -> str:
    response = server.post(body)
    assert response.status_code == 200, response.text
    return response.json()["choices"][0]["message"]["content"]


def together(server: TinyServer, bodies: list[dict[str, Any]]) -> list[str]:
    with ThreadPoolExecutor(len(bodies)) as pool:
        return list(pool.map(lambda body: said(server, body), bodies))


def assert_alike_in_any_company(server: TinyServer, bodies: list[dict[str, Any]], rounds: int) -> int:
    alone = [said(server, body) for body in bodies]
    assert len(set(alone)) > len(bodies) // 2  # or equal words would prove nothing
    generator, compared = random.Random(11), 0
    for _ in range(rounds):
        order = generator.sample(range(len(bodies)), 8)
        for number in range(generator.randrange(4)):  # some come and go meanwhile
            leave(server.port, bodies[order[number]] | {"stream": True, "max_tokens": 200}, chunks=number)
        words = together(server, [bodies[index] for index in order])
        assert words == [alone[index] for index in order]
        compared += len(words)
    server.settled()
    return compared


def test_eight_at_once_say_what_each_says_alone(server: TinyServer):
    assert_alike_in_any_company(server, conversations(8), 1)


@pytest.mark.nightly
@pytest.mark.timeout(3600)
def test_a_hundred_rounds_with_and_without_kept_prefixes_say_the_same():
    """Without: the arena has room for little more than what runs, so that hardly anything is kept."""
    bodies, words = conversations(24), []
    for kv_bytes in (64 << 20, 1 << 20):
        with tiny_server(Options(kv_bytes=kv_bytes)) as server:
            cold = [said(server, body) for body in bodies]
            compared = assert_alike_in_any_company(server, bodies, 50)
            assert [said(server, body) for body in bodies] == cold
            words.append(cold)
            print(f"\nS11, {kv_bytes >> 20} MiB of keys and values: {compared + 2 * len(bodies)} replies, 0 differ; {server.state()}")
    assert words[0] == words[1]


def test_what_was_read_serves_those_with_the_same_salt_only(server: TinyServer):
    """Prompt, picture and the conversation's own reply; with any salt the words are the same."""
    question = shown("What do you see under the salt?", png("teal"))

    def asked(**salt: str) -> tuple[str, int]:
        answer = server.post(ask(question, **salt)).json()
        return answer["choices"][0]["message"]["content"], answer["usage"]["prompt_tokens_details"]["cached_tokens"]

    found = {}
    for salt in ({}, {"cache_salt": "one"}, {"cache_salt": "two"}):
        found[str(salt)] = [asked(**salt), asked(**salt)]
    assert len({words for pair in found.values() for words, _ in pair}) == 1
    cached = [[count for _, count in pair] for pair in found.values()]
    assert cached[1][0] == cached[2][0] == 0  # not even what all prompts begin with
    assert all(second > 0 for _, second in cached)


# --- S16: the key of a picture ------------------------------------------------------------------------------------------------------------


def pictures(count: int) -> Iterator[Image.Image]:
    """Pictures that a careless key takes for one another: bytes alike in another shape, palette, mode, or but for one value."""
    generator = random.Random(16)
    while True:
        side = generator.randrange(2, 9)
        data = bytes(generator.randrange(256) for _ in range(side * 3 * 3))
        tall, wide = Image.frombytes("RGB", (side, 3), data), Image.frombytes("RGB", (3, side), data)
        yield from (tall, wide, tall.transpose(Image.Transpose.ROTATE_180), wide.transpose(Image.Transpose.FLIP_LEFT_RIGHT))
        changed = bytearray(data)
        changed[generator.randrange(len(data))] ^= 1 << generator.randrange(8)
        yield Image.frombytes("RGB", (side, 3), bytes(changed))
        indexed = Image.frombytes("P", (side, 3), bytes(value % 8 for value in data[: side * 3]))
        for first in (0, 40):
            indexed = indexed.copy()
            indexed.putpalette(bytes((first + value) % 256 for value in range(24)))
            yield indexed
        grey = Image.frombytes("L", (side, 3), data[: side * 3])
        yield from (grey, grey.convert("RGB"), grey.convert("1"))
        yield Image.merge("RGBA", (*tall.split(), grey))
        yield Image.frombytes("RGB", (3, 3), data[:27]).crop((0, 0, 3, 2))


def as_file(picture: Image.Image, orientation: int = 1) -> bytes:
    file, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = orientation
    picture.save(file, "PNG", exif=exif)
    return file.getvalue()


def keys_of(processor: Processor, files: list[bytes]) -> list[tuple[str, object]]:
    """The key of each, and what it stands for: the picture as it is seen, how it is prepared, and whether it is alone."""
    from vistune.media import open_image

    found: list[tuple[str, object]] = []
    for file in files:
        picture = open_image(file)
        for number in (1, 2):
            inputs = processor(Conversation(()).then("user", *[ImagePart(file)] * number, "?"))
            # The second of two has the layout of the first; only a mode with tiles makes another of it.
            alone = number == 1 or processor.config.image.mode != "anyres"
            found.append((inputs.image_keys[-1], (picture.size, picture.tobytes(), processor.config.image, alone)))
    return found


@pytest.mark.parametrize("count", [12, pytest.param(96, marks=pytest.mark.nightly)])
def test_pictures_have_one_key_exactly_where_they_are_one_picture(count: int):
    tokenizer = byte_tokenizer()
    modes = [ImageConfig(size=28), ImageConfig(size=28, mode="square"), ImageConfig(size=28, mode="anyres", pinpoints=((28, 56), (56, 28)))]
    processors = [Processor(tokenizer, tiny_config(tokenizer, image=image, image_newline=image.mode == "anyres")) for image in modes]
    files = [as_file(picture, 1 + number % 8) for number, picture in enumerate(itertools.islice(pictures(count), count))]
    found = [pair for processor in processors for pair in keys_of(processor, files)]
    pairs = wrong = 0
    for (key, meaning), (other_key, other_meaning) in itertools.combinations(found, 2):
        pairs += 1
        wrong += (key == other_key) != (meaning == other_meaning)
    print(f"\nS16: {pairs} pairs, {wrong} wrong")
    assert wrong == 0
    assert pairs >= (100_000 if count > 50 else 1000)


def test_a_kept_picture_is_never_taken_for_another(server: TinyServer):
    """Through the whole server: same words, same size, other picture; then the same picture again, which is found."""
    one, other = (as_file(Image.effect_noise((40, 30), sigma).convert("RGB")) for sigma in (30, 90))

    def ask_about(file: bytes) -> tuple[list[float], int]:
        reply = server.post(ask(shown("What is shown here, and why?", file), max_tokens=8, logprobs=True)).json()
        # What was read in other portions is the same but for its last digits.
        logprobs = [round(each["logprob"], 3) for each in reply["choices"][0]["logprobs"]["content"]]
        return logprobs, reply["usage"]["prompt_tokens_details"]["cached_tokens"]

    first, another, again = ask_about(one), ask_about(other), ask_about(one)
    assert first[0] == again[0] != another[0]
    assert again[1] > another[1]  # the picture was found again, and of the other only what stands before it
