"""What goes into the model: one conversation as tensors, and several of them laid end to end.

These records hold tensors, so they live here and not in `types.py`. `Processor` makes `ModelInputs`; `data/collate.py` and the engine
lay them end to end as a `RaggedBatch`. Nothing is ever padded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

IGNORE_INDEX = -100
"""Label of a position that is not supervised."""


@dataclass(frozen=True)
class ModelInputs:
    """One conversation. T tokens (images already expanded to their placeholders) · V views of all its images · P patches per view."""

    input_ids: Tensor  # [T] int64
    image_mask: Tensor  # [T] bool: placeholders that image embeddings replace (an id alone could have been typed)
    labels: Tensor | None = None  # [T] int64, IGNORE_INDEX where not supervised; not shifted
    pixel_values: Tensor | None = None  # [V, 3, H, W] all views of all images in order of appearance
    views: tuple[int, ...] = ()  # views per image, sums to V
    image_sizes: tuple[tuple[int, int], ...] = ()  # original (width, height) per image
    image_features: Tensor | None = None  # [V, P, D_vision] cached vision tower output, in place of pixel_values
    image_keys: tuple[str, ...] = ()  # digest per image of everything its embeddings depend on but the weights

    @property
    def num_tokens(self) -> int:
        return int(self.input_ids.shape[0])


@dataclass(frozen=True)
class RaggedBatch:
    """S sequences laid end to end. T tokens in all; sequence s owns rows cu_seqlens[s]:cu_seqlens[s+1].

    With a KV arena, the rows are only each sequence's *new* tokens: position_ids start at its past length.
    """

    input_ids: Tensor  # [T] int64
    position_ids: Tensor  # [T] int64, restart at each sequence (or continue from its past)
    cu_seqlens: Tensor  # [S+1] int32 on the CPU: boundaries drive Python loops and varlen kernels alike
    image_mask: Tensor  # [T] bool
    labels: Tensor | None = None  # [T] int64, not shifted
    pixel_values: Tensor | None = None  # [V, 3, H, W]
    views: tuple[int, ...] = ()
    image_sizes: tuple[tuple[int, int], ...] = ()
    image_features: Tensor | None = None  # [V, P, D_vision]

    @property
    def lengths(self) -> list[int]:
        return (self.cu_seqlens[1:] - self.cu_seqlens[:-1]).tolist()

    def to(self, device: torch.device | str) -> RaggedBatch:
        """The same batch with its tensors on `device`; cu_seqlens stays on the CPU."""

        def move(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.to(device, non_blocking=True)

        return RaggedBatch(
            input_ids=self.input_ids.to(device),
            position_ids=self.position_ids.to(device),
            cu_seqlens=self.cu_seqlens,
            image_mask=self.image_mask.to(device),
            labels=move(self.labels),
            pixel_values=move(self.pixel_values),
            views=self.views,
            image_sizes=self.image_sizes,
            image_features=move(self.image_features),
        )


def lay_end_to_end(inputs: Sequence[ModelInputs]) -> RaggedBatch:
    """Concatenates whole conversations into one ragged batch.

    Raises ValueError when some carry labels or cached features and others do not: a batch is one kind.
    """

    def concatenated(tensors: list[Tensor | None], what: str) -> Tensor | None:
        present = [tensor for tensor in tensors if tensor is not None]
        if not present:
            return None
        if len(present) != len(tensors):
            raise ValueError(f"{len(present)} of {len(tensors)} inputs with images or labels carry {what}; give it for all or for none")
        return torch.cat(present)

    with_images = [each for each in inputs if each.views]
    lengths = torch.tensor([each.num_tokens for each in inputs], dtype=torch.int32)
    cu_seqlens = torch.zeros(len(inputs) + 1, dtype=torch.int32)
    torch.cumsum(lengths, 0, dtype=torch.int32, out=cu_seqlens[1:])
    return RaggedBatch(
        input_ids=torch.cat([each.input_ids for each in inputs]),
        position_ids=torch.cat([torch.arange(each.num_tokens) for each in inputs]),
        cu_seqlens=cu_seqlens,
        image_mask=torch.cat([each.image_mask for each in inputs]),
        labels=concatenated([each.labels for each in inputs], "labels"),
        pixel_values=concatenated([each.pixel_values for each in with_images], "pixel_values"),
        views=tuple(count for each in inputs for count in each.views),
        image_sizes=tuple(size for each in inputs for size in each.image_sizes),
        image_features=concatenated([each.image_features for each in with_images], "image_features"),
    )
