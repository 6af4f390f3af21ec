"""A model and its adapters over one set of weights: they answer as each would alone, and the weights are in memory once."""

from __future__ import annotations

from pathlib import Path

import peft
import pytest
import torch
from tests.checkpoint.test_adapters import bases, randomise_adapters, small_adapter, trained
from tests.checkpoint.tiny import tiny_llava
from transformers import AutoModelForImageTextToText

from vistune.checkpoint.adapters import AdaptedLinear
from vistune.checkpoint.folder import load_model, save_adapter, save_model
from vistune.checkpoint.shared import load_sharing
from vistune.errors import CheckpointError, TensorError, UsageError
from vistune.model.inputs import lay_end_to_end
from vistune.model.llava import Llava
from vistune.model.processor import Processor
from vistune.types import Conversation, ImagePart, Message, TextPart

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # PEFT asks transformers by an old name

assert bases  # a fixture

BESIDE = (".up", ".down")
"""How the names of an adapter's own tensors end."""


@pytest.fixture
def question(tmp_path: Path) -> Conversation:
    from PIL import Image

    Image.linear_gradient("L").convert("RGB").save(tmp_path / "grey.png")
    return Conversation((Message("user", (ImagePart(tmp_path / "grey.png"), TextPart("\nWhat is this?"))),))


def logits(model: Llava, processor: Processor, question: Conversation) -> torch.Tensor:
    with torch.no_grad():
        return model(lay_end_to_end([processor(question)]))


def places(model: Llava) -> dict[int, str]:
    """Where each tensor of a model lies, but the few that are computed anew."""
    return {tensor.untyped_storage().data_ptr(): name for name, tensor in model.state_dict().items()}


def peft_adapter(base: Path, folder: Path, *, seed: int, **settings) -> Path:
    """An adapter that PEFT itself wrote, on the model in `base`."""
    torch.manual_seed(seed)
    config = peft.LoraConfig(r=4, lora_alpha=6, target_modules=r".*language_model.*(v_proj|up_proj|o_proj)", **settings)
    wrapped = peft.get_peft_model(AutoModelForImageTextToText.from_pretrained(base), config)
    randomise_adapters(wrapped)
    for name, parameter in wrapped.named_parameters():
        if "modules_to_save" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    wrapped.save_pretrained(str(folder))
    return folder


def test_adapters_over_a_whole_model_answer_as_each_does_alone_and_its_weights_are_there_once(tmp_path: Path, question: Conversation):
    save_model(*tiny_llava(), tmp_path / "base")
    poet = peft_adapter(tmp_path / "base", tmp_path / "poet", seed=1)
    painter = peft_adapter(tmp_path / "base", tmp_path / "painter", seed=2, modules_to_save=["multi_modal_projector"])
    (base, processor), *adapted = load_sharing(tmp_path / "base", [poet, painter])
    assert torch.equal(logits(base, processor, question), logits(*load_model(tmp_path / "base"), question))
    for folder, (model, own_processor) in zip((poet, painter), adapted, strict=True):
        alone, shared = logits(*load_model(folder, base=tmp_path / "base"), question), logits(model, own_processor, question)
        torch.testing.assert_close(shared, alone, atol=1e-5, rtol=1e-5)
        assert not torch.allclose(shared, logits(base, processor, question), atol=1e-2)
    in_base = places(base)
    own = [{name for place, name in places(model).items() if place not in in_base and not name.endswith(BESIDE)} for model, _ in adapted]
    assert own == [set(), {f"multi_modal_projector.linear_{number}.{part}" for number in (1, 2) for part in ("weight", "bias")}]


def test_folders_on_the_same_bases_share_them_and_each_keeps_its_projector(bases, tmp_path: Path, question: Conversation):
    for seed, name in enumerate(("first", "second")):
        model, processor = trained(bases)
        torch.manual_seed(seed)
        randomise_adapters(model)
        torch.nn.init.normal_(model.multi_modal_projector.linear_2.weight, std=0.2)
        save_adapter(model, processor, tmp_path / name, language_model=bases[0], vision_tower=bases[1])
    plain = small_adapter(tmp_path / "plain")
    models = load_sharing(tmp_path / "first", [tmp_path / "second", plain])
    found = [logits(model, processor, question) for model, processor in models]
    for name, each in zip(("first", "second"), found, strict=False):
        torch.testing.assert_close(each, logits(*load_model(tmp_path / name), question), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(found[0], found[1], atol=1e-2)
    # The third stands on the first as it is, adapter included.
    save_model(*load_model(tmp_path / "first"), tmp_path / "whole")
    torch.testing.assert_close(found[2], logits(*load_model(plain, base=tmp_path / "whole"), question), atol=1e-5, rtol=1e-5)
    first, *others = [{place for place, name in places(model).items() if not name.startswith("multi_modal")} for model, _ in models]
    adapters = [{place for place, name in places(model).items() if name.endswith(BESIDE)} for model, _ in models]
    for other, own in zip(others, adapters[1:], strict=True):
        assert other - own == first - adapters[0]
        assert not own & adapters[0]


def test_one_folder_under_two_names_is_two_models(tmp_path: Path):
    save_model(*tiny_llava(), tmp_path / "base")
    poet = peft_adapter(tmp_path / "base", tmp_path / "poet", seed=1)
    models = load_sharing(tmp_path / "base", [poet, poet])
    assert len({id(model) for model, _ in models}) == 3


def test_an_adapter_of_another_model_is_refused(bases, tmp_path: Path):
    save_model(*tiny_llava(), tmp_path / "base")
    wrong_shape = small_adapter(
        tmp_path / "wide", {f"base_model.model.model.layers.0.self_attn.q_proj.lora_{half}.weight": torch.ones(2, 2) for half in "AB"}
    )
    for folder, complaint in (
        (wrong_shape, "does not fit language_model.model.layers.0.self_attn.q_proj.weight"),
        (
            small_adapter(
                tmp_path / "deep",
                {f"base_model.model.model.layers.9.self_attn.q_proj.lora_{half}.weight": torch.ones(2, 2) for half in "AB"},
            ),
            "does not have; it belongs to another model",
        ),
        (small_adapter(tmp_path / "stray", {"base_model.model.model.pooler.weight": torch.ones(2, 2)}), "pooler"),
    ):
        with pytest.raises(TensorError, match=complaint):
            load_sharing(tmp_path / "base", [folder])
    save_adapter(*trained(bases), tmp_path / "tuned", language_model=bases[0], vision_tower=bases[1])
    with pytest.raises(CheckpointError, match="share no weights"):
        load_sharing(tmp_path / "base", [tmp_path / "tuned"])
    with pytest.raises(CheckpointError, match="holds no adapter"):
        load_sharing(tmp_path / "base", [tmp_path / "base"])
    other = (tmp_path / "tuned" / "vistune.json").read_text().replace('"sha256": "', '"sha256": "0', 1)
    save_adapter(*trained(bases), tmp_path / "elsewhere", language_model=bases[0], vision_tower=bases[1])
    (tmp_path / "elsewhere" / "vistune.json").write_text(other)
    with pytest.raises(CheckpointError, match="stands on another language model"):
        load_sharing(tmp_path / "tuned", [tmp_path / "elsewhere"])
    with pytest.raises(UsageError, match="trained with template"):
        load_sharing(tmp_path / "tuned", [tmp_path / "tuned"], template="vicuna_v1")


def test_what_stays_beside_the_weights_is_no_linear_layer_that_somebody_could_read_the_weights_of(tmp_path: Path):
    save_model(*tiny_llava(), tmp_path / "base")
    (_, _), (model, _) = load_sharing(tmp_path / "base", [small_adapter(tmp_path / "adapter")])
    layer = model.causal_lm.model.layers[0].self_attn.q_proj
    assert isinstance(layer, AdaptedLinear)
    assert not hasattr(layer, "weight")
