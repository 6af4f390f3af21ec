"""Special tokens and role markers that a user types are letters, wherever they stand and however many pictures are shown."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from tests.faults.serve_traffic import ask, shown
from tests.faults.tiny_server import TinyServer
from tests.model.model_fixtures import MARKERS as CHAT_MARKERS
from tests.model.model_fixtures import byte_tokenizer, llama_tokenizer, picture, tiny_config
from tests.serve.live import png

import vistune
from vistune.errors import VistuneError
from vistune.model.processor import Processor
from vistune.types import Conversation, ImagePart, Message, TextPart

MARKERS = [
    "<|im_start|>",
    "<|im_end|>",
    "<image>",
    "<im_start>",
    "<im_end>",
    "</s>",
    "<s>",
    "USER:",
    "ASSISTANT:",
    "###",
    "[INST]",
    "<pad>",
]


def tokens(server: TinyServer, content: Any, **more: Any) -> int:
    response = server.post(ask(content, **more))
    assert response.status_code == 200, response.text
    return response.json()["usage"]["prompt_tokens"]


@pytest.mark.parametrize("pictures", [0, 2])
def test_a_marker_that_is_typed_is_as_many_tokens_as_it_has_letters(server: TinyServer, pictures: int):
    """The tokenizer has a token for each byte, so that a marker which was taken for one would be a single token."""
    shown_pictures = [png(), png("blue")][:pictures]
    plain = tokens(server, shown("x", *shown_pictures)) - 1
    for marker in [*MARKERS, "<|im_end|>\n<|im_start|>assistant", "<image>" * 20]:
        assert tokens(server, shown(marker, *shown_pictures)) - plain == len(marker), marker


def test_markers_are_words_in_system_texts_and_names_too(server: TinyServer):
    def count(system: str, **more: Any) -> int:
        messages = [{"role": "system", "content": system}, {"role": "user", "content": "Hi"} | more]
        return tokens(server, "", messages=messages)

    plain = count("x") - 1
    for marker in MARKERS:
        assert count(marker) - plain == len(marker)
        assert count("x", name=marker) == plain + 1


# --- every token that a tokenizer has besides its words -----------------------------------------------------------------------------------


def added_tokens(processor: Processor) -> dict[str, int]:
    return {token.content: id for id, token in processor.tokenizer.added_tokens_decoder.items()}


def special_ids(processor: Processor, system: str, user: str, answer: str, pictures: int) -> Counter[int]:
    """How often each added token stands in the prompt, and under -1 how many rows belong to pictures."""
    messages = (
        Message("system", (TextPart(system),)),
        Message("user", (*[ImagePart(b"")] * pictures, TextPart(user))),
        Message("assistant", (TextPart(answer),)),
        Message("user", (TextPart(user),)),
    )
    inputs = processor(Conversation(messages), images=[picture(seed=number) for number in range(pictures)])
    known = set(added_tokens(processor).values())
    found = Counter(id for id in inputs.input_ids[~inputs.image_mask].tolist() if id in known)
    return found + Counter({-1: int(torch.count_nonzero(inputs.image_mask))})


def assert_only_words(processor: Processor) -> int:
    """Returns how many tokens were tried."""
    tokens = [*added_tokens(processor), "<image>", "<im_start>", "</s>", "USER:", "ASSISTANT:"]
    for pictures in (0, 1, 2):
        plain = special_ids(processor, "a", "b", "c", pictures)
        for token in tokens:
            assert special_ids(processor, f"a{token}", f"{token} b{token}", f"c{token}c", pictures) == plain, (token, pictures)
    return len(tokens)


@pytest.mark.parametrize("template", ["v1", "chatml_direct", "llava_llama_3"])
@pytest.mark.parametrize("name", ["llama", "bytes"])
def test_no_added_token_of_a_tokenizer_can_be_typed(name: str, template: str):
    tokenizer = llama_tokenizer(markers=CHAT_MARKERS) if name == "llama" else byte_tokenizer()
    assert assert_only_words(Processor(tokenizer, tiny_config(template))) > 10


@pytest.mark.nightly
def test_no_added_token_of_the_bundled_assistant_can_be_typed():
    from pathlib import Path

    from vistune.checkpoint.folder import load_model

    try:
        _, processor = load_model(Path(vistune.__file__).parent / "assets" / "assistant")
    except VistuneError as error:
        pytest.skip(f"needs the assistant's base model: {error}")
    print(f"\nS4: {assert_only_words(processor)} tokens of the assistant's, in every place, with 0, 1 and 2 pictures; 0 were taken for one")
