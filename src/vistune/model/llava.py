"""The model: a vision tower, a projector and a causal language model over a ragged batch.

Knows nothing of conversations, files or requests: tensors in, tensors out. Module names are those of the Hugging Face LLaVA folder
(`vision_tower.vision_model.*`, `multi_modal_projector.linear_1`, `language_model.model.*`, `image_newline`), so its state dict is that
folder's list of tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from itertools import pairwise
from typing import Any, ParamSpec, Protocol, TypeVar, cast

import torch
import transformers
from torch import Tensor, nn

from vistune.errors import ImageCountError, UsageError
from vistune.model.backbones import check_language_model
from vistune.model.config import ModelConfig
from vistune.model.decoder import DecoderLayers, KeyValuePlanes
from vistune.model.images import ImageLayout, image_layout
from vistune.model.inputs import IGNORE_INDEX, RaggedBatch
from vistune.model.loss import linear_cross_entropy_sum
from vistune.model.projector import GridMLPProjector, build_projector
from vistune.model.ragged import ATTENTION_NAME, KeyValues, default_arithmetic, pruned_layer
from vistune.model.vision import EfficientNetLite0, build_vision_tower

# T tokens of all sequences · V views · P tokens per view · Dv width of the tower · D width of the language model

Params = ParamSpec("Params")
Result = TypeVar("Result")


class KeyValueView(KeyValues, KeyValuePlanes, Protocol):
    """What `kv=` takes: `engine.kv_cache.KVView`."""


def _steady_inference(method: Callable[Params, Result]) -> Callable[Params, Result]:
    """Runs a method of Llava under `default_arithmetic`: the same bits in any company, where that is the rule (fp32 inference on a CPU)."""

    @wraps(method)
    def run(*args: Params.args, **kwargs: Params.kwargs) -> Result:
        model = cast(Llava, args[0])
        with default_arithmetic(model.dtype, model.device):
            return method(*args, **kwargs)

    return run


class Llava(nn.Module):
    """A LLaVA with random weights; `checkpoint.folder.load_model` fills them.

    Raises UnknownName or UnsupportedModel for a tower or a language model outside the tested ones.
    """

    config: ModelConfig
    image_newline: nn.Parameter | None

    def __init__(self, config: ModelConfig, *, dtype: torch.dtype = torch.float32):
        super().__init__()
        self.config = config
        spec = check_language_model(config.text_config)
        self.sequential_block = spec.sequential_block
        self.vision_tower = build_vision_tower(config).to(dtype)
        self.multi_modal_projector = build_projector(config).to(dtype)
        width = int(config.text_config["hidden_size"])
        # Scale of the original's newline at the start of training: N(0, 1) / sqrt(D)
        self.image_newline = nn.Parameter((torch.randn(width) / width**0.5).to(dtype)) if config.image_newline else None
        settings = {key: value for key, value in config.text_config.items() if key != "model_type"}
        text_config = getattr(transformers, spec.config_class)(**settings)
        text_config.use_cache = False  # past keys and values are in an arena of ours
        language_model = getattr(transformers, spec.model_class)._from_config(text_config, dtype=dtype, attn_implementation=ATTENTION_NAME)
        self.language_model: nn.Module = language_model

    @property
    def causal_lm(self) -> Any:
        """The transformers model itself, also where PEFT has wrapped it (its adapters sit inside the layers and stay active)."""
        get_base_model = getattr(self.language_model, "get_base_model", None)
        return self.language_model if get_base_model is None else get_base_model()

    @property
    def dtype(self) -> torch.dtype:
        return cast(torch.dtype, self.causal_lm.dtype)

    @property
    def device(self) -> torch.device:
        return cast(torch.device, self.causal_lm.device)

    # --- seeing ---

    @_steady_inference
    def encode_images(self, pixel_values: Tensor) -> Tensor:
        """Features of the vision tower, [V, 3, H, W] -> [V, P, Dv]. A frozen tower records nothing for the backward pass."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and _learns(self.vision_tower)):
            return self.vision_tower(pixel_values)

    @_steady_inference
    def image_embeddings(self, batch: RaggedBatch) -> Tensor:
        """What replaces the batch's placeholders, in order: [visual tokens of all images, D].

        Projects the tower's features (or the cached ones of the batch) and lays them out as `image_layout` says.
        Raises ImageCountError if the batch's views do not fit its list of images.
        """
        layouts = [self._layout(size, views) for size, views in zip(batch.image_sizes, batch.views, strict=True)]
        features = batch.image_features if batch.image_features is not None else self._encoded(batch)
        expected = sum(layout.views for layout in layouts)
        if features.shape[0] != expected or any(layout.views != views for layout, views in zip(layouts, batch.views, strict=True)):
            raise ImageCountError(
                f"The batch holds {features.shape[0]} views, {list(batch.views)} per image, but its images of sizes "
                f"{list(batch.image_sizes)} have {[layout.views for layout in layouts]}; prepare pixels and sizes from the same images."
            )
        projected = self._projected(features.to(_dtype_of(self.multi_modal_projector)))  # [V, P, D]
        if all(layout.views == 1 and not layout.newline for layout in layouts):
            return self._tied_to_projector(projected.flatten(0, 1))
        pieces = projected.split([layout.views for layout in layouts])
        return self._tied_to_projector(torch.cat([self._merge(views, layout) for views, layout in zip(pieces, layouts, strict=True)]))

    def _no_image_embeddings(self) -> Tensor | None:
        """[0, D] where something learns to see, else None: a forward without a picture has a gradient for that too, of zeros."""
        if not torch.is_grad_enabled():
            return None
        if not _learns(self.vision_tower):
            nothing = torch.zeros(0, int(self.config.text_config["hidden_size"]), device=self.device)
            return self._tied_to_projector(nothing) if _learns(self.multi_modal_projector) else None
        size = self.config.image.size
        blank = self.encode_images(torch.zeros(1, 3, size, size, device=self.device))
        projected = self._projected(blank.to(_dtype_of(self.multi_modal_projector)))
        return self._tied_to_projector(projected.flatten(0, 1)[:0])

    def _tied_to_projector(self, embeddings: Tensor) -> Tensor:
        """The same embeddings, tied to every weight of the projector and the newline that learns: not every picture needs all of them.

        Processes that train together add up their gradients weight by weight, and would wait for one that is missing.
        """
        parameters = [*self.multi_modal_projector.parameters()] + ([] if self.image_newline is None else [self.image_newline])
        learning = [parameter for parameter in parameters if parameter.requires_grad]
        if not learning or not torch.is_grad_enabled():
            return embeddings
        no_rows = [parameter.flatten()[:0, None].expand(0, embeddings.shape[1]).to(embeddings.dtype) for parameter in learning]
        return torch.cat([embeddings, *no_rows])

    def _projected(self, features: Tensor) -> Tensor:
        projector, tower = self.multi_modal_projector, self.vision_tower
        if isinstance(projector, GridMLPProjector) and isinstance(tower, EfficientNetLite0):
            return projector(features, tower.classify)
        return projector(features)

    def _encoded(self, batch: RaggedBatch) -> Tensor:
        if batch.pixel_values is None:
            raise ImageCountError(f"The batch names {len(batch.views)} images but carries neither pixels nor cached features of them.")
        return self.encode_images(batch.pixel_values)

    def _layout(self, size: tuple[int, int], views: int) -> ImageLayout:
        # A picture tiled by AnyRes has at least two views, so one view says that its conversation had it padded.
        return image_layout(size, self.config, images_in_conversation=1 if views > 1 else 2)

    def _merge(self, views: Tensor, layout: ImageLayout) -> Tensor:
        """One image's views as tokens: [V, P, D] -> [layout.tokens, D] (`spatial_unpad`, or all in order)."""
        newline = None if self.image_newline is None else self.image_newline.to(views.dtype)
        if layout.tile_grid is None or newline is None:
            tokens = views.flatten(0, 1)
            return torch.cat([tokens, newline[None]]) if layout.newline and newline is not None else tokens
        rows, columns = layout.tile_grid
        side = round(layout.tokens_per_view**0.5)
        tiles = views[1:].unflatten(0, (rows, columns)).unflatten(2, (side, side))  # [rows, columns, p, p, D]
        grid = tiles.transpose(1, 2).flatten(2, 3).flatten(0, 1)  # [rows · p, columns · p, D]
        kept = grid[slice(*layout.rows), slice(*layout.columns)]
        with_ends = torch.cat([kept, newline.expand(kept.shape[0], 1, -1)], dim=1)
        return torch.cat([views[0], with_ends.flatten(0, 1)])

    # --- reading ---

    @_steady_inference
    def input_embeddings(self, batch: RaggedBatch) -> Tensor:
        """What the language model reads: token embeddings, with image embeddings at the placeholders. [T, D].

        Raises ImageCountError if there are more or fewer placeholders than visual tokens.
        """
        placeholders = batch.image_mask.nonzero().squeeze(1)
        image_embeds = self.image_embeddings(batch) if batch.views else self._no_image_embeddings()
        visual_tokens = 0 if image_embeds is None else image_embeds.shape[0]
        if visual_tokens != placeholders.shape[0]:
            raise ImageCountError(
                f"The text has {placeholders.shape[0]} image placeholders, but its {len(batch.views)} images give {visual_tokens} "
                "visual tokens; make text and pixels with the same Processor."
            )
        # A placeholder's own id may lie outside the vocabulary; whatever row is read here is replaced below.
        token_embeds = self.causal_lm.get_input_embeddings()(batch.input_ids.masked_fill(batch.image_mask, 0))
        return token_embeds if image_embeds is None else token_embeds.index_put((placeholders,), image_embeds.to(token_embeds.dtype))

    def layers_for_inference(self, *, deterministic: bool = False) -> DecoderLayers:
        """The language model's layers, laid out for many quick passes (`model/decoder.py`); they do not hear of later training."""
        steady = self.dtype == torch.float32 and self.device.type == "cpu"  # as `default_arithmetic`
        arithmetic = "tiles" if deterministic else "steady" if steady else "plain"
        return DecoderLayers(self.causal_lm, sequential_block=self.sequential_block, arithmetic=arithmetic)

    def hidden_states(
        self,
        batch: RaggedBatch,
        *,
        select: Tensor | None = None,
        kv: KeyValueView | None = None,
        embeddings: Tensor | None = None,
        layers: DecoderLayers | None = None,
    ) -> Tensor:
        """States after the final norm at the rows `select`, or at all rows. [n, D].

        Args:
            select: ascending rows of the batch. The last layer then runs its queries and MLP on these rows only; the result is the same.
            kv: earlier tokens of each sequence (`engine.kv_cache.KVArena.view`); the batch's rows are the tokens after them.
            embeddings: `input_embeddings` of these rows, made before: a long prompt with images is embedded once and read in chunks.
            layers: `layers_for_inference`, to run instead of the modules; needs `kv`.
        """
        if layers is None or kv is None:
            return self._states_of_modules(batch, select=select, kv=kv, embeddings=embeddings)
        embeddings = self.input_embeddings(batch) if embeddings is None else embeddings
        rows = torch.arange(len(embeddings), device=embeddings.device) if select is None else select
        return layers.hidden_states(embeddings, batch.position_ids, batch.lengths, kv, rows)

    @_steady_inference
    def _states_of_modules(
        self, batch: RaggedBatch, *, select: Tensor | None, kv: KeyValueView | None, embeddings: Tensor | None
    ) -> Tensor:
        hidden = (self.input_embeddings(batch) if embeddings is None else embeddings)[None]
        position_ids = batch.position_ids[None]
        decoder = self.causal_lm.model
        shared = {"position_embeddings": decoder.rotary_emb(hidden, position_ids=position_ids), "cu_seqlens": batch.cu_seqlens, "kv": kv}
        if kv is not None:
            kv.prepare(batch.lengths)
        pruned_to = None if select is None or len(select) == hidden.shape[1] else select
        for layer in decoder.layers if pruned_to is None else decoder.layers[:-1]:
            hidden = layer(hidden, attention_mask=None, position_ids=position_ids, past_key_values=None, use_cache=False, **shared)
        if pruned_to is not None:
            rows = _ascending(pruned_to.tolist())
            hidden = pruned_layer(decoder.layers[-1], hidden, pruned_to, rows, sequential_block=self.sequential_block, **shared)
        if kv is not None:
            kv.commit(batch.lengths)
        final_norm = decoder.norm if hasattr(decoder, "norm") else decoder.final_layernorm  # Phi
        return final_norm(hidden)[0]

    @_steady_inference
    def logits(self, hidden: Tensor) -> Tensor:
        """The head: [n, D] -> [n, vocabulary], in fp32 (fp64 for an fp64 model)."""
        logits = self.causal_lm.lm_head(hidden)
        return logits if logits.dtype == torch.float64 else logits.float()

    def forward(
        self, batch: RaggedBatch, *, select: Tensor | None = None, kv: KeyValueView | None = None, embeddings: Tensor | None = None
    ) -> Tensor:
        """Logits at the rows `select`, or at all rows: [n, vocabulary]. Arguments as in `hidden_states`."""
        return self.logits(self.hidden_states(batch, select=select, kv=kv, embeddings=embeddings))

    def loss(self, batch: RaggedBatch, *, chunk_size: int = 1024) -> tuple[Tensor, int]:
        """Sum of the cross entropy over supervised tokens, and how many they are.

        The label at a row is predicted by the row before it in the same sequence, so a sequence's first label is never counted.

        Raises UsageError for a batch without labels.
        """
        if batch.labels is None:
            raise UsageError("The batch has no labels; render its conversations with Processor(..., train=True).")
        starts = batch.cu_seqlens[:-1].to(batch.labels.device, torch.int64)
        supervised = batch.labels != IGNORE_INDEX
        supervised[starts[starts < len(supervised)]] = False
        positions = supervised.nonzero().squeeze(1)
        hidden = self.hidden_states(batch, select=positions - 1)
        head = self.causal_lm.lm_head
        total = linear_cross_entropy_sum(hidden, head.weight, head.bias, batch.labels[positions], chunk_size=chunk_size)
        return total, len(positions)


def _dtype_of(module: nn.Module) -> torch.dtype:
    return next(module.parameters()).dtype


def _learns(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())


def _ascending(rows: list[int]) -> list[int]:
    if any(later <= earlier for earlier, later in pairwise(rows)):
        raise UsageError(f"Selected rows must ascend without repeats; found {rows[:20]}{'...' if len(rows) > 20 else ''}.")
    return rows
