"""Whole runs moved between the Flax trainer and stock torch, half-way and back."""

import copy
import dataclasses
import json
import re
import shutil
from collections.abc import Iterator
from typing import Any, Literal, get_args

import jax
import numpy as np
import pytest
import torch

import convert
from convert.leaves import as_flax
from convert.runs import rng_at, schedule_of
from convert.runs.saved_run import Checkpoint, read_run, write_checkpoint, write_run
from convert.runs.sgd import check_stock, make_schedule
from examples.continue_in_torch import Batches, train_in_torch
from resnet_spec import ClassifierSpec, ResNetSpec
from tests.commands import assert_refused, run
from tests.test_data import link_a_part, needs_cifar10
from tests.twins import assert_same_state, relative_error
from tests.whole_runs import CONFIG, Run
from train.config import Config
from train.config.fields import Precision
from train.config.recipes import RECIPES
from train.errors import UserError
from train.results.collect import find_runs
from train.run.checkpoints import Checkpoints
from train.run.run_folder import begin_folder
from train.run.saved_state import named_state
from train.step import optimizer

TOLERANCE = 1e-9

pytestmark = pytest.mark.xdist_group("runs")  # one worker trains for all


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Images of 8x8 pixels are too small to share between threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(
    scope="module",
    params=[True, pytest.param(False, marks=pytest.mark.slow)],
    ids=["nesterov", "momentum"],
)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    config = dataclasses.replace(CONFIG, nesterov=request.param)
    return Run(tmp_path_factory.mktemp("runs") / "jax", config)


def momenta(state: dict[str, Any]) -> dict[str, Any]:
    return {str(i): e["momentum_buffer"] for i, e in state["optimizer"]["state"].items()}


def assert_same_run(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Everything equal, tensors to the tolerance, relative to the largest of each."""
    largest = 0.0
    for part in ("model", "ema", "momentum"):
        parts = [momenta(s) if part == "momentum" else s[part] for s in (one, other)]
        assert parts[0].keys() == parts[1].keys()
        for name, tensor in parts[0].items():
            error = relative_error(tensor, parts[1][name])
            assert error < TOLERANCE, (part, name, error)
            largest = max(largest, error)
    print(f"largest relative difference {largest:.1e}")
    for key in ("step", "rng", "classifier", "total_steps"):
        assert one[key] == other[key]
    groups, others = (state["optimizer"]["param_groups"] for state in (one, other))
    for group, expected in zip(groups, others, strict=True):
        assert group == {**expected, "lr": pytest.approx(expected["lr"], rel=TOLERANCE)}
    assert one["scheduler"]["last_epoch"] == other["scheduler"]["last_epoch"] == one["step"]


def test_ten_steps_in_jax_and_ten_in_torch_are_twenty_in_jax(made):
    assert_same_run(train_in_torch(made.states[10], 10, made.batches), made.states[20])


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method`:DeprecationWarning")  # torch's own
@pytest.mark.parametrize("made", [True], ids=["nesterov"], indirect=True)
def test_ten_compiled_steps_are_ten_steps(made):
    compiled = train_in_torch(made.states[10], 10, made.batches, compiled=True)
    assert_same_run(compiled, made.states[20])


def test_ten_steps_in_torch_and_ten_in_jax_are_twenty_in_either(made, tmp_path):
    half = train_in_torch(made.states[0], 10, made.batches)
    assert_same_run(half, made.states[10])
    convert.run_from_torch(half, tmp_path / "b")
    in_torch = train_in_torch(half, 10, made.batches)
    assert_same_run(in_torch, made.states[20])
    assert_same_run(made.resume(tmp_path / "b"), in_torch)


def test_a_training_in_torch_that_is_ended_early_can_go_on(made):
    losses = list[float]()

    def goes_on(step: int, values: dict[str, float], *_: Any) -> bool:
        losses.append(values["loss"])
        return len(losses) < 4

    early = train_in_torch(made.states[0], 10, made.batches, goes_on)
    assert early["step"] == len(losses) == 4
    assert_same_run(train_in_torch(early, 6, made.batches), made.states[10])


@pytest.mark.slow
@needs_cifar10
@pytest.mark.parametrize("model", ["ResNet20", "PreActResNet20"])
def test_networks_of_the_published_table_train_alike_on_augmented_images_of_cifar(model, tmp_path):
    """Crops, flips, normalisation and decay of its recipe; only shorter, and in small batches."""
    short = {"max_steps": 20, "warmup_steps": 4, "drop_steps": (7, 14), "global_batch_size": 32}
    config = dataclasses.replace(RECIPES["cifar10-45k"].config, model=model, **short)
    link_a_part("cifar10", tmp_path / "data")
    config = dataclasses.replace(config, precision="f64", ema_decay=0.8, data_dir=tmp_path / "data")
    assert config.flip
    made = Run(tmp_path / "run", config)
    assert_same_run(train_in_torch(made.states[10], 10, made.batches), made.states[20])
    rate = schedule_of(made.states[10])
    assert rate(8) == pytest.approx(0.1 * rate(6))


def test_the_steps_changed_all_that_is_compared(made):
    """Else equality would prove nothing."""
    ten, twenty = made.states[10], made.states[20]
    for part in (lambda s: s["model"], lambda s: s["ema"], momenta):
        for name, tensor in part(ten).items():
            assert not torch.equal(tensor, part(twenty)[name]), name
            assert tensor.dtype in (torch.float64, torch.int64)
            assert float(tensor.double().abs().max()) > 0
    rates = [schedule_of(ten)(step) for step in range(20)]
    assert rates == pytest.approx([0.01] * 4 + [0.1] * 3 + [0.01] * 7 + [0.001] * 6)
    assert ten["rng"] == {"seed": 111, "step": 10, "train_images": 380, "epoch": 1, "index": 20}
    assert twenty["rng"]["epoch"] == 2


def test_a_run_goes_to_torch_into_a_file_and_back_bit_for_bit(made, tmp_path):
    torch.save(made.states[10], tmp_path / "run.pt")
    state = torch.load(tmp_path / "run.pt", weights_only=True)
    state["seconds"] = 90.5
    convert.run_from_torch(state, tmp_path / "b")
    back = convert.run_to_torch(tmp_path / "b")
    assert back["seconds"] == 90.5
    assert back["origin"]["starts"][-1] == {"devices": "torch", "step": 10}
    for damaged in ("text", {"recipe": {1, 2}}):
        with pytest.raises(convert.ConversionError, match="not the state of a run"):
            convert.run_from_torch({**state, "origin": damaged}, tmp_path / "damaged")
    del state["origin"]
    del state["seconds"]  # as in a file of an older version
    convert.run_from_torch(state, tmp_path / "older")
    assert convert.run_to_torch(tmp_path / "older")["seconds"] == 0
    for part in (lambda s: s["model"], lambda s: s["ema"], momenta):
        assert_same_state(part(back), part(made.states[10]))
    config = {**back["config"], "run_dir": None}
    assert json.dumps(config) == json.dumps({**made.states[10]["config"], "run_dir": None})
    assert_same_run(back, made.states[10])


def test_the_exported_weights_are_the_average_unless_raw_ones_are_asked_for(made):
    kinds: tuple[tuple[Literal["raw", "ema"] | None, str], ...]
    kinds = ((None, "ema"), ("ema", "ema"), ("raw", "model"))
    for kind, key in kinds:
        arrays = read_run(made.folder, 10, kind).arrays
        assert_same_state(arrays, made.states[10][key])


def test_every_problem_of_a_state_is_named_and_nothing_written(made, tmp_path):
    state = copy.deepcopy(made.states[10])
    state["model"]["stem.conv.weight"] = state["model"]["stem.conv.weight"].float()
    del state["ema"]["head.bias"]
    state["seconds"] = float("nan")
    state["optimizer"]["state"][1]["momentum_buffer"] = torch.zeros(3, dtype=torch.float64)
    del state["optimizer"]["state"][2]
    state["optimizer"]["param_groups"][1]["weight_decay"] = 0.01
    state["optimizer"]["param_groups"][0]["lr"] = 7.0
    state["scheduler"]["last_epoch"] = 9
    state["rng"]["seed"] = 5
    with pytest.raises(convert.ConversionError) as caught:
        convert.run_from_torch(state, tmp_path / "b")
    message = str(caught.value)
    for part in (
        "stem.conv.weight should be float64",
        "ema: missing: head.bias",
        "momentum: shape: stages.0.0.conv1.weight",
        "momentum: missing: stages.0.0.conv2.weight",
        "group 1: weight_decay should be 0.0, is 0.01",
        "group 0: lr should be 0.01",
        "last_epoch should be 10, is 9",
        "'seed': 111",
        "seconds: no time is nan",
    ):
        assert part in message, message
    del state["scheduler"]
    with pytest.raises(convert.ConversionError, match="missing: scheduler"):
        convert.run_from_torch(state, tmp_path / "b")
    state["scheduler"] = {"epoch": 1}
    with pytest.raises(convert.ConversionError, match="last_epoch"):
        convert.run_from_torch(state, tmp_path / "b")
    with pytest.raises(convert.ConversionError, match="not empty"):
        convert.run_from_torch(made.states[10], made.folder)
    assert not list(tmp_path.iterdir())


def test_a_damaged_configuration_is_refused(made, tmp_path):
    shutil.copytree(made.folder, tmp_path / "b")
    path = tmp_path / "b" / "config.json"
    content = json.loads(path.read_text())
    del content["total_steps"], content["config"]["momentum"]
    for text in ("{", "[]", json.dumps(content)):
        path.write_text(text)
        with pytest.raises(convert.ConversionError, match=r"config\.json") as caught:
            convert.run_to_torch(tmp_path / "b")
    assert caught.value.problems == ["missing: total_steps", "missing: momentum"]


def test_a_state_of_another_model_is_refused(made, tmp_path):
    state = copy.deepcopy(made.states[10])
    state["classifier"]["network"]["stage_depths"] = [2, 2, 3]
    with pytest.raises(convert.ConversionError, match=r"missing: stages\.2\.2\.conv1\.weight"):
        convert.run_from_torch(state, tmp_path / "b")
    classifier = ClassifierSpec(made.trainer.classifier.network, 9)
    smaller = Checkpoints(made.folder, classifier, made.dataset.preprocessing)
    with smaller as checkpoints, pytest.raises(UserError, match="another model"):
        checkpoints.restore(made.template)


@pytest.mark.parametrize(
    ("field", "value", "part"),
    [
        ("model", "ResNet32", "stage_depths"),
        ("model", "ResNet21", "no model called 'ResNet21'"),
        ("padding", "same", "padding: 'same', not 'even'"),
        ("shortcut", "identity", "shortcut: 'identity', not 'projection'"),
        ("bottleneck_stride", "1x1", "a basic block has no 1x1"),
        ("running_variance", "biased", "running_variance: 'biased', not 'unbiased'"),
        ("stochastic_depth", 0.5, "stochastic_depth: 0.5, not 0.0"),
        ("precision", "f16", "precision is one of bf16, f32, f64, not 'f16'"),
    ],
)
def test_a_configuration_of_another_network_than_the_states_is_refused(
    made, tmp_path, field, value, part
):
    """The trainer would go on by the configuration."""
    assert get_args(Precision) == ("bf16", "f32", "f64")  # as the message says
    state = copy.deepcopy(made.states[10])
    assert state["config"][field] != value
    state["config"][field] = value
    with pytest.raises(convert.ConversionError) as caught:
        convert.run_from_torch(state, tmp_path / "b")
    assert any("config: " in problem and part in problem for problem in caught.value.problems)
    assert not (tmp_path / "b").exists()


def test_a_damaged_optimizer_is_passed_over_and_one_of_an_older_version_refused(made, tmp_path):
    damaged = tmp_path / "damaged"
    shutil.copytree(made.folder, damaged)
    for file in (damaged / "checkpoints" / "20" / "optimizer").rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(convert.ConversionError, match="20 is not a whole checkpoint"):
        convert.run_to_torch(damaged)
    with Checkpoints(damaged, made.trainer.classifier, made.dataset.preprocessing) as checkpoints:
        assert int(checkpoints.restore(made.template).step) == 10
    assert convert.run_to_torch(damaged)["step"] == 10

    numbered = tmp_path / "numbered"
    shutil.copytree(made.folder, numbered, ignore=shutil.ignore_patterns("checkpoints"))
    weights = as_flax(read_run(made.folder, 20, "raw").arrays)
    items = {"model": weights, "ema": weights, "optimizer": {"000000": np.zeros(3)}}
    write_checkpoint(numbered, Checkpoint(20, made.trainer.classifier, items))
    with pytest.raises(convert.ConversionError, match="000000"):
        convert.run_to_torch(numbered)
    with (
        Checkpoints(numbered, made.trainer.classifier, made.dataset.preprocessing) as checkpoints,
        pytest.raises(UserError, match=r"optimizer: \d+ missing \(momentum\.\S+, .* more"),
    ):
        checkpoints.restore(made.template)


def test_imported_weights_are_no_run_and_start_their_average_in_themselves(made, tmp_path):
    weights = read_run(made.folder, 20, "raw")
    write_run(tmp_path / "imported", weights)
    with pytest.raises(convert.ConversionError, match=r"no config\.json"):
        convert.run_to_torch(tmp_path / "imported")
    with pytest.raises(convert.ConversionError, match="no moving average"):
        read_run(tmp_path / "imported", weights="ema")
    with Checkpoints(
        tmp_path / "imported", made.trainer.classifier, made.dataset.preprocessing
    ) as checkpoints:
        state = checkpoints.restore(made.template)
    assert_same_state(state.ema, {**state.params, **state.statistics})
    assert_same_state(as_flax(weights.arrays), state.ema)


def test_without_momentum_or_average_there_are_none_in_torch(made, tmp_path):
    state = copy.deepcopy(made.states[10])
    state["config"] = {**state["config"], "momentum": 0.0, "ema_decay": None}
    for group in state["optimizer"]["param_groups"]:
        group.update(momentum=0.0, nesterov=False)
    state["optimizer"]["state"], state["ema"] = {}, None
    convert.run_from_torch(state, tmp_path / "b")
    back = convert.run_to_torch(tmp_path / "b")
    assert (back["optimizer"]["state"], back["ema"]) == ({}, None)
    assert not back["optimizer"]["param_groups"][0]["nesterov"]
    after = train_in_torch(back, 1, made.batches)
    convert.run_from_torch(after, tmp_path / "c")
    config = Config.from_json(state["config"])
    no_momentum = optimizer.make_optimizer(config, optimizer.make_schedule(config, 20)).init(
        made.template.params
    )
    assert set(named_state(no_momentum)) == {"schedule_step"}


SCHEDULES: list[dict[str, Any]] = [
    {"warmup_steps": 30, "drop_steps": (10, 50, 90)},
    {"warmup_steps": 200},
    {"warmup": "linear", "warmup_steps": 30},
    {"warmup_epochs": 0.5, "warmup": "linear", "drop_epochs": (0.9, 1.7), "drop_factor": 0.2},
    {"learning_rate_batch_size": 256, "warmup_epochs": 1.0},
    {"warmup_steps": 30, "warmup_learning_rate": 0.3, "learning_rate": 0.005},  # never above peak
    {"learning_rate_batch_size": 8192, "warmup_epochs": 1.0, "warmup": "linear"},
]


@pytest.mark.parametrize("name", ["digits", "cifar10"])
def test_the_plain_schedule_is_the_trainers(name):
    for changes in ({}, *SCHEDULES):
        config = dataclasses.replace(RECIPES[name].config, **changes)
        steps = np.arange(120) if changes else np.arange(0, 62_600, 50)
        total_steps, train_images = int(steps[-1]), 55 * config.global_batch_size
        resolved = config.resolved(train_images)
        expected = jax.vmap(optimizer.make_schedule(resolved, total_steps))(steps)
        plain = make_schedule(config.to_json(), train_images, total_steps)
        np.testing.assert_allclose([plain(int(s)) for s in steps], expected, rtol=1e-12, atol=1e-15)


def test_the_schedule_of_a_run_of_an_older_version_is_what_it_was():
    names = ("epochs", "batch_size", "warmup")
    config = RECIPES["cifar10"].config.to_json()
    new = [name for name in config if name.endswith(names) and name != "global_batch_size"]
    assert {"warmup", "drop_epochs", "learning_rate_batch_size"} <= set(new)
    old = {name: value for name, value in config.items() if name not in new}
    one, other = (make_schedule(c, 50_000, 62_500) for c in (config, old))
    assert [one(step) for step in (0, 399, 400, 32_000)] == [0.01, 0.01, 0.1, 0.1 * 0.1]
    assert all(one(step) == other(step) for step in range(0, 62_500, 100))


BEYOND_SGD: dict[str, Any] = {
    "optimizer": "lars",
    "clip_norm": 1.0,
    "accumulate_steps": 2,
    "frozen_stages": 1,
    "skip_nonfinite": 3,
}


def test_a_run_whose_steps_torchs_sgd_does_not_make_is_refused_with_all_reasons(tmp_path):
    config = dataclasses.replace(CONFIG, **BEYOND_SGD)
    begin_folder(tmp_path, config, train_images=380, total_steps=20)
    tiny = ClassifierSpec(ResNetSpec("basic", (1,), (4,), stem_planes=4))
    write_checkpoint(tmp_path, Checkpoint(20, tiny, {"model": {"x": np.ones(1)}}))
    with pytest.raises(convert.ConversionError, match="SGD does not make") as caught:
        convert.run_to_torch(tmp_path)
    assert [problem.partition(" ")[0] for problem in caught.value.problems] == list(BEYOND_SGD)
    of_data = dataclasses.replace(CONFIG, mixup=0.2, label_smoothing=0.1, stochastic_depth=0.1)
    check_stock(of_data.to_json())  # fields of the batches and the loss are not the optimizer's


def test_batches_that_the_script_does_not_make_are_refused_with_all_reasons():
    config = dataclasses.replace(
        RECIPES["imagenet"].config, mixup=0.2, cutmix=1.0, rand_augment=2, label_smoothing=0.1
    )
    with pytest.raises(convert.ConversionError) as caught:
        Batches(config)
    named = [problem.partition(" ")[0] for problem in caught.value.problems]
    assert named == ["mixup", "cutmix", "rand_augment", "batch_norm_images", "data"]


def test_the_position_in_the_data_counts_images():
    config = {"global_batch_size": 32, "seed": 4}
    assert rng_at(config, 100, 25)["epoch"] == 8
    assert rng_at(config, 100, 26)["index"] == 32


@pytest.mark.slow
def test_the_script_takes_a_run_over_and_the_trainer_takes_it_back(tmp_path):
    fields = ("--model", "WideResNet16-1-0.0", "--ema-decay", "0.9", "--global-batch-size", "479")
    length = ("--epochs", "3", "--log-every-steps", "1")
    result = run("train", "digits", *fields, *length, "--run-dir", "a", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    script = ("examples.continue_in_torch", "a", "--step", "6", "-o", "b")
    assert_refused(run(*script, "--steps", "4", cwd=tmp_path), "ends at step 9", "not 4")
    full = ("examples.continue_in_torch", "a", "--step", "6", "-o", "a")
    assert_refused(run(*full, "--steps", "2", cwd=tmp_path), "a is not empty: give a new folder")
    result = run(*script, "--steps", "2", cwd=tmp_path)
    assert "step 8" in result.stdout, result.stderr
    ((begun,), _) = find_runs([tmp_path / "b"])
    assert (begun.recipe, begun.protocol) == ("digits", "full")  # a table finds it unfinished
    assert re.fullmatch(r"\d+ cpu devices?, then torch", begun.devices)
    ((in_jax,), _) = find_runs([tmp_path / "a"])
    expected = [line for line in in_jax.metrics if line["step"] <= 8]
    assert [(m["step"], m["kind"]) for m in begun.metrics] == [
        (m["step"], m["kind"]) for m in expected
    ]
    for line, other in zip(begun.metrics, expected, strict=True):
        for name in other.keys() - {"kind", "images_per_second"}:
            assert line[name] == pytest.approx(other[name], rel=1e-4), (line["step"], name)
    half = convert.run_to_torch(tmp_path / "b")
    result = run("train", "--resume", "--run-dir", "b", cwd=tmp_path)
    assert "resumed at 8" in result.stdout, result.stderr
    ((resumed,), _) = find_runs([tmp_path / "b"])
    assert (resumed.recipe, resumed.devices) == (begun.recipe, begun.devices)
    assert [m["step"] for m in resumed.metrics if m["kind"] == "test"] == [3, 6, 9]
    assert resumed.outcome is not None
    assert resumed.outcome.seconds > half["seconds"] > 0
    state = convert.run_to_torch(tmp_path / "b")
    assert state["step"] == int(state["model"]["stem.bn.num_batches_tracked"]) == 9
    assert state["model"]["head.bias"].dtype == torch.float32
    assert not torch.equal(state["ema"]["head.bias"], half["ema"]["head.bias"])


def test_the_state_dicts_of_a_run_say_which_network_they_are_of(made, tmp_path):
    import torch_resnet

    state = copy.deepcopy(made.states[10])
    spec = ResNetSpec.from_json({**state["classifier"]["network"], "padding": "same"})
    other = torch_resnet.from_spec(spec)
    other.set_head(torch.nn.Linear(other.out_planes, 10))
    for key in ("model", "ema"):
        with pytest.raises(RuntimeError, match="padding"):
            other.load_state_dict(state[key])
    state["classifier"]["network"]["padding"] = "same"
    with pytest.raises(convert.ConversionError, match="model: is of another network: padding"):
        convert.run_from_torch(state, tmp_path / "run")


def test_what_torchs_wrappers_put_before_the_names_of_a_state_is_taken_off(made, tmp_path):
    state = copy.deepcopy(made.states[10])
    for key in ("model", "ema"):
        state[key] = {f"module.{name}": tensor for name, tensor in state[key].items()}
    convert.run_from_torch(state, tmp_path / "b")
    again = convert.run_to_torch(tmp_path / "b")
    assert_same_state(again["model"], made.states[10]["model"])
    state["model"]["module.head.bias"] = state["model"]["module.head.bias"].to_sparse()
    with pytest.raises(convert.ConversionError, match=r"head\.bias is not an array of numbers"):
        convert.run_from_torch(state, tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_momentum_that_is_not_finite_is_no_runs(made, tmp_path):
    state = copy.deepcopy(made.states[10])
    state["optimizer"]["state"][0]["momentum_buffer"].fill_(float("nan"))
    with pytest.raises(convert.ConversionError, match="momentum: non-finite"):
        convert.run_from_torch(state, tmp_path / "run")
    assert not (tmp_path / "run").exists()
