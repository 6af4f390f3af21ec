"""RECIPES: the stages of training, each a function that returns a complete config. A variant says only what differs.

The numbers of the LLaVA recipes are those of the official scripts (v1: `pretrain.sh`, `finetune.sh`, `finetune_lora.sh`, ...; v1.5: the
same under `v1_5`; NeXT: `pretrain_clip.sh`, `direct_finetune_clip.sh`). Batches are global: 8 devices times 16 or 32 rows there, one
optimizer step here. How a step is cut into forwards changes nothing of what is learned: it is set so that eight GPUs of 80 GB hold it.
Nothing imports torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from vistune.errors import UnknownName
from vistune.model.config import LoraConfig
from vistune.train.config import AlignConfig, BatchConfig, DataConfig, ModelChoice, OptimConfig, TrainConfig


def llava_v1_pretrain() -> TrainConfig:
    """LLaVA v1, stage 1: the linear projector learns to describe pictures in one line; all else is frozen."""
    return TrainConfig(
        recipe="llava_v1_pretrain",
        output="runs/llava_v1_pretrain",
        model=ModelChoice(
            language_model="lmsys/vicuna-7b-v1.3",
            vision_tower="openai/clip-vit-large-patch14",
            projector="linear",
            template="plain",
            image_mode="square",
        ),
        trainable=("projector",),
        # Decoding half a million pictures ahead takes hours; the published sets are sound.
        data=DataConfig(dataset="llava_cc3m_595k", mask="official", image_place="first", picture_check="header"),
        batch=BatchConfig(conversations=128),
        optim=OptimConfig(lr=2e-3),
    )


def llava_v1_finetune() -> TrainConfig:
    """LLaVA v1, stage 2, full schedule: projector and language model on LLaVA-Instruct-158K for three epochs."""
    stage1 = llava_v1_pretrain()
    return replace(
        stage1,
        recipe="llava_v1_finetune",
        output="runs/llava_v1_finetune",
        model=replace(stage1.model, init_from=f"{stage1.output}/model", template="vicuna_v1"),
        trainable=("projector", "language_model"),
        data=replace(stage1.data, dataset="llava_instruct_158k"),
        batch=BatchConfig(conversations=128, tokens_per_forward=4096),
        optim=OptimConfig(lr=2e-5),
        epochs=3.0,
    )


def llava_v1_finetune_lora() -> TrainConfig:
    """LLaVA v1, stage 2 with LoRA: one epoch of LLaVA-Instruct-80K, rank 64, alpha 16."""
    full = llava_v1_finetune()
    return replace(
        full,
        recipe="llava_v1_finetune_lora",
        output="runs/llava_v1_finetune_lora",
        trainable=("projector", "lora"),
        lora=LoraConfig(rank=64, alpha=16, dropout=0.05),
        data=replace(full.data, dataset="llava_instruct_80k"),
        epochs=1.0,
    )


def llava_v1_finetune_qlora() -> TrainConfig:
    """LLaVA v1, stage 2 with LoRA over a language model in four bits."""
    return _quantised(llava_v1_finetune_lora())


def _quantised(lora: TrainConfig) -> TrainConfig:
    name = lora.recipe.replace("_lora", "_qlora")
    return replace(lora, recipe=name, output=f"runs/{name}", model=replace(lora.model, quantise="nf4"))


def llava_v1_13b_pretrain() -> TrainConfig:
    """LLaVA v1 13B, stage 1: what the ScienceQA run stands on."""
    small = llava_v1_pretrain()
    return replace(
        small,
        recipe="llava_v1_13b_pretrain",
        output="runs/llava_v1_13b_pretrain",
        model=replace(small.model, language_model="lmsys/vicuna-13b-v1.3"),
    )


def llava_v1_finetune_sqa() -> TrainConfig:
    """LLaVA v1 13B on ScienceQA: lecture and explanation before the answer (QCM-LEA), twelve epochs."""
    full, stage1 = llava_v1_finetune(), llava_v1_13b_pretrain()
    return replace(
        full,
        recipe="llava_v1_finetune_sqa",
        output="runs/llava_v1_finetune_sqa",
        model=replace(stage1.model, init_from=f"{stage1.output}/model", template="vicuna_v1"),
        data=replace(full.data, dataset="scienceqa_qcm_lea"),
        activation_checkpointing=True,
        epochs=12.0,
    )


def llava_v1_5_7b_pretrain() -> TrainConfig:
    """LLaVA-1.5, stage 1: the two-layer projector on 558K captions; pictures cropped to the square, as in the official script."""
    v1 = llava_v1_pretrain()
    return replace(
        v1,
        recipe="llava_v1_5_7b_pretrain",
        output="runs/llava_v1_5_7b_pretrain",
        model=replace(
            v1.model,
            language_model="lmsys/vicuna-7b-v1.5",
            vision_tower="openai/clip-vit-large-patch14-336",
            projector="mlp2x_gelu",
        ),
        data=replace(v1.data, dataset="llava_pretrain_558k"),
        batch=BatchConfig(conversations=256),
        optim=OptimConfig(lr=1e-3),
    )


def llava_v1_5_7b_finetune() -> TrainConfig:
    """LLaVA-1.5, stage 2: projector and language model on the 665K mixture; pictures padded to the square."""
    stage1 = llava_v1_5_7b_pretrain()
    return replace(
        stage1,
        recipe="llava_v1_5_7b_finetune",
        output="runs/llava_v1_5_7b_finetune",
        model=replace(stage1.model, init_from=f"{stage1.output}/model", template="vicuna_v1", image_mode="pad"),
        trainable=("projector", "language_model"),
        data=replace(stage1.data, dataset="llava_v1_5_mix665k"),
        batch=BatchConfig(conversations=128, tokens_per_forward=4096),
        optim=OptimConfig(lr=2e-5),
    )


def llava_v1_5_7b_finetune_lora() -> TrainConfig:
    """LLaVA-1.5, stage 2 with LoRA adapters on the language model instead of full weights."""
    full = llava_v1_5_7b_finetune()
    return replace(
        full,
        recipe="llava_v1_5_7b_finetune_lora",
        output="runs/llava_v1_5_7b_finetune_lora",
        trainable=("projector", "lora"),
        lora=LoraConfig(rank=128, alpha=256, dropout=0.05),
        optim=OptimConfig(lr=2e-4, projector_lr=2e-5),
    )


def llava_v1_5_7b_finetune_qlora() -> TrainConfig:
    """LLaVA-1.5, stage 2 with LoRA over a language model in four bits."""
    return _quantised(llava_v1_5_7b_finetune_lora())


def llava_v1_5_7b_finetune_task() -> TrainConfig:
    """LLaVA-1.5 on a task of your own (data.dataset=your rows), from the finished model: all weights of stage 2."""
    return _on_task(llava_v1_5_7b_finetune())


def llava_v1_5_7b_finetune_task_lora() -> TrainConfig:
    """LLaVA-1.5 on a task of your own, with LoRA."""
    return _on_task(llava_v1_5_7b_finetune_lora())


def _on_task(stage2: TrainConfig) -> TrainConfig:
    """The official task scripts are those of stage 2, but begin with the published LLaVA-1.5."""
    name = stage2.recipe.replace("_finetune", "_finetune_task")
    model = replace(stage2.model, init_from="llava-hf/llava-1.5-7b-hf")
    return replace(stage2, recipe=name, output=f"runs/{name}", model=model, data=replace(stage2.data, dataset="task.json"))


def _as_13b(recipe: Callable[[], TrainConfig]) -> TrainConfig:
    """The 13B of LLaVA-1.5 differs from the 7B in its language model only; with all of it trained, layers are computed twice to fit."""
    small = recipe()
    begin = small.model.init_from.replace("_7b_", "_13b_").replace("-7b-", "-13b-")
    return replace(
        small,
        recipe=small.recipe.replace("_7b_", "_13b_"),
        output=small.output.replace("_7b_", "_13b_"),
        model=replace(small.model, language_model="lmsys/vicuna-13b-v1.5", init_from=begin),
        batch=replace(small.batch, tokens_per_forward=4096),
        activation_checkpointing="language_model" in small.trainable,
    )


def llava_v1_5_13b_pretrain() -> TrainConfig:
    """LLaVA-1.5 13B, stage 1."""
    return _as_13b(llava_v1_5_7b_pretrain)


def llava_v1_5_13b_finetune() -> TrainConfig:
    """LLaVA-1.5 13B, stage 2."""
    return _as_13b(llava_v1_5_7b_finetune)


def llava_v1_5_13b_finetune_lora() -> TrainConfig:
    """LLaVA-1.5 13B, stage 2 with LoRA."""
    return _as_13b(llava_v1_5_7b_finetune_lora)


def llava_v1_5_13b_finetune_qlora() -> TrainConfig:
    """LLaVA-1.5 13B, stage 2 with LoRA over a language model in four bits."""
    return _as_13b(llava_v1_5_7b_finetune_qlora)


def llava_v1_5_13b_finetune_task() -> TrainConfig:
    """LLaVA-1.5 13B on a task of your own: all weights of stage 2."""
    return _as_13b(llava_v1_5_7b_finetune_task)


def llava_v1_5_13b_finetune_task_lora() -> TrainConfig:
    """LLaVA-1.5 13B on a task of your own, with LoRA."""
    return _as_13b(llava_v1_5_7b_finetune_task_lora)


def llava_next_pretrain() -> TrainConfig:
    """LLaVA-NeXT, stage 1 (`pretrain_clip.sh`): the projector of a Qwen2-7B on 558K captions."""
    v1_5 = llava_v1_5_7b_pretrain()
    return replace(
        v1_5,
        recipe="llava_next_pretrain",
        output="runs/llava_next_pretrain",
        model=replace(v1_5.model, language_model="Qwen/Qwen2-7B-Instruct", max_length=8192),
        batch=BatchConfig(conversations=128),
        optim=OptimConfig(lr=1e-3),
    )


def llava_next_finetune() -> TrainConfig:
    """LLaVA-NeXT, stage 2 (`direct_finetune_clip.sh`): all parts learn, the tower more slowly, on pictures in tiles (AnyRes)."""
    stage1 = llava_next_pretrain()
    return replace(
        stage1,
        recipe="llava_next_finetune",
        output="runs/llava_next_finetune",
        model=replace(stage1.model, init_from=f"{stage1.output}/model", template="qwen_1_5", image_mode="anyres", max_length=32768),
        trainable=("projector", "language_model", "vision_tower"),
        data=replace(stage1.data, dataset="llava_next_779k"),
        # The script's own batch depends on how many machines it is started on; 128 is what was published for LLaVA-1.6.
        batch=BatchConfig(conversations=128),
        optim=OptimConfig(lr=1e-5, tower_lr=2e-6),
        activation_checkpointing=True,
    )


def smol_align() -> TrainConfig:
    """The bundled assistant, before stage 1: the projector learns to name what lies in each grid cell. No language model is run."""
    return TrainConfig(
        recipe="smol_align",
        output="runs/smol_align",
        model=ModelChoice(
            language_model="smollm2-135m-instruct",
            vision_tower="efficientnet-lite0",
            projector="grid_mlp",
            template="smollm2",
            image_mode="pad",
        ),
        trainable=("projector",),
        objective="align",
        align=AlignConfig(logit_scale=40.0, background_weight=0.3),
        data=DataConfig(dataset="scenes_align"),
        batch=BatchConfig(conversations=64),
        optim=OptimConfig(lr=2e-3, weight_decay=0.01),
        epochs=3.0,
        feature_cache="runs/features",
        save_as="bf16",
    )


def smol_pretrain() -> TrainConfig:
    """The bundled assistant, stage 1: the aligned projector meets the frozen language model."""
    align = smol_align()
    return replace(
        align,
        recipe="smol_pretrain",
        output="runs/smol_pretrain",
        model=replace(align.model, init_from=f"{align.output}/model"),
        objective="next_token",
        data=DataConfig(dataset="scenes_captions", validation_rows=32),
        batch=BatchConfig(conversations=8, tokens_per_forward=2048),
        optim=OptimConfig(lr=5e-4),
        validate_every=50,
    )


def smol_tune() -> TrainConfig:
    """The bundled assistant, stage 2: projector and LoRA adapters, small enough to ship inside the package."""
    stage1 = smol_pretrain()
    return replace(
        stage1,
        recipe="smol_tune",
        output="runs/smol_tune",
        model=replace(stage1.model, init_from=f"{stage1.output}/model"),
        trainable=("projector", "lora"),
        lora=LoraConfig(rank=24, alpha=48, dropout=0.0),
        data=DataConfig(dataset="scenes_instruct", validation_rows=64),
        # The projector knows its names from the alignment, and forgets at higher rates: at 5e-4 a quarter of them in 1,200 conversations.
        optim=OptimConfig(lr=1e-3, projector_lr=1e-5),
        save_every=150,
        validate_every=150,
    )


RECIPES: dict[str, Callable[[], TrainConfig]] = {
    recipe.__name__: recipe
    for recipe in (
        llava_v1_pretrain,
        llava_v1_finetune,
        llava_v1_finetune_lora,
        llava_v1_finetune_qlora,
        llava_v1_13b_pretrain,
        llava_v1_finetune_sqa,
        llava_v1_5_7b_pretrain,
        llava_v1_5_7b_finetune,
        llava_v1_5_7b_finetune_lora,
        llava_v1_5_7b_finetune_qlora,
        llava_v1_5_7b_finetune_task,
        llava_v1_5_7b_finetune_task_lora,
        llava_v1_5_13b_pretrain,
        llava_v1_5_13b_finetune,
        llava_v1_5_13b_finetune_lora,
        llava_v1_5_13b_finetune_qlora,
        llava_v1_5_13b_finetune_task,
        llava_v1_5_13b_finetune_task_lora,
        llava_next_pretrain,
        llava_next_finetune,
        smol_align,
        smol_pretrain,
        smol_tune,
    )
}


def recipe(name: str) -> TrainConfig:
    """The config of a recipe by its name; a wrong name lists the right ones."""
    if name not in RECIPES:
        raise UnknownName("recipe", name, RECIPES)
    return RECIPES[name]()
