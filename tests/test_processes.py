"""One batch over the devices of one or two processes: the same run."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

import convert
import torch_resnet
from tests.commands import Process, assert_refused, run
from tests.run_folders import arrays, largest_difference, metrics
from tests.twins import randomise

SHORT = (
    *("digits", "--model", "WideResNet16-1-0.0", "--global-batch-size", "64"),
    *("--accumulate-steps", "2", "--ema-decay", "0.9", "--log-every-steps", "5"),
)


def start(
    folder: Path, *arguments: str, process: int, port: int, devices: int = 4
) -> subprocess.Popen[str]:
    """One of two processes on loopback."""
    flags = f"--xla_force_host_platform_device_count={devices}"
    by_hand = ("--coordinator", f"127.0.0.1:{port}", "--num-processes", "2")
    command = [sys.executable, "-m", "train", *arguments, "--distributed", *by_hand]
    return Process(
        [*command, "--process-id", str(process)],
        cwd=folder,
        env={**os.environ, "XLA_FLAGS": flags},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def start_two(folder: Path, *arguments: str, devices: int) -> list[subprocess.Popen[str]]:
    port = free_port()
    return [start(folder, *arguments, process=n, port=port, devices=devices) for n in (0, 1)]


def in_two(folder: Path, *arguments: str, devices: int = 4) -> list[tuple[int, str, str]]:
    """Exit code, stdout and stderr of each of two processes."""
    return outcomes(start_two(folder, *arguments, devices=devices))


def outcomes(processes: Iterable[subprocess.Popen[str]]) -> list[tuple[int, str, str]]:
    ended = [(process, *process.communicate(timeout=400)) for process in list(processes)]
    return [(process.returncode, out, err) for process, out, err in ended]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("precision", "rate", "bound", "parallel"),
    # float32 rounds otherwise on one device than on eight, and a ReLU's gradient jumps where its
    # input is near 0: what it adds to a weight is in proportion to the learning rate
    [("f64", "0.1", 1e-9, "pmap"), ("f32", "1e-4", 1e-6, "jit")],
)
def test_two_processes_of_four_devices_are_one_of_eight_and_one_device(
    precision, rate, bound, parallel, tmp_path
):
    model = torch_resnet.create("WideResNet16-1-0.0", 10, in_planes=1)
    randomise(model)
    convert.save(tmp_path / "random.safetensors", model)
    arguments = (*SHORT, "--max-steps", "20", "--precision", precision, "--learning-rate", rate)
    arguments += ("--init-from", "random.safetensors")
    for devices in (1, 8):
        result = run("train", *arguments, "--run-dir", str(devices), cwd=tmp_path, devices=devices)
        assert result.returncode == 0, result.stderr
    both = in_two(tmp_path, *arguments, "--run-dir", "two", "--parallel", parallel)
    assert [code for code, _, _ in both] == [0, 0], both
    assert "8 cpu devices of 2 processes" in both[0][1]
    assert "step" not in both[1][1]  # only the first one speaks; and Gloo, of its own
    items = ("model", "ema", "optimizer") if precision == "f64" else ("model", "ema")
    for other in ("8", "1"):
        reached = largest_difference(tmp_path / "two", tmp_path / other, items)
        print(f"{precision} {parallel}: 2 processes of 4 against {other}: {reached:.1e}")
        assert reached <= bound


@pytest.mark.slow
def test_two_processes_stop_after_the_same_step_and_go_on(tmp_path):
    arguments = (*SHORT, "--max-steps", "60", "--log-every-steps", "1")
    both = start_two(tmp_path, *arguments, "--run-dir", "two", devices=1)
    log = tmp_path / "two" / "metrics.jsonl"
    until(lambda: log.exists() and len(log.read_text().splitlines()) > 5)
    both[1].send_signal(signal.SIGTERM)  # the one that writes nothing
    stopped = outcomes(both)
    assert [code for code, _, _ in stopped] == [75, 75], stopped
    steps = {err.partition("after step ")[2].split(",")[0] for _, _, err in stopped}
    assert len(steps) == 1
    resumed = in_two(tmp_path, "--resume", "--run-dir", "two", devices=1)
    assert [code for code, _, _ in resumed] == [0, 0], resumed
    assert f"resumed at {steps.pop()}" in resumed[0][1]
    steps = [line["step"] for line in metrics(tmp_path / "two") if line["kind"] == "train"]
    assert steps == list(range(1, 61))
    assert "ema/head.bias" in arrays(tmp_path / "two", 60)


@pytest.mark.slow
def test_an_error_of_one_process_alone_ends_the_others_and_they_say_it(tmp_path):
    arguments = (*SHORT, "--max-steps", "2000", "--checkpoint-every-steps", "5")
    both = start_two(tmp_path, *arguments, "--run-dir", "two", devices=1)
    checkpoints = tmp_path / "two" / "checkpoints"
    until(lambda: any(checkpoints.glob("5")))
    shutil.rmtree(checkpoints)
    checkpoints.write_text("no folder")  # the first process is the one that writes
    start_time = time.monotonic()
    (first, _, said), (second, _, told) = outcomes(both)
    assert time.monotonic() - start_time < 80  # JAX gives up after 100
    assert (first, second) == (1, 1), said + told
    assert "Not a directory" in said
    assert "process 0 failed" in told
    assert "Not a directory" in told


def until(condition: Callable[[], bool], seconds: float = 240) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_processes_that_cannot_meet_are_refused(tmp_path):
    arguments = ("digits", "--coordinator", "127.0.0.1:1", "--run-dir", "a")
    assert_refused(run("train", *arguments, cwd=tmp_path), "--distributed", "--process-id")
    assert not (tmp_path / "a").exists()
