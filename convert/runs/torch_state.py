"""The whole state of a training run for stock torch: weights, optimizer, position; and back."""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from convert.arrays import as_arrays, is_floating, to_tensor, value_problems
from convert.description import as_state_dict, describe_state, parse_description
from convert.errors import ConversionError
from convert.leaves import as_flax, as_torch
from convert.models import check, torch_skeleton
from convert.runs import sgd
from convert.runs.disk_format import CONFIG, EMA, MODEL, OPTIMIZER
from convert.runs.saved_run import (
    Arrays,
    Checkpoint,
    check_values,
    find_checkpoint,
    new_run,
    read_checkpoint,
    write_checkpoint,
)
from convert.wrappers import TORCHS_PREFIXES, unwrap
from resnet_spec import ClassifierSpec, Preprocessing, ResNetSpec, __version__, configured_spec

_KEYS = (
    *("classifier", "preprocessing", "config", "total_steps", "step", "rng"),
    *("model", "ema", "optimizer", "scheduler"),
)
_SECONDS, _ORIGIN = "seconds", "origin"  # which states of older versions lack
# What `config.json` says of where a run comes from, beside its configuration.
_OF_ORIGIN = ("recipe", "asked", "test_name", "test_images", "starts")
_NOT_A_RUN = "this is not the state of a run as run_to_torch returns it:"
_PRECISIONS = ("bf16", "f32", "f64")
_CONFIG_FIELDS = (
    *("model", "seed", "global_batch_size", "precision", "momentum", "nesterov", "weight_decay"),
    *("ema_decay", "schedule", "learning_rate", "warmup_steps", "warmup_learning_rate"),
    *("drop_steps", "drop_factor"),
)


def run_to_torch(run: str | Path, step: int | None = None) -> dict[str, Any]:
    """A checkpoint of a training run, the newest or that of one `step`, for stock torch.

    All values are tensors and plain Python types, which `torch.load` reads back unchanged:

    - `classifier`: the JSON of the `ClassifierSpec` of the torch twin.
    - `preprocessing`: the JSON of the `Preprocessing` of its images, or None.
    - `config`, `total_steps`: the run's configuration and its length.
    - `step`: how many steps are done.
    - `seconds`: wall time of the training so far. A state without it counts from zero.
    - `origin`: the run's recipe, the size of its test set, and what computed its steps so far;
      from here on it says torch. A state without it is that of a run of no recipe.
    - `rng`: the seed and the position in the data, see `rng_at`. The images of a step and their
      augmentation are functions of seed and step; each framework draws dropout and stochastic depth
      by itself.
    - `model`, `ema`: state dicts of the twin; `ema` is None if the run keeps no average.
    - `optimizer`: a state dict of `torch.optim.SGD` with two groups: the parameters of more than
      one axis, which decay, and the rest, both in the order of `model.parameters()`.
    - `scheduler`: a state dict of a `LambdaLR` whose lambda is `schedule_of(state)`.

    Raises:
        ConversionError: there is no such checkpoint, it is damaged, it holds only weights, or
            torch's SGD does not do the steps of this run; all such fields are named.
    """
    run = Path(run)
    folder = find_checkpoint(run, step)
    content = _read_config(run)
    config = content["config"]
    sgd.check_stock(config)
    weights = (MODEL,) if config["ema_decay"] is None else (MODEL, EMA)
    checkpoint = read_checkpoint(folder, (*weights, OPTIMIZER))
    classifier, step = checkpoint.classifier, checkpoint.step
    arrays = {item: as_torch(checkpoint.items[item]) for item in weights}
    twin = torch_skeleton(classifier)
    try:
        for item in weights:
            check_values("a run that has diverged cannot go on:", arrays[item])
        for item in weights:
            check(classifier, arrays[item])
        parameters = {name: arrays[MODEL][name] for name in sgd.parameter_names(twin)}
        buffers = sgd.buffers_of_item(checkpoint.items[OPTIMIZER], parameters, config, step)
    except ConversionError as error:
        raise ConversionError(f"{folder}: {error}") from error
    optimizer, scheduler = sgd.make_stock(twin, config, _make_schedule(content), step)
    for name, parameter in twin.named_parameters():
        if name in buffers:
            optimizer.state[parameter]["momentum_buffer"] = to_tensor(buffers[name])
    states = {
        item: as_state_dict({name: found[name] for name in twin.state_dict()}, classifier)
        for item, found in arrays.items()
    }
    return {
        "classifier": classifier.to_json(),
        "preprocessing": checkpoint.preprocessing and checkpoint.preprocessing.to_json(),
        "config": config,
        "total_steps": content["total_steps"],
        "step": step,
        _SECONDS: checkpoint.seconds,
        _ORIGIN: _origin(content, step),
        "rng": rng_at(config, content["train_images"], step),
        "model": states[MODEL],
        "ema": states.get(EMA),
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
    }


def run_from_torch(state: Mapping[str, Any], run: str | Path) -> None:
    """Writes what `run_to_torch` returned, perhaps trained further, as the folder of a new run.

    `resnet-train --resume --run-dir RUN` continues it. The folder appears whole or not at all.

    Raises:
        ConversionError: the folder is not empty, or entries are missing, left over or do not fit
            the run's configuration; all of them are listed.
    """
    run = Path(run)
    problems = [f"missing: {key}" for key in _KEYS if key not in state]
    problems += [f"left over: {key}" for key in state if key not in (*_KEYS, _SECONDS, _ORIGIN)]
    if isinstance(fields := state.get("config"), Mapping):
        problems += [f"missing: config: {name}" for name in _CONFIG_FIELDS if name not in fields]
    if problems:
        raise ConversionError(_NOT_A_RUN, problems)
    try:
        checkpoint = _read_state(state)
    except ConversionError:
        raise
    except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
        raise ConversionError(_NOT_A_RUN, [repr(error)]) from error
    content = {
        **_content_of(state),
        **{name: value for name, value in state.get(_ORIGIN, {}).items() if name in _OF_ORIGIN},
        "config": {**state["config"], "run_dir": str(run)},
        "versions": {"flax-resnet": __version__},
        "devices": "torch",
    }
    text = json.dumps(content, indent=2) + "\n"
    with new_run(run) as folder:
        (folder / CONFIG).write_text(text)
        write_checkpoint(folder, checkpoint)


def _origin(content: Mapping[str, Any], step: int) -> dict[str, Any]:
    """Entries of `config.json` that go with a run, and a start in torch from this step on."""
    starts = content["starts"] if isinstance(content.get("starts"), list) else []
    starts = [*starts, {"devices": "torch", "step": step}]
    return {n: content[n] for n in _OF_ORIGIN if n in content} | {"starts": starts}


def schedule_of(state: Mapping[str, Any]) -> Callable[[int], float]:
    """The run's learning rate by step: the lambda of a `LambdaLR`, with 1 as its base rate."""
    return _make_schedule(_content_of(state))


def _content_of(state: Mapping[str, Any]) -> dict[str, Any]:
    """What `config.json` and the state of a run in torch have in common."""
    content = {name: state[name] for name in ("config", "total_steps")}
    return {**content, "train_images": state["rng"]["train_images"]}


def _make_schedule(content: Mapping[str, Any]) -> Callable[[int], float]:
    return sgd.make_schedule(content["config"], content["train_images"], content["total_steps"])


def rng_at(config: Mapping[str, Any], train_images: int, step: int) -> dict[str, int]:
    """The position of a run's random streams after so many steps.

    `epoch` and `index` are those of the next image. Epochs, each in its own order, follow without
    a gap; a batch may contain the end of one and the start of the next.
    """
    epoch, index = divmod(step * config["global_batch_size"], train_images)
    return {
        "seed": config["seed"],
        "step": step,
        "train_images": train_images,
        "epoch": epoch,
        "index": index,
    }


def _read_config(run: Path) -> dict[str, Any]:
    path = run / CONFIG
    if not path.is_file():
        raise ConversionError(
            f"{run} has no {CONFIG}: it is not a whole run, but its weights may be exported"
        )
    try:
        content = json.loads(path.read_text())
        missing = [key for key in ("config", "train_images", "total_steps") if key not in content]
        missing += [name for name in _CONFIG_FIELDS if name not in content.get("config", ())]
    except (ValueError, TypeError, AttributeError) as error:
        raise ConversionError(f"{path} is not a run's configuration: {error}") from error
    if missing:
        raise ConversionError(
            f"{path} is not a whole configuration:", [f"missing: {name}" for name in missing]
        )
    if problems := _config_problems(content):
        raise ConversionError(f"{path} is not a run's configuration:", problems)
    return content


def _config_problems(content: Mapping[str, Any]) -> list[str]:
    """The problems of a run's configuration, its number of images and its length."""
    config, total_steps = content["config"], content["total_steps"]
    counts = {**content, "global_batch_size": config["global_batch_size"]}
    problems = [
        f"{name} must be a positive integer, not {counts[name]!r}"
        for name in ("train_images", "total_steps", "global_batch_size")
        if type(counts[name]) is not int or counts[name] < 1
    ]
    try:
        json.dumps(config)
        schedule = _make_schedule(content)
        _ = [float(schedule(step)) for step in (0, config["warmup_steps"], total_steps)]
    except (TypeError, ValueError, KeyError, ArithmeticError) as error:
        problems.append(f"its fields are not the numbers and text of a schedule: {error}")
    return problems


def _read_state(state: Mapping[str, Any]) -> Checkpoint:
    """The checkpoint of a run's state in torch; a ConversionError lists all problems."""
    config, step = state["config"], state["step"]
    if problems := _config_problems(_content_of(state)):
        raise ConversionError(_NOT_A_RUN, problems)
    sgd.check_stock(config)
    classifier = parse_description(state["classifier"], len(state["model"]))
    weights = {
        key: unwrap(as_arrays(state[key]), TORCHS_PREFIXES)[0]
        for key in (MODEL, EMA)
        if state[key] is not None
    }
    twin = torch_skeleton(classifier)
    stock = sgd.make_stock(twin, config, schedule_of(state), step)
    dtype = np.dtype("float64" if config["precision"] == "f64" else "float32")
    shapes = {name: tuple(parameter.shape) for name, parameter in twin.named_parameters()}
    zeros = {name: np.zeros(shapes[name], dtype) for name in sgd.parameter_names(twin)}
    buffers, problems = sgd.buffers_of_state(state["optimizer"], zeros, config, step)
    problems += _check_network(config, classifier.network)
    problems += _check_position(state)
    if not 0 <= (seconds := float(state.get(_SECONDS, 0))) < math.inf:
        problems.append(f"{_SECONDS}: no time is {seconds}")
    json.dumps(dict(state.get(_ORIGIN, {})))  # a TypeError if it is not what was given
    problems += sgd.compare_stock(state["optimizer"], state["scheduler"], stock)
    for key, arrays in weights.items():
        found = _check_weights(classifier, describe_state(state[key]), arrays, dtype)
        problems += [f"{key}: {problem}" for problem in found]
    if problems:
        raise ConversionError(_NOT_A_RUN, problems)
    items = {key: as_flax(weights[key]) for key in weights}
    items[OPTIMIZER] = sgd.item_of_buffers(buffers, step)
    fields = state["preprocessing"]
    preprocessing = None if fields is None else Preprocessing.from_json(fields)
    return Checkpoint(step, classifier, items, preprocessing, seconds)


def _check_network(config: Mapping[str, Any], spec: ResNetSpec) -> list[str]:
    """Differences of the configuration, which the trainer goes by, from the state's network."""
    problems = []
    if config["precision"] not in _PRECISIONS:
        known = ", ".join(_PRECISIONS)
        problems.append(f"config: precision is one of {known}, not {config['precision']!r}")
    try:
        asked = configured_spec(config, spec.in_planes)
    except ValueError as error:
        return [*problems, f"config: {error}"]
    differences = [*spec.differences(asked), *spec.training_differences(asked)]
    return [*problems, *(f"config: is of another network: {d}" for d in differences)]


def _check_position(state: Mapping[str, Any]) -> list[str]:
    config, rng, problems = state["config"], state["rng"], []
    expected = rng_at(config, rng["train_images"], state["step"])
    if rng != expected:
        problems.append(f"rng: should be {expected}, is {rng}")
    decay, has_average = config["ema_decay"], state["ema"] is not None
    if has_average != (decay is not None):
        problems.append(f"ema: is {'there' if has_average else 'missing'}, ema_decay is {decay}")
    return problems


def _check_weights(
    classifier: ClassifierSpec, described: ClassifierSpec | None, arrays: Arrays, dtype: np.dtype
) -> list[str]:
    """Problems of a state dict; if a twin wrote it, it describes its network."""
    problems = []
    if described is not None:
        differences = classifier.network.differences(described.network)
        problems = [f"is of another network: {difference}" for difference in differences]
    try:
        check(classifier, arrays)
    except ConversionError as error:
        problems += error.problems
    for name, array in arrays.items():
        problems += value_problems(name, array)
        if is_floating(array.dtype) and array.dtype != dtype:
            problems.append(f"dtype: {name} should be {dtype}, is {array.dtype}")
    return problems
