"""Parameter groups and the learning rate of each step."""

from __future__ import annotations

from itertools import pairwise

import pytest
from torch import nn

from vistune.train.config import OptimConfig
from vistune.train.optim import make_optimizer, schedule_factor, set_learning_rates


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.multi_modal_projector = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
        self.language_model = nn.ModuleDict({"head": nn.Linear(2, 3), "norm": nn.RMSNorm(2)})
        self.vision_tower = nn.Linear(2, 2).requires_grad_(False)


def test_groups_are_projector_or_not_times_decay_or_not():
    model = Model()
    optimizer = make_optimizer(model, OptimConfig(lr=1.0, projector_lr=0.5, weight_decay=0.1))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = {(group["peak_lr"], group["weight_decay"]): {names[id(each)] for each in group["params"]} for group in optimizer.param_groups}
    assert groups == {
        (0.5, 0.1): {"multi_modal_projector.0.weight"},
        (0.5, 0.0): {"multi_modal_projector.0.bias", "multi_modal_projector.1.weight", "multi_modal_projector.1.bias"},
        (1.0, 0.1): {"language_model.head.weight"},
        (1.0, 0.0): {"language_model.head.bias", "language_model.norm.weight"},
    }


def test_without_a_rate_of_its_own_the_projector_learns_like_the_rest():
    optimizer = make_optimizer(Model(), OptimConfig(lr=1.0))
    assert {group["peak_lr"] for group in optimizer.param_groups} == {1.0}
    assert set_learning_rates(optimizer, 0.25) == 0.25


def test_cosine_warms_up_over_three_percent_and_ends_near_zero():
    factors = [schedule_factor(step, 200, OptimConfig(lr=1.0)) for step in range(200)]
    assert factors[:6] == pytest.approx([1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6, 1.0])
    assert factors[6] == 1.0
    assert factors[103] == pytest.approx(0.5)
    assert all(later < earlier for earlier, later in pairwise(factors[6:]))
    assert 0 < factors[-1] < 1e-3


@pytest.mark.parametrize("total", [1, 2, 3])
def test_every_step_of_a_short_run_learns_something(total: int):
    assert all(schedule_factor(step, total, OptimConfig(lr=1.0)) > 0 for step in range(total))


def test_a_constant_schedule_stays_after_warming_up():
    config = OptimConfig(lr=1.0, schedule="constant", warmup_ratio=0.5)
    assert [schedule_factor(step, 4, config) for step in range(4)] == [0.5, 1.0, 1.0, 1.0]
