"""A run that is asked to stop, or that cannot go on: what it has is saved, and it says so."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from convert.runs.disk_format import read_documents
from tests.commands import Process, run
from tests.run_folders import assert_same
from tests.test_processes import until
from tests.test_run import train
from train.run.signals import StopSignals

MODEL = ("digits", "--model", "WideResNet16-1-0.0", "--log-every-steps", "1")


def start(folder: Path, *arguments: str, devices: int = 1) -> subprocess.Popen[str]:
    flags = f"--xla_force_host_platform_device_count={devices}"
    return Process(
        [sys.executable, "-m", "train", *arguments],
        cwd=folder,
        env={**os.environ, "XLA_FLAGS": flags},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def seconds(run: Path) -> float:
    """The time that a run took, by its own account."""
    return json.loads((run / "result.json").read_text())["seconds"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "devices", "arguments"),
    [
        (signal.SIGTERM, 1, ("--precision", "bf16", "--ema-decay", "0.9")),
        (signal.SIGINT, 2, ("--accumulate-steps", "2", "--nesterov")),
    ],
    ids=["SIGTERM bf16", "SIGINT two devices"],
)
def test_a_stopped_run_goes_on_as_if_it_had_not_been(number, devices, arguments, tmp_path):
    command = (*MODEL, *arguments, "--max-steps", "40")
    process = start(tmp_path, *command, "--run-dir", "a", devices=devices)
    log = tmp_path / "a" / "metrics.jsonl"
    until(lambda: log.exists() and len(log.read_text().splitlines()) > 2)
    lines_before = len(log.read_text().splitlines())
    process.send_signal(number)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 75, err
    assert f"stopped by {signal.Signals(number).name} after step" in err
    assert err.rstrip().endswith(", which is saved: go on with --resume --run-dir a")
    assert "Traceback" not in err
    step = int(err.partition("after step ")[2].split(",")[0])
    assert lines_before <= step < 40
    assert (tmp_path / "a" / "checkpoints" / str(step)).is_dir()
    saved = read_documents(tmp_path / "a" / "checkpoints" / str(step)).progress["seconds"]
    start_time = time.monotonic()
    output = train(tmp_path, "--resume", "--run-dir", "a", devices=devices)
    assert f"resumed at {step}" in output
    assert 0 < seconds(tmp_path / "a") - saved < time.monotonic() - start_time
    train(tmp_path, *command, "--run-dir", "b", devices=devices)
    assert_same(tmp_path / "a", tmp_path / "b")


def test_a_run_that_is_stopped_while_it_reads_its_images_says_that_nothing_was_done(tmp_path):
    """And goes on from its beginning."""
    process = start(tmp_path, *MODEL, "--max-steps", "1", "--run-dir", "a")
    assert process.stdout is not None
    assert "reading images" in process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 75, err
    said = "stopped by SIGTERM before the first step: go on with --resume --run-dir a"
    assert err.strip() == f"resnet-train: {said}"
    assert not any((tmp_path / "a" / "checkpoints").glob("[0-9]*"))
    train(tmp_path, "--resume", "--run-dir", "a")
    assert (tmp_path / "a" / "result.json").exists()


def test_a_signal_that_comes_as_one_of_many_runs_ends_is_known_to_what_runs_them():
    with StopSignals() as outer:
        with StopSignals() as inner:
            os.kill(os.getpid(), signal.SIGTERM)
        assert inner.received == outer.received == "SIGTERM"
        with StopSignals() as second:
            assert second.received is None
        assert outer.received == "SIGTERM"


@pytest.mark.slow
@pytest.mark.parametrize("leaves_a_folder", [True, False])
def test_a_run_whose_folder_is_moved_ends_and_goes_on_where_it_is(leaves_a_folder, tmp_path):
    process = start(tmp_path, *MODEL, "--max-steps", "5000", "--run-dir", "a")
    until(lambda: (tmp_path / "a" / "checkpoints" / "12").exists())
    (tmp_path / "a").rename(tmp_path / "b")
    if leaves_a_folder:
        (tmp_path / "a").mkdir()
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "a: the run's folder was moved or deleted" in err
    assert "Traceback" not in err
    assert (tmp_path / "a").exists() == leaves_a_folder
    assert not leaves_a_folder or not any((tmp_path / "a").iterdir())
    names = [path.name for path in (tmp_path / "b" / "checkpoints").iterdir()]
    newest = max(int(name) for name in names if name.isdigit())
    output = train(tmp_path, "--resume", "--run-dir", "b", "--max-steps", str(newest + 2))
    assert f"resumed at {newest}" in output


@pytest.mark.slow
def test_a_checkpoint_of_eight_devices_goes_on_on_one_two_and_four(tmp_path):
    arguments = (*MODEL, "--max-steps", "4", "--global-batch-size", "64", "--run-dir", "a")
    train(tmp_path, *arguments, devices=8)
    total = seconds(tmp_path / "a")
    for number, devices in enumerate((4, 2, 1), start=1):
        steps = str(4 + 2 * number)
        resume = ("--resume", "--run-dir", "a", "--max-steps", steps)
        output = train(tmp_path, *resume, devices=devices)
        assert f"resumed at {4 + 2 * (number - 1)}" in output
        before, total = total, seconds(tmp_path / "a")
        assert total > before  # of all starts


@pytest.mark.slow
def test_a_loss_that_is_not_finite_ends_the_run_within_a_logging_interval(tmp_path):
    train(tmp_path, *MODEL, "--max-steps", "2", "--run-dir", "a")
    resume = ("--resume", "--run-dir", "a", "--max-steps", "100", "--warmup-steps", "0")
    result = run(
        "train", *resume, "--learning-rate", "1e30", "--log-every-steps", "10", cwd=tmp_path
    )
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    step = int(result.stderr.partition("at step ")[2].split(":")[0])
    assert 2 < step <= 12
    assert [path.name for path in (tmp_path / "a" / "checkpoints").iterdir()] == ["2"]


@pytest.mark.slow
def test_so_many_steps_as_are_allowed_may_be_left_out(tmp_path):
    arguments = (*MODEL, "--max-steps", "8", "--learning-rate", "1e30", "--warmup-steps", "0")
    result = run("train", *arguments, "--skip-nonfinite", "2", "--run-dir", "a", cwd=tmp_path)
    assert result.returncode == 1
    assert "3 steps had a loss" in result.stderr
    assert "--skip-nonfinite allows 2" in result.stderr
