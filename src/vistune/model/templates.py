"""Chat templates: a conversation as a list of segments, each known to be supervised or not.

One table of names (`TEMPLATES`), eight ways of laying turns out. Nothing is tokenised here and no rendered text is ever taken apart
again: what a segment is was known when it was made. Training and generation use the same rendering, so that the prompt of a reply is
always the beginning of the sequence it was trained in.

The strings are interop facts: published checkpoints were trained on these bytes. Where LLaVA itself renders training and inference
differently, ours is the training side: the v0 family has blank lines and `### ` around turns (and no demonstration exchange), and
the `mmtag` templates wrap the picture in its own turn (and invent no "Received." exchange).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from vistune.errors import DataError, EmptyAnswerError, ImageCountError, UnknownName
from vistune.model.config import LossMask
from vistune.types import Conversation, ImagePart, Message, Part, TextPart, VideoPart

Style = Literal["single", "two", "mpt", "llama_2", "plain", "chatml", "llama_3", "gemma"]

NOTHING: frozenset[LossMask] = frozenset()
ANSWERS: frozenset[LossMask] = frozenset({"answers"})
OFFICIAL: frozenset[LossMask] = frozenset({"official"})
BOTH: frozenset[LossMask] = ANSWERS | OFFICIAL


@dataclass(frozen=True)
class Segment:
    """A run of text, or one picture.

    `supervised_by` names the loss masks that teach it. `typed` text is someone's words: nothing in it is ever read as a special token.
    At `opens_reply` a generation prompt ends. `turn` is the index of the turn it belongs to, None outside of turns.
    """

    text: str = ""
    supervised_by: frozenset[LossMask] = NOTHING
    typed: bool = False
    image: ImagePart | None = None
    opens_reply: bool = False
    turn: int | None = None


@dataclass(frozen=True, kw_only=True)
class Template:
    """How one family of checkpoints writes a conversation down. Fields as in the original's conversation table."""

    style: Style
    roles: tuple[str, str] = ("", "")  # user, assistant
    sep: str = ""
    sep2: str = ""
    system_role: str = ""
    """What stands before the system text, where that is not the style's own."""
    system: str = ""
    image_wrap: tuple[str, str] = ("", "")
    always_supervised: tuple[str, ...] = ()
    """Tokens that the `official` mask supervises wherever they stand, even in a user's text (NeXT Qwen and Llama-3)."""

    @property
    def stop(self) -> str:
        """What ends a reply. A stop token if the tokenizer has it as a special token, else a stop string."""
        return self.sep2 if self.style in ("two", "llama_2", "plain") else self.sep.removesuffix("\n")

    @property
    def official_counts_tokens(self) -> bool:
        """Whether the `official` mask is given by token counts (`v0_official_mask`) and not by segments."""
        return self.style == "single"

    def segments(self, conversation: Conversation, *, generate: bool) -> list[Segment]:
        """The conversation in order.

        With `generate`, it ends where the model is to go on: after the assistant's role marker, or after the words of a last message that
        is the assistant's. Without, it is a training sequence.

        A system message replaces the template's own text, an empty one leaves it out. Assistant messages before the first user message are
        dropped, as in the original. A user message with one picture shows it first and the text, stripped, on the next line, wherever
        it stood (the original's rule); in a message with several pictures each stays exactly where it is.

        Raises DataError for a conversation that does not alternate, or holds what the template has no place for; EmptyAnswerError for
        an assistant message without words in training.
        """
        system, turns = _system_and_turns(conversation)
        if not generate:
            for index, message in enumerate(turns):
                if message.role == "assistant" and not message.text.strip():
                    raise EmptyAnswerError(
                        f"Assistant message {index + 1} of {len(turns)} has no words. Training needs an answer in each; remove the "
                        f"exchange or fill it in."
                    )
        return list(_STYLES[self.style](self, system, turns, generate))


def template_named(name: str) -> Template:
    """The row of TEMPLATES. Raises UnknownName."""
    try:
        return TEMPLATES[name]
    except KeyError:
        raise UnknownName("template", name, known=TEMPLATES) from None


def v0_official_mask(header: int, turns: Sequence[int], total: int) -> list[bool]:
    """The original's mask of the v0 family: all but the header and the human turns, whose first two tokens stay supervised.

    Args:
        header: tokens of the header tokenised alone, and `turns`: of each turn tokenised alone, the user's first; each with a BOS of its
            own if the tokenizer adds one, as the original counts them. So with a BOS the window drifts by one token a turn; this is kept
            exactly, because it is what "official" means.
        total: tokens of the whole sequence.
    """
    mask = [index >= header for index in range(total)]
    position = header
    for turn, length in enumerate(turns):
        if turn % 2 == 0:
            for index in range(position + 2, min(position + length, total)):
                mask[index] = False
        position += length
    return mask


def _system_and_turns(conversation: Conversation) -> tuple[str | None, list[Message]]:
    messages = list(conversation.messages)
    system = messages.pop(0).text if messages and messages[0].role == "system" else None
    while messages and messages[0].role == "assistant":
        messages.pop(0)
    for index, message in enumerate(messages):
        expected = "assistant" if index % 2 else "user"
        if message.role != expected:
            raise DataError(
                f"Message {index + 1} is the {message.role}'s where the {expected}'s was expected. After at most one system message, user "
                f"and assistant must take turns, the user first."
            )
    if not messages:
        raise DataError("The conversation has no user message. Give at least one.")
    return system, messages


# -- parts of a turn ---------------------------------------------------------------------------------------------------------------------


def _content(template: Template, message: Message, turn: int) -> Iterator[Segment]:
    """A message's text and pictures. Only an assistant's words are supervised."""
    taught = BOTH if message.role == "assistant" else NOTHING
    parts: tuple[Part, ...] = message.parts
    if message.role == "user" and len(message.images) == 1:
        words = message.text.strip()
        yield from _picture(template, message.images[0], turn)
        if not words:
            return
        yield Segment("\n", turn=turn)
        parts = (TextPart(words),)
    for part in parts:
        if isinstance(part, VideoPart):
            raise DataError("The conversation holds a video; this model takes pictures. Send single frames as images.")
        if isinstance(part, ImagePart):
            yield from _picture(template, part, turn)
        elif part.text:
            yield Segment(part.text, taught, typed=True, turn=turn)


def _picture(template: Template, part: ImagePart, turn: int) -> Iterator[Segment]:
    before, after = template.image_wrap
    if before:
        yield Segment(before, turn=turn)
    yield Segment(image=part, turn=turn)
    if after:
        yield Segment(after, turn=turn)


def _system_text(template: Template, system: str | None) -> Segment | None:
    """The system text as a segment: the template's own, or what the caller wrote. None if there is none to show."""
    text = template.system if system is None else system
    return Segment(text, typed=system is not None) if text else None


@dataclass(frozen=True)
class _Turn:
    """A turn with what the styles ask of it."""

    index: int
    message: Message
    ends: bool  # False for the assistant's words that are to be continued
    replies: bool  # False for a bare generation prompt: the role marker and nothing after it


def _turns(messages: list[Message], generate: bool) -> Iterator[_Turn]:
    """The turns to render; with `generate` the last is the reply to be written, which may have begun."""
    if generate and messages[-1].role == "user":
        messages = [*messages, Message("assistant", ())]
    for index, message in enumerate(messages):
        continued = generate and index == len(messages) - 1
        yield _Turn(index, message, ends=not continued, replies=not continued or bool(message.text or message.images))


# -- styles ------------------------------------------------------------------------------------------------------------------------------


def _single(template: Template, system: str | None, messages: list[Message], generate: bool) -> Iterator[Segment]:
    """v0: `system\\n\\n### Human: text\\n### Assistant: text\\n### `. The end of a reply is the marker that follows it."""
    if text := _system_text(template, system):
        yield text
        yield Segment("\n\n")
    previous = None
    for turn in _turns(messages, generate):
        role = template.roles[turn.message.role == "assistant"]
        yield Segment(template.sep, ANSWERS if previous == "assistant" else NOTHING, turn=turn.index)
        if turn.message.role == "user":
            yield Segment(f" {role}: ", turn=turn.index)
        else:
            yield Segment(f" {role}:", turn=turn.index, opens_reply=True)
            if not turn.replies:
                return
            yield Segment(" ", turn=turn.index)
        yield from _content(template, turn.message, turn.index)
        if not turn.ends:
            return
        yield Segment("\n", ANSWERS if turn.message.role == "assistant" else NOTHING, turn=turn.index)
        previous = turn.message.role
    yield Segment(template.sep, ANSWERS if previous == "assistant" else NOTHING)
    yield Segment(" ")


def _two(template: Template, system: str | None, messages: list[Message], generate: bool) -> Iterator[Segment]:
    """v1: `system USER: text ASSISTANT: text</s>USER: ...`. A blank token before a reply is taught by `official` alone."""
    if text := _system_text(template, system):
        yield text
        yield Segment(template.sep)
    for turn in _turns(messages, generate):
        if turn.message.role == "user":
            yield Segment(f"{template.roles[0]}: ", turn=turn.index)
            yield from _content(template, turn.message, turn.index)
            yield Segment(template.sep, turn=turn.index)
            continue
        yield Segment(f"{template.roles[1]}:", turn=turn.index, opens_reply=True)
        if turn.replies:
            yield Segment(" ", OFFICIAL, turn=turn.index)
            yield from _content(template, turn.message, turn.index)
        if turn.ends:
            yield Segment(template.sep2, BOTH, turn=turn.index)


def _llama_2(template: Template, system: str | None, messages: list[Message], generate: bool) -> Iterator[Segment]:
    """`[INST] <<SYS>>..<</SYS>> text [/INST] text </s><s>[INST] ...`. The first `<s>` is the tokenizer's own BOS."""
    for turn in _turns(messages, generate):
        if turn.message.role == "user":
            yield Segment(f"{template.sep if turn.index else ''}[INST] ", turn=turn.index)
            text = _system_text(template, system)
            if turn.index == 0 and text:
                yield from (Segment("<<SYS>>\n", turn=0), replace(text, turn=0), Segment("\n<</SYS>>\n\n", turn=0))
            yield from _content(template, turn.message, turn.index)
            yield Segment(" [/INST]", turn=turn.index, opens_reply=True)
            continue
        if turn.replies:
            yield Segment(" ", OFFICIAL, turn=turn.index)
            yield from _content(template, turn.message, turn.index)
        if turn.ends:
            yield Segment(f" {template.sep2}", BOTH, turn=turn.index)


def _plain(template: Template, system: str | None, messages: list[Message], generate: bool) -> Iterator[Segment]:
    """Stage 1: the picture, its caption, a newline. The instruction is dropped, as in the original, and so is a system message."""
    question = messages[0]
    if len(messages) > 2 or (len(messages) < 2 and not generate):
        raise DataError(f"A plain caption is one picture and one answer; this conversation has {len(messages)} messages. Split it.")
    if len(question.images) != 1:
        raise ImageCountError(f"A plain caption needs exactly one picture in its user message; found {len(question.images)}.")
    for turn in _turns(messages, generate):
        if turn.message.role == "user":
            yield Segment(image=question.images[0], turn=turn.index, opens_reply=True)
            continue
        yield from _content(template, turn.message, turn.index)
        if turn.ends:
            yield Segment(template.sep2, BOTH, turn=turn.index)


def _mpt(template: Template, system: str | None, messages: list[Message], generate: bool) -> Iterator[Segment]:
    """`<|im_start|>system\\ntext<|im_end|><|im_start|>user\\ntext<|im_end|>...`: roles carry their own line break."""
    if text := _system_text(template, system):
        yield from (Segment(template.system_role), text, Segment(template.sep))
    for turn in _turns(messages, generate):
        assistant = turn.message.role == "assistant"
        yield Segment(template.roles[assistant], turn=turn.index, opens_reply=assistant)
        yield from _content(template, turn.message, turn.index)
        if turn.ends:
            yield Segment(template.sep, BOTH if assistant else NOTHING, turn=turn.index)


def _chatml(template: Template, system: str | None, messages: list[Message], generate: bool) -> Iterator[Segment]:
    """ChatML with a line break after each turn. NeXT's own trainer also teaches the assistant's header and that line break."""
    if text := _system_text(template, system):
        yield from (Segment(template.system_role), text, Segment(template.sep), Segment("\n"))
    yield from _headed_turns(template, messages, generate, after="\n")


def _llama_3(template: Template, system: str | None, messages: list[Message], generate: bool) -> Iterator[Segment]:
    """Llama-3's header tokens, written out: the checkpoint's own chat template is not needed to render it."""
    yield Segment("<|begin_of_text|>")
    if text := _system_text(template, system):
        yield from (Segment(template.system_role), text, Segment(template.sep))
    yield from _headed_turns(template, messages, generate, after="")


def _gemma(template: Template, system: str | None, messages: list[Message], generate: bool) -> Iterator[Segment]:
    """`<start_of_turn>user\\ntext<end_of_turn>\\n...`; has no place for a system text."""
    if system:
        raise DataError("This template has no place for a system message. Put its words into the first user message.")
    for turn in _turns(messages, generate):
        assistant = turn.message.role == "assistant"
        yield Segment(template.roles[assistant], turn=turn.index, opens_reply=assistant)
        yield from _content(template, turn.message, turn.index)
        if turn.ends:
            yield Segment(template.stop, BOTH if assistant else NOTHING, turn=turn.index)
            yield Segment("\n", OFFICIAL if assistant else NOTHING, turn=turn.index)


def _headed_turns(template: Template, messages: list[Message], generate: bool, *, after: str) -> Iterator[Segment]:
    """Turns whose assistant header and trailing line break are official targets, if the template has a NeXT trainer of its own."""
    official = OFFICIAL if template.always_supervised else NOTHING
    for turn in _turns(messages, generate):
        assistant = turn.message.role == "assistant"
        yield Segment(template.roles[assistant], official if assistant else NOTHING, turn=turn.index, opens_reply=assistant)
        yield from _content(template, turn.message, turn.index)
        if turn.ends:
            yield Segment(template.sep, BOTH if assistant else NOTHING, turn=turn.index)
            if after:
                yield Segment(after, official if assistant else NOTHING, turn=turn.index)


_STYLES: dict[Style, Callable[[Template, str | None, list[Message], bool], Iterator[Segment]]] = {
    "single": _single,
    "two": _two,
    "mpt": _mpt,
    "llama_2": _llama_2,
    "plain": _plain,
    "chatml": _chatml,
    "llama_3": _llama_3,
    "gemma": _gemma,
}

# -- the table ---------------------------------------------------------------------------------------------------------------------------

_HUMAN_SYSTEM = (
    "A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions."
)
_USER_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
_MMTAG_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant is able to understand the visual content that the user provides, "
    "and assist the user with a variety of tasks using natural language."
    "The visual content will be provided with the following format: <Image>visual content</Image>."
)
_VISION_SYSTEM = (
    "You are a helpful language and vision assistant. You are able to understand the visual content that the user provides, "
    "and assist the user with a variety of tasks using natural language."
)
_SIMPLE_SYSTEM = "Answer the questions about the visual content that the user provides."
_LLAMA_2_SYSTEM = (
    "You are a helpful, respectful and honest assistant. Always answer as helpfully as possible, while being safe.  "
    "Your answers should not include any harmful, unethical, racist, sexist, toxic, dangerous, or illegal content. "
    "Please ensure that your responses are socially unbiased and positive in nature.\n\n"
    "If a question does not make any sense, or is not factually coherent, explain why instead of answering something not correct. "
    "If you don't know the answer to a question, please don't share false information."
)

_V0 = Template(style="single", roles=("Human", "Assistant"), sep="###", system=_HUMAN_SYSTEM)
_V1 = Template(style="two", roles=("USER", "ASSISTANT"), sep=" ", sep2="</s>", system=_USER_SYSTEM)
_MMTAG = {"system": _MMTAG_SYSTEM, "image_wrap": ("<Image>", "</Image>")}
_PLAIN = Template(style="plain", sep="\n", sep2="\n")
_LLAMA_2 = Template(style="llama_2", roles=("USER", "ASSISTANT"), sep="<s>", sep2="</s>", system=_LLAMA_2_SYSTEM)
_MISTRAL = replace(_LLAMA_2, sep="", system="")
_MPT = Template(
    style="mpt",
    roles=("<|im_start|>user\n", "<|im_start|>assistant\n"),
    sep="<|im_end|>",
    system_role="<|im_start|>system\n",
    system="A conversation between a user and an LLM-based AI assistant. The assistant gives helpful and honest answers.",
)
_DIRECT = replace(_MPT, system="Answer the questions.")
_CHATML = replace(_MPT, style="chatml", system="You are a helpful assistant.")
_QWEN = replace(_CHATML, always_supervised=("<|im_start|>", "<|im_end|>", "\n"))

TEMPLATES: dict[str, Template] = {
    "default": _V0,
    "v0": _V0,
    "v1": _V1,
    "vicuna_v1": _V1,
    "llava_v0": _V0,
    "llava_v1": replace(_V1, system=_HUMAN_SYSTEM),
    "v0_mmtag": replace(_V0, **_MMTAG),
    "v1_mmtag": replace(_V1, **_MMTAG),
    "llava_v0_mmtag": replace(_V0, **_MMTAG),
    "llava_v1_mmtag": replace(_V1, **_MMTAG),
    "plain": _PLAIN,
    "v0_plain": _PLAIN,
    "llama_2": _LLAMA_2,
    "llava_llama_2": replace(_LLAMA_2, system=_VISION_SYSTEM),
    "llava_llama_2_simple": replace(_LLAMA_2, system=_SIMPLE_SYSTEM),
    "llava_llama_2_mmtag": replace(
        _LLAMA_2,
        system=_SIMPLE_SYSTEM + "The visual content will be provided with the following format: <Image>visual content</Image>.",
        image_wrap=("<Image>", "</Image>"),
    ),
    "mistral_instruct": _MISTRAL,
    "llava_mistral_instruct": _MISTRAL,
    "mpt": _MPT,
    "chatml_direct": _DIRECT,
    "mistral_direct": _DIRECT,
    "mistral_orca": replace(
        _MPT,
        system="You are MistralOrca, a large language model trained by Alignment Lab AI. Write out your reasoning step-by-step to be sure "
        "you get the right answers!",
    ),
    "mistral_zephyr": Template(
        style="mpt",
        roles=("<|user|>\n", "<|assistant|>\n"),
        sep="</s>",
        system_role="<|system|>\n",
        system="You are a helpful AI assistant.",
    ),
    "qwen_1_5": _QWEN,
    "qwen_2": _QWEN,
    "qwen_2_5": replace(_QWEN, system="You are Qwen, created by Alibaba Cloud. You are a helpful assistant."),
    "llava_llama_3": Template(
        style="llama_3",
        roles=("<|start_header_id|>user<|end_header_id|>\n\n", "<|start_header_id|>assistant<|end_header_id|>\n\n"),
        sep="<|eot_id|>",
        system_role="<|start_header_id|>system<|end_header_id|>\n\n",
        system=_VISION_SYSTEM,
        always_supervised=("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "\n\n"),
    ),
    "gemma_instruct": Template(style="gemma", roles=("<start_of_turn>user\n", "<start_of_turn>model\n"), sep="<end_of_turn>\n"),
    # SmolLM2-Instruct's own chat template, for the bundled assistant. No NeXT trainer ever saw it: `official` is answer and turn end.
    "smollm2": replace(_CHATML, system="You are a helpful AI assistant named SmolLM, trained by Hugging Face"),
}
"""Names as in the original's table (spec section 3.2) and ours at the end. Aliases share a row."""
