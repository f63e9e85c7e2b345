"""Chooses how several seeds are trained: side by side in one program, one on each device, in turn.

vmap over weights turns each convolution into a grouped one, which can be slower than the same
convolutions in turn: a measurement decides, not a rule.
"""

import time
from collections.abc import Callable, Sequence

import jax
import numpy as np

from train.config import Config
from train.data.dataset import Dataset
from train.errors import UserError
from train.run.trainer import Trainer
from train.step import parallel, processes
from train.step.functional import Arrays

_WARM_UP, _TIMED = 2, 8  # steps of the measurement


def arrange(
    config: Config,
    dataset: Dataset,
    seeds: Sequence[int],
    weights: Arrays,
    before: str | None,
    say: Callable[[str], None],
) -> tuple[str, Trainer]:
    """The mode in which the runs of these seeds are trained, and a trainer for it.

    Resumed runs keep their mode `before` if they can. UserError if the wanted mode is impossible.
    """
    modes = _possible(config, dataset, len(seeds))
    if config.seeds_mode != "auto" and len(seeds) > 1:
        if config.seeds_mode not in modes:
            streamed = ", with streamed images" if dataset.is_streamed else ""
            raise UserError(
                f"--seeds-mode {config.seeds_mode} is impossible for {len(seeds)} seeds on "
                f"{parallel.describe_devices()}{streamed}: {' or '.join(modes)} can"
            )
        modes = [config.seeds_mode]
    elif before in modes:
        modes = [before]
    if len(modes) == 1:
        return modes[0], _trainer(config, dataset, seeds, weights, modes[0])
    trainers: dict[str, Trainer] = {}
    seconds: dict[str, float] = {}
    for mode in modes:
        try:
            trainers[mode] = _trainer(config, dataset, seeds, weights, mode)
            seconds[mode] = _measure(trainers[mode], seeds, mode)
        except jax.errors.JaxRuntimeError as error:  # out of memory, for instance
            if mode == "turns":
                raise
            say(f"{mode} is impossible for these seeds: {str(error).splitlines()[0]}")
    agreed = processes.from_first_process(lambda: np.array(list(seconds.values())))
    mode = list(seconds)[int(np.argmin(agreed))]
    shown = ", ".join(f"{mode} {1000 * value:.0f} ms" for mode, value in seconds.items())
    say(f"one step of {len(seeds)} seeds: {shown}; taking {mode}")
    return mode, trainers[mode]


def _possible(config: Config, dataset: Dataset, count: int) -> list[str]:
    """The possible modes; streamed images serve one run at a time."""
    if count <= 1 or dataset.is_streamed:
        return ["turns"]
    modes = ["turns", "vmap"]
    devices = jax.device_count()
    if devices > 1 and count % devices == 0 and jax.process_count() == 1:
        modes.append("devices")
    return modes


def _trainer(
    config: Config, dataset: Dataset, seeds: Sequence[int], weights: Arrays, mode: str
) -> Trainer:
    if mode != "devices":  # else each device has whole batches
        parallel.check_batch_size(config, jax.device_count())
    together = None if mode == "turns" else len(seeds)
    over = "seeds" if mode == "devices" else "batch"
    return Trainer(config, dataset, together=together, over=over, weights=weights)


def _measure(trainer: Trainer, seeds: Sequence[int], mode: str) -> float:
    """Seconds for one step of all seeds, without compilation."""
    group = list(seeds)[:1] if mode == "turns" else list(seeds)
    state, start = trainer.place(trainer.first_states(group)), 0.0
    steps = min(_WARM_UP + _TIMED, trainer.total_steps)
    for number, batch in zip(range(steps), trainer.batches(group, 0), strict=False):
        if number == min(_WARM_UP, steps - 1):
            jax.block_until_ready(state)
            start = time.perf_counter()
        state, _ = trainer.step(state, batch)
    jax.block_until_ready(state)
    seconds = (time.perf_counter() - start) / max(steps - _WARM_UP, 1)
    return seconds * (len(seeds) if mode == "turns" else 1)
