"""What options on the command line make of a recipe, and of the configuration of a resumed run."""

import dataclasses
from pathlib import Path

import pytest

from train.__main__ import parse
from train.config import Config
from train.errors import UserError
from train.folder import begin_folder
from train.recipes import RECIPES

_IMAGES = 50_000


@pytest.mark.parametrize("name", RECIPES)
def test_steps_on_the_command_line_are_taken_whatever_the_recipe_has(name):
    config = parse([name, "--warmup-steps=7", "--drop_steps", "30", "50", "--schedule", "drops"])
    resolved = config.resolved(_IMAGES)
    assert (resolved.warmup_steps, resolved.drop_steps) == (7, (30, 50))


@pytest.mark.parametrize("name", ["cifar10", "cifar10-wide", "imagenet"])
def test_epochs_on_the_command_line_are_taken_whatever_the_recipe_has(name):
    config = parse([name, "--warmup-epochs", "2", "--drop-epochs", "3", "5"])
    resolved = dataclasses.replace(config, global_batch_size=100).resolved(_IMAGES)
    assert (resolved.warmup_steps, resolved.drop_steps) == (1000, (1500, 2500))


def test_steps_and_epochs_of_one_thing_exclude_each_other():
    both = ["cifar10-wide", "--drop-steps", "5", "--drop-epochs", "2.0"]
    with pytest.raises(UserError, match="--drop-steps and --drop-epochs exclude each other"):
        parse(both)
    with pytest.raises(UserError, match=r"--drop-epochs exclude.*--warmup-epochs exclude"):
        parse([*both, "--warmup-steps", "5", "--warmup-epochs", "2.0"])
    assert parse([*both[:-1], "None"]).drop_steps == (5,)


def test_a_resumed_run_takes_steps_in_place_of_its_epochs(tmp_path: Path):
    config = Config(drop_epochs=(2.0, 3.0), warmup_epochs=1.0, run_dir=tmp_path)
    begin_folder(tmp_path, config, train_images=9, total_steps=9)
    resume = ["--resume", "--run-dir", f"{tmp_path}"]
    assert parse(resume).drop_epochs == (2.0, 3.0)
    resolved = parse([*resume, "--drop-steps", "30", "50"]).resolved(_IMAGES)
    assert resolved.drop_steps == (30, 50)
    assert resolved.warmup_steps == round(_IMAGES / config.global_batch_size)
