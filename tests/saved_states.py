"""Small states of a run for tests of its checkpoints: every leaf random, of three dtypes."""

import random
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest

from resnet_spec import ClassifierSpec, Preprocessing, find_spec
from train.config import Config
from train.run.checkpoints import Checkpoints
from train.step.optimizer import make_optimizer
from train.step.train_step import TrainState

CLASSIFIER = ClassifierSpec(find_spec("ResNet20"), 10)
PREPROCESSING = Preprocessing((0.5, 0.4, 0.3), (0.2, 0.2, 0.2), 32, class_names=tuple("0123456789"))
Parameters = dict[str, tuple[tuple[int, ...], Any]]  # shape and dtype by name

PARAMETERS: Parameters = {
    "stem.conv.kernel": ((3, 3, 3, 16), np.float32),
    "stem.bn.scale": ((16,), np.float64),
    "head.kernel": ((64, 10), ml_dtypes.bfloat16),
    "head.bias": ((10,), np.float32),
    # as many arrays as the model has blocks, which the converter counts
    **{f"stages.0.{n}.bn1.bias": ((16,), np.float32) for n in range(6)},
}


def make_state(
    step: int,
    more: Parameters | None = None,
    *,
    seed: int = 111,
    momentum: float = 0.9,
    has_average: bool = True,
) -> TrainState:
    """What a run has after some steps, another for each step, with parameters beside PARAMETERS."""
    rng = np.random.default_rng((step, seed))
    wanted = {**PARAMETERS, **(more or {})}

    def draw(shape: tuple[int, ...], dtype: Any) -> Any:
        return rng.normal(size=shape).astype(dtype)

    params = {name: draw(*value) for name, value in wanted.items()}
    statistics = {
        "stem.bn.mean": draw((16,), np.float32),
        "stem.bn.num_batches_tracked": np.array(step, np.int32),
    }
    optimizer = make_optimizer(Config(momentum=momentum), lambda _: 0.1).init(params)
    values: dict[str, Any] = {
        "step": np.array(step, np.int32),
        "seed": np.array(seed, np.uint32),
        "skipped": np.array(step // 7, np.int32),
        "params": params,
        "statistics": statistics,
        "optimizer": _draw_like(optimizer, draw),
        "ema": {n: draw(a.shape, a.dtype) for n, a in {**params, **statistics}.items()},
    }
    if not has_average:
        values["ema"] = None
    return TrainState(**values)


def _draw_like(tree: Any, draw: Any) -> Any:
    return jax.tree.map(lambda a: draw(a.shape, a.dtype), tree)


def open_run(run: Path, **changes: Any) -> Checkpoints:
    """The checkpoints of a run of such states."""
    return Checkpoints(
        run,
        changes.pop("classifier", CLASSIFIER),
        changes.pop("preprocessing", PREPROCESSING),
        **changes,
    )


def assert_same(one: TrainState, other: TrainState) -> None:
    """Every leaf: dtype, shape and bytes."""
    leaves, others = (jax.tree_util.tree_leaves_with_path(state) for state in (one, other))
    assert [path for path, _ in leaves] == [path for path, _ in others]
    for (path, mine), (_, yours) in zip(leaves, others, strict=True):
        assert isinstance(mine, np.ndarray), path
        yours = np.asarray(yours)
        assert (mine.dtype, mine.shape) == (yours.dtype, yours.shape), path
        assert mine.tobytes() == yours.tobytes(), path


def steps(run: Path) -> list[str]:
    """The names in a run's folder of checkpoints."""
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def files(run: Path, step: int = 20) -> list[Path]:
    """Those of a checkpoint, in an order that is always the same; Orbax draws some names."""
    found = (p for p in (run / "checkpoints" / str(step)).rglob("*") if p.is_file())
    return sorted(found, key=lambda path: (path.parent.name, path.stat().st_size, path.name))


def array_file(run: Path, step: int = 20) -> Path:
    """The largest file holds arrays themselves."""
    return max(files(run, step), key=lambda path: path.stat().st_size)


def flip_a_bit(path: Path, rng: random.Random) -> None:
    """Anywhere in a file."""
    content = bytearray(path.read_bytes())
    bit = rng.randrange(8 * len(content))
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


@pytest.fixture(name="run")
def run_of_two(tmp_path: Path) -> Path:
    """A run with checkpoints of steps 10 and 20; that of 20 is the better one."""
    with open_run(tmp_path / "run") as checkpoints:
        checkpoints.save(make_state(10), error=0.5, seconds=10.5)
        checkpoints.save(make_state(20), error=0.1, seconds=20.5)
    return tmp_path / "run"


def best_step(checkpoints: Checkpoints) -> int | None:
    """The step of the best one, None where none was tested."""
    best = checkpoints.best()
    return None if best is None else best[0]
