"""What options on the command line make of a recipe, and of the configuration of a resumed run."""

import dataclasses
import json
import re
from pathlib import Path

import pytest

from tests.commands import run_here, run_unread
from train.__main__ import COMMANDS, main, parse
from train.config import Config, flag, unused_fields
from train.config.recipes import RECIPES
from train.errors import UserError
from train.run.run_folder import begin_folder, note_start

_IMAGES = 50_000


@pytest.mark.parametrize("name", RECIPES)
def test_steps_on_the_command_line_are_taken_whatever_the_recipe_has(name):
    config = parse([name, "--warmup-steps=7", "--drop_steps", "30", "50", "--schedule", "drops"])
    resolved = config.resolved(_IMAGES)
    assert (resolved.warmup_steps, resolved.drop_steps) == (7, (30, 50))


@pytest.mark.parametrize("name", ["cifar10", "cifar10-wide", "imagenet"])
def test_epochs_on_the_command_line_are_taken_whatever_the_recipe_has(name):
    config = parse([name, "--warmup-epochs", "2", "--drop-epochs", "3", "5"])
    resolved = dataclasses.replace(
        config, global_batch_size=100, batch_norm_images="batch"
    ).resolved(_IMAGES)
    assert (resolved.warmup_steps, resolved.drop_steps) == (1000, (1500, 2500))


def test_steps_and_epochs_of_one_thing_exclude_each_other():
    both = ["cifar10-wide", "--drop-steps", "5", "--drop-epochs", "2.0"]
    with pytest.raises(UserError, match="--drop-steps and --drop-epochs exclude each other"):
        parse(both)
    with pytest.raises(UserError, match=r"--drop-epochs exclude.*--warmup-epochs exclude"):
        parse([*both, "--warmup-steps", "5", "--warmup-epochs", "2.0"])
    assert parse([*both[:-1], "None"]).drop_steps == (5,)


def test_epochs_on_the_command_line_take_the_place_of_a_recipes_steps(tmp_path: Path):
    assert parse(["cifar10-he2015"]).max_steps == 64_000
    longer = parse(["cifar10-he2015", "--epochs", "300"])
    assert (longer.epochs, longer.max_steps) == (300, None)
    assert parse(["cifar10-he2015", "--epochs=300", "--max-steps", "9"]).max_steps == 9
    begin_folder(tmp_path, Config(max_steps=40, run_dir=tmp_path), train_images=9, total_steps=40)
    resumed = parse(["--resume", "--run-dir", f"{tmp_path}", "--epochs", "60"])
    assert (resumed.epochs, resumed.max_steps) == (60, None)


def test_other_data_by_the_numbers_for_digits_is_told(tmp_path: Path):
    """No mirrored images, crops of one pixel: a mistake that only shows as a worse error."""
    other = ("--data", "cifar10", "--data-dir", f"{tmp_path}")
    said = run_here("train", *other, cwd=tmp_path).stderr
    assert "those of digits" in said
    assert "recipes for cifar10: cifar10, cifar10-45k, cifar10-fast" in said
    for arguments in (("cifar10", *other), ("digits", *other), (*other, "--eval-only")):
        assert "those of digits" not in run_here("train", *arguments, cwd=tmp_path).stderr


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
        (("digits", "--nesterov", "--momentum", "0"), "--nesterov True is for --momentum above 0"),
        (("digits", "--seeds-mode", "vmap"), "--seeds-mode vmap is for the runs of --seeds"),
        (
            ("--seed", "5", "--seeds", "1,2"),
            "--seed 5 is for one run, not for those of --seeds 1,2",
        ),
        (
            ("digits", "--warmup", "linear", "--warmup-learning-rate", "0.02"),
            "--warmup linear is for a warm-up, of --warmup-steps or --warmup-epochs above 0; "
            "--warmup-learning-rate 0.02 is for a warm-up",
        ),
        (("imagenet", "--warmup-epochs", "0", "--warmup", "constant"), "--warmup constant is for"),
        (("cifar10", "--read-threads", "2"), "--read-threads 2 is for streamed images"),
        (("--data-dir", "a"), "--data-dir a is for data of tensorflow-datasets, not for digits"),
        (("imagenet", "--data", "folder:b", "--data-dir", "a"), "--data-dir a is for data of"),
        (
            ("imagenet", "--rand-augment-magnitude", "5"),
            "--rand-augment-magnitude 5.0 is for --rand-augment above 0",
        ),
        (
            ("digits", "--profile", "--max-steps", "9"),
            "--profile True is for runs of 10 steps or more, not for --max-steps 9",
        ),
        (
            ("--eval-only", "--init-from", "w.pth", "--resume", "--run-dir", "nowhere"),
            "--init-from w.pth is for --eval-only without --resume, which tests the run's own",
        ),
        (
            ("cifar10", "--warmup-learning-rate", "0.2"),
            "--warmup-learning-rate 0.2 is above the peak, 0.1: give no more than that",
        ),
        (
            ("imagenet", "--global-batch-size", "1024", "--warmup-learning-rate", "0.5"),
            "--warmup-learning-rate 0.5 is above the peak, 0.4",
        ),
    ],
)
def test_a_field_without_a_use_is_refused(arguments, said):
    with pytest.raises(UserError, match=re.escape(said)):
        parse([*arguments])


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_has_nothing_that_is_not_used_and_is_taken_with_any_switch_of_its_own(name):
    assert not unused_fields(parse([name]), Config())
    switches = ("--seeds", "5", "--warmup-steps", "0", "--max-steps", "10", "--profile")
    parse([name, *switches, "--seeds-mode", "turns", "--no-nesterov", "--momentum", "0"])
    parse([name, "--global-batch-size", "64", "--data", "cifar10", "--data-dir", "a"])
    parse([name, "--eval-only", "--init-from", "w.pth", "--learning-rate", "1e-6"])


def test_a_recipe_named_beside_a_run_is_that_of_the_run(tmp_path: Path):
    began = ["cifar10", "--model", "ResNet110", "--nesterov", "--epochs", "200", "--seed", "7"]
    folder = ["--run-dir", f"{tmp_path}"]
    facts = {"train_images": 9, "total_steps": 9, "recipe": "cifar10"}
    begin_folder(tmp_path, parse([*began, *folder]), **facts)
    resume = [*folder, "--resume"]
    for command in ([*began, *resume], [*began, "--epochs", "3", *resume], ["cifar10", *resume]):
        assert parse(command).model == "ResNet110"
    for other in ("cifar10-wide", "cifar10-he2015-110", "cifar10-small"):
        said = f"{tmp_path} began with the recipe cifar10, not {other}: leave the recipe out"
        with pytest.raises(UserError, match=re.escape(said)):
            parse([other, *resume])
    with pytest.raises(UserError, match="is a run on cifar10, not cifar100: leave the recipe out"):
        parse(["cifar100", *resume])


def test_a_command_that_began_a_run_far_from_its_recipe_goes_on_with_it(tmp_path: Path):
    wide = RECIPES["cifar10-wide"].config
    by_hand = ("epochs", "drop_factor", "weight_decay", "warmup_steps", "model")
    fields = [(f"--{name.replace('_', '-')}", f"{getattr(wide, name)}") for name in by_hand]
    drops = ["--nesterov", "--drop-epochs", "60", "120", "160"]
    command = ["cifar10", *sum(fields, ()), *drops, "--run-dir", f"{tmp_path}"]
    begin_folder(tmp_path, parse(command), train_images=9, total_steps=9, recipe="cifar10")
    assert parse([*command, "--resume"]).epochs == 200
    assert parse(["cifar10", "--run-dir", f"{tmp_path}", "--resume"]).epochs == 200
    with pytest.raises(UserError, match="began with the recipe cifar10, not cifar10-wide: leave"):
        parse(["cifar10-wide", "--run-dir", f"{tmp_path}", "--resume"])


def test_a_resumed_run_keeps_the_record_of_what_it_began_with(tmp_path: Path):
    path, asked = tmp_path / "config.json", {"protocol": "V"}
    config = Config(run_dir=tmp_path, resume=True)
    began = dataclasses.replace(config, resume=False)
    begin_folder(tmp_path, began, train_images=9, total_steps=9, recipe="cifar10", asked=asked)
    note_start(tmp_path, config, config.seed_list, 5, recipe="digits", asked=None)
    content = json.loads(path.read_text())
    assert (content["recipe"], content["asked"]) == ("cifar10", asked)
    del content["recipe"], content["asked"]  # as of an older version
    path.write_text(json.dumps(content))
    note_start(tmp_path, config, config.seed_list, 7, recipe="digits", asked=asked)
    content = json.loads(path.read_text())
    assert (content["recipe"], content["asked"]) == (None, None)


def test_a_run_of_an_older_version_goes_on_with_any_recipe_for_its_data(tmp_path: Path):
    began = ["cifar10", "--model", "ResNet110", "--run-dir", f"{tmp_path}"]
    begin_folder(tmp_path, parse(began), train_images=9, total_steps=9)
    resume = ["--run-dir", f"{tmp_path}", "--resume"]
    assert parse(["cifar10-wide", *resume]).model == "ResNet110"
    with pytest.raises(UserError, match="is a run on cifar10, not cifar100: leave the recipe out"):
        parse(["cifar100", *resume])


def test_weights_that_a_run_began_with_do_not_keep_it_from_being_tested(tmp_path: Path):
    config = Config(init_from=Path("w.pth"), init_layout="timm", run_dir=tmp_path)
    begin_folder(tmp_path, config, train_images=9, total_steps=9)
    tests = ["--eval-only", "--resume", "--run-dir", f"{tmp_path}"]
    assert parse(tests).init_from == Path("w.pth")
    with pytest.raises(UserError, match=r"--init-from v\.pth is for --eval-only without --resume"):
        parse([*tests, "--init-from", "v.pth"])


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


def test_help_is_two_screens_with_every_command_recipe_and_option(capsys):
    assert main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 48
    assert max(map(len, lines)) <= 100
    firsts = [line.split()[0] for line in lines if line.strip()]
    assert [*COMMANDS, *RECIPES] == [word for word in firsts if word in {*COMMANDS, *RECIPES}]
    words = " ".join(lines).split()
    assert all(words.count(flag(field.name)) == 1 for field in dataclasses.fields(Config))


@pytest.mark.parametrize("name", RECIPES)
def test_help_of_a_recipe_has_its_source_reasons_and_published_errors(name, capsys):
    with pytest.raises(SystemExit):
        main([name, "--help"])
    said = " ".join(capsys.readouterr().out.split())
    recipe = RECIPES[name]
    for text in (recipe.source, *recipe.reason.split("; "), *recipe.published.split("; ")):
        assert text in said
    assert all(flag(field.name) in said for field in dataclasses.fields(Config))


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("--help",), 0, ""),
        (("digits", "--help"), 0, ""),
        (("digits", "--print-config"), 0, ""),
        (("table", "--help"), 0, ""),
        (
            ("digits", "--model", "WideResNet16-1-0.0", "--max-steps", "1", "--run-dir", "run"),
            1,
            "resnet-train: standard output was closed\n",
        ),
    ],
)
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_of_the_output_may_leave(arguments, code, said, unbuffered, tmp_path: Path):
    """`| head` has what it wants of a list; a run whose lines nobody reads has failed."""
    found = run_unread("train", *arguments, cwd=tmp_path, PYTHONUNBUFFERED=unbuffered)
    assert found == (code, said)


def test_a_rate_below_a_recipes_warm_up_is_taken():
    assert parse(["cifar10", "--learning-rate", "0.005"]).learning_rate == 0.005
