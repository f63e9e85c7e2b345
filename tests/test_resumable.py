"""Which fields may change in a run that is resumed."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.saved_states import make_state, open_run
from train.config import Config, check_resumable
from train.config.config import OPTIONS
from train.errors import UserError
from train.run import starts
from train.run.run_folder import (
    begin_folder,
    check_folder,
    check_same_data,
    choose_folder,
    claimed,
    locked,
    note_start,
    saved_config,
    saved_mode,
    seeds_locked,
)
from train.run.starts import STARTED_BY, find_changes, find_devices, rounds_otherwise

CONFIG = Config(run_dir=Path("a"), resume=True)


FIXED = {
    *("model", "shortcut", "zero_init_residual", "stochastic_depth", "frozen_stages"),
    *("padding", "stem_padding", "bottleneck_stride", "running_variance"),
    *("init_from", "init_layout", "data", "validation_size", "image_size", "crop_fraction"),
    *("preprocessing", "interpolation", "train_interpolation"),
    *("crop_padding", "flip", "cutout", "min_crop_area", "rand_augment", "rand_augment_magnitude"),
    *("mixup", "cutmix", "label_smoothing", "global_batch_size", "accumulate_steps"),
    "batch_norm_images",
    *("optimizer", "momentum", "ema_decay", "precision", "seed", "seeds"),
}


def test_every_field_of_a_run_is_fixed_or_free():
    assert list(OPTIONS) == [field.name for field in dataclasses.fields(Config)]
    assert {name for name, option in OPTIONS.items() if option.fixed is not None} == FIXED


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


CHANGES: dict[str, Any] = {
    **{"padding": "same", "stem_padding": "same", "bottleneck_stride": "1x1"},
    **{"running_variance": "biased", "zero_init_residual": True, "image_size": 96},
    **{"preprocessing": "mean=0.5,std=0.5", "interpolation": "bicubic"},
    **{
        "train_interpolation": "bilinear",
        "crop_fraction": 0.5,
        "crop_padding": 1,
        "flip": False,
        "cutout": 2,
        "min_crop_area": 0.5,
    },
    **{"rand_augment": 1, "rand_augment_magnitude": 4, "mixup": 0.3, "cutmix": 0.3},
    **{"label_smoothing": 0.2, "init_layout": "timm", "seeds": "1,2"},
    "batch_norm_images": 64,
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_field_that_says_what_is_learned_from_what_cannot_change(name):
    saved = dataclasses.replace(CONFIG, model="ResNet164", init_from=Path("weights.pt"))
    now = dataclasses.replace(saved, **{name: CHANGES[name]})
    assert getattr(saved, name) != getattr(now, name)
    with pytest.raises(
        UserError, match=f"1 fields cannot change in a run:\n  --{name.replace('_', '-')} "
    ):
        check_resumable(saved, now)


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


@pytest.fixture
def began(tmp_path: Path) -> Path:
    """The folder of a run that began, and was interrupted before its first checkpoint."""
    folder = tmp_path / "run"
    (folder / "checkpoints").mkdir(parents=True)
    begin_folder(folder, CONFIG, devices="1 cpu device", train_images=9, total_steps=9)
    return folder


def test_a_folder_is_resumed_only_as_the_run_that_it_holds(began):
    now = dataclasses.replace(CONFIG, run_dir=began, epochs=7)
    check_folder(began, now)
    with pytest.raises(UserError, match="--seed 7, the run began with 111"):
        check_folder(began, dataclasses.replace(now, seed=7))


@pytest.mark.parametrize("is_imported", [True, False])
def test_without_a_configuration_only_imported_weights_go_on(tmp_path, is_imported):
    now = dataclasses.replace(CONFIG, run_dir=tmp_path)
    with pytest.raises(UserError, match="holds no run"):
        check_folder(tmp_path, now)
    with open_run(tmp_path) as checkpoints:
        checkpoints.save(make_state(0))
    if is_imported:
        shutil.rmtree(tmp_path / "checkpoints" / "0" / "optimizer")
        check_folder(tmp_path, now)
        return
    with pytest.raises(UserError, match=r"config.json is missing: put it back.*--init-from"):
        check_folder(tmp_path, now)


def test_what_changed_between_two_steps_that_a_run_is_made_of_is_told(began):
    path = began / "config.json"
    facts: dict[str, Any] = {"train_images": 9, "total_steps": 9}
    now = dataclasses.replace(CONFIG, run_dir=began, schedule="cosine")

    def go_on(step: int, **changes: Any) -> list[str]:
        nonlocal now
        now = dataclasses.replace(now, **changes)
        note_start(began, now, [now.seed], step, **facts)
        return find_changes(json.loads(path.read_text())["starts"], now)

    assert go_on(0, learning_rate=0.2) == []  # no step by the first one
    assert go_on(3, log_every_steps=1, data="folder:moved") == []
    assert go_on(4, weight_decay=0.5) == ["weight_decay 0.0001 to 0.5 at step 4"]
    assert go_on(4, weight_decay=0.0001) == []
    assert go_on(6, max_steps=8) == ["max_steps None to 8 at step 6"]  # of a cosine
    rates = ["learning_rate 0.2 to 0.3 at step 5"]
    assert go_on(5, learning_rate=0.3, max_steps=None) == rates  # back to an older checkpoint
    assert go_on(7, learning_rate=0.2) == [*rates, "learning_rate 0.3 to 0.2 at step 7"]
    assert go_on(0, schedule="drops", drop_steps=(3,)) == []
    assert go_on(2, epochs=70, max_steps=5) == []  # the same steps, more of them
    content = json.loads(path.read_text())
    assert content["starts"][3]["changed"] == {"weight_decay": [0.0001, 0.5]}


def test_what_computed_the_steps_of_a_run_is_told_in_their_order():
    def told(*starts: tuple[int | None, str | None]) -> list[str]:
        return find_devices([{"step": step, "devices": devices} for step, devices in starts])

    assert told() == told((0, None)) == []
    assert told((None, "torch"), (5, "1 cpu device")) == ["torch", "1 cpu device"]
    assert told((0, "8 tpu devices"), (4, "1 cpu device"), (6, "8 tpu devices")) == [
        "8 tpu devices",
        "1 cpu device",
    ]
    assert told((0, "8 tpu devices"), (4, "1 cpu device"), (3, "2 gpu devices")) == [
        "8 tpu devices",
        "2 gpu devices",  # which repeated the steps of the CPU
    ]


def test_a_folder_keeps_the_starts_of_its_run_oldest_first(began):
    path = began / "config.json"

    def start_again() -> list[dict[str, Any]]:
        begin_folder(began, CONFIG, devices="2 cpu devices", train_images=9, total_steps=9)
        return json.loads(path.read_text())["starts"]

    starts = start_again()
    assert [start["devices"] for start in starts] == ["1 cpu device", "2 cpu devices"]
    assert all(start["when"] and start["command"] and start["versions"]["jax"] for start in starts)
    older = json.loads(path.read_text())
    del older["starts"], older["when"]  # of the last start alone
    path.write_text(json.dumps(older))
    assert start_again()[0] == {**{name: starts[1][name] for name in STARTED_BY}, "when": None}
    for damage in ("[", "[]", '{"starts": 1}'):
        path.write_text(damage)
        assert len(start_again()) == 1


def test_a_run_that_goes_on_on_other_cores_or_devices_is_told_that_it_rounds_otherwise(
    began, monkeypatch
):
    path, cores = began / "config.json", starts.count_cores()
    assert json.loads(path.read_text())["starts"][0]["cores"] == cores
    assert not rounds_otherwise(path, "1 cpu device")
    assert not rounds_otherwise(path, "8 tpu devices")
    assert f"by 1 cpu device with {cores} core" in rounds_otherwise(path, "2 cpu devices")
    monkeypatch.setattr(starts, "count_cores", lambda: cores + 1)
    said = rounds_otherwise(path, "1 cpu device")
    assert f"the next by 1 cpu device with {cores + 1} cores: they round otherwise" in said
    older = json.loads(path.read_text())
    del older["starts"][0]["cores"]
    path.write_text(json.dumps(older))
    assert not rounds_otherwise(path, "1 cpu device")


@pytest.mark.parametrize("damage", ["[" * 100_000, '{"versions": 5}', "[]", "{"])
def test_a_damaged_configuration_is_a_sentence_wherever_it_is_read(began, damage):
    (began / "config.json").write_text(damage)
    for read in (saved_config, lambda folder: check_same_data(folder, 9)):
        with pytest.raises(UserError, match=r"config\.json cannot be resumed from"):
            read(began)
    assert saved_mode(began) is None


def test_whatever_moment_ended_it_a_run_can_begin_anew(began):
    """Before its configuration was written, and while it was deleted."""
    anew = dataclasses.replace(CONFIG, run_dir=began, resume=False)
    with pytest.raises(UserError, match="is not empty"):
        check_folder(began, anew)
    (began / "config.json").rename(began / ".config.json.new")
    check_folder(began, anew)
    (began / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="is not empty"):
        check_folder(began, anew)
    overwriting = dataclasses.replace(anew, overwrite=True)
    with pytest.raises(UserError, match="nothing deleted"):
        check_folder(began, overwriting)
    (began / ".config.json.new").rename(began / "config.json")
    (began / "checkpoints" / "link").symlink_to(began.parent)
    check_folder(began, overwriting)
    begin_folder(began, overwriting)
    assert {path.name for path in began.iterdir()} == {"config.json", "notes.txt"}


def test_what_killed_processes_left_half_written_is_deleted_by_the_next(began):
    names = (".config-ab_d1234.json", ".model-ab_d1234.safetensors", ".metrics.jsonl.new")
    for name in names:
        (began / name).write_text("{")
    (began / ".config-mine.json").write_text("{}")
    with locked(began):
        assert not any((began / name).exists() for name in names)
    assert (began / ".config-mine.json").exists()


def test_overwriting_deletes_what_a_run_leaves_and_nothing_else(began):
    for place in (began, began / "seed-7", began / "seed-8", began / "other"):
        for folder in ("tensorboard", "wandb", "profile", "checkpoints/3"):
            (place / folder).mkdir(parents=True)
            (place / folder / "file").write_text("a run's")
        for file in ("metrics.jsonl", "result.json", "model.safetensors", "results.md"):
            (place / file).write_text("a run's")
    kept = [began / "notes.txt", began / "seed-7" / "notes.txt", began / "images" / "a.png"]
    (began / "images").mkdir()
    for path in kept:
        path.write_text("mine")
    others = [path for path in (began / "other").rglob("*") if path.is_file()]
    begin_folder(began, dataclasses.replace(CONFIG, run_dir=began, resume=False, overwrite=True))
    found = {path for path in began.rglob("*") if path.is_file()}
    assert found == {*kept, *others, began / "config.json"}
    assert not (began / "seed-8").exists()


def test_the_configuration_is_deleted_last(began, monkeypatch):
    (began / "metrics.jsonl").write_text("")
    unlink = Path.unlink

    def interrupted(path: Path, **options: Any) -> None:
        if path.name == "config.json":
            raise KeyboardInterrupt
        unlink(path, **options)

    monkeypatch.setattr(Path, "unlink", interrupted)
    overwriting = dataclasses.replace(CONFIG, run_dir=began, resume=False, overwrite=True)
    with pytest.raises(KeyboardInterrupt):
        begin_folder(began, overwriting)
    assert [path.name for path in began.iterdir()] == ["config.json"]
    check_folder(began, overwriting)


def test_a_link_to_a_folder_is_overwritten_there(began):
    (began / "metrics.jsonl").write_text("")
    link = began.parent / "link"
    link.symlink_to(began)
    overwriting = dataclasses.replace(CONFIG, run_dir=link, resume=False, overwrite=True)
    begin_folder(link, overwriting)
    assert link.is_symlink()
    assert [path.name for path in began.iterdir()] == ["config.json"]


def test_a_folder_is_claimed_before_anything_in_it_is_written_or_deleted(began):
    """By whichever of two came first; the other looks again at what it finds."""
    new = began.parent / "new"
    anew = dataclasses.replace(CONFIG, run_dir=new, resume=False)
    with claimed(new, anew), pytest.raises(UserError, match="another process"):
        claimed(new, anew).__enter__()
    begin_folder(new, anew)
    with pytest.raises(UserError, match="is not empty"):
        claimed(new, anew).__enter__()


def test_seeds_are_not_begun_while_one_of_them_is_trained_by_itself(tmp_path):
    many = dataclasses.replace(CONFIG, run_dir=tmp_path, resume=False, seeds="7,111")
    begin_folder(tmp_path, many)
    with seeds_locked(tmp_path), pytest.raises(UserError, match="seed-111: another process"):
        locked(tmp_path / "seed-111").__enter__()
    with locked(tmp_path / "seed-111"), pytest.raises(UserError, match="seed-111: another process"):
        seeds_locked(tmp_path).__enter__()


def test_a_folder_that_vanished_is_not_made_by_resuming(tmp_path):
    gone = dataclasses.replace(CONFIG, run_dir=tmp_path / "gone")
    with pytest.raises(UserError, match="does not exist"):
        claimed(tmp_path / "gone", gone).__enter__()
    assert not (tmp_path / "gone").exists()


def test_runs_that_begin_together_without_a_folder_have_one_each(monkeypatch):
    folders = [choose_folder(Config())]
    monkeypatch.setattr("os.getpid", lambda: 1)
    assert choose_folder(Config()) not in folders
