"""A training run from its configuration to its exported weights."""

import collections
import dataclasses
import json
import math
import platform
import shutil
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import flax_resnet
from flax_resnet.network import ResidualNetwork
from resnet_spec import ClassifierSpec, find_spec
from train import export, parallel
from train.augment import Augment
from train.checkpoint import Checkpoints
from train.config import Config
from train.data import Dataset, Split, batch_indices, load_dataset
from train.errors import UserError
from train.network import Network
from train.optimizer import make_optimizer, make_schedule
from train.report import Report, Stopwatch
from train.step import Images, Metrics, TrainState, make_eval_step, make_train_step

_IN_FLIGHT = 8  # steps handed to the device and not yet done; more only fill its queue
_EVAL_BATCH_PER_DEVICE = 250


@dataclass(frozen=True)
class Result:
    """What a run ends with: error is the fraction of test images that are wrong."""

    error: float
    seconds: float
    exported: Path
    parity: export.Parity | None


def train(config: Config) -> Result:
    """Trains, evaluates, exports and checks the export.

    Raises:
        UserError: the configuration does not fit the data, the devices or the run's folder.
    """
    start_time = time.perf_counter()
    parallel.check_batch_size(config.global_batch_size)
    run_dir = _open_run_dir(config)
    print(f"{config.model} on {config.data}, {_devices()}; run folder {run_dir}", flush=True)
    dataset = load_dataset(config)
    total_steps = count_steps(config, len(dataset.train))
    run = _Run(config, dataset, total_steps)

    with Checkpoints(run_dir, run.classifier) as checkpoints:
        state = checkpoints.restore(run.state) if config.resume else run.state
        step = first_step = int(state.step)
        with Report(run_dir, start_step=step, total_steps=total_steps) as report:
            report.say(_headline(dataset, step, total_steps))
            pending: collections.deque[Metrics] = collections.deque()
            stopwatch = Stopwatch()
            error = None
            while step < total_steps:
                state, metrics = run.train_step(state, step)
                step += 1
                pending.append(metrics)
                if len(pending) > _IN_FLIGHT:
                    jax.block_until_ready(pending.popleft())
                if step == first_step + 1:
                    jax.block_until_ready(metrics)
                    report.say(f"first step after {time.perf_counter() - start_time:.1f} s")
                    stopwatch = Stopwatch()
                elif step % config.log_every_steps == 0:
                    images = (step - first_step - 1) * config.global_batch_size
                    _log(report, step, metrics, run.learning_rate(step - 1), stopwatch.read(images))
                report.advance(step)
                if run.ends_period(step):
                    error = _test(report, run, state, step, start_time)
                    checkpoints.save(state)
            checkpoints.wait()
            if error is None:  # resumed after the last step
                error = _test(report, run, state, step, start_time)

    exported, parity = _hand_over(run, state, run_dir)
    result = Result(error, time.perf_counter() - start_time, exported, parity)
    (run_dir / "result.json").write_text(json.dumps(_as_json(result), indent=2) + "\n")
    print(f"test error {result.error:.2%} after {step} steps, {result.seconds:.0f} s", flush=True)
    return result


class _Run:
    """What stays the same through a run: compiled steps, data on the devices, the first state."""

    def __init__(self, config: Config, dataset: Dataset, total_steps: int):
        self.config, self.total_steps, self.dataset = config, total_steps, dataset
        spec = dataclasses.replace(
            find_spec(config.model),
            shortcut=config.shortcut,
            zero_init_residual=config.zero_init_residual,
            in_planes=dataset.train.images.shape[-1],
        )
        self.classifier = ClassifierSpec(spec, dataset.num_classes)
        self.network = Network(self.make_model(config.precision), axis_name=parallel.AXIS)
        self.learning_rate = make_schedule(config, total_steps)
        optimizer = make_optimizer(
            self.learning_rate,
            momentum=config.momentum,
            nesterov=config.nesterov,
            weight_decay=config.weight_decay,
        )
        augment = Augment(config, dataset)
        step = make_train_step(
            self.network, optimizer, augment, seed=config.seed, axis_name=parallel.AXIS
        )
        self._train_step = parallel.map_train_step(step)
        self._eval_step = parallel.map_eval_step(
            make_eval_step(self.network, augment, axis_name=parallel.AXIS)
        )
        self.state: TrainState = parallel.replicate(
            TrainState(
                step=jnp.zeros((), jnp.int32),
                params=self.network.params,
                statistics=self.network.statistics,
                optimizer=optimizer.init(self.network.params),
            )
        )
        self._train_data = parallel.replicate(_images(dataset.train))
        self._test_data = parallel.replicate(_images(dataset.test))

    def make_model(self, precision: str) -> ResidualNetwork:
        return flax_resnet.from_spec(
            self.classifier.network,
            self.classifier.num_classes,
            rngs=nnx.Rngs(self.config.seed),
            dtype={"bf16": jnp.bfloat16, "f32": jnp.float32}[precision],
            scan_blocks=self.config.scan_blocks,
            remat=self.config.remat,
        )

    def train_step(self, state: TrainState, step: int) -> tuple[TrainState, Metrics]:
        config = self.config
        indices = batch_indices(
            config.seed, step, config.global_batch_size, len(self.dataset.train)
        )
        return self._train_step(state, self._train_data, parallel.split_batch(indices))

    def ends_period(self, step: int) -> bool:
        """Whether an epoch that is to be tested ends with this step, or the run."""
        size = len(self.dataset.train) * self.config.eval_every_epochs
        images = step * self.config.global_batch_size
        crosses = images // size > (images - self.config.global_batch_size) // size
        return crosses or step == self.total_steps

    def test(self, state: TrainState) -> tuple[float, float]:
        """(loss, error) over the whole test set, every image once."""
        count = len(self.dataset.test)
        batch = _EVAL_BATCH_PER_DEVICE * jax.local_device_count()
        padded = np.full(math.ceil(count / batch) * batch, -1, np.int32)
        padded[:count] = np.arange(count)
        sums = [
            self._eval_step(
                state.params, state.statistics, self._test_data, parallel.split_batch(part)
            )
            for part in np.split(padded, len(padded) // batch)
        ]
        loss, errors = np.sum(jax.device_get([(s.loss, s.errors) for s in sums]), axis=0)
        return float(loss) / count, float(errors) / count

    def model(self, state: TrainState) -> Any:
        """The trained model in eval mode and float32."""
        network = Network(self.make_model("f32"))
        arrays = jax.device_get((state.params, state.statistics))
        return network.model(*arrays)


def count_steps(config: Config, num_images: int) -> int:
    """Steps of a whole run: the epochs' images in equal batches, or `max_steps`."""
    steps = math.ceil(config.epochs * num_images / config.global_batch_size)
    return steps if config.max_steps is None else min(steps, config.max_steps)


def _log(report: Report, step: int, metrics: Metrics, learning_rate: Any, rate: float) -> None:
    values = {
        "loss": float(metrics.loss),
        "error": float(metrics.error),
        "learning_rate": float(learning_rate),
        "images_per_second": rate,
    }
    report.metrics(step, "train", values)


def _test(report: Report, run: _Run, state: TrainState, step: int, start_time: float) -> float:
    loss, error = run.test(state)
    epoch = step * run.config.global_batch_size / len(run.dataset.train)
    report.metrics(step, "test", {"loss": loss, "error": error})
    seconds = time.perf_counter() - start_time
    report.say(
        f"epoch {epoch:6.2f}  step {step:6d}  test loss {loss:.4f}  "
        f"test error {error:7.2%}  {seconds:6.0f} s"
    )
    return error


def _hand_over(run: _Run, state: TrainState, run_dir: Path) -> tuple[Path, export.Parity | None]:
    model = run.model(state)
    exported = export.export(run_dir, model)
    print(f"exported {exported}", flush=True)
    if not export.has_torch():
        print("no parity check: install flax-resnet[torch] to run the torch twin", flush=True)
        return exported, None
    parity = export.check_parity(exported, model, run.dataset)
    print(parity, flush=True)
    return exported, parity


def _open_run_dir(config: Config) -> Path:
    default = Path("runs") / f"{config.model}-{config.data}-{time.strftime('%Y%m%d-%H%M%S')}"
    run_dir = config.run_dir or default
    if run_dir.exists() and not run_dir.is_dir():
        raise UserError(f"--run-dir {run_dir} is a file, not a folder")
    if config.resume and not run_dir.is_dir():
        raise UserError(f"--run-dir {run_dir} does not exist: there is no run to resume")
    if run_dir.is_dir() and any(run_dir.iterdir()) and not config.resume:
        if not config.overwrite:
            raise UserError(
                f"--run-dir {run_dir} is not empty: go on with --resume, start anew with "
                "--overwrite, or name another folder"
            )
        if not (run_dir / "config.json").exists():
            raise UserError(f"--overwrite: {run_dir} is no run of this trainer, nothing deleted")
        shutil.rmtree(run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    packages = ("flax-resnet", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    versions = {"python": platform.python_version(), **{p: version(p) for p in packages}}
    content = {"config": config.to_json(), "versions": versions, "devices": _devices()}
    (run_dir / "config.json").write_text(json.dumps(content, indent=2) + "\n")
    return run_dir


def _headline(dataset: Dataset, step: int, total_steps: int) -> str:
    resumed = f", resumed at {step}" if step else ""
    return (
        f"{len(dataset.train)} training images, {len(dataset.test)} of {dataset.test_name} to "
        f"test; {total_steps} steps{resumed}; compiling"
    )


def _devices() -> str:
    devices = jax.local_devices()
    return f"{len(devices)} {devices[0].platform} device{'s' if len(devices) > 1 else ''}"


def _images(split: Split) -> Images:
    return Images(jnp.asarray(split.images), jnp.asarray(split.labels))


def _as_json(result: Result) -> dict[str, Any]:
    return {**dataclasses.asdict(result), "exported": result.exported.name}
