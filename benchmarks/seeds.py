"""B3: five seeds in one program beside one seed."""

import statistics

import jax

from benchmarks.bare_step import BareStep, make_trainer, random_dataset
from benchmarks.measure import Row, Size, median_ratio, take_turns
from train.config import Config

_SEEDS = (111, 222, 333, 444, 555)


def run(size: Size) -> list[Row]:
    """Seconds of a step of five ResNet-20 by vmap, and of one of them."""
    is_gpu = jax.default_backend() == "gpu"
    model, batch_size, image_size = "ResNet20", 128 if is_gpu else 32, 32
    if size == "tiny":
        model, batch_size, image_size = "WideResNet16-1-0.0", 4, 8
    steps, repetitions = (50, 10) if is_gpu else (1, {"full": 7, "tiny": 1}[size])
    config = Config(
        model=model, global_batch_size=batch_size, precision="bf16" if is_gpu else "f32"
    )
    dataset = random_dataset(8 * batch_size, image_size, 10)
    tasks = {
        "one": BareStep(make_trainer(config, dataset), _SEEDS[:1], steps),
        "five": BareStep(make_trainer(config, dataset, together=5), _SEEDS, steps),
    }
    seconds = take_turns(tasks, repetitions)
    one, five = (statistics.median(seconds[name]) / steps for name in ("one", "five"))
    ratio = median_ratio(seconds["five"], seconds["one"])
    mode = "one program" if ratio < len(_SEEDS) else "turns"
    precision = {"f32": "float32", "bf16": "bfloat16"}[config.precision]
    return [
        Row(
            f"{model}, {image_size} px, batch {batch_size}, {precision}: a step of five seeds",
            "s",
            five,
            "one seed",
            one,
            ratio,
            "<= 2.0" if is_gpu else "",
            f"in turn five take 5.0 times one: --seeds-mode auto takes {mode} here",
        )
    ]
