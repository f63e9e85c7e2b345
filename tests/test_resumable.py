"""Which fields may change in a run that is resumed."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from train.config import Config
from train.errors import UserError
from train.resume import FIXED, FREE, check_resumable

CONFIG = Config(run_dir=Path("a"), resume=True)


def test_every_field_of_a_run_is_fixed_or_free():
    assert sorted([*FIXED, *FREE]) == sorted(field.name for field in dataclasses.fields(Config))


def test_all_fields_that_cannot_change_in_a_run_are_named_at_once():
    changes: dict[str, Any] = {
        "model": "ResNet32",
        "shortcut": "identity",
        "stochastic_depth": 0.2,
        "data": "cifar10",
        "validation_size": 100,
        "global_batch_size": 64,
        "accumulate_steps": 2,
        "optimizer": "lars",
        "momentum": 0.0,
        "ema_decay": 0.9,
        "precision": "f64",
        "seed": 7,
        "frozen_stages": 2,
    }
    with pytest.raises(UserError) as caught:
        check_resumable(CONFIG, dataclasses.replace(CONFIG, **changes))
    message = str(caught.value)
    assert f"{len(changes)} fields cannot change" in message
    for name, value in changes.items():
        option = f"--{name.replace('_', '-')} {value}, the run began with {getattr(CONFIG, name)}"
        assert option in message, option
    assert "--init-from a" in message


def test_a_resumed_run_may_learn_faster_longer_and_elsewhere():
    began = dataclasses.replace(CONFIG, ema_decay=0.9, data="folder:old")
    now = dataclasses.replace(
        began,
        learning_rate=0.01,
        schedule="cosine",
        epochs=3,
        max_steps=7,
        momentum=0.8,
        ema_decay=0.99,
        precision="bf16",
        parallel="jit",
        data="folder:new",
        log_every_steps=1,
        eval_only=True,
    )
    check_resumable(began, now)
    with pytest.raises(UserError, match="--data digits, the run began with folder:old"):
        check_resumable(began, CONFIG)
