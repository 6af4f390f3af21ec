"""The lines, the bar and the curve of a run."""

from __future__ import annotations

import io
import json
from pathlib import Path

from rich.console import Console

from vistune.train.metrics import Display, MetricsLog, draw_loss_curve, read_metrics


def test_going_on_from_a_step_drops_the_lines_after_it_and_a_torn_one(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": step, "loss": step / 3}) + "\n" for step in range(1, 6)) + '{"step": 6, "lo')
    log = MetricsLog(path, resume_step=3)
    log.write({"step": 4, "loss": 0.1})
    log.close()
    assert [(row["step"], row["loss"]) for row in read_metrics(path)] == [(1, 1 / 3), (2, 2 / 3), (3, 1.0), (4, 0.1)]


def test_a_loss_curve_is_drawn_with_and_without_validation(tmp_path: Path):
    rows = [{"step": step, "loss": 1 / step} for step in range(1, 9)]
    for number, each in enumerate(([], rows, [*rows, {"step": 8, "validation_loss": 0.4}])):
        draw_loss_curve(each, tmp_path / f"{number}.png", title="tiny")
        assert (tmp_path / f"{number}.png").read_bytes().startswith(b"\x89PNG")


def test_text_of_models_is_shown_as_it_is_and_the_bar_only_on_a_terminal():
    shown = io.StringIO()
    with Display(Console(file=shown, force_terminal=False)) as display:
        bar = display.bar("tiny", total=3)
        bar.advance(note="loss 1")
        display.say("[red]not a colour[/red]")
        bar.close()
    assert shown.getvalue() == "[red]not a colour[/red]\n"
