"""Whole training runs from the command line, their files, and what the converter makes of them."""

import dataclasses
import json
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import convert
from convert.inspection import inspect
from convert.runs.saved_run import read_run
from resnet_spec import find_spec
from tests.commands import assert_refused, run, run_here
from tests.run_folders import assert_same, metrics
from tests.test_data import needs_cifar10
from tests.torch_or_none import torch, torch_resnet
from train.__main__ import parse
from train.config.recipes import RECIPES
from train.data.dataset import normalise
from train.data.load import load_dataset
from train.errors import DeviceError, device_errors
from train.run import loop
from train.run.metrics import FILE, read_metrics
from train.run.trainer import Trainer
from train.run.training_run import Run

MODEL = "WideResNet16-1-0.0"  # that of other tests' runs, whose programs are compiled already
SHORT = (
    *("digits", "--model", MODEL, "--schedule", "drops", "--drop-steps", "8"),
    *("--log-every-steps", "4"),
)


def train(cwd: Path, *arguments: str | Path, devices: int = 1) -> str:
    result = run("train", *arguments, cwd=cwd, devices=devices)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


uses_finished = pytest.mark.xdist_group("finished")  # one worker makes the run for all


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run of 24 steps, two epochs of digits, and what it printed."""
    folder = tmp_path_factory.mktemp("finished")
    return folder / "a", train(folder, *SHORT, "--max-steps", "24", "--run-dir", "a")


@uses_finished
def test_a_run_leaves_its_configuration_metrics_checkpoints_and_export(finished):
    run_dir, output = finished
    config = json.loads((run_dir / "config.json").read_text())
    assert config["config"]["model"] == MODEL
    assert config["config"]["max_steps"] == 24
    assert config["versions"]["jax"]
    lines = metrics(run_dir)
    assert [(line["step"], line["kind"]) for line in lines if line["kind"] == "train"] == [
        (step, "train") for step in (4, 8, 12, 16, 20, 24)
    ]
    rates = {line["step"]: line["learning_rate"] for line in lines if line["kind"] == "train"}
    assert rates[8] == pytest.approx(0.1)
    assert rates[12] == pytest.approx(0.01)
    assert [line["step"] for line in lines if line["kind"] == "test"] == [12, 23, 24]
    assert list((run_dir / "tensorboard").glob("events*"))
    tested = {line["step"]: line["error"] for line in lines if line["kind"] == "test"}
    best = min(tested, key=lambda step: (tested[step], -step))
    kept = {path.name for path in (run_dir / "checkpoints").iterdir()}
    assert kept == {"23", "24", str(best)}
    assert "epoch   1.07" in output
    assert "nan" not in output
    assert "\x1b" not in output  # plain lines where there is no terminal


def test_no_rate_contains_a_test_or_a_checkpoint(tmp_path, monkeypatch, capsys):
    """Each of which is made to take an hour: on a clock that jumps."""
    now, hours = time.perf_counter, 0
    monkeypatch.setattr(time, "perf_counter", lambda: now() + 3600 * hours)

    def takes_an_hour(call: Callable[..., Any]) -> Callable[..., Any]:
        def later(*arguments: Any, **named: Any) -> Any:
            nonlocal hours
            hours += 1
            return call(*arguments, **named)

        return later

    monkeypatch.setattr(Trainer, "test", takes_an_hour(Trainer.test))
    monkeypatch.setattr(Run, "save", takes_an_hour(Run.save))
    length = ("--max-steps", "24", "--log-every-steps", "20", "--checkpoint-every-steps", "18")
    model = ("--model", "WideResNet16-1-0.0")
    loop.train(parse(["digits", *model, *length, "--run-dir", str(tmp_path / "a")]))
    said = re.findall(r"step +(\d+) .* ([\d,]+) images/s", capsys.readouterr().out)
    rates = {int(step): float(rate.replace(",", "")) for step, rate in said}
    assert [*rates] == [12, 13, 19, 23, 24]  # after a test, and where an hour passed in silence
    lines = read_metrics(tmp_path / "a" / FILE)
    (line,) = [line for line in lines if line["kind"] == "train"]
    assert rates[23] == rates[24] == round(line["images_per_second"])
    assert min(rates.values()) > 24 * 128 / 3600
    assert hours >= 7  # of three tests, that of the result, and three or more checkpoints


@pytest.mark.torch
@uses_finished
def test_the_export_predicts_the_same_in_torch(finished):
    run_dir, output = finished
    result = json.loads((run_dir / "result.json").read_text())
    parity = result["parity"]
    assert parity["images"] == 360
    assert parity["different_predictions"] == 0
    assert parity["torch_error"] == parity["flax_error"] == pytest.approx(result["error"])
    assert parity["largest_difference"] <= 1e-5 * parity["largest_logit"]
    assert "0 predictions differ" in output
    model = convert.load(run_dir / "model.safetensors", backend="torch")
    assert model.spec.in_planes == 1
    assert model(torch.zeros(1, 1, 8, 8)).shape == (1, 10)
    assert int(model.get_buffer("stem.bn.num_batches_tracked")) == 24


@uses_finished
def test_the_result_has_the_digest_of_the_weights_whatever_they_are_read_from(finished):
    run_dir, _ = finished
    digest = json.loads((run_dir / "result.json").read_text())["digest"]
    assert inspect(run_dir)["digest"] == digest
    assert inspect(run_dir / "model.safetensors")["digest"] == digest


@pytest.mark.torch
@uses_finished
def test_the_converter_reads_the_checkpoint_and_writes_one_that_training_goes_on_from(
    finished, tmp_path
):
    run_dir, _ = finished
    for name in ("w.safetensors", "w.pt"):
        result = run_here("convert", "export", run_dir, "-o", name, cwd=tmp_path)
        assert result.returncode == 0, result.stderr
    exported = convert.load(run_dir / "model.safetensors", backend="torch").state_dict()
    for name in ("w.safetensors", "w.pt"):
        state = convert.load(tmp_path / name, backend="torch").state_dict()
        assert all(torch.equal(state[key], exported[key]) for key in exported)
    plain = torch.load(tmp_path / "w.pt", weights_only=True)
    model = torch_resnet.create(MODEL, 10, in_planes=1)
    model.load_state_dict(plain, strict=True)

    result = run_here("convert", "import", "w.pt", "-o", "b", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    arrays = read_run(tmp_path / "b").arrays
    assert all(np.array_equal(arrays[key], exported[key].numpy()) for key in exported)
    output = train(tmp_path, *SHORT, "--max-steps", "4", "--run-dir", "b", "--resume")
    assert "4 steps" in output
    first = metrics(tmp_path / "b")[0]
    assert first["loss"] < 1.8  # a fresh network begins above 2.2

    older = run_here("convert", "export", run_dir, "-o", "o.pt", "--step", "23", cwd=tmp_path)
    assert older.returncode == 0, older.stderr
    assert int(torch.load(tmp_path / "o.pt")["stem.bn.num_batches_tracked"]) == 23
    assert_refused(
        run_here("convert", "export", run_dir, "-o", "o.pt", "--step", "7", cwd=tmp_path), "step 7"
    )


@uses_finished
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(finished, tmp_path):
    run_dir, _ = finished
    train(tmp_path, *SHORT, "--max-steps", "14", "--run-dir", "b")
    with (tmp_path / "b" / "metrics.jsonl").open("a") as file:  # as if it had been killed later
        file.write('{"step": 16, "kind": "train", "loss": 0.0}\n{"step": 17, "ki')
    output = train(tmp_path, *SHORT, "--max-steps", "24", "--run-dir", "b", "--resume")
    assert "resumed at 14" in output
    expected, resumed = read_run(run_dir), read_run(tmp_path / "b")
    assert expected.arrays.keys() == resumed.arrays.keys()
    for name, array in expected.arrays.items():
        np.testing.assert_array_equal(array, resumed.arrays[name], err_msg=name)
    kinds = [(line["step"], line["kind"], line["loss"]) for line in metrics(tmp_path / "b")]
    whole = [(line["step"], line["kind"], line["loss"]) for line in metrics(run_dir)]
    assert set(whole) <= set(kinds)
    assert len({kind[:2] for kind in kinds}) == len(kinds)


@uses_finished
def test_a_run_and_its_exports_carry_the_preprocessing_that_it_trained_with(finished, tmp_path):
    run_dir, _ = finished
    result = run_here("convert", "export", run_dir, "-o", "w.pt", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    result = run_here("convert", "import", "w.pt", "-o", "v.safetensors", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    dataset = load_dataset(RECIPES["digits"].config)
    images = dataset.test.images
    for path in (run_dir / "model.safetensors", tmp_path / "w.pt", tmp_path / "v.safetensors"):
        found = convert.load_preprocessing(path)
        assert found is not None
        mean, std = (np.array(values, np.float32) for values in (found.mean, found.std))
        seen = (images.astype(np.float32) / np.float32(255) - mean) / std
        np.testing.assert_array_equal(seen, normalise(images, dataset))
        assert (found.image_size, found.crop_fraction) == (8, 1.0)
        assert found.class_names == tuple("0123456789")


@pytest.mark.torch
@pytest.mark.slow
def test_eight_devices_and_bfloat16_train_too(tmp_path):
    arguments = ("--max-steps", "12", "--run-dir", "a", "--precision", "bf16")
    arguments += ("--model", "WideResNet16-1", "--ema-decay", "0.5")
    output = train(tmp_path, *SHORT, *arguments, devices=8)
    assert "8 cpu devices" in output
    newest, average = (read_run(tmp_path / "a", weights=kind) for kind in ("raw", "ema"))
    assert all(array.dtype in (np.float32, np.int64) for array in average.arrays.values())
    exported = convert.load(tmp_path / "a" / "model.safetensors", backend="torch").state_dict()
    for name, tensor in exported.items():
        assert np.array_equal(average.arrays[name], tensor.numpy())
    assert not np.array_equal(newest.arrays["head.bias"], average.arrays["head.bias"])
    result = json.loads((tmp_path / "a" / "result.json").read_text())
    assert result["parity"]
    assert result["weights"] == "ema"
    tested = [line for line in metrics(tmp_path / "a") if line["kind"] == "test"][-1]
    assert tested["ema_error"] == result["error"]  # in bfloat16; the twins are compared in float32
    assert result["parity"]["flax_error"] == result["parity"]["torch_error"]
    for kind, key in (("raw", newest), ("ema", average)):
        arguments = ("export", "a", "-o", "w.pt", "--weights", kind)
        assert run_here("convert", *arguments, cwd=tmp_path).returncode == 0
        assert np.array_equal(torch.load(tmp_path / "w.pt")["head.bias"], key.arrays["head.bias"])


def test_a_resumed_run_keeps_its_own_configuration(tmp_path):
    train(tmp_path, *SHORT, "--max-steps", "3", "--run-dir", "a-1.0", "--seed", "7")
    output = train(tmp_path, "--resume", "--run-dir", "a-1.0", "--max-steps", "5")
    assert "resumed at 3" in output
    content = json.loads((tmp_path / "a-1.0" / "config.json").read_text())
    commands = [start["command"].partition("--max-steps ")[2] for start in content["starts"]]
    assert commands == ["3 --run-dir a-1.0 --seed 7", "5"]
    config = content["config"]
    assert (config["seed"], config["schedule"], config["max_steps"]) == (7, "drops", 5)
    result = run_here("convert", "export", "a-1.0", "-o", "w.pt", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    result = run_here("convert", "import", "w.pt", "-o", "b-0.0", cwd=tmp_path)
    assert result.returncode == 0, result.stderr


def test_a_run_that_diverges_fails_and_keeps_the_checkpoint_before(tmp_path):
    train(tmp_path, *SHORT, "--max-steps", "2", "--run-dir", "a")
    arguments = ("--run-dir", "a", "--resume", "--max-steps", "40", "--learning-rate", "1e30")
    result = run("train", *SHORT, *arguments, "--warmup-steps", "0", cwd=tmp_path)
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert "the loss is" in result.stderr
    assert [path.name for path in (tmp_path / "a" / "checkpoints").iterdir()] == ["2"]


@pytest.mark.slow
@needs_cifar10
def test_cifar10_trains_from_its_files(tmp_path):
    output = train(tmp_path, "cifar10-45k", "--max-steps", "20", "--run-dir", "a")
    assert "45000 training images, 5000 test images (train[45000:])" in output
    result = json.loads((tmp_path / "a" / "result.json").read_text())
    assert result["parity"]["images"] == 5000
    assert result["parity"]["different_predictions"] == 0
    lines = [line for line in metrics(tmp_path / "a") if line["kind"] == "test"]
    assert lines[-1]["loss"] < 4


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("cifar11",), ("no recipe called 'cifar11'", "did you mean cifar10")),
        (("--model", "ResNet21"), ("no model called 'ResNet21'", "ResNet20")),
        (("--model", "WideResNet50-2-0.3"), ("dropout",)),
        (("--bottleneck-stride", "1x1"), ("bottleneck_stride is of a bottleneck",)),
        (("--data", "mnist"), ("mnist", "digits")),
        (("cifar10", "--data-dir", "nowhere"), ("nowhere", "--data-dir")),
        (("--validation-size", "2000"), ("2000", "1437")),
        (("--global-batch-size", "100"), ("100 does not divide by the 8 devices", "96")),
        (("--global-batch-size", "4"), ("4 does not divide by the 8 devices", "8 does")),
        (("--global-batch-size", "4096"), ("4096", "1437")),
        (("--epochs", "0", "--seed", "-1"), ("--epochs", "--seed")),
        (("--epochs", "many"), ("many",)),
        (("--ema-decay", "1.0"), ("--ema-decay must be below 1",)),
        (("--seed", str(2**70), "--drop-steps", "9", "9"), ("--seed", "--drop-steps")),
        (("--no-such-field", "1"), ("no-such-field",)),
        (("--resume",), ("--run-dir",)),
        (("--resume", "--run-dir", "nowhere"), ("nowhere", "does not exist")),
        (("--run-dir", "used"), ("used", "--resume", "--overwrite")),
        (("--run-dir", "used", "--overwrite"), ("used", "nothing deleted")),
        (("--learning-rate", "nan", "--momentum", "nan"), ("--learning-rate", "--momentum")),
        (("--model", "ResNet18", "--global-batch-size", "0"), ("--global-batch-size",)),
        (("--run-dir", "used", "--resume"), ("config.json", "not written by this trainer")),
    ],
)
def test_a_users_mistake_is_one_clear_sentence_and_exit_code_2(tmp_path, arguments, parts):
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "thesis.txt").write_text("precious")
    (tmp_path / "used" / "config.json").write_text('{"architectures": ["X"]}')  # not ours
    assert_refused(run_here("train", *arguments, cwd=tmp_path, TFDS_DATA_DIR=""), *parts)
    assert (tmp_path / "used" / "thesis.txt").read_text() == "precious"
    assert [path.name for path in tmp_path.iterdir()] == ["used"]
    names = {path.name for path in (tmp_path / "used").iterdir()}
    assert names == {"thesis.txt", "config.json"}


@uses_finished
def test_another_model_is_refused_and_a_damaged_checkpoint_gives_way_to_the_one_before(
    finished, tmp_path
):
    run_dir = tmp_path / "a"
    shutil.copytree(finished[0], run_dir)
    before = (run_dir / "config.json").read_text()
    resume = ("--run-dir", "a", "--resume")
    others = ("--model", "ResNet32", "--global-batch-size", "64")
    refused = run_here("train", *SHORT, *resume, *others, cwd=tmp_path)
    assert_refused(refused, "--model ResNet32", "--global-batch-size 64", "began with 128")
    assert (run_dir / "config.json").read_text() == before
    for file in (run_dir / "checkpoints" / "24" / "model").rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    assert_refused(run_here("convert", "export", "a", "-o", "w.pt", cwd=tmp_path), "checkpoints/24")
    assert not (tmp_path / "w.pt").exists()
    output = train(tmp_path, *resume)
    assert "checkpoints/24 is damaged" in output
    assert "resumed at 23" in output
    assert_same(run_dir, finished[0])


@uses_finished
def test_what_a_folder_says_of_its_run_is_not_guessed(finished, tmp_path):
    run_dir = tmp_path / "a"
    shutil.copytree(finished[0], run_dir)
    resume = ("--run-dir", "a", "--resume")
    assert_refused(
        run_here("train", "cifar100", *resume, cwd=tmp_path), "digits", "leave the recipe"
    )
    content = json.loads((run_dir / "config.json").read_text())
    for damage in ("{", json.dumps({**content, "config": {"model": 5}}), '{"config": {}}'):
        (run_dir / "config.json").write_text(damage)
        assert_refused(run_here("train", *resume, cwd=tmp_path), "config.json")
    content["config"]["a_field_of_the_future"] = 1
    (run_dir / "config.json").write_text(json.dumps(content))
    train(tmp_path, *SHORT, "--max-steps", "1", "--run-dir", "a", "--overwrite")


@pytest.mark.slow
def test_a_run_that_saved_nothing_yet_is_resumed_from_its_beginning(tmp_path):
    train(tmp_path, *SHORT, "--max-steps", "2", "--run-dir", "a")
    shutil.rmtree(tmp_path / "a" / "checkpoints")
    output = train(tmp_path, "--run-dir", "a", "--resume")
    assert "holds no checkpoint yet" in output
    assert "resumed" not in output
    assert [line["step"] for line in metrics(tmp_path / "a") if line["kind"] == "test"] == [2]


@uses_finished
def test_weights_are_tested_without_training(finished, tmp_path):
    run_dir, _ = finished
    error = json.loads((run_dir / "result.json").read_text())["error"]
    for weights in (("--resume", "--run-dir", run_dir), ("--model", MODEL, "--init-from", run_dir)):
        output = train(tmp_path, "digits", "--eval-only", *weights)
        assert f"test error {error:.2%} of 360 images" in output
    assert not list(tmp_path.iterdir())


@pytest.mark.torch
def test_weights_of_other_classes_or_another_size_are_not_tested(tmp_path):
    """As the error would be a wrong one, and nothing would say so."""
    model = torch_resnet.create("WideResNet16-1-0.0", 10, in_planes=1)
    here = load_dataset(RECIPES["digits"].config).preprocessing
    fields: Any = {"class_names": tuple("abcdefghij")}, {"image_size": 16}
    path = tmp_path / "w.safetensors"
    arguments = ("digits", "--model", "WideResNet16-1-0.0", "--init-from", path)
    for change, said in zip(fields, ("has the classes a, b", "of 16 pixels"), strict=True):
        convert.save(path, model, preprocessing=dataclasses.replace(here, **change))
        refused = run_here("train", *arguments, "--eval-only", cwd=tmp_path)
        assert_refused(refused, str(path), said)
    synsets = dataclasses.replace(here, class_names=tuple(f"n0144076{n}" for n in range(10)))
    convert.save(path, model, preprocessing=synsets)
    output = train(tmp_path, *arguments, "--eval-only")
    assert "taken to be the same, in the same order" in output
    assert "test error" in output


def test_the_configuration_is_printed_and_nothing_trained(tmp_path):
    output = train(tmp_path, "cifar10", "--epochs", "3", "--print-config")
    assert json.loads(output)["epochs"] == 3
    assert not list(tmp_path.iterdir())


def test_a_batch_of_one_image_that_shrinks_to_one_pixel_is_refused(tmp_path):
    arguments = ("--model", "ResNet18", "--global-batch-size", "1", "--run-dir", "a")
    assert_refused(run("train", *arguments, cwd=tmp_path), "single value")
    assert not (tmp_path / "a").exists()


def test_a_device_that_is_not_there_is_named(tmp_path):
    refused = run("train", "digits", "--run-dir", "a", cwd=tmp_path, JAX_PLATFORMS="nonsense")
    assert_refused(refused, "JAX finds no device of nonsense")


def test_an_error_of_the_device_is_a_sentence_with_a_way_out():
    said = "gave up: RESOURCE_EXHAUSTED: Out of memory; --acc"
    with pytest.raises(DeviceError, match=said), device_errors():
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory\nmore")


def test_help_names_recipes_and_fields(tmp_path):
    result = run("train", "--help", cwd=tmp_path)
    assert result.returncode == 0
    for part in ("cifar10-45k", "--global-batch-size", "resnet-train"):
        assert part in result.stdout
    assert find_spec("ResNet20")
