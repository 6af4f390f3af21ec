"""The parts of benchmarks/ that decide what a published figure means."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from benchmarks import assistant, first_token
from tests.checkpoint.tiny import tiny_config
from torch.utils.flop_counter import FlopCounterMode

from vistune.engine.kv_cache import KVShape
from vistune.eval.benchmark import report
from vistune.model.llava import Llava
from vistune.types import Conversation, Graded, Question, Reply, Score


def graded(number: int, kind: str, group: str, value: float | None) -> Graded:
    question = Question(f"q{number}", Conversation(()).then("user", f"Question {number}?"), ("yes",), (), kind, group)
    return Graded(question, Reply(f"answer {number}", "stop"), Score(value))


def test_what_was_not_measured_is_null_and_not_a_number():
    model = assistant.figures_of(report("s", [graded(0, "a", "near", 1.0), graded(1, "a", "far", 0.0), graded(2, "b", "far", None)]))
    blind = assistant.figures_of(report("s", [graded(0, "a", "near", 0.0)]))
    rows = {(row["group"], row["kind"]): row for row in assistant.rows_of("s", model, blind, None)}
    assert rows["all", "overall"] == {
        "suite": "s", "kind": "overall", "group": "all", "n": 2, "exact_match": 0.5, "blind": 0.0, "chance": None,
    }  # fmt: skip
    assert rows["far", "a"]["blind"] is None
    assert ("far", "b") not in rows


def test_chance_is_learned_from_turns_about_pictures_only(tmp_path: Path):
    seen = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A cat."}, {"from": "human", "value": "Sure?"}]
    rows = [
        {"id": "1", "image": "a.png", "conversations": [*seen, {"from": "gpt", "value": "Yes."}]},
        {"id": "2", "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."}]},
    ]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    assert list(assistant.training_pairs(tmp_path / "rows.json")) == [("What?", "A cat."), ("Sure?", "Yes.")]


def test_answers_are_shown_from_every_kind_before_a_kind_is_shown_twice():
    items = [
        graded(number, kind, "", value) for number, (kind, value) in enumerate([(k, v) for k in "abc" for v in (0.0, 1.0) for _ in "1234"])
    ]
    sample = assistant.sample_answers(items)
    kinds = [next(item.question.category for item in items if item.question.id == shown["id"]) for shown in sample["wrong"]]
    assert len(sample["right"]) == len(kinds) == assistant.EACH
    assert sorted(kinds) == ["a", "a", "b", "b", "c"]
    assert sample == assistant.sample_answers(items)


def test_the_floor_of_one_row_is_every_matrix_once_and_what_is_cached_costs_nothing():
    model = Llava(tiny_config())
    weights = [*first_token.linear_weights(model), model.causal_lm.lm_head.weight]
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        for weight in weights:
            torch.nn.functional.linear(torch.zeros(1, weight.shape[1]), weight)
    text, shape = model.config.text_config, KVShape.of(model.config.text_config)
    # Half of the square in every layer but the last, which is pruned to one row and sees all keys.
    attention = int(text["num_attention_heads"]) * shape.head_dim * (2 * (shape.layers - 1) + 4)
    assert first_token.prefill_flops(model, tokens=1, cached=0) == counter.get_total_flops() + attention
    assert first_token.prefill_flops(model, tokens=40, cached=30) < first_token.prefill_flops(model, tokens=40, cached=0) / 3
