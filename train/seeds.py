"""Several runs that differ in their seed: side by side in one program, on a device each, in turn.

A vmap over weights makes of each convolution a grouped one, which can be slower than the same
convolutions in turn; a measurement decides, not a rule.
"""

import dataclasses
import time
from collections.abc import Callable, Sequence

import jax

from train import parallel
from train.config import Config
from train.data import Dataset
from train.errors import UserError
from train.network import Arrays
from train.trainer import Trainer

_WARM_UP, _TIMED = 2, 8  # steps of the measurement


def arrange(
    config: Config,
    dataset: Dataset,
    seeds: Sequence[int],
    weights: Arrays,
    say: Callable[[str], None],
) -> tuple[Trainer, list[list[int]]]:
    """A trainer, and the seeds in groups that it trains side by side, one group after another.

    Raises:
        UserError: the mode that is asked for cannot be had with these devices or images.
    """
    modes = _possible(config, dataset, len(seeds))
    if config.seeds_mode != "auto" and len(seeds) > 1:
        if config.seeds_mode not in modes:
            streamed = ", with streamed images" if dataset.is_streamed else ""
            raise UserError(
                f"--seeds-mode {config.seeds_mode} cannot be had for {len(seeds)} seeds on "
                f"{parallel.describe_devices()}{streamed}: {' or '.join(modes)} can"
            )
        modes = [config.seeds_mode]
    trainers = {mode: _trainer(config, dataset, seeds, weights, mode) for mode in modes}
    if len(trainers) == 1:
        ((mode, trainer),) = trainers.items()
    else:
        seconds = {mode: _measure(trainer, seeds, mode) for mode, trainer in trainers.items()}
        mode = min(seconds, key=lambda mode: seconds[mode])
        trainer = trainers[mode]
        shown = ", ".join(f"{mode} {1000 * value:.0f} ms" for mode, value in seconds.items())
        say(f"one step of {len(seeds)} seeds: {shown}; taking {mode}")
    return trainer, [[seed] for seed in seeds] if mode == "turns" else [list(seeds)]


def _possible(config: Config, dataset: Dataset, count: int) -> list[str]:
    """`turns` always is; a stream of images is one run's."""
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
    if len(seeds) > 1:  # said in the run's folder: a resumed run goes on in the same way
        config = dataclasses.replace(config, seeds_mode=mode)
    together = None if mode == "turns" else len(seeds)
    over = "seeds" if mode == "devices" else "batch"
    return Trainer(config, dataset, together=together, over=over, weights=weights)


def _measure(trainer: Trainer, seeds: Sequence[int], mode: str) -> float:
    """Seconds for one step of all seeds, compiled before."""
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
