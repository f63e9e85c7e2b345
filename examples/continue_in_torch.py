"""Goes on with a JAX run in torch: its torch twin, stock SGD and LambdaLR, the same batches.

    python examples/continue_in_torch.py runs/a --step 12 --steps 5 -o runs/b
    resnet-train --resume --run-dir runs/b     # and back again, should you wish

What torch trains here is what JAX would have trained: in float64 the two agree to rounding. Only
dropout and stochastic depth differ, whose masks each framework draws by itself. bf16 runs go on in
float32. Runs with batches that this script does not make (mixup, streamed images) are refused.
Ctrl-C and SIGTERM end it after the step in progress, and what is trained so far is written.
"""

import argparse
import copy
import math
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch.nn.functional import cross_entropy

import convert
import torch_resnet
from convert import ConversionError
from convert.runs import rng_at, schedule_of
from resnet_spec import ClassifierSpec
from train.config import Config
from train.data.dataset import Dataset, batch_indices, normalise
from train.data.load import load_dataset
from train.errors import UserError
from train.run.metrics import FILE, MetricsLog, read_metrics
from train.step.augment import Augment, draw_keys

TEST_BATCH = 500
IN_MEMORY = ("digits", "cifar10", "cifar100")


class Batches:
    """The images of each step as the trainer makes them, in torch's layout."""

    def __init__(self, config: Config):
        check_batches(config)
        self.config, self.dataset = config, load_dataset(config)
        self.augment = jax.jit(Augment(config, self.dataset))

    def __getitem__(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Images (n, c, h, w) and labels (n,) of one step."""
        seed, size, train = self.config.seed, self.config.global_batch_size, self.dataset.train
        indices = batch_indices(seed, step, size, len(train))
        keys = draw_keys(seed, step, jnp.arange(size))[0]
        images = np.array(self.augment(train.images[indices], keys))  # (n, h, w, c)
        labels = train.labels[indices].astype(np.int64)
        return torch.from_numpy(images.transpose(0, 3, 1, 2)), torch.from_numpy(labels)


def check_batches(config: Config) -> None:
    """Raises a ConversionError that names everything that these batches would lack."""
    problems = [
        f"{name} is {value}"
        for name in ("mixup", "cutmix", "rand_augment")
        if (value := getattr(config, name))
    ]
    if config.batch_norm_images not in ("batch", config.global_batch_size):
        problems.append(f"batch_norm_images is {config.batch_norm_images}, for as many GPUs")
    if config.data not in IN_MEMORY:
        problems.append(f"data is {config.data}, which is streamed")
    if problems:
        raise ConversionError("this script does not make the batches of this run:", problems)


class Report:
    """What the trainer logs of a run: a line of training each `log_every_steps`, a test each epoch.

    Prints a line a minute. A signal ends the training after the step in progress.
    """

    def __init__(self, run: Path, state: dict[str, Any], steps: int, batches: Batches):
        self.config, self.first, self.last = batches.config, state["step"], state["step"] + steps
        self.dataset, self.train_images = batches.dataset, len(batches.dataset.train)
        self.lines = [line for line in read_metrics(run / FILE) if line["step"] <= self.first]
        self.started = self.printed = time.monotonic()
        self.is_stopped = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self.stop)

    def stop(self, *_: Any) -> None:
        self.is_stopped = True

    def __call__(
        self, step: int, values: dict[str, float], model: torch.nn.Module, ema: Any
    ) -> bool:
        """Takes note of a step that is done; False to end the training."""
        seconds = time.monotonic() - self.started  # the tests count, too
        speed = (step - self.first) / seconds  # steps a second
        size = self.config.global_batch_size
        rate = {"images_per_second": speed * size}
        if step % self.config.log_every_steps == 0:
            self.lines.append({"step": step, "kind": "train", **values, **rate})
        if step * size // self.train_images > (step - 1) * size // self.train_images:
            tested = measure(model, model.state_dict(), self.dataset)
            if ema is not None:
                averaged = measure(model, ema, self.dataset)
                tested |= {f"ema_{name}": value for name, value in averaged.items()}
            self.lines.append({"step": step, "kind": "test", **tested})
            print(f"step {step}: test error {tested['error']:.2%}", flush=True)
        if time.monotonic() - self.printed >= 60:
            left = (self.last - step) / speed / 60
            print(
                f"step {step} of {self.last}, loss {values['loss']:.3f}, "
                f"{speed * size:.0f} images/s, {left:.0f} min left",
                flush=True,
            )
            self.printed = time.monotonic()
        return not self.is_stopped

    def write(self, run: Path) -> None:
        """Writes the lines into the folder of a run."""
        with MetricsLog(run, start_step=0) as log:
            for line in self.lines:
                values = {k: v for k, v in line.items() if k not in ("step", "kind")}
                values = {k: math.nan if v is None else v for k, v in values.items()}
                log.write(line["step"], line["kind"], values)


@torch.no_grad()
def measure(model: torch.nn.Module, weights: Any, dataset: Dataset) -> dict[str, float]:
    """Loss and error of a network with these weights on the test images."""
    model.eval()
    total = errors = 0.0
    for start in range(0, len(dataset.test), TEST_BATCH):
        part = slice(start, start + TEST_BATCH)
        images = normalise(dataset.test.images[part], dataset)
        labels = torch.from_numpy(dataset.test.labels[part].astype(np.int64))
        inputs = torch.from_numpy(images.transpose(0, 3, 1, 2)).to(weights["head.weight"].dtype)
        logits = torch.func.functional_call(model, dict(weights), inputs)
        total += float(cross_entropy(logits, labels, reduction="sum"))
        errors += int((logits.argmax(1) != labels).sum())
    model.train()
    return {"loss": total / len(dataset.test), "error": errors / len(dataset.test)}


def train_in_torch(
    state: dict[str, Any],
    steps: int,
    batches: Batches,
    goes_on: Callable[[int, dict[str, float], torch.nn.Module, Any], bool] = lambda *_: True,
    *,
    compiled: bool = False,
) -> dict[str, Any]:
    """The state of a run, as `convert.run_to_torch` returns it, after more steps in torch.

    `goes_on` is told each step that is done, what the trainer logs of one, the network and the
    average of its weights, and may end the training early.
    """
    model = build_twin(state)
    forward = torch.compile(model) if compiled else model
    decayed = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    rest = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    optimizer = torch.optim.SGD([{"params": decayed}, {"params": rest}])
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule_of(state))
    # copied, as torch would train in the state's own tensors; rate and decay are in it, too
    optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))
    scheduler.load_state_dict(state["scheduler"])
    ema = state["ema"] and {name: tensor.clone() for name, tensor in state["ema"].items()}

    last = state["step"] + steps
    if steps < 1 or last > state["total_steps"]:
        raise ConversionError(
            f"the run ends at step {state['total_steps']}, and its schedule with it: there are "
            f"{state['total_steps'] - state['step']} steps after {state['step']}, not {steps}"
        )
    smoothing = state["config"].get("label_smoothing", 0.0)
    for step in range(state["step"], last):
        images, labels = batches[step]
        logits = forward(images)
        loss = cross_entropy(logits, labels, label_smoothing=smoothing)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        values = {
            "loss": loss.item(),
            "error": (logits.argmax(1) != labels).float().mean().item(),
            "learning_rate": optimizer.param_groups[0]["lr"],
        }
        scheduler.step()
        if ema is not None:
            average(ema, model.state_dict(), state["config"]["ema_decay"])
        if not goes_on(step + 1, values, model, ema):
            last = step + 1
            break
    return {
        **state,
        "model": model.state_dict(),
        "ema": ema,
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
        "step": last,
        "rng": rng_at(state["config"], state["rng"]["train_images"], last),
    }


def build_twin(state: dict[str, Any]) -> torch.nn.Module:
    """The torch twin of a run, with its weights and in its precision, in train mode."""
    classifier = ClassifierSpec.from_json(state["classifier"])
    model = torch_resnet.from_spec(classifier.network, classifier.num_classes)
    model.to(state["model"]["stem.conv.weight"].dtype)
    model.load_state_dict(state["model"])
    return model.train()


def average(ema: dict[str, torch.Tensor], new: dict[str, torch.Tensor], decay: float) -> None:
    """Moves an average towards new values, in place; counters are taken as they are."""
    for name, tensor in new.items():
        if tensor.is_floating_point():
            ema[name].lerp_(tensor, 1 - decay)
        else:
            ema[name].copy_(tensor)


def main() -> None:
    parser = argparse.ArgumentParser(description="Go on with a JAX run in torch.")
    parser.add_argument("run", type=Path, help="folder of a run of resnet-train")
    parser.add_argument("--step", type=int, help="checkpoint to start from; default: the newest")
    parser.add_argument("--steps", type=int, required=True, help="how many to train in torch")
    parser.add_argument(
        "--compile", action="store_true", help="use torch.compile, which needs a C++ compiler"
    )
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder of the new run")
    options = parser.parse_args()
    try:
        state = convert.run_to_torch(options.run, options.step)
        config = Config.from_json(state["config"])
        jax.config.update("jax_enable_x64", config.precision == "f64")  # JAX only makes the images
        batches = Batches(config)
        if len(batches.dataset.train) != state["rng"]["train_images"]:
            raise ConversionError(
                f"the run trains on {state['rng']['train_images']} images, and there are "
                f"{len(batches.dataset.train)}: the order of images would be another"
            )
        if options.output.is_dir() and any(options.output.iterdir()):  # not after hours of training
            raise ConversionError(f"{options.output} is not empty: give a new folder")
        report = Report(options.run, state, options.steps, batches)
        state = train_in_torch(state, options.steps, batches, report, compiled=options.compile)
        state["seconds"] += time.monotonic() - report.started
        convert.run_from_torch(state, options.output)
        report.write(options.output)
    except (ConversionError, UserError, OSError) as error:
        print(f"continue_in_torch: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    print(f"step {state['step']}: wrote {options.output}")


if __name__ == "__main__":
    main()
