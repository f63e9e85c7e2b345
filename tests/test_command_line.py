"""What options on the command line make of a recipe, and of the configuration of a resumed run."""

import dataclasses
import re
from pathlib import Path

import pytest

from train.__main__ import parse
from train.config import Config
from train.errors import UserError
from train.folder import begin_folder
from train.recipes import RECIPES
from train.unused import unused_fields

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


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ("cifar10", "--rand-augment", "2", "--image-size=32"),
            "--image-size 32 is for streamed images, not for cifar10; --rand-augment 2 is",
        ),
        (("imagenet", "--crop-padding", "0"), "--crop-padding 0 is for images in memory, not for"),
        (("digits", "--data", "folder:a", "--crop-padding", "2"), "--crop-padding 2 is for images"),
        (("imagenet", "--data", "cifar10", "--crop-fraction", "1"), "--crop-fraction 1.0 is for"),
        (
            ("cifar10", "--schedule", "cosine", "--drop-steps", "7", "--drop-factor", "0.5"),
            "--drop-steps (7,) is for --schedule drops, not for cosine; --drop-factor 0.5 is for",
        ),
        (("imagenet-modern", "--drop-epochs", "3"), "--drop-epochs (3.0,) is for --schedule drops"),
    ],
)
def test_a_field_without_a_use_is_refused(arguments, said):
    with pytest.raises(UserError, match=re.escape(said)):
        parse([*arguments])


def test_a_field_of_no_use_that_a_recipe_or_an_older_run_has_is_only_said(tmp_path: Path):
    config = parse(["imagenet-modern", "--data", "cifar10"])
    said = unused_fields(config, Config())
    assert [line.split()[0] for line in said] == ["--crop-fraction", "--rand-augment"]
    old = dataclasses.replace(config, run_dir=tmp_path, image_size=7)
    begin_folder(tmp_path, old, train_images=9, total_steps=9)
    resume = ["--resume", "--run-dir", f"{tmp_path}"]
    assert parse(resume).image_size == parse([*resume, "--image-size", "7"]).image_size == 7
    with pytest.raises(UserError, match="--image-size 8 is for streamed images"):
        parse([*resume, "--image-size", "8"])
