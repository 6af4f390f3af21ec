"""What is learned: the two objectives of the trainer, each a list of examples and a loss that sums over them.

`NextToken` is LLaVA's: the words of the answers. `Align` is the short stage before it: without running the language model at all, the
projector learns to put at each grid cell the language model's own word embedding of what lies there. Both sum their loss and say by how
much it is to be divided, so a batch has one gradient however it is cut into forwards.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from vistune.data.collate import collate, supervised_tokens
from vistune.data.planner import RowSize
from vistune.data.records import Records
from vistune.errors import DataError, EmptyMaskError, UsageError
from vistune.media import image_size
from vistune.model.backbones import patches_per_side
from vistune.model.inputs import ModelInputs
from vistune.model.llava import Llava
from vistune.model.processor import Processor
from vistune.model.projector import GridMLPProjector, word_logits
from vistune.train.config import AlignConfig, LossMask
from vistune.train.features import FrozenFeatures, picture_keys
from vistune.types import Conversation, ImageAnnotations, ImagePart, InstructionExample, Message

Geometry = Literal["crop", "pad", "squash"]
"""How a picture becomes the square that the tower sees."""

# V views · P grid cells per view · D width of the language model · K names


@dataclass(frozen=True)
class Prepared:
    """One example, ready for the model. `targets` (align only) are pairs of a cell and a word for it, by their numbers: [n, 2]."""

    id: str
    inputs: ModelInputs
    count: float
    """What this example adds to the number that the loss is divided by."""
    targets: Tensor | None = None
    middles: Tensor | None = None
    """Align only: the cells in which the middle of a thing lies, [m]."""

    @property
    def length(self) -> int:
        return self.inputs.num_tokens


class Objective(ABC):
    """Examples and their loss. `features`, once set, gives the pictures' cached features in place of pixels."""

    def __init__(self, records: Records[Any, Any], processor: Processor):
        self.processor = processor
        self._table = records.table
        self.features: FrozenFeatures | None = None
        self._keys: dict[int, tuple[str, ...]] = {}

    def __len__(self) -> int:
        """How many examples there are."""
        return len(self._table)

    def official_lengths(self) -> list[int]:
        """What the official trainer would take for the examples' lengths (see `data/grouping.py`)."""
        return np.where(self._table["images"] > 0, self._table["words"], -self._table["words"]).tolist()

    @abstractmethod
    def size(self, place: int) -> RowSize:
        """What an example costs, known without preparing it: what a step is planned by."""

    @abstractmethod
    def id(self, place: int) -> str:
        """What the data calls this example."""

    @abstractmethod
    def conversation(self, place: int) -> Conversation:
        """The conversation that shows the model this example's pictures."""

    @abstractmethod
    def prepare(self, place: int) -> Prepared:
        """One example as tensors: a pure function of its place."""

    @abstractmethod
    def loss(self, model: Llava, examples: Sequence[Prepared], device: torch.device) -> Tensor:
        """The summed loss of these examples, to be divided by the sum of all `count` of the step.

        Of no examples it is zero, but has the gradients that others have, all zero: a process may have nothing left to do in a forward in
        which others wait for its part.
        """

    def inputs(self, place: int) -> ModelInputs:
        """The example's inputs: with pixels, or with cached features where there is a cache."""
        if self.features is None:
            return self._process(place, load_pixels=True)
        return self.features.attach(
            self._process(place, load_pixels=False), self._picture_keys(place), load=lambda: self._process(place, load_pixels=True)
        )

    def pictures(self) -> Iterator[tuple[tuple[str, ...], Callable[[], ModelInputs]]]:
        """Each example's picture keys, and how to load it with pixels: what `FrozenFeatures.fill` takes."""
        for place in range(len(self)):
            yield self._picture_keys(place), partial(self._process, place, load_pixels=True)

    def _picture_keys(self, place: int) -> tuple[str, ...]:
        """The example's picture keys. Digesting the files costs more than reading the features, so it is done once a run."""
        if place not in self._keys:
            self._keys[place] = picture_keys(self.conversation(place), self.processor.config)
        return self._keys[place]

    @abstractmethod
    def _process(self, place: int, *, load_pixels: bool) -> ModelInputs: ...


class NextToken(Objective):
    """Cross-entropy of the supervised tokens, given everything before them."""

    def __init__(self, examples: Records[InstructionExample, InstructionExample], processor: Processor, mask: LossMask):
        super().__init__(examples, processor)
        self._examples = examples
        self._mask: LossMask = mask

    def size(self, place: int) -> RowSize:
        return RowSize(int(self._table["tokens"][place]), int(self._table["images"][place]))

    def id(self, place: int) -> str:
        return self._examples.named(place).id

    def conversation(self, place: int) -> Conversation:
        return self._examples[place].conversation

    def prepare(self, place: int) -> Prepared:
        inputs = self.inputs(place)
        return Prepared(self.id(place), inputs, supervised_tokens(inputs))

    def loss(self, model: Llava, examples: Sequence[Prepared], device: torch.device) -> Tensor:
        inputs = [example.inputs for example in examples] or [_TWO_TOKENS]
        loss_sum, _ = model.loss(collate(inputs).to(device))
        return loss_sum if examples else 0 * loss_sum

    def _process(self, place: int, *, load_pixels: bool) -> ModelInputs:
        return self.processor(self.conversation(place), train=True, mask=self._mask, load_pixels=load_pixels)


_TWO_TOKENS = ModelInputs(torch.tensor([0, 0]), torch.tensor([False, False]), labels=torch.tensor([0, 0]))
"""The least that a model can learn from."""


def measure_example(example: InstructionExample, processor: Processor, mask: LossMask) -> int:
    """Tokens of a training row. The Processor refuses what cannot be trained on; pictures are looked at, not decoded."""
    inputs = processor(example.conversation, train=True, mask=mask, load_pixels=False)
    if not supervised_tokens(inputs):
        raise EmptyMaskError(
            f"{example.id}: no token of this conversation can be learned (mask {mask!r}, template {processor.config.template!r})."
        )
    return inputs.num_tokens


@dataclass(frozen=True)
class CellNames:
    """What can lie in a cell, and the language model's own words for it: one mean word embedding per name, at unit length.

    Of a name of several pieces the first counts most and each further one half of the one before it: with equal shares, "wheel·b·arrow"
    was read as "barrow".
    """

    names: tuple[str, ...]
    directions: Tensor  # [K, D] float32

    @classmethod
    def of(cls, names: Sequence[str], model: Llava, processor: Processor) -> CellNames:
        embeddings = model.causal_lm.get_input_embeddings().weight.detach().float().cpu()
        tokenizer = processor.tokenizer
        rows = []
        for name in names:
            # With the space before it, as the word stands inside a sentence.
            ids = tokenizer.encode(f" {name}", add_special_tokens=False)
            shares = 0.5 ** torch.arange(len(ids))
            rows.append(shares @ embeddings[ids])
        return cls(tuple(names), F.normalize(torch.stack(rows), dim=-1))


class Align(Objective):
    """Cross-entropy of each grid cell over the words for all things in the data.

    A `grid_mlp` gives a logit for each word, and is also taught to mark the cells that hold the middle of a thing. The visual token of any
    other projector is compared with the words by its cosine.
    """

    def __init__(
        self,
        pictures: Records[ImageAnnotations, tuple[ImageAnnotations, ImagePart]],
        processor: Processor,
        names: CellNames,
        config: AlignConfig,
    ):
        super().__init__(pictures, processor)
        self._pictures, self._names, self._config = pictures, names, config
        self._number = {name: number for number, name in enumerate(names.names)}
        self._side = patches_per_side(processor.config)
        self._mode: Geometry = _plain_mode(processor)
        # A cell of the background teaches little and there are many: its share of the loss is a setting.
        self._weights = torch.ones(len(names.names))
        self._weights[self._number[config.background]] = config.background_weight

    def give_words(self, model: Llava) -> None:
        """Lets a `grid_mlp` say what it sees in the words that are aligned here; other projectors have no such end."""
        projector = model.multi_modal_projector
        if not isinstance(projector, GridMLPProjector):
            return
        middle = CellNames.of([_MIDDLE], model, self.processor).directions[0]
        class_words = CellNames.of(projector.classes.words, model, self.processor).directions if projector.classes else None
        projector.take_words(self._names.directions, middle, class_words)
        model.config = replace(model.config, visual_words=len(self._names.names))

    def size(self, place: int) -> RowSize:
        return RowSize(self._tokens.num_tokens, 1)

    def id(self, place: int) -> str:
        return self._pictures.named(place).image

    def conversation(self, place: int) -> Conversation:
        return Conversation((Message("user", (self._pictures[place][1],)),))

    def prepare(self, place: int) -> Prepared:
        annotations = self._pictures[place][0]
        cells = cell_words(annotations, self._side, mode=self._mode, background=self._config.background)
        targets = torch.tensor([(cell, self._number[word]) for cell, words in enumerate(cells) for word in words]).reshape(-1, 2)
        middles = torch.tensor(cell_middles(annotations, self._side, mode=self._mode), dtype=torch.long)
        return Prepared(self.id(place), self.inputs(place), float(self._shares(targets).sum()), targets, middles)

    def loss(self, model: Llava, examples: Sequence[Prepared], device: torch.device) -> Tensor:
        if not examples:
            return self._nothing(model, device)
        cached = [example.inputs.image_features for example in examples if example.inputs.image_features is not None]
        pixels = [example.inputs.pixel_values for example in examples if example.inputs.pixel_values is not None]
        features = torch.cat(cached).to(device) if cached else model.encode_images(torch.cat(pixels).to(device))  # [V, P, Dv]
        first_cells = [view * self._side**2 for view in range(len(examples))]
        marked = 0.0
        if isinstance(model.multi_modal_projector, GridMLPProjector) and model.multi_modal_projector.has_words:
            words, middles = (logits.flatten(0, 1).float() for logits in model.multi_modal_projector.read(features))  # [V·P, K], [V·P, 1]
            is_middle = torch.zeros_like(middles[:, 0])
            is_middle[torch.cat([e.middles + first for e, first in zip(examples, first_cells, strict=True) if e.middles is not None])] = 1.0
            marked = F.binary_cross_entropy_with_logits(middles[:, 0], is_middle, reduction="sum")
        else:
            words = word_logits(_directions(model, features).flatten(0, 1), self._names.directions.to(device), self._config.logit_scale)
        targets = torch.cat(
            [e.targets + torch.tensor([first, 0]) for e, first in zip(examples, first_cells, strict=True) if e.targets is not None]
        )
        shares, (cells, numbers) = self._shares(targets).to(device), targets.to(device).unbind(1)
        return marked - (shares * words.log_softmax(-1)[cells, numbers]).sum()

    def _nothing(self, model: Llava, device: torch.device) -> Tensor:
        features, projector = torch.zeros(1, self._side**2, model.vision_tower.width, device=device), model.multi_modal_projector
        if isinstance(projector, GridMLPProjector) and projector.has_words:
            outputs = projector.read(features)
        else:
            outputs = (_directions(model, features),)
        return 0 * torch.stack([output.sum() for output in outputs]).sum()

    def _shares(self, targets: Tensor) -> Tensor:
        """How much each pair counts: the words of one cell share its weight. [n, 2] -> [n]."""
        cells, words = targets.unbind(1)
        return self._weights[words] / torch.bincount(cells)[cells] if len(targets) else torch.zeros(0)

    def _process(self, place: int, *, load_pixels: bool) -> ModelInputs:
        return self.processor(self.conversation(place), load_pixels=True) if load_pixels else self._tokens

    @cached_property
    def _tokens(self) -> ModelInputs:
        """What any example is without its pixels: each is one view of the same square, and the loss looks at nothing else."""
        return self.processor(self.conversation(0), load_pixels=False)


_MIDDLE = "one"
"""The word whose embedding marks the middle of a thing: marks are there to be counted."""


def _directions(model: Llava, features: Tensor) -> Tensor:
    projector = model.multi_modal_projector
    return projector.content(features) if isinstance(projector, GridMLPProjector) else projector(features)


def _plain_mode(processor: Processor) -> Geometry:
    """How a picture becomes the tower's square: the geometry that `cell_words` has to follow."""
    image = processor.config.image
    if image.mode == "anyres":
        raise UsageError("The align objective names the cells of one view; it works with model.image_mode=square or pad, not anyres.")
    if image.mode == "pad":
        return "pad"
    return "crop" if image.resize == "shortest_edge" else "squash"


def cell_words(annotations: ImageAnnotations, side: int, *, mode: Geometry, background: str) -> list[tuple[str, ...]]:
    """The words for what lies in each of side × side grid cells, row by row; none outside the picture (padding).

    A cell belongs to the smallest box over its centre, so things stand before the ground they stand on; boxes at the very same place share
    it (a name and a colour, say). A box too small to cover any centre gets the cell that its own centre lies in.
    """
    at: dict[tuple[float, float, float, float], tuple[str, ...]] = {}
    for box in annotations.boxes:
        at[box.xyxy] = (*at.get(box.xyxy, ()), box.label)
    by_size = sorted(at, key=_area)
    stretch = _stretch(annotations.width, annotations.height, mode)
    centres = [(column + 0.5) / side for column in range(side)]
    cells: list[tuple[str, ...]] = []
    for y in centres:
        for x in centres:
            u, v = (x - 0.5) * stretch[0] + 0.5, (y - 0.5) * stretch[1] + 0.5
            if not (0 <= u <= 1 and 0 <= v <= 1):
                cells.append(())
                continue
            smallest = next((xyxy for xyxy in by_size if xyxy[0] <= u <= xyxy[2] and xyxy[1] <= v <= xyxy[3]), None)
            cells.append(at[smallest] if smallest else (background,))
    for xyxy in reversed(by_size):
        left, top, right, bottom = xyxy
        column = _cell((left + right) / 2, stretch[0], side)
        row = _cell((top + bottom) / 2, stretch[1], side)
        small = (right - left) < stretch[0] / side and (bottom - top) < stretch[1] / side
        if small and column is not None and row is not None:
            cells[row * side + column] = at[xyxy]
    return cells


def cell_middles(annotations: ImageAnnotations, side: int, *, mode: Geometry) -> list[int]:
    """The cells that hold the middle of a box, each box once; a box around the whole picture is its ground, and no thing."""
    stretch = _stretch(annotations.width, annotations.height, mode)
    middles = []
    for left, top, right, bottom in dict.fromkeys(box.xyxy for box in annotations.boxes):
        column, row = _cell((left + right) / 2, stretch[0], side), _cell((top + bottom) / 2, stretch[1], side)
        if column is not None and row is not None and (left, top, right, bottom) != (0, 0, 1, 1):
            middles.append(row * side + column)
    return middles


def _area(xyxy: tuple[float, float, float, float]) -> float:
    return (xyxy[2] - xyxy[0]) * (xyxy[3] - xyxy[1])


def _stretch(width: int, height: int, mode: Geometry) -> tuple[float, float]:
    """How much of the picture's own width and height the square view spans: above 1 with padding, below 1 when cropped."""
    square = {"pad": max(width, height), "crop": min(width, height), "squash": 0}[mode]
    return (square / width, square / height) if square else (1.0, 1.0)


def _cell(position: float, stretch: float, side: int) -> int | None:
    """The cell along one axis that a position (fraction of the picture) falls into, or None outside the view."""
    cell = int(((position - 0.5) / stretch + 0.5) * side // 1)
    return cell if 0 <= cell < side else None


def cell_places(side: int) -> list[str]:
    """What people call the place of each of side × side cells, row by row: "top left" to "bottom right", by thirds of the picture."""

    def third(cell: int, low: str, high: str) -> str:
        centre = (cell + 0.5) / side
        return low if centre < 1 / 3 else high if centre > 2 / 3 else ""

    rows, columns = ([third(cell, *ends) for cell in range(side)] for ends in (("top", "bottom"), ("left", "right")))
    return [f"{row} {column}".strip() or "center" for row in rows for column in columns]


def annotation_names(pictures: Iterable[ImageAnnotations], background: str) -> list[str]:
    """All names that can lie in a cell, in a fixed order."""
    return sorted({box.label for picture in pictures for box in picture.boxes} | {background})


def measure_picture(picture: tuple[ImageAnnotations, ImagePart]) -> int:
    """Checks that an annotated picture is there and has the size its annotations speak of; one picture counts as one."""
    annotations, part = picture
    found = image_size(part.source)
    if found != (annotations.width, annotations.height):
        raise DataError(
            f"{annotations.image}: the picture is {found[0]}×{found[1]}, its annotations say {annotations.width}×{annotations.height}."
        )
    return 1
