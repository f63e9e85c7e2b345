"""What the TPU's own compiler says of our steps: pip's libtpu compiles without a TPU."""

import contextlib
import json
import os
import re
import shlex
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import SingleDeviceSharding

from tests.commands import assert_refused, run
from tests.pictures import make_folder
from train.ahead.compile_command import search
from train.ahead.figures import OutOfMemoryError, compile_step
from train.ahead.report import Attempt, Report
from train.ahead.topology import available_bytes, describe_chips, find_devices
from train.config import Config
from train.data.load import dataset_shapes, load_dataset
from train.errors import UserError
from train.run.trainer import Trainer
from train.step.augment import Augment, draw_keys
from train.step.train_step import Images

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "tpu.md").read_text()
LIMIT = 600  # seconds of a command, on a machine that does much else


@pytest.fixture(scope="module")
def chip() -> Any:
    """A v5e chip to compile for."""
    try:
        return find_devices("v5e:1x1")[0]
    except UserError as error:
        pytest.skip(str(error))


@pytest.fixture(autouse=True)
def _as_in_a_run() -> Iterator[None]:
    """Without the float64 of the other tests, with which loops count in other numbers."""
    with jax.enable_x64(False):
        yield


def of_page() -> tuple[list[str], str]:
    """The arguments of the page's first command that compiles ahead, and what it shows of it."""
    command = re.findall(r"^resnet-train (.* --compile-for .*)$", PAGE, re.M)[0]
    return shlex.split(command), PAGE.partition("```text\n")[2].partition("```")[0]


def rows(text: str) -> dict[str, str]:
    """The first table's values by the names of its rows."""
    found = [re.split(r"  +", line.strip(), maxsplit=1) for line in text.splitlines()]
    return {row[0]: row[1] for row in reversed(found) if len(row) == 2}


def test_a_step_fits_in_bfloat16_and_waits_as_often_as_the_page_says(chip, tmp_path):
    arguments, shown = of_page()
    result = run("train", *arguments, "--json", cwd=tmp_path, limit=LIMIT)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    (attempt,) = found["attempts"]
    step = attempt["step"]
    assert found["fits"]
    assert (found["devices"], attempt["images_per_device"]) == (4, 32)
    assert 0 < step["peak_bytes"] < found["available_bytes"] < 16 * 2**30
    assert step["convolutions"] >= 3 * 15 - 1  # forward, and two gradients but of the images
    assert step["wide_convolutions"] == found["test"]["wide_convolutions"] == 0
    said = rows(shown)
    assert step["all_reduces"] <= int(said["all-reduces"].partition(",")[0])
    assert found["test"]["all_reduces"] <= 3
    assert step["seconds"] > 0
    assert attempt["images_per_second_per_chip"] == pytest.approx(32 / step["seconds"])
    assert not list(tmp_path.iterdir())
    lines = [line.partition(",")[0] for line in result.stderr.splitlines()]
    assert lines == ["compiling the training step", "compiling the step of a test"]


@pytest.mark.timeout(3700)
@pytest.mark.full  # six programs of minutes each
def test_a_step_that_does_not_fit_ends_with_what_does(chip, tmp_path):
    recipe = ("cifar10", "--model", "WideResNet16-4-0.0", "--precision", "bf16")
    arguments = (*recipe, "--global-batch-size", "49152", "--compile-for", "v5e:1x1")
    result = run("train", *arguments, cwd=tmp_path, limit=3600)
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    for text in ("tried", "--remat", "--accumulate-steps 2", "needs", "fits: "):
        assert text in result.stdout
    last = result.stderr.splitlines()[-1]
    assert re.search(r"needs [\d.]+ GiB on each device, which has 15.8 GiB; what fits: --", last)


@pytest.mark.parametrize(("most", "limit"), [(4096, 3000), (4096, 300), (8, 5), (1, 0), (64, 2)])
def test_the_largest_batch_that_fits_is_found_to_a_sixteenth(most, limit):
    step: Any = object()
    tried: list[int] = []

    def attempt(size: int) -> Attempt:
        tried.append(size)
        return Attempt(size, 1, False, step if size <= limit else None)

    found = list(search(most, (limit - 1) / most, attempt))
    best = max((a.global_batch_size for a in found if a.step is not None), default=0)
    assert best <= limit < best + 2 * max(1, most // 16)
    assert len(tried) == len(set(tried)) <= 4
    assert max(tried, default=0) < most


def test_loops_are_counted_as_often_as_they_turn(chip):
    sharding = SingleDeviceSharding(chip)
    square = jax.ShapeDtypeStruct((1024, 1024), jnp.bfloat16, sharding=sharding)

    def product(turns: int, x: Any, y: Any) -> Any:
        return jax.lax.scan(lambda c, _: (jnp.tanh(c @ y), None), x, None, length=turns)[0]

    few, many = (
        compile_step(jax.jit(partial(product, turns)).lower(square, square)) for turns in (8, 64)
    )
    assert few.flops == many.flops
    assert few.loops == pytest.approx(8)
    assert many.seconds == pytest.approx(8 * few.seconds)


def test_all_reduces_in_a_loop_and_their_bytes_are_counted(chip):
    devices = find_devices("v5e:2x2")

    def means(x: Any) -> Any:
        def turn(x: Any, _: Any) -> tuple[Any, None]:
            return jnp.tanh(jax.lax.pmean(x, "devices")), None

        return jax.lax.scan(turn, x, None, length=5)[0]

    lowered = jax.pmap(means, "devices", devices=devices).lower(
        jax.ShapeDtypeStruct((4, 8, 128), jnp.float32)
    )
    found = compile_step(lowered)
    assert (found.all_reduces, found.all_reduce_bytes) == (5, 5 * 4 * 8 * 128)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_convolutions_are_told_from_products_and_wide_ones_are_counted(chip, dtype):
    images, kernel, weights = (
        jax.ShapeDtypeStruct(shape, dtype, sharding=SingleDeviceSharding(chip))
        for shape in ((8, 16, 16, 128), (3, 3, 128, 128), (128, 128))
    )

    def layers(x: Any, kernel: Any, weights: Any) -> Any:
        dimensions = ("NHWC", "HWIO", "NHWC")
        x = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=dimensions)
        return jnp.mean(jax.nn.relu(x), (1, 2)) @ weights

    precise = jax.default_matmul_precision("bfloat16")
    with precise:
        found = compile_step(jax.jit(layers).lower(images, kernel, weights))
    assert found.convolutions == 1
    assert found.wide_convolutions == (dtype == jnp.float32)


def test_a_program_that_is_too_large_says_what_it_needs(chip):
    large = jax.ShapeDtypeStruct((2**30, 8), jnp.float32, sharding=SingleDeviceSharding(chip))
    with pytest.raises(OutOfMemoryError) as caught:
        compile_step(jax.jit(jnp.sort).lower(large))
    assert caught.value.needed_bytes is not None
    assert caught.value.needed_bytes > (available_bytes(chip) or 0) > 15 * 2**30


def test_a_report_of_a_step_that_does_not_fit_lists_what_was_tried(chip):
    square = jax.ShapeDtypeStruct((1024, 1024), jnp.bfloat16, sharding=SingleDeviceSharding(chip))
    step = compile_step(jax.jit(jnp.matmul).lower(square, square))
    attempts = [
        Attempt(512, 1, False, None, 20 * 2**30),
        Attempt(512, 1, True, step, step.peak_bytes),
        Attempt(512, 2, False, None, 17 * 2**30),
        Attempt(384, 1, False, step, step.peak_bytes),
    ]
    report = Report(Config(compile_for="v5e:1x1"), [chip], 16 * 2**30, attempts, None)
    tried = report.to_text().partition("tried\n")[2].splitlines()
    for line, attempt in zip(tried, attempts, strict=True):
        assert line.strip().startswith(f"{attempt} ")
        assert ("fits: 8 MiB" if attempt.step else "needs ") in line
    assert report.refusal() == (
        "--global-batch-size 512 needs 20 GiB on each device, which has 16 GiB; what fits: "
        "--global-batch-size 512 --remat; --global-batch-size 384"
    )
    found = report.to_json()
    assert (found["fits"], found["largest_batch_size"]) == (False, 384)
    assert "images_per_second_per_chip" not in found["attempts"][0]


def test_a_v4_chip_is_two_devices_and_a_pod_has_many(chip):
    for topology, devices, chips in (
        ("v4:2x2x1", 8, 4),
        ("v6e:2x2", 4, 4),
        ("v5e:16x16", 256, 256),
    ):
        found = find_devices(topology)
        kind, count = describe_chips(found)
        assert (len(found), count) == (devices, chips)
        assert kind is not None


def test_a_topology_that_there_is_not_is_refused(chip):
    for topology in ("v9:2x2", "v5e:3x3", "nonsense"):
        with pytest.raises(UserError, match=f"--compile-for {topology}: .* Topologies are v5e:2x2"):
            find_devices(topology)


def test_without_libtpu_one_sentence_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.delenv("TPU_LIBRARY_PATH", raising=False)  # libtpu sets it where it is imported
    (tmp_path / "libtpu.py").write_text("raise ImportError\n")
    path = os.pathsep.join(map(str, (tmp_path, ROOT)))
    result = run("train", "digits", "--compile-for", "v5e:2x2", cwd=tmp_path, PYTHONPATH=path)
    assert_refused(result, "--compile-for needs libtpu", "install flax-resnet[tpu]")
    assert len(result.stderr.splitlines()) == 1


def test_a_step_copies_no_whole_data_set_and_cuts_all_its_images_at_once(chip):
    """50,000 images of four axes were copied into another layout: 806 MB and 1.1 ms a step."""
    config = Config(data="cifar10")
    dataset = dataset_shapes(config)
    augment = Augment(config, dataset)

    def choose(images: Any, indices: Any) -> Any:
        return augment(images[indices], draw_keys(1, 2, jnp.arange(128)).images)

    arrays = (jnp.uint8, (50_000, 32 * 32 * 3)), (jnp.int32, (128,))
    sharding = SingleDeviceSharding(chip)
    given = (jax.ShapeDtypeStruct(shape, dtype, sharding=sharding) for dtype, shape in arrays)
    found = compile_step(jax.jit(choose).lower(*given))
    assert found.bytes_accessed < 100e6
    assert found.peak_bytes < 200e6  # the images are 154 MB
    assert found.loops == 1


@pytest.mark.parametrize("parallel", ["pmap", "jit"])
def test_steps_compiled_ahead_take_what_a_run_gives_them(parallel):
    fields: dict[str, Any] = {"accumulate_steps": 2, "ema_decay": 0.9, "parallel": parallel}
    config = Config(model="WideResNet16-1-0.0", global_batch_size=64, **fields)
    dataset = load_dataset(config)
    trainer = Trainer(config.resolved(len(dataset.train)), dataset)
    state = trainer.place(trainer.first_states([111]))
    images = Images(dataset.train.images.reshape(len(dataset.train), -1), dataset.train.labels)
    batch = next(trainer.batches([111], 0))
    given = (state, images, batch.indices)
    train, test = trainer.lower()
    assert shapes(train.args_info[0]) == shapes(given)
    assert shapes(test.args_info[0][:2]) == shapes((state.params, state.statistics))
    assert test.args_info[0][3].shape == (8, 45)  # 360 images


def test_streamed_steps_take_what_a_run_gives_them(tmp_path):
    make_folder(tmp_path, {"train": {"a": 5, "b": 5}, "test": {"a": 3, "b": 3}})
    fields: dict[str, Any] = {"data": f"folder:{tmp_path}", "image_size": 32}
    config = Config(model="WideResNet16-1-0.0", global_batch_size=8, **fields)
    dataset = load_dataset(config)
    trainer = Trainer(config.resolved(len(dataset.train)), dataset)
    with contextlib.closing(trainer.batches([111], 0)) as batches:
        batch = next(batches)
    assert shapes(trainer.lower()[0].args_info[0][1:]) == shapes((batch.images, batch.indices))


def shapes(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: (leaf.shape, np.dtype(leaf.dtype)), tree)


@pytest.mark.parametrize("data", ["cifar10", "cifar100", "imagenet2012"])
def test_published_data_sets_need_not_be_there(data, monkeypatch):
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    for held in (None, 5000):
        found = dataset_shapes(Config(data=data, validation_size=held))
        sizes = {"cifar10": (50_000, 10_000), "cifar100": (50_000, 10_000)}
        train, test = sizes.get(data, (1_281_167, 50_000))
        expected = (train, test) if held is None else (train - held, held)
        assert (len(found.train), len(found.test)) == expected
        size = 224 if data == "imagenet2012" else 32
        assert found.image_shape == (size, size, 3)
