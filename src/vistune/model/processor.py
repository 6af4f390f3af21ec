"""Turns a conversation into model inputs.

The only place where text becomes tokens and where labels are made: training, evaluation and serving all come through here. Knows nothing
of batches or devices. How text is laid out is `templates.py`, how it is tokenised `tokens.py`, how pictures become views `images.py`.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from functools import partial
from itertools import groupby

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from vistune import media
from vistune.errors import ContextLengthError, EmptyMaskError, ImageCountError
from vistune.media import image_digest
from vistune.model.config import LossMask, ModelConfig
from vistune.model.images import ImageLayout, image_layout, prepare_image
from vistune.model.inputs import IGNORE_INDEX, ModelInputs
from vistune.model.looks import Look, Looks
from vistune.model.templates import Segment, template_named, v0_official_mask
from vistune.model.tokens import TextEncoder, Token
from vistune.types import Conversation, ImagePart, ImageSource


class Processor:
    """The road from a conversation to tensors, for one model. Holds no state between calls; may be shared by threads.

    >>> inputs = processor(conversation)                # a prompt, or an assistant message to be continued
    >>> inputs = processor(conversation, train=True)    # a training sequence with labels
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        config: ModelConfig,
        *,
        open_image: Callable[[ImageSource], Image.Image] = media.open_image,
    ):
        self.tokenizer = tokenizer
        self.config = config
        self.open_image = open_image
        """How a picture is opened."""
        self._template = template_named(config.template)
        self._encoder = TextEncoder(tokenizer, config.image_token)
        self._embedding_settings = json.dumps(
            {field: getattr(config, field) for field in ("vision_tower", "projector", "feature_layer", "feature_select", "image_newline")}
            | {"vision_config": dict(config.vision_config), "image": dataclasses.asdict(config.image)},
            sort_keys=True,
            default=str,
        )
        stop_id = self._encoder.marker_ids.get(self._template.stop)
        self.stop_ids: frozenset[int] = frozenset(id for id in (tokenizer.eos_token_id, stop_id) if isinstance(id, int))
        """Tokens that end a reply: the tokenizer's EOS and the template's turn end."""
        self.stop_strings: tuple[str, ...] = (self._template.stop,) if stop_id is None else ()
        """Text that ends a reply, where the template's turn end is no token of this tokenizer."""

    def __call__(
        self,
        conversation: Conversation,
        *,
        train: bool = False,
        mask: LossMask = "answers",
        images: Sequence[Image.Image] | None = None,
        load_pixels: bool = True,
        looks: Looks | None = None,
        salt: str = "",
    ) -> ModelInputs:
        """Renders, tokenises and expands a conversation.

        Args:
            train: a training sequence with labels and without `image_keys`, which only prompts are looked up by. Otherwise a generation
                prompt, which goes on where the conversation ends: after the assistant's role marker, or inside its last message.
            mask: which tokens are supervised. `answers`: those that hold the assistant's words or the end of its turn. `official`: what
                the original's trainer supervises for this template.
            images: pictures already opened, in order of appearance, in place of opening the conversation's own.
            load_pixels: False reads only the sizes of pictures and leaves `pixel_values` and `image_keys` empty; the features then come
                from a cache.
            looks: where a prompt's pictures may be found as they were prepared before for the same `salt`.

        Raises:
            ImageCountError: pictures where none can be shown, or more or fewer than `images`.
            ImageError: a picture that cannot be opened or is over a limit.
            ContextLengthError: more tokens than `config.max_length`. Nothing is ever cut.
            EmptyAnswerError: training with an assistant message that has no words.
            EmptyMaskError: training in which no token would be supervised.
            DataError: a conversation that does not alternate.
        """
        segments = self._template.segments(conversation, generate=not train)
        shown = [segment.image for segment in segments if segment.image is not None]
        if len(shown) != len(conversation.images):
            raise ImageCountError(
                f"The conversation has {_count(len(conversation.images), 'picture')}, of which {len(shown)} can be shown: a picture "
                f"must be in a user message (or a reply to one). Move it there."
            )
        if images is not None and len(images) != len(shown):
            raise ImageCountError(
                f"The conversation has {_count(len(shown), 'place')} for pictures, but {_count(len(images), 'picture')} came with it. Give "
                f"one for each place."
            )
        tokens = self._encoder.encode(segments, chunked=self.config.image.text_after_image == "original")
        if looks is not None and not train and images is None and load_pixels:
            seen = [looks.look(part.source, salt, len(shown), partial(self._look_at, part, None, len(shown))) for part in shown]
        else:
            seen = [
                self._look_at(part, None if images is None else images[index], len(shown), load_pixels=load_pixels, keyed=not train)
                for index, part in enumerate(shown)
            ]
        layouts = [look.layout for look in seen]
        self._check_length(tokens, layouts)
        input_ids, image_mask = self._expanded(tokens, layouts)
        views = [look.views for look in seen if look.views is not None]
        return ModelInputs(
            input_ids=input_ids,
            image_mask=image_mask,
            labels=self._labels(segments, tokens, input_ids, image_mask, mask) if train else None,
            pixel_values=_joined(views) if views else None,
            views=tuple(layout.views for layout in layouts),
            image_sizes=tuple(look.size for look in seen),
            image_keys=tuple(look.key for look in seen if look.key),
        )

    def opening_with(self, open_image: Callable[[ImageSource], Image.Image]) -> Processor:
        """This processor with pictures opened another way: where strangers send them, by a `DecodePool`."""
        other = copy.copy(self)
        other.open_image = open_image
        return other

    def decode(self, ids: Sequence[int] | Tensor) -> str:
        """The text of `ids`, special tokens included; ids that the tokenizer does not know (an image placeholder) are left out."""
        numbers: list[int] = ids.tolist() if isinstance(ids, Tensor) else list(ids)
        known = [id for id in numbers if 0 <= id < len(self.tokenizer)]
        text = self.tokenizer.decode(known, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)  # one sequence was given, not a batch
        return text

    def masked_preview(self, inputs: ModelInputs, *, colour: bool = True) -> str:
        """A training sequence as a person reads it: what is supervised in green (or in ⟦brackets⟧), each picture as a count of tokens."""
        before, after = ("\x1b[32m", "\x1b[0m") if colour else ("⟦", "⟧")
        labels = inputs.labels if inputs.labels is not None else torch.full_like(inputs.input_ids, IGNORE_INDEX)
        rows = zip(inputs.input_ids.tolist(), inputs.image_mask.tolist(), (labels != IGNORE_INDEX).tolist(), strict=True)
        preview = ""
        for (is_image, supervised), group in groupby(rows, key=lambda row: (row[1], row[2])):
            ids = [row[0] for row in group]
            text = f"[picture: {len(ids)} tokens]" if is_image else self.decode(ids)
            preview += f"{before}{text}{after}" if supervised else text
        return preview

    def _labels(
        self, segments: Sequence[Segment], tokens: Sequence[Token], input_ids: Tensor, image_mask: Tensor, mask: LossMask
    ) -> Tensor:
        """[T] int64: the id where the token is supervised, IGNORE_INDEX elsewhere and on every picture."""
        supervised = self._official_mask(segments, tokens) if mask == "official" else [_teaches(token, "answers") for token in tokens]
        if not any(supervised):
            raise EmptyMaskError(
                f"No token of this conversation would be supervised ({mask} mask, template {self.config.template!r}). It needs an "
                f"assistant message."
            )
        taught = np.array([taught for token, taught in zip(tokens, supervised, strict=True) if not token.is_image], dtype=np.bool_)
        rows = np.flatnonzero(~image_mask.numpy())[taught]
        labels = np.full(len(input_ids), IGNORE_INDEX)
        labels[rows] = input_ids.numpy()[rows]
        return torch.from_numpy(labels)

    def _official_mask(self, segments: Sequence[Segment], tokens: Sequence[Token]) -> list[bool]:
        """What the original's trainer supervises, where it does not throw the sample away.

        Its masks come from token counts of re-tokenised pieces; when the counts do not add up it masks the whole sample and goes on. Ours
        come from segments, so such a sample is taught as it was meant. Two rules of its code are kept to the letter: the v0 family's
        counted windows, and NeXT's tokens that are taught wherever they stand.
        """
        template = self._template
        if template.official_counts_tokens:
            header = [segment for segment in segments if segment.turn is None][: -2 if segments[-1].turn is None else None]
            turns = [list(group) for turn, group in groupby(segments, key=lambda segment: segment.turn) if turn is not None]
            return v0_official_mask(self._alone(header), [self._alone(turn) for turn in turns], len(tokens))
        everywhere = {self._encoder.single_id(text) for text in template.always_supervised}
        return [_teaches(token, "official") or (token.id in everywhere and not token.is_image) for token in tokens]

    def _alone(self, segments: Sequence[Segment]) -> int:
        """Tokens of a piece tokenised as a text of its own."""
        return len(self._encoder.encode(segments, chunked=True))

    def _check_length(self, tokens: Sequence[Token], layouts: Sequence[ImageLayout]) -> None:
        for_images = sum(layout.tokens for layout in layouts)
        for_text = sum(not token.is_image for token in tokens)
        if for_text + for_images > self.config.max_length:
            raise ContextLengthError(
                f"The conversation has {for_text + for_images:,} tokens: {for_text:,} of text and {for_images:,} for "
                f"{_count(len(layouts), 'picture')}. The model's context is {self.config.max_length:,}. Shorten the text, drop early "
                f"turns, or show fewer pictures."
            )

    def _expanded(self, tokens: Sequence[Token], layouts: Sequence[ImageLayout]) -> tuple[Tensor, Tensor]:
        """Ids [T] and image mask [T], with as many placeholders for each picture as its layout has tokens."""
        image_id = self.config.image_token_id
        ids = np.array([image_id if token.is_image else token.id for token in tokens], dtype=np.int64)
        is_image = np.array([token.is_image for token in tokens], dtype=np.bool_)
        counts = np.ones_like(ids)
        counts[is_image] = [layout.tokens for layout in layouts]
        # torch's `repeat_interleave` would start a team of threads (`model/threads.py`).
        return torch.from_numpy(ids.repeat(counts)), torch.from_numpy(is_image.repeat(counts))

    def _look_at(self, part: ImagePart, given: Image.Image | None, shown: int, *, load_pixels: bool = True, keyed: bool = True) -> Look:
        """What a conversation that shows so many pictures needs of one. It is made into views at once and let go, so that a prompt of
        many large pictures holds one of them at a time."""
        if given is None and not load_pixels:
            size = media.image_size(part.source)
            return Look(size, image_layout(size, self.config, images_in_conversation=shown))
        picture = self.open_image(part.source) if given is None else given
        if picture.mode != "RGB":
            picture = picture.convert("RGB")
        layout = image_layout(picture.size, self.config, images_in_conversation=shown)
        if not load_pixels:
            return Look(picture.size, layout)
        views = prepare_image(picture, self.config, images_in_conversation=shown)
        return Look(picture.size, layout, views, self._image_key(picture, layout) if keyed else "")

    def _image_key(self, picture: Image.Image, layout: ImageLayout) -> str:
        """A digest of all that the picture's embeddings depend on but the weights (`layout` tells one of several from a lone one)."""
        return hashlib.sha256(f"{image_digest(picture)}\n{layout}\n{self._embedding_settings}".encode()).hexdigest()


def _joined(views: Sequence[Tensor]) -> Tensor:
    """The views of all pictures. `torch.cat` would start a team of threads for whoever prepares a prompt (`model/threads.py`)."""
    return views[0] if len(views) == 1 else torch.from_numpy(np.concatenate([view.numpy() for view in views]))


def _teaches(token: Token, mask: LossMask) -> bool:
    for segment in token.segments:  # noqa: SIM110 (asked for every token of the data: `any` would take three times as long)
        if mask in segment.supervised_by:
            return True
    return False


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")
