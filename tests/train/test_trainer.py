"""A run is a function: of its config and data, not of how it is cut, stopped or repeated. It changes what it names and nothing else."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from vistune.checkpoint.resume import saved_steps
from vistune.errors import DataError, Locked, NonFiniteError, ResumeMismatch, SaveError, UsageError
from vistune.model.inputs import lay_end_to_end
from vistune.model.llava import Llava
from vistune.model.processor import Processor
from vistune.train import keep as keep_module
from vistune.train import trainer
from vistune.train.config import BatchConfig, TrainConfig, override
from vistune.train.metrics import read_metrics
from vistune.train.parts import part_of
from vistune.train.start import Start
from vistune.train.step import Stepper
from vistune.train.trainer import train
from vistune.types import Conversation

TOWER = "vision_tower.vision_model."
UNUSED_IN_TOWER = (f"{TOWER}encoder.layers.1.", f"{TOWER}post_layernorm.", f"{TOWER}embeddings.position_ids")


@pytest.fixture(autouse=True)
def kept_models(monkeypatch: pytest.MonkeyPatch, start: Callable[..., None]) -> list[Llava]:
    """Runs give their model here instead of writing a folder."""
    models: list[Llava] = []

    def keep(start: Start, config: TrainConfig, folder: Path) -> Path:
        models.append(start.model)
        folder.mkdir(exist_ok=True)
        return folder

    monkeypatch.setattr(keep_module, "save_result", keep)
    return models


def digests(model: Llava, dtype: torch.dtype = torch.float32) -> dict[str, str]:
    """sha256 of every tensor in a number format, under its name without PEFT's wrapping."""
    state = {name.replace("base_model.model.", "").replace("base_layer.", ""): tensor for name, tensor in model.state_dict().items()}
    return {name: hashlib.sha256(tensor.to(dtype).float().contiguous().numpy().tobytes()).hexdigest() for name, tensor in state.items()}


def losses(config: TrainConfig) -> list[tuple[str, str, str]]:
    """Each step's loss, gradient norm and learning rate, to the last bit."""
    rows = [row for row in read_metrics(Path(config.output) / "metrics.jsonl") if "loss" in row]
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
    return [(row["loss"].hex(), row["gradient_norm"].hex(), row["learning_rate"].hex()) for row in rows]


@pytest.mark.parametrize("trainable", [("projector",), ("projector", "language_model"), ("projector", "lora"), ("vision_tower",)])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_one_step_changes_exactly_the_named_parts(
    config: TrainConfig, kept_models: list[Llava], tiny: tuple[Llava, Processor], trainable: Any, precision: Any
):
    train(replace(config, trainable=trainable, precision=precision, max_steps=1, batch=BatchConfig(conversations=13)))
    held = torch.bfloat16 if precision == "bf16" else torch.float32  # frozen weights are rounded once, which is no training
    before, after = digests(tiny[0], held), digests(kept_models[0], held)
    changed = {name for name in after if after[name] != before.get(name)}
    assert {part_of(name) for name in changed} == set(trainable)
    silent = {name for name in after if part_of(name) in trainable} - changed
    # lora_B begins at zero, so lora_A has no gradient yet; of the tower, what lies behind the selected layer is never run
    assert all("lora_A" in name or name.startswith(UNUSED_IN_TOWER) for name in silent), silent


def test_a_run_repeated_is_equal_to_the_last_bit(config: TrainConfig, kept_models: list[Llava], tmp_path: Path):
    again = replace(config, output=str(tmp_path / "again"), trainable=("projector", "lora"))
    config = replace(config, trainable=("projector", "lora"))
    train(config)
    train(again)
    assert losses(config) == losses(again)
    assert digests(kept_models[0]) == digests(kept_models[1])


@pytest.mark.parametrize("stops", [(1,), (4,), (2, 3), (6, 7), (3, 3, 5)])
@pytest.mark.parametrize("trainable", [("projector", "language_model"), ("projector", "lora")])
def test_stop_and_resume_gives_the_same_losses_and_weights_bit_for_bit(
    config: TrainConfig, kept_models: list[Llava], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, stops: Any, trainable: Any
):
    config = override(replace(config, trainable=trainable), {"max_steps": 8, "data.validation_rows": 2, "validate_every": 3})
    train(replace(config, output=str(tmp_path / "whole")))
    for stop in stops:
        with monkeypatch.context() as patch:
            stop_after(patch, stop)
            train(config, resume=True)
    train(config, resume=True)
    assert losses(config) == losses(replace(config, output=str(tmp_path / "whole")))
    assert digests(kept_models[-1]) == digests(kept_models[0])


def stop_after(patch: pytest.MonkeyPatch, step: int) -> None:
    """As when the minutes are over: the run is left in order after the step, or at once where it is already past it."""
    whole = trainer._Run._step

    def last_step(run: Any, number: int) -> dict[str, float]:
        if number + 1 >= step:
            run.deadline = 0.0
        return whole(run, number)

    patch.setattr(trainer._Run, "_step", last_step)


def test_a_run_that_is_killed_goes_on_from_its_last_checkpoint(config: TrainConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    config = replace(config, save_every=2)
    train(replace(config, output=str(tmp_path / "whole")))
    whole = trainer._Run._step
    with monkeypatch.context() as patch:
        patch.setattr(
            trainer._Run, "_step", lambda run, number: whole(run, number) if number < 5 else (_ for _ in ()).throw(KeyboardInterrupt)
        )
        with pytest.raises(KeyboardInterrupt):
            train(config)
    assert saved_steps(Path(config.output) / "checkpoints") == [2, 4]
    train(config, resume=True)
    assert losses(config) == losses(replace(config, output=str(tmp_path / "whole")))


def test_however_a_batch_is_cut_the_gradient_is_that_of_the_whole(config: TrainConfig, tmp_path: Path):
    cut = replace(config, trainable=("projector", "language_model"), max_steps=3)
    whole = replace(cut, output=str(tmp_path / "whole"), batch=BatchConfig(conversations=4, tokens_per_forward=100_000))
    train(cut)
    train(whole)
    first, second = ([row["loss"] for row in read_metrics(Path(each.output) / "metrics.jsonl")] for each in (cut, whole))
    assert first == pytest.approx(second, rel=1e-5)


def test_the_gradient_of_a_cut_batch_equals_that_of_a_single_one_in_fp64(tiny: tuple[Llava, Processor], config: TrainConfig):
    """The reference runs each conversation alone, over full logits, and divides by the batch's supervised tokens."""
    model, processor = tiny
    model.double()
    conversations = [example.conversation for example in rows_of(config)]
    inputs = [processor(conversation, train=True) for conversation in conversations]
    inputs = [replace(each, pixel_values=None if each.pixel_values is None else each.pixel_values.double()) for each in inputs]
    count = sum(int((each.labels[1:] != -100).sum()) for each in inputs if each.labels is not None)
    for half in (inputs[:5], inputs[5:]):
        (model.loss(lay_end_to_end(half))[0] / count).backward()
    ragged = {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}
    model.zero_grad()
    for each in inputs:
        logits = model(lay_end_to_end([each]))
        assert each.labels is not None
        (torch.nn.functional.cross_entropy(logits[:-1], each.labels[1:], reduction="sum") / count).backward()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(ragged[name], parameter.grad, rtol=1e-10, atol=1e-12)


def rows_of(config: TrainConfig) -> list[Any]:
    from vistune.formats import read_examples

    return list(read_examples(Path(config.data.root) / "rows.json", Path(config.data.root)))


def test_it_learns_a_few_pictures_by_heart_and_draws_how(config: TrainConfig):
    whole_batches = {"batch.conversations": 13, "batch.tokens_per_forward": 10_000}
    train(override(config, {"trainable": "projector,language_model", "max_steps": 120, "optim.lr": 1e-2, **whole_batches}))
    rows = read_metrics(Path(config.output) / "metrics.jsonl")
    assert rows[0]["loss"] > 3
    assert rows[-1]["loss"] < 0.1
    assert (Path(config.output) / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_align_teaches_the_projector_what_lies_where_without_a_language_model(
    config: TrainConfig, kept_models: list[Llava], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(Llava, "hidden_states", lambda *_, **__: pytest.fail("the language model was run"))
    changes = {
        "objective": "align",
        "data.dataset": "annotations.jsonl",
        "max_steps": 40,
        "batch.tokens_per_forward": 10_000,
        "optim.lr": 5e-3,
    }
    train(override(config, changes))
    rows = read_metrics(Path(config.output) / "metrics.jsonl")
    assert rows[-1]["loss"] < 0.3 * rows[0]["loss"]


def test_cached_features_give_the_run_that_live_ones_give(config: TrainConfig, kept_models: list[Llava], tmp_path: Path):
    train(config)
    first, again = (replace(config, output=str(tmp_path / name), feature_cache=str(tmp_path / "features")) for name in ("first", "again"))
    train(first)
    train(again)
    assert losses(first) == losses(again)
    # The tower saw the pictures in other company, and fp32 products of another size may differ in their last bits.
    live, cached = ([float.fromhex(loss) for loss, *_ in losses(each)] for each in (config, first))
    assert cached == pytest.approx(live, rel=1e-5)


def test_grid_projector_is_measured_by_the_data_before_the_first_step(
    config: TrainConfig, kept_models: list[Llava], start: Callable[..., None]
):
    start(projector="grid_mlp")
    train(override(config, {"max_steps": 1, "model.init_from": ""}))
    projector = kept_models[0].multi_modal_projector
    assert not torch.equal(projector.feature_mean, torch.zeros_like(projector.feature_mean))
    assert projector.scale == pytest.approx(float(kept_models[0].causal_lm.get_input_embeddings().weight.std()), rel=1e-4)


def test_early_stopping_keeps_the_best_weights(config: TrainConfig, kept_models: list[Llava], monkeypatch: pytest.MonkeyPatch):
    values = iter([3.0, 2.0, 2.5, 2.6, 2.7])
    seen: list[dict[str, str]] = []

    def validation_loss(stepper: Any, objective: Any) -> float:
        seen.append(digests(stepper.model))
        return next(values)

    monkeypatch.setattr(Stepper, "evaluate", validation_loss)
    train(override(config, {"max_steps": 50, "validate_every": 1, "early_stop": 3, "data.validation_rows": 2, "save_every": 1}))
    assert len(losses(config)) == 5
    assert not any("checkpoint_failed" in row for row in read_metrics(Path(config.output) / "metrics.jsonl"))
    assert digests(kept_models[0]) == seen[1] != seen[-1]


def test_held_out_rows_share_no_picture_with_training_rows(config: TrainConfig):
    train(override(config, {"max_steps": 1, "data.validation_rows": 3}))
    assert [row["step"] for row in read_metrics(Path(config.output) / "metrics.jsonl") if "validation_loss" in row] == [1]


def test_samples_are_answered_by_the_callback_and_kept(config: TrainConfig):
    asked: list[Conversation] = []

    def answer(model: Llava, processor: Processor, conversations: Sequence[Conversation]) -> list[str]:
        asked.extend(conversations)
        assert not model.training
        return ["seen"] * len(conversations)

    train(override(config, {"max_steps": 2, "sample_every": 2, "data.validation_rows": 2}), sampler=answer)
    assert asked
    assert all(each.messages[-1].role == "user" for each in asked)
    kept = [json.loads(line) for line in (Path(config.output) / "samples.jsonl").read_text().splitlines()]
    assert {(row["step"], row["answer"]) for row in kept} == {(2, "seen")}


@pytest.mark.parametrize("trainable", [("projector",), ("projector", "lora"), ("projector", "language_model")])
@pytest.mark.parametrize("vision_tower", ["clip", "efficientnet_lite0"])
def test_a_model_in_training_also_runs_without_autocast(
    config: TrainConfig,
    kept_models: list[Llava],
    start: Callable[..., None],
    tiny: tuple[Llava, Processor],
    trainable: Any,
    vision_tower: str,
):
    """The engine that answers samples may run in a thread of its own, where no autocast is on."""
    if vision_tower != "clip":
        start(vision_tower=vision_tower, vision_config={}, projector="grid_mlp", feature_select="full")
    train(replace(config, trainable=trainable, precision="bf16", max_steps=1))
    model = kept_models[0]
    processor = Processor(tiny[1].tokenizer, model.config)
    inputs = processor(rows_of(config)[0].conversation, train=True)
    with torch.no_grad():
        assert model(lay_end_to_end([inputs])).isfinite().all()


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_loss_or_gradient_that_is_not_finite_never_reaches_the_weights(config: TrainConfig, monkeypatch: pytest.MonkeyPatch, where: str):
    whole, models = Llava.loss, []

    def spoiled(model: Llava, batch: Any) -> Any:
        models.append(model)
        loss, count = whole(model, batch)
        if len(models) < 5:
            return loss, count
        if where == "loss":
            return loss * float("nan"), count
        loss.register_hook(lambda gradient: gradient * float("inf"))
        return loss, count

    monkeypatch.setattr(Llava, "loss", spoiled)
    with pytest.raises(NonFiniteError, match="row"):
        train(replace(config, save_every=1))
    assert all(tensor.isfinite().all() for tensor in models[0].state_dict().values())
    assert saved_steps(Path(config.output) / "checkpoints")


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [({"optim.lr": 1e-3}, "setting optim.lr"), ({"batch.conversations": 5}, "batch.conversations"), ({"seed": 4}, "seed")],
)
def test_a_changed_setting_is_refused_by_name(config: TrainConfig, changes: dict[str, Any], complaint: str):
    train(replace(config, max_steps=2))
    with pytest.raises(ResumeMismatch, match=complaint):
        train(override(replace(config, max_steps=2), changes), resume=True)


def test_changed_data_and_changed_frozen_weights_are_refused(config: TrainConfig, coloured_squares: Path, monkeypatch: pytest.MonkeyPatch):
    rows = json.loads((coloured_squares / "rows.json").read_text())
    (coloured_squares / "other.json").write_text(json.dumps(rows))
    config = override(config, {"data.dataset": "other.json", "max_steps": 1})
    train(config)
    (coloured_squares / "other.json").write_text(json.dumps(rows[1:]))
    with pytest.raises(ResumeMismatch, match="its data differ"):
        train(config, resume=True)
    (coloured_squares / "other.json").write_text(json.dumps(rows))
    monkeypatch.setattr("vistune.train.keep.digest_of", lambda tensors: "other")
    with pytest.raises(ResumeMismatch, match="frozen weights"):
        train(config, resume=True)


def test_a_run_that_has_begun_is_not_overwritten(config: TrainConfig):
    train(replace(config, max_steps=1))
    with pytest.raises(UsageError, match="resume"):
        train(replace(config, max_steps=1))


def test_two_runs_do_not_share_a_folder(config: TrainConfig):
    Path(config.output).mkdir()
    with trainer._alone_in(Path(config.output)), pytest.raises(Locked):
        train(config)


def test_a_full_disk_leaves_the_old_checkpoint_and_ends_the_run_at_the_third_time(config: TrainConfig, monkeypatch: pytest.MonkeyPatch):
    whole, calls = keep_module.save_state, []

    def failing(folder: Path, state: Any, *rest: Any) -> Path:
        calls.append(state.step)
        if state.step == 1:
            return whole(folder, state, *rest)
        raise SaveError("no space left")

    monkeypatch.setattr(keep_module, "save_state", failing)
    with pytest.raises(SaveError):
        train(replace(config, save_every=1))
    assert calls == [1, 2, 3, 4]
    assert saved_steps(Path(config.output) / "checkpoints") == [1]
    assert sum(row.get("checkpoint_failed", 0) for row in read_metrics(Path(config.output) / "metrics.jsonl")) == 2


def test_rows_that_cannot_be_used_stop_the_run_before_it_begins_or_are_left_out(config: TrainConfig, coloured_squares: Path):
    rows = json.loads((coloured_squares / "rows.json").read_text())
    rows[3]["image"] = "missing.png"
    rows[4]["conversations"][-1]["value"] = " "
    rows[5]["conversations"][0]["value"] = "no picture"
    rows[6]["conversations"][0]["value"] += "x" * 600
    (coloured_squares / "bad.json").write_text(json.dumps(rows))
    config = override(config, {"data.dataset": "bad.json", "max_steps": 1})
    with pytest.raises(DataError, match="4 of 13 rows"):
        train(config)
    train(override(config, {"data.bad_rows": "skip"}))
    page = json.loads((Path(config.output) / "data.json").read_text())
    assert {each["row"]: each["reason"] for each in page["rejected"]} == {
        3: "image_missing",
        4: "empty_answer",
        5: "image_count",
        6: "too_long",
    }
    assert page["accepted"] == 9
