"""The model put together: merging features, the loss, and the errors of inputs that do not fit."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from vistune.engine.kv_cache import KVArena, KVShape
from vistune.errors import ImageCountError, OutOfMemory, UnsupportedModel, UsageError
from vistune.model.config import ImageConfig, ModelConfig
from vistune.model.images import image_layout
from vistune.model.inputs import IGNORE_INDEX, ModelInputs, RaggedBatch, lay_end_to_end
from vistune.model.llava import Llava
from vistune.model.loss import linear_cross_entropy_sum

IMAGE = 120
LAYERS = {"intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
TEXT = {"model_type": "llama", "hidden_size": 32, "vocab_size": 100, **LAYERS}
TOWER = {"hidden_size": 24, "image_size": 28, "patch_size": 14, **LAYERS}
ANYRES = ImageConfig(size=28, mode="anyres", pinpoints=((28, 56), (56, 28), (56, 56)))


def config(**changes) -> ModelConfig:
    options = {"vision_tower": "clip", "vision_config": TOWER, "text_config": TEXT, "image": ImageConfig(size=28), "image_token_id": IMAGE}
    return ModelConfig(**{**options, **changes})


@pytest.fixture
def model() -> Llava:
    torch.manual_seed(0)
    return Llava(config())


def inputs(model: Llava, *, images: int = 1, size: tuple[int, int] = (50, 40), words: int = 6) -> ModelInputs:
    layout = image_layout(size, model.config, images_in_conversation=images)
    ids = torch.cat([torch.arange(2, 4), torch.full((images * layout.tokens,), IMAGE), torch.arange(4, 2 + words)])
    return ModelInputs(
        input_ids=ids,
        image_mask=ids == IMAGE,
        labels=torch.where(torch.arange(len(ids)) >= len(ids) - 2, ids, IGNORE_INDEX),
        pixel_values=torch.randn(images * layout.views, 3, 28, 28) if images else None,
        views=(layout.views,) * images,
        image_sizes=(size,) * images,
    )


def test_names_of_tensors_are_those_of_the_hugging_face_folder():
    names = set(Llava(config(image=ANYRES, image_newline=True)).state_dict())
    assert "vision_tower.vision_model.embeddings.patch_embedding.weight" in names
    assert "multi_modal_projector.linear_1.weight" in names
    assert "language_model.model.layers.0.self_attn.q_proj.weight" in names
    assert {"language_model.lm_head.weight", "image_newline"} <= names


def test_image_embeddings_stand_at_the_placeholders_and_words_elsewhere(model):
    batch = lay_end_to_end([inputs(model), inputs(model, images=0), inputs(model, images=2)])
    embeddings = model.input_embeddings(batch)
    projected = model.multi_modal_projector(model.encode_images(batch.pixel_values)).flatten(0, 1)
    assert torch.equal(embeddings[batch.image_mask], projected)
    words = ~batch.image_mask
    assert torch.equal(embeddings[words], model.causal_lm.get_input_embeddings()(batch.input_ids[words]))


def test_a_grid_projector_hears_how_the_tower_itself_classifies_a_strange_picture():
    seeing = {"vision_tower": "efficientnet_lite0", "vision_config": {}, "projector": "grid_mlp", "visual_words": 3}
    model = Llava(config(**seeing, image=ImageConfig(size=64))).eval()
    projector = model.multi_modal_projector
    torch.nn.init.normal_(projector.class_words)
    batch = lay_end_to_end([replace(inputs(model), pixel_values=None, image_features=30 * torch.randn(1, 4, 1728))])
    found = model.image_embeddings(batch)
    assert torch.equal(found, projector(batch.image_features, model.vision_tower.classify)[0])
    assert not torch.allclose(found, projector(batch.image_features)[0])


def test_a_placeholder_id_beyond_the_vocabulary_is_never_looked_up(model):
    assert TEXT["vocab_size"] < IMAGE
    assert model(lay_end_to_end([inputs(model)])).shape == (10, 100)


def test_an_anyres_picture_is_its_overview_then_its_unpadded_map_row_by_row():
    model = Llava(config(image=ANYRES, image_newline=True))
    batch = lay_end_to_end([inputs(model, size=(400, 200))])  # 2 × 1 tiles of 2 × 2 patches
    merged = model.image_embeddings(batch)
    overview, left, right = model.multi_modal_projector(model.encode_images(batch.pixel_values))
    newline = model.image_newline[None]
    rows = [torch.cat([left[2 * row : 2 * row + 2], right[2 * row : 2 * row + 2], newline]) for row in (0, 1)]
    assert torch.equal(merged, torch.cat([overview, *rows]))


def test_a_single_padded_view_of_a_next_model_ends_with_the_newline():
    model = Llava(config(image=ANYRES, image_newline=True))
    merged = model.image_embeddings(lay_end_to_end([inputs(model, images=2)]))
    assert merged.shape == (2 * 5, 32)
    assert torch.equal(merged[4], model.image_newline)


def test_cached_features_give_what_pixels_give(model):
    batch = lay_end_to_end([inputs(model)])
    cached = replace(batch, pixel_values=None, image_features=model.encode_images(batch.pixel_values))
    assert torch.equal(model(cached), model(batch))


def test_placeholders_and_images_that_do_not_match_are_refused(model):
    good = inputs(model)
    short = replace(good, image_mask=good.image_mask & (torch.arange(10) != 2))
    with pytest.raises(ImageCountError, match=r"3 image placeholders.*give 4"):
        model(lay_end_to_end([short]))
    with pytest.raises(ImageCountError, match="4 image placeholders, but its 0 images"):
        model(lay_end_to_end([replace(good, views=(), image_sizes=())]))
    with pytest.raises(ImageCountError, match="neither pixels nor cached"):
        model(lay_end_to_end([replace(good, pixel_values=None)]))
    with pytest.raises(ImageCountError, match="holds 1 views"):
        model(lay_end_to_end([replace(good, views=(2,))]))


def test_the_loss_is_that_of_all_logits_shifted_inside_each_sequence(model):
    examples = [inputs(model), inputs(model, images=0, words=3), inputs(model)]
    first = examples[1]
    examples[1] = replace(first, labels=first.input_ids)  # its first token is supervised, but nothing before it predicts it
    batch = lay_end_to_end(examples)
    loss, count = model.loss(batch, chunk_size=3)
    logits = model(batch).split(batch.lengths)
    expected = sum(F.cross_entropy(each[:-1], one.labels[1:], reduction="sum") for each, one in zip(logits, examples, strict=True))
    assert count == 6
    torch.testing.assert_close(loss, expected)


def test_a_batch_without_supervised_words_has_loss_zero_and_zero_gradients(model):
    example = inputs(model)
    loss, count = model.loss(lay_end_to_end([replace(example, labels=torch.full_like(example.input_ids, IGNORE_INDEX))]))
    loss.backward()
    assert (loss.item(), count) == (0.0, 0)
    assert all(not parameter.grad.any() for parameter in model.parameters() if parameter.grad is not None)


def test_a_loss_without_labels_is_refused(model):
    with pytest.raises(UsageError, match="no labels"):
        model.loss(replace(lay_end_to_end([inputs(model)]), labels=None))


@pytest.mark.parametrize("chunk_size", [1, 4, 100])
def test_the_chunked_head_has_the_gradients_of_the_plain_one(chunk_size):
    torch.manual_seed(0)
    hidden, weight, bias = (torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in ((7, 5), (11, 5), (11,)))
    targets = torch.randint(11, (7,))
    ours = linear_cross_entropy_sum(hidden, weight, bias, targets, chunk_size=chunk_size)
    plain = F.cross_entropy(F.linear(hidden, weight, bias), targets, reduction="sum")
    torch.testing.assert_close(ours, plain)
    ours_gradients = torch.autograd.grad(3 * ours, (hidden, weight, bias))
    torch.testing.assert_close(ours_gradients, torch.autograd.grad(3 * plain, (hidden, weight, bias)))


def test_the_chunked_head_under_autocast_keeps_fp32_gradients_of_fp32_weights():
    hidden, weight = torch.randn(7, 8, requires_grad=True), torch.randn(11, 8, requires_grad=True)
    targets = torch.randint(11, (7,))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = linear_cross_entropy_sum(hidden, weight, None, targets, chunk_size=4)
    loss.backward()
    assert loss.dtype == hidden.grad.dtype == weight.grad.dtype == torch.float32
    torch.testing.assert_close(loss, F.cross_entropy(hidden @ weight.t(), targets, reduction="sum"), rtol=0.02, atol=0.02)


def test_a_frozen_head_costs_no_weight_gradient():
    hidden, weight = torch.randn(3, 8, requires_grad=True), torch.randn(11, 8)
    linear_cross_entropy_sum(hidden, weight, None, torch.tensor([1, 2, 3]), chunk_size=2).backward()
    assert weight.grad is None
    assert hidden.grad.any()


def test_a_family_outside_the_tested_ones_is_refused():
    with pytest.raises(UnsupportedModel, match="'gpt2'"):
        Llava(config(text_config={**TEXT, "model_type": "gpt2"}))


def test_selected_rows_must_ascend(model):
    with pytest.raises(UsageError, match="must ascend"):
        model(lay_end_to_end([inputs(model)]), select=torch.tensor([3, 1]))


def test_a_prompt_that_does_not_fit_the_cache_leaves_it_as_it_was(model):
    arena = KVArena(KVShape.of(TEXT), dtype=torch.float32, max_bytes=100)
    sequence = arena.allocate()
    with torch.inference_mode(), pytest.raises(OutOfMemory):
        model(lay_end_to_end([inputs(model)]), kv=arena.view([sequence]))
    assert (sequence.length, arena.bytes_used) == (0, 0)


def test_a_second_question_reads_only_its_new_words(model):
    model.eval()
    first = inputs(model)
    arena = KVArena(KVShape.of(TEXT), dtype=torch.float32)
    sequence = arena.allocate()
    question = torch.tensor([7, 8, 9])
    whole = replace(first, input_ids=torch.cat([first.input_ids, question]), image_mask=F.pad(first.image_mask, (0, 3)), labels=None)
    with torch.inference_mode():
        model(lay_end_to_end([first]), kv=arena.view([sequence]))
        fork = arena.fork(sequence, sequence.length)
        batch = RaggedBatch(
            input_ids=question,
            position_ids=torch.arange(3) + sequence.length,
            cu_seqlens=torch.tensor([0, 3], dtype=torch.int32),
            image_mask=torch.zeros(3, dtype=torch.bool),
        )
        torch.testing.assert_close(model(batch, kv=arena.view([fork])), model(lay_end_to_end([whole]))[-3:])
