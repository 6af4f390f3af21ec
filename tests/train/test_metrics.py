"""The lines, the bar, the curve and the card of a run."""

from __future__ import annotations

import io
import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tests.train.conftest import tiny_config

from vistune.data.planner import RowSize
from vistune.errors import MissingDependency
from vistune.train import metrics
from vistune.train.card import write_card
from vistune.train.config import TrainConfig
from vistune.train.curve import curve_page, series, write_curves
from vistune.train.limits import Attainable
from vistune.train.metrics import Display, Meter, MetricsLog, note_of, read_metrics

ROWS: list[dict[str, Any]] = [
    {"step": step, "loss": 4 / step, "learning_rate": 1e-3, "gradient_norm": 1.0, "tokens": 100, "tokens_per_second": 50.0, "seconds": 2.0}
    for step in range(1, 9)
]


def test_going_on_from_a_step_drops_the_lines_after_it_and_a_torn_one(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": step, "loss": step / 3}) + "\n" for step in range(1, 6)) + '{"step": 6, "lo')
    log = MetricsLog(path, resume_step=3)
    log.write({"step": 4, "loss": 0.1})
    log.close()
    assert [(row["step"], row["loss"]) for row in read_metrics(path)] == [(1, 1 / 3), (2, 2 / 3), (3, 1.0), (4, 0.1)]


def test_a_curve_is_drawn_of_any_rows(tmp_path: Path):
    for number, each in enumerate(([], ROWS, [*ROWS, {"step": 8, "validation_loss": 0.4}], [{"step": 1, "loss": 1.0}])):
        folder = tmp_path / str(number)
        folder.mkdir()
        write_curves(each, folder, title="tiny")
        assert (folder / "loss.png").read_bytes().startswith(b"\x89PNG")
        assert (folder / "loss.html").read_text().count("<svg") == (4 if len(each) > 1 else len(each))


def test_the_page_stands_for_itself_and_reads_names_as_text():
    page = curve_page([*ROWS, {"step": 8, "validation_loss": 0.41}, {"step": 8, "skipped": 1}], title="<script>alert(1)</script>")
    assert "<script" not in page
    assert not re.search(r"(src|href)=|url\(|@import|https?:", page)
    assert "0.4100 at step 8" in page
    assert "steps left out" in page
    assert "nan" not in page


def test_losses_that_are_no_numbers_leave_a_gap_and_long_runs_are_thinned():
    assert series([{"step": 1, "loss": math.nan}, {"step": 2, "loss": 1.0}], "loss") == [(2, 1.0)]
    page = curve_page([{"step": step, "loss": 1 / step} for step in range(1, 20_001)], title="long")
    assert len(page) < 100_000


def test_text_of_models_is_shown_as_it_is_and_the_bar_only_on_a_terminal():
    shown = io.StringIO()
    with Display(Console(file=shown, force_terminal=False)) as display:
        bar = display.bar("tiny", total=3)
        bar.advance(note="loss 1")
        display.say("[red]not a colour[/red]")
        bar.close()
    assert shown.getvalue() == "[red]not a colour[/red]\n"


def test_a_step_is_read_against_the_limit_of_its_machine(config: TrainConfig, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(metrics, "measure_attainable", lambda *_, **__: Attainable(1e9, 1e12))
    metrics._attainable.cache_clear()
    model = tiny_config()
    rows = [RowSize(100, 1), RowSize(60, 0)]
    meter = Meter(config, model, "cpu")
    slow, fast = (meter.read(rows, supervised=20, seconds=seconds) for seconds in (2.0, 1.0))
    assert fast["of_limit"] == pytest.approx(2 * slow["of_limit"])
    assert fast["memory_gib"] > 0.01
    full = Meter(replace(config, trainable=("projector", "language_model")), model, "cpu").read(rows, 20, 1.0)
    assert full["of_limit"] > fast["of_limit"]
    assert Meter(config, model, "cpu", processes=2).read(rows, 20, 1.0)["of_limit"] < fast["of_limit"]
    assert Meter(config, model, "cpu", cached=True).read(rows, 20, 1.0)["of_limit"] < fast["of_limit"]
    assert Meter(replace(config, objective="align"), model, "cpu").read(rows, 20, 1.0)["of_limit"] > 0
    metrics._attainable.cache_clear()


def test_the_bar_says_loss_speed_limit_and_memory():
    row = {"step": 1, "loss": 1.2345, "tokens_per_second": 789.4, "of_limit": 0.714, "memory_gib": 2.34}
    assert note_of(row) == "loss 1.234 · 789 tokens/s · 71% of the limit · 2.3 GiB"
    assert note_of({"step": 1, "skipped": 1}) == "step left out"


def test_tensorboard_without_its_package_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(__import__("sys").modules, "tensorboard", None)
    with pytest.raises(MissingDependency, match=r"vistune\[tensorboard\]"):
        MetricsLog(tmp_path / "metrics.jsonl", tensorboard=True)


def test_tensorboard_gets_every_number(tmp_path: Path):
    pytest.importorskip("tensorboard")
    log = MetricsLog(tmp_path / "metrics.jsonl", tensorboard=True)
    log.write(ROWS[0])
    log.close()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert set(events.Tags()["scalars"]) == set(ROWS[0]) - {"step"}


def test_the_card_says_what_was_run_and_leaves_the_licence_to_people(tmp_path: Path, config: TrainConfig):
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*ROWS, {"step": 8, "validation_loss": 0.41}]))
    (tmp_path / "model").mkdir()
    path = write_card(tmp_path / "model", config, run=tmp_path, data_digest="abc123", rows=13)
    text = path.read_text()
    assert path == tmp_path / "model" / "README.md"
    for words in ("# tiny", "`abc123`", "| rows | 13 |", "0.4100 at step 8", "| steps | 8 of 4", "| `optim.lr` | `0.01` |", "torch "):
        assert words in text, words
    assert "- Licence: *to be filled in*" in text
    assert "\nlicense" not in text
