"""Warm-up, clipping and LARS, and the state of every optimizer by name."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.torch_or_none import torch
from train.config import Config
from train.config.recipes import RECIPES
from train.errors import UserError
from train.run.saved_state import fill_state, named_state
from train.run.trainer import count_steps
from train.step.optimizer import make_optimizer, make_schedule, unreached

SHAPES = {"conv.kernel": (3, 3, 2, 4), "bn.scale": (4,), "bn.bias": (4,), "head.kernel": (4, 5)}
OPTIMIZERS: list[dict[str, Any]] = [
    {"optimizer": name, "clip_norm": clip_norm, "momentum": momentum}
    for name in ("sgd", "lars")
    for clip_norm in (None, 0.5)
    for momentum in (0.9, 0.0)
]


def arrays(seed: int, scale: float = 1.0) -> dict[str, Any]:
    generator = np.random.default_rng(seed)
    return {n: jnp.asarray(scale * generator.standard_normal(s)) for n, s in SHAPES.items()}


def make(schedule: Any = None, **fields: Any) -> Any:
    config = dataclasses.replace(Config(), **fields)
    return make_optimizer(config, schedule or optax.constant_schedule(0.1))


def steps(optimizer: Any, params: Any, state: Any, seeds: range) -> tuple[Any, Any]:
    for seed in seeds:
        updates, state = optimizer.update(arrays(seed), state, params)
        params = jax.tree.map(jnp.add, params, updates)
    return params, state


def test_a_linear_warm_up_rises_evenly_and_joins_the_schedule():
    fields: Any = {"warmup": "linear", "warmup_steps": 4, "warmup_learning_rate": 0.1}
    for kind, after in (
        ("drops", [0.9, 0.9]),
        ("cosine", [0.9, 0.9 * (1 + np.cos(np.pi / 6)) / 2]),
    ):
        config = dataclasses.replace(Config(), schedule=kind, learning_rate=0.9, **fields)
        schedule = make_schedule(config, 10)
        found = [float(np.asarray(schedule(step))) for step in range(6)]
        assert found == pytest.approx([0.1, 0.3, 0.5, 0.7, *after])


def test_a_warm_up_never_begins_above_the_rate_that_it_leads_to():
    config = dataclasses.replace(RECIPES["imagenet"].config, global_batch_size=64)
    resolved = config.resolved(10_000)
    assert resolved.learning_rate == resolved.warmup_learning_rate == 0.025
    schedule = make_schedule(resolved, 2000)
    assert max(float(np.asarray(schedule(step))) for step in range(2000)) == pytest.approx(0.025)


def test_a_lowered_rate_lowers_the_warm_up_of_its_recipe():
    """As in fine-tuning; `resnet-train` refuses such a warm-up only where it is asked for."""
    resolved = Config(learning_rate=0.005, warmup_learning_rate=0.02, warmup_steps=5)
    schedule = make_schedule(resolved.resolved(10_000), 2000)
    assert [float(np.asarray(schedule(step))) for step in (0, 5)] == pytest.approx([0.005] * 2)


def test_more_steps_than_the_epochs_have_are_said():
    config = Config(
        epochs=2, max_steps=21, schedule="cosine", warmup_steps=0, global_batch_size=100
    )
    total_steps = count_steps(config, 1000)
    assert total_steps == 20
    said = "the run ends at step 20, before --max-steps 21, which --epochs 2 does not reach"
    assert unreached(config, total_steps) == said
    for steps in (20, 19, None):
        within = dataclasses.replace(config, max_steps=steps)
        assert not unreached(within, count_steps(within, 1000))


@pytest.mark.parametrize(
    ("total_steps", "said"),
    [
        (301, ""),
        (300, "before its learning rate falls at 300"),
        (200, "before its learning rate falls at 200, 300"),
        (9, "the run ends at step 9, before its warm-up does at 10 and its learning rate falls at"),
    ],
)
def test_a_run_that_ends_before_its_schedule_says_so(total_steps, said):
    config = Config(drop_steps=(200, 300), warmup_steps=10, learning_rate=0.5)
    assert said in unreached(config, total_steps)
    assert bool(said) == bool(unreached(config, total_steps))
    last = float(np.asarray(make_schedule(config, total_steps)(total_steps - 1)))
    assert (last == pytest.approx(0.005)) == (not said)
    assert not unreached(dataclasses.replace(config, schedule="cosine"), 200)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"warmup_epochs": math.inf}, f"--warmup-epochs must be at most {2**31 - 1}, not inf"),
        ({"learning_rate": math.inf}, "--learning-rate must be finite"),
        ({"drop_epochs": (1.0, math.inf)}, "--drop-epochs must be from 0 to"),
        ({"drop_epochs": (1.0, math.nan)}, "--drop-epochs must be from 0 to"),
        ({"drop_steps": (-5, 3)}, "--drop-steps must be from 0 to"),
        ({"drop_steps": (3, 2**31)}, "--drop-steps must be from 0 to"),
        ({"max_steps": 2**31}, "--max-steps must be at most"),
        ({"warmup_steps": 2**31}, "--warmup-steps must be at most"),
        ({"epochs": 10**400}, "--epochs must be at most"),
        ({"global_batch_size": 10**400}, "--global-batch-size must be at most"),
        ({"seeds": "4000000000"}, "one seed is --seed"),
        ({"clip_norm": 0.0}, "--clip-norm must be above 0, not 0: leave it out for none"),
        ({"clip_norm": -1.0}, "--clip-norm must be at least 0, not -1.0"),
    ],
)
def test_numbers_that_no_run_can_have_are_named(fields, said):
    with pytest.raises(UserError, match=said):
        dataclasses.replace(Config(), **fields)


def test_steps_that_epochs_make_are_counted_in_int32_or_refused():
    with pytest.raises(UserError, match="--epochs 2000000 are 3000000000 steps, more than"):
        count_steps(Config(epochs=2_000_000, global_batch_size=1), 1_500)
    most = Config(epochs=2_000_000, global_batch_size=1, max_steps=2**31 - 1)
    assert count_steps(most, 1_500) == 2**31 - 1
    schedule = make_schedule(dataclasses.replace(most, drop_steps=(5, 2**31 - 1)), 2**31 - 1)
    assert float(np.asarray(schedule(2**31 - 2))) == pytest.approx(0.01)
    for changes in ({"warmup_epochs": 2e6}, {"drop_epochs": (1.0, 2e6)}):
        with pytest.raises(UserError, match=f"{2**31 - 1}, not"):
            dataclasses.replace(most, **changes).resolved(1_500)


def test_drops_that_fall_on_one_step_are_named_as_they_were_given():
    config = dataclasses.replace(Config(), drop_epochs=(0.1, 0.101))
    with pytest.raises(UserError, match=r"--drop-epochs \(0.1, 0.101\) are the steps \(1, 1\)"):
        config.resolved(1437)


def test_lars_trusts_weights_by_their_norms_and_leaves_batch_norm_and_biases_to_sgd():
    """You et al. 2017, algorithm 1: the local rate is 0.001 |w| / (|g| + decay |w|)."""
    optimizer = make(optimizer="lars", weight_decay=0.3, momentum=0.9)
    params, first, second = arrays(0, 3.0), arrays(1), arrays(2)
    state = optimizer.init(params)
    updates, state = optimizer.update(first, state, params)
    moved = jax.tree.map(jnp.add, params, updates)
    again, _ = optimizer.update(second, state, moved)
    for name in SHAPES:
        w, v = np.asarray(params[name]), np.zeros(SHAPES[name])
        for gradient, update in ((first, updates), (second, again)):
            g, local = np.asarray(gradient[name]), 1.0
            if name.endswith("kernel"):
                slope, size = np.linalg.norm(g), np.linalg.norm(w)
                local = 0.001 * size / (slope + 0.3 * size)
                g = g + 0.3 * w
            v = 0.9 * v + 0.1 * local * g
            np.testing.assert_allclose(update[name], -v, rtol=1e-6, err_msg=name)
            w = w - v


@pytest.mark.parametrize(
    ("weight", "gradient", "decay", "local"),
    [(0.0, 1.0, 0.3, 1.0), (1.0, 0.0, 0.3, 0.001 / 0.3), (0.0, 0.0, 0.3, 1.0), (1.0, 0.0, 0.0, 1)],
)
def test_lars_moves_weights_of_zero_and_no_norm_of_zero_makes_nan(weight, gradient, decay, local):
    optimizer = make(optimizer="lars", weight_decay=decay, momentum=0.0)
    params, gradients = arrays(0, weight), arrays(1, gradient)
    updates, _ = optimizer.update(gradients, optimizer.init(params), params)
    for name in ("conv.kernel", "head.kernel"):
        expected = -0.1 * local * (gradients[name] + decay * params[name])
        np.testing.assert_allclose(updates[name], expected, rtol=1e-6)


@pytest.mark.torch
@pytest.mark.parametrize("clip_norm", [0.5, 1e3])
def test_clipping_and_sgd_are_torchs_with_decay_after_the_clipping(clip_norm):
    optimizer = make(clip_norm=clip_norm, weight_decay=0.1, nesterov=True)
    params = arrays(0)
    mine = {name: torch.tensor(np.asarray(a), requires_grad=True) for name, a in params.items()}
    groups = [
        {"params": [p for n, p in mine.items() if n.endswith("kernel")], "weight_decay": 0.1},
        {"params": [p for n, p in mine.items() if not n.endswith("kernel")]},
    ]
    sgd = torch.optim.SGD(groups, lr=0.1, momentum=0.9, nesterov=True)
    for seed in range(1, 5):
        for name, gradient in arrays(seed).items():
            mine[name].grad = torch.tensor(np.asarray(gradient))
        torch.nn.utils.clip_grad_norm_(mine.values(), clip_norm)
        sgd.step()
    moved, _ = steps(optimizer, params, optimizer.init(params), range(1, 5))
    for name, tensor in mine.items():  # torch adds 1e-6 to the norm
        np.testing.assert_allclose(moved[name], tensor.detach(), rtol=2e-6, err_msg=name)


@pytest.mark.parametrize(
    "fields", OPTIMIZERS, ids=lambda fields: "-".join(map(str, fields.values()))
)
def test_every_leaf_of_every_optimizer_has_a_name_and_comes_back(fields):
    optimizer = make(optax.linear_schedule(0.1, 1.0, 10), **fields)
    params, state = steps(optimizer, arrays(0), optimizer.init(arrays(0)), range(1, 4))
    named = named_state(state)
    has_buffers = fields["momentum"] or fields["optimizer"] == "lars"
    assert set(named) == {"schedule_step"} | {f"momentum.{name}" for name in SHAPES if has_buffers}
    assert int(named["schedule_step"]) == 3
    filled = fill_state(optimizer.init(arrays(0)), named)
    assert jax.tree.structure(filled) == jax.tree.structure(state)
    for one, other in zip(
        steps(optimizer, params, state, range(4, 7)),
        steps(optimizer, params, filled, range(4, 7)),
        strict=True,
    ):
        jax.tree.map(np.testing.assert_array_equal, one, other)
