"""What cannot be written is an error that says so, on real disks that are full or read-only."""

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import convert
import torch_resnet
from convert.__main__ import main
from convert.parity.cells import write_whole
from convert.runs.disk_format import shorten
from resnet_spec import PREPROCESSINGS
from tests.commands import assert_refused, run
from tests.saved_states import array_file, assert_same, make_state, open_run, steps
from tests.twins import make_twins
from train.run.checkpoints import Checkpoints

BIG = {"big.kernel": ((200, 200), np.float32)}
HUGE = {"huge.kernel": ((500, 500), np.float32)}  # with momentum and average, 3 megabytes


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of one megabyte, in memory."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small disk")
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    made = subprocess.run(mount, capture_output=True, text=True, check=False)
    if made.returncode != 0:
        pytest.skip(f"mounting is not permitted here: {made.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def save_and_wait(checkpoints: Checkpoints, step: int) -> None:
    checkpoints.save(make_state(step))
    checkpoints.wait()


def fill_disk(checkpoints: Checkpoints) -> None:
    with checkpoints:
        for step in range(1, 20):
            checkpoints.save(make_state(step, BIG), error=1 / step)


def test_a_full_disk_is_an_error_that_names_the_folder_and_leaves_the_older_ones(small_disk, capfd):
    with open_run(small_disk / "run") as checkpoints:
        checkpoints.save(make_state(0, BIG))
    start = time.perf_counter()
    with pytest.raises(OSError, match="No space left on device") as caught:
        fill_disk(open_run(small_disk / "run"))
    assert time.perf_counter() - start < 60
    assert str(small_disk / "run" / "checkpoints") in str(caught.value)
    assert "Traceback" not in capfd.readouterr().err
    with open_run(small_disk / "run") as checkpoints:  # the half-written one is deleted
        restored = checkpoints.restore(make_state(0, BIG))
        assert_same(restored, make_state(int(restored.step), BIG))


@pytest.mark.parametrize("place", [0, 300, 3000])
def test_what_a_disk_said_is_kept_of_a_long_error(place):
    """As TensorStore puts it between a path and the JSON of an array."""
    before, after = "/path" * place, "{}" * place
    said = f"RESOURCE_EXHAUSTED: {before} [OS error 28: No space left on device] {after}"
    line = shorten(ValueError(said))
    assert line.count("No space left on device") == 1
    assert line.startswith("No space" if place else "RESOURCE")
    assert len(line) < 1000


def test_a_run_that_is_imported_to_a_full_disk_is_one_sentence_and_nothing_is_left(
    small_disk, tmp_path
):
    path = tmp_path / "m.safetensors"
    convert.save(path, make_twins("ResNet44", dtype="float32")[1])
    result = run("convert", "import", path, "-o", small_disk / "run", cwd=tmp_path)
    assert_refused(result, f"{small_disk / 'run'} could not be written", "No space left on device")
    assert result.stderr.count("\n") == 1
    assert not list(small_disk.iterdir())


@pytest.mark.parametrize(
    "name",
    [
        *("m.pt", "m.safetensors", "m.npz"),
        pytest.param("m.onnx", marks=pytest.mark.slow),
        pytest.param("m.pt2", marks=pytest.mark.slow),
    ],
)
def test_a_file_that_does_not_fit_leaves_the_older_one(small_disk, tmp_path, capsys, name):
    source, output = tmp_path / "m.safetensors", small_disk / name
    convert.save(source, make_twins("ResNet44", dtype="float32")[1])
    output.write_text("the older one")
    assert main(["export", str(source), "-o", str(output)]) == 2
    error = capsys.readouterr().err
    assert str(output) in error
    assert "No space left on device" in error
    assert error.count("\n") == 1
    assert [path.name for path in small_disk.iterdir()] == [name]
    assert output.read_text() == "the older one"


@pytest.mark.parametrize("layout", ["timm", "transformers"])
def test_a_folder_that_does_not_fit_is_not_there(small_disk, tmp_path, capsys, layout):
    source = tmp_path / "m.safetensors"
    convert.save(
        source, torch_resnet.create("ResNet18", 10), preprocessing=PREPROCESSINGS["imagenet"]
    )
    assert main(["export", str(source), "--layout", layout, "-o", str(small_disk / "m")]) == 2
    error = capsys.readouterr().err
    assert str(small_disk / "m") in error
    assert "No space left on device" in error
    assert not list(small_disk.iterdir())


def test_a_report_that_does_not_fit_leaves_the_older_one(small_disk):
    output = small_disk / "report.html"
    output.write_text("the older one")
    with pytest.raises(OSError, match=f"No space left on device: '{output}'"):
        write_whole(output, "x" * 2**21)
    assert output.read_text() == "the older one"
    assert list(small_disk.iterdir()) == [output]


def test_a_failed_write_in_the_background_is_raised_by_whatever_comes_next(small_disk):
    def fail_in_every_way() -> None:
        with open_run(small_disk / "run") as checkpoints:
            checkpoints.save(make_state(1, HUGE))
            with pytest.raises(OSError, match="could not be written"):
                checkpoints.wait()
            assert checkpoints.latest_step() is None
            assert steps(small_disk / "run") == ["1.orbax-checkpoint-tmp"]
            checkpoints.save(make_state(2, HUGE))
            with pytest.raises(OSError, match="could not be written"):
                checkpoints.save(make_state(3, HUGE))
            checkpoints.save(make_state(4, HUGE))

    with pytest.raises(OSError, match="could not be written"):  # the end of the block waits
        fail_in_every_way()


def test_a_read_only_folder_is_read_and_not_written(small_disk, capsys):
    run = small_disk / "run"
    with open_run(run) as checkpoints:
        checkpoints.save(make_state(10))
        checkpoints.save(make_state(20))
    array_file(run).write_bytes(b"")
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with open_run(run) as checkpoints:
        assert_same(checkpoints.restore(make_state(0)), make_state(10))
        assert "cannot be renamed" in capsys.readouterr().err
        for step in (20, 30):
            with pytest.raises(OSError, match=r"run/checkpoints: .* could not be written"):
                save_and_wait(checkpoints, step)
    with pytest.raises(OSError, match="Read-only file system"):
        open_run(small_disk / "other")


def test_an_error_on_its_way_is_not_hidden_by_a_failed_write(small_disk, capsys):
    def interrupted() -> None:
        with open_run(small_disk / "run") as checkpoints:
            checkpoints.save(make_state(1, HUGE))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert "could not be written" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_whose_disk_is_full_ends_with_exit_code_1(small_disk, tmp_path):
    arguments = ("digits", "--model", "WideResNet16-1-0.0", "--max-steps", "6")
    arguments += ("--checkpoint-every-steps", "1", "--run-dir", str(small_disk / "a"))
    result = run("train", *arguments, cwd=tmp_path)
    assert result.returncode == 1, result.stderr
    assert "No space left on device" in result.stderr
    assert "Traceback" not in result.stderr.partition("resnet-train:")[2]
    assert not (small_disk / "a" / "result.json").exists()
