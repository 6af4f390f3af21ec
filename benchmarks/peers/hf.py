"""The peers: transformers' LlavaForConditionalGeneration under its Trainer, the same with PEFT's adapters, and TRL's SFTTrainer.

All read the folder that vistune wrote, learn from the ids and labels that vistune's processor made, and take the batches in the same order.
What is theirs stays theirs: padding, the image processor, the tower at each step, the loss over all positions. Where a setting is better
than their default and does not change the result, the tuned peer has it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from PIL import Image
from torch import Tensor
from transformers import AutoImageProcessor, LlavaForConditionalGeneration, Trainer, TrainerCallback, TrainingArguments

from peers.job import LEARNING_RATE, SEED, Example, Files, Job, Measured, now, peak_bytes, resident_bytes

PAD_ID = 4
LORA_TARGETS = r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"


def rows_of(examples: Sequence[Example]) -> Dataset:
    """Ids and labels made ahead and the name of a picture: what a user's dataset holds, minus the work of the tokenizer."""
    return Dataset.from_list([{"input_ids": each.input_ids, "labels": each.labels, "picture": each.image} for each in examples])


class Collator:
    """Opens the pictures of a batch and pads its rows on the right to the longest."""

    def __init__(self, files: Files):
        self.pictures = files.pictures
        self.image_processor = AutoImageProcessor.from_pretrained(files.model)

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        longest = max(len(row["input_ids"]) for row in rows)

        def padded(name: str, fill: int) -> Tensor:
            return torch.tensor([row[name] + [fill] * (longest - len(row[name])) for row in rows])

        mask = torch.tensor([[1] * len(row["input_ids"]) + [0] * (longest - len(row["input_ids"])) for row in rows])
        batch = {"input_ids": padded("input_ids", PAD_ID), "labels": padded("labels", -100), "attention_mask": mask}
        pictures = [Image.open(self.pictures / row["picture"]).convert("RGB") for row in rows if row["picture"] is not None]
        return batch | ({"pixel_values": self.image_processor(pictures, return_tensors="pt")["pixel_values"]} if pictures else {})


class Clock(TrainerCallback):
    """Notes the end of each optimizer step."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.ends: list[float] = []
        self.peak_bytes = 0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.ends.append(now(self.device))
        self.peak_bytes = peak_bytes(self.device)


def run(job: Job, files: Files, scratch: Path) -> Measured:
    """Trains for the job's steps with the peer's own trainer."""
    if job.peer.startswith("trl"):
        import trl  # noqa: F401 - so that it counts among the imports
    measured = Measured(import_bytes=resident_bytes(job.device))
    model = _model(job, files)
    clock, losses = Clock(job.device), []
    trainer = _trainer(job, model, files, clock, scratch)
    _keep_losses(trainer, losses)
    trainer.train()
    measured.peak_bytes = clock.peak_bytes
    measured.seconds = [later - earlier for earlier, later in zip(clock.ends[job.warm - 1 :], clock.ends[job.warm :], strict=False)]
    parts = job.batch // _per_device(job)
    measured.losses = [sum(losses[start : start + parts]) for start in range(0, len(losses), parts)]
    measured.notes = {"threads": torch.get_num_threads(), "attention": model.config._attn_implementation, "options": job.options}
    return measured


def _per_device(job: Job) -> int:
    return int(job.options.get("per_device", job.batch))


def _model(job: Job, files: Files) -> Any:
    """The model as this stage trains it. Everything frozen asks for no gradient; `frozen_bf16` also holds it in the forward's format."""
    model: Any = LlavaForConditionalGeneration.from_pretrained(files.model, dtype=torch.float32, attn_implementation="sdpa")
    model.config.use_cache = False
    model.config.text_config.use_cache = False
    model.requires_grad_(False)
    if job.stage == "stage2":
        model.model.language_model.requires_grad_(True)
        model.lm_head.requires_grad_(True)
    if job.precision == "bf16" and job.options.get("frozen_bf16", True):
        model.model.vision_tower.to(torch.bfloat16)
        if job.stage != "stage2":
            model.model.language_model.to(torch.bfloat16)
            model.lm_head.to(torch.bfloat16)
    if job.stage == "lora":
        import peft

        dropout = 0.0 if job.small and job.precision == "fp32" else 0.05
        adapters = peft.LoraConfig(r=128, lora_alpha=256, lora_dropout=dropout, target_modules=LORA_TARGETS)
        model = peft.get_peft_model(model, adapters)
    for name, parameter in model.named_parameters():
        if "multi_modal_projector" in name:
            parameter.requires_grad_(True)
    return model


def _trainer(job: Job, model: Any, files: Files, clock: Clock, scratch: Path) -> Any:
    checkpointing = bool(job.options.get("checkpointing", False))
    settings: dict[str, Any] = {
        "output_dir": str(scratch / "trainer"),
        "per_device_train_batch_size": _per_device(job),
        "gradient_accumulation_steps": job.batch // _per_device(job),
        "max_steps": job.warm + job.steps,
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "train_sampling_strategy": "sequential",  # the rows lie in the order of the comparison, which was drawn at random
        "dataloader_num_workers": int(job.options.get("workers", 0)),
        "bf16": job.precision == "bf16",
        "gradient_checkpointing": checkpointing,
        "remove_unused_columns": False,
        "use_cpu": job.device == "cpu",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "logging_strategy": "no",
        "seed": SEED,
    }
    given: dict[str, Any] = {
        "model": model,
        "data_collator": Collator(files),
        "train_dataset": rows_of(files.examples()),
        "callbacks": [clock],
    }
    if job.peer.startswith("trl"):
        from transformers import AutoTokenizer
        from trl import SFTConfig, SFTTrainer  # pyright: ignore[reportPrivateImportUsage]

        arguments = SFTConfig(**settings, max_length=None, dataset_kwargs={"skip_prepare_dataset": True})
        return SFTTrainer(args=arguments, processing_class=AutoTokenizer.from_pretrained(files.model), **given)
    return Trainer(args=TrainingArguments(**settings), **given)


def _keep_losses(trainer: Any, losses: list[float]) -> None:
    """Notes what each forward adds to the step's loss: the log rounds, and reading it costs a wait."""
    plain = trainer.training_step

    def training_step(*args: Any, **kwargs: Any) -> Tensor:
        loss = plain(*args, **kwargs)
        losses.append(float(loss))
        return loss

    trainer.training_step = training_step
