from __future__ import annotations

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from vistune.checkpoint.chat_templates import chat_template
from vistune.errors import VistuneError
from vistune.model.templates import TEMPLATES
from vistune.types import Conversation, ImagePart, Message, TextPart

PICTURE, WORDS = ImagePart(b""), TextPart
CONVERSATIONS = {
    "a question": [("user", [WORDS("What is 'it'?\n")])],
    "a picture and a question": [("user", [PICTURE, WORDS("What?")])],
    "a question before its picture": [("user", [WORDS("  What? "), PICTURE])],
    "a picture alone": [("user", [PICTURE])],
    "two pictures in place": [("user", [WORDS("Left "), PICTURE, WORDS(" or right "), PICTURE, WORDS("?")])],
    "several turns": [("user", [PICTURE, WORDS("Hi")]), ("assistant", [WORDS("Hello.")]), ("user", [WORDS("And now?")])],
    "an answered conversation": [("user", [PICTURE, WORDS("Hi")]), ("assistant", [WORDS("Hello.")])],
    "a system text": [("system", [WORDS("Be brief.")]), ("user", [WORDS("Hi")]), ("assistant", [WORDS("Yes.")])],
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_jinja_renders_what_our_segments_say(name):
    template = TEMPLATES[name]
    compared = 0
    for turns in CONVERSATIONS.values():
        conversation = Conversation(tuple(Message(role, tuple(parts)) for role, parts in turns))
        generate = turns[-1][0] == "user"
        try:
            segments = template.segments(conversation, generate=generate)
        except VistuneError:  # plain takes one exchange only, gemma no system text
            continue
        expected = "".join("<image>" if segment.image else segment.text for segment in segments)
        assert rendered(chat_template(template, "<image>"), turns, generate) == expected
        compared += 1
    assert compared >= 3


def rendered(jinja: str, turns: list, generate: bool) -> str:
    content = [
        {
            "role": role,
            "content": [{"type": "text", "text": part.text} if isinstance(part, TextPart) else {"type": "image"} for part in parts],
        }
        for role, parts in turns
    ]
    texts, _ = render_jinja_template([content], chat_template=jinja, add_generation_prompt=generate)
    return texts[0]


def test_a_message_may_be_a_plain_string():
    jinja = chat_template(TEMPLATES["vicuna_v1"], "<image>")
    texts, _ = render_jinja_template([[{"role": "user", "content": "Hi"}]], chat_template=jinja, add_generation_prompt=True)
    assert texts[0].endswith("USER: Hi ASSISTANT:")
