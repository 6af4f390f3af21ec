"""Plans: what they count, what they say, and what they refuse with which advice. No model is built."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from vistune.__main__ import main
from vistune.data.planner import RowSize
from vistune.data.validate import ROW, Manifest
from vistune.errors import OutOfMemory, UnknownName, UsageError
from vistune.train.config import override
from vistune.train.expected import MIXTURES, expected_model, expected_rows
from vistune.train.limits import SampleSize
from vistune.train.memory import GIB, largest_forward
from vistune.train.plan import DEVICES, DeviceSpec, check_fits, make_plan, published_device, this_device
from vistune.train.recipes import recipe

H100, SMALL = DEVICES["h100"], DEVICES["a100-40"]


def test_the_published_mixture_has_the_published_mean_length():
    config = recipe("llava_v1_5_7b_finetune")
    rows = expected_rows(config, expected_model(config.model).config)
    assert rows.rows == 665_298
    assert "published" in rows.source
    assert sum(size.tokens for size in rows.sizes) / len(rows.sizes) == pytest.approx(838, rel=0.01)
    assert sum(not size.views for size in rows.sizes) / len(rows.sizes) == pytest.approx(0.06, abs=0.005)
    assert max(size.tokens for size in rows.sizes) == 2048


def test_a_run_of_the_paper_takes_its_steps_and_about_its_hours():
    plan = make_plan(recipe("llava_v1_5_7b_finetune"), DEVICES["a100-80"], gpus=8, efficiency=0.253)
    assert plan.steps == 5198
    assert plan.hours == pytest.approx(10, rel=0.1)  # published: 10 hours, found to be 25.3 % of the datasheet's speed


def test_a_rank_holds_its_share_of_what_learns_and_all_that_is_frozen():
    config = recipe("llava_v1_5_7b_finetune_lora")
    one, eight = (make_plan(config, H100, gpus=gpus).memory for gpus in (1, 8))
    assert eight.moments == one.moments / 8
    assert eight.weights > 0.85 * one.weights
    divided = make_plan(override(config, {"parallel.shard": "all"}), H100, gpus=8).memory
    assert divided.weights == pytest.approx(one.weights / 8, rel=0.01)


def test_what_cannot_fit_is_refused_with_settings_that_were_tried():
    config = override(recipe("llava_v1_5_7b_finetune"), {"batch.tokens_per_forward": 8192, "activation_checkpointing": False})
    plan = make_plan(config, H100, gpus=8)
    assert not plan.fits
    with pytest.raises(OutOfMemory, match="activation_checkpointing=true") as refused:
        plan.refuse_unless_it_fits()
    assert "16 devices" in str(refused.value)
    assert make_plan(override(config, {"activation_checkpointing": "true"}), H100, gpus=8).fits


def test_the_advice_for_one_small_gpu_is_adapters_on_a_quantised_model():
    tiny_gpu = replace(SMALL, memory=22 * GIB)
    plan = make_plan(recipe("llava_v1_5_7b_finetune"), tiny_gpu)
    assert any("model.quantise=nf4" in remedy and "trainable=projector,lora" in remedy for remedy in plan.remedies)


def test_settings_that_contradict_the_devices_are_refused():
    config = recipe("llava_v1_5_7b_finetune")
    for changes, gpus, words in (
        ({"parallel.replicas": 3}, 8, "replicas=3"),
        ({}, 256, "nothing to do"),
        ({"model.quantise": "nf4"}, 1, "frozen"),
    ):
        with pytest.raises(UsageError, match=words):
            make_plan(override(config, changes), H100, gpus=gpus)
    with pytest.raises(UsageError, match="efficiency"):
        make_plan(config, H100, efficiency=40)


def test_backbones_that_nobody_knows_are_named():
    with pytest.raises(UnknownName, match=r"vicuna-7b-v1\.5"):
        make_plan(override(recipe("llava_v1_5_7b_pretrain"), {"model.language_model": "lmsys/vicuna-7b-v1.55"}), H100)


def test_data_that_is_not_there_needs_a_number_of_rows():
    with pytest.raises(UsageError, match="--images"):
        make_plan(recipe("smol_tune"), H100)
    assert make_plan(recipe("smol_tune"), H100, rows=800).steps == 300


def test_rows_that_lie_here_are_counted_and_checked_rows_are_known(tmp_path: Path):
    turns = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A cat on a mat. " * 10}]
    (tmp_path / "rows.json").write_text(json.dumps([{"id": str(number), "image": "a.png", "conversations": turns} for number in range(40)]))
    (tmp_path / "rows.json").rename(tmp_path / "mine.json")
    config = override(recipe("smol_tune"), {"data.dataset": "mine.json", "data.root": str(tmp_path), "data.validation_rows": "4"})
    config = replace(config, output=str(tmp_path / "run"))
    model = expected_model(config.model).config
    found = expected_rows(config, model)
    assert found.rows == 36
    assert found.sizes[0].views == 1
    assert found.sizes[0].supervised == pytest.approx(160 / 4.2, abs=1)
    (tmp_path / "run").mkdir()
    table = np.zeros(40, ROW)
    table["tokens"], table["images"] = 91, 1
    Manifest("rows", table, ()).write(tmp_path / "run" / "data.json")
    checked = expected_rows(config, model)
    assert {size.tokens for size in checked.sizes} == {91}
    assert "checked before" in checked.source


def test_pictures_that_are_tiled_cost_what_five_views_cost():
    config = override(recipe("llava_v1_5_7b_finetune"), {"model.image_mode": "anyres", "model.max_length": "8192"})
    rows = expected_rows(config, expected_model(config.model).config)
    assert sum(size.tokens for size in rows.sizes) / len(rows.sizes) == pytest.approx(2450, rel=0.1)
    assert {size.views for size in rows.sizes} == {0, 5}


def test_the_largest_forward_is_filled_to_the_budget_or_is_the_longest_row():
    sizes = [SampleSize(100, 10, 50, 1), SampleSize(60, 10, 50, 1), SampleSize(300, 50)]
    assert largest_forward(sizes, 500).tokens == 460
    assert largest_forward(sizes, 200).lengths == (300,)


def test_a_run_that_begins_is_checked_with_its_own_rows():
    full = recipe("llava_v1_5_7b_finetune")
    model, rows = expected_model(full.model).config, [RowSize(838, 1)] * 50
    plan = check_fits(full, model, rows, 500, this_device("cpu"))
    assert plan.fits
    assert plan.hours is None
    assert plan.summary().startswith("500 rows, 4 steps of about 107,264 tokens; 6.76 billion of 7.06 billion weights learn; about 1")
    with pytest.raises(OutOfMemory, match="and h100 has 79"):
        check_fits(full, model, rows, 500, H100)


def test_every_published_mixture_belongs_to_a_dataset():
    from vistune.data.datasets import DATASETS

    assert set(MIXTURES) <= set(DATASETS)


def test_gpus_are_known_by_what_their_driver_calls_them():
    found = published_device("NVIDIA A100-SXM4-40GB", 40e9)
    assert found is not None
    assert (found.flops_bf16, found.memory) == (312e12, 40e9)
    assert published_device("Some GPU", 1e9) is None


def test_a_plan_is_printed_and_its_refusal_is_the_exit_code(capsys: pytest.CaptureFixture[str]):
    assert main(["plan", "llava_v1_5_7b_pretrain", "--gpu", "h100", "--price", "2"]) == 0
    out = capsys.readouterr().out
    assert "2,181 of 256 rows" in out
    assert "cost" in out
    assert main(["plan", "llava_v1_5_7b_finetune", "--gpu", "a100-40", "--json"]) == 7
    printed = capsys.readouterr()
    assert json.loads(printed.out)["fits"] is False
    assert "It would fit with" in printed.err


def test_a_thousand_gpus_and_a_billion_pictures_can_be_planned():
    config = override(recipe("llava_v1_5_7b_pretrain"), {"batch.conversations": "8192", "parallel.replicas": "125"})
    plan = make_plan(config, H100, gpus=1000, rows=10**9, efficiency=0.5)
    assert plan.hours == pytest.approx(8.7, rel=0.1)


def test_a_plan_of_a_device_without_a_known_memory_refuses_nothing():
    assert make_plan(recipe("llava_v1_5_13b_finetune"), DeviceSpec("cpu", "cpu", None, 1e12, 1e11)).fits
