"""What a run tells: the display, the line of an epoch, and the logs of metrics."""

import json
import math
import os
import pty
import re
import struct
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorboardX.proto import event_pb2 as protocol

from tests.commands import Process
from train.config import Config
from train.errors import UserError
from train.run.display import Display, Stopwatch, describe_memory, duration, status_line
from train.run.metrics import MetricsLog, read_metrics
from train.run.progress import Progress
from train.run.trainer import Score
from train.step.train_step import Metrics

event_pb2: Any = protocol  # its names are made at run time


def strict(path: Path) -> list[dict]:
    """The lines of a file, by a parser that takes nothing but JSON."""

    def refuse(text: str) -> None:
        raise AssertionError(f"{text} is no JSON")

    return [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]


def scalars(folder: Path) -> list[tuple[int, str, float]]:
    """(step, name, value) of TensorBoard's events, read as its format says: length, checksum,
    event, checksum.
    """
    found = []
    for path in sorted((folder / "tensorboard").iterdir()):
        data, position = path.read_bytes(), 0
        while position < len(data):
            (length,) = struct.unpack_from("<Q", data, position)
            event = event_pb2.Event.FromString(data[position + 12 : position + 12 + length])
            found += [(event.step, v.tag, v.simple_value) for v in event.summary.value]
            position += 12 + length + 4
    return found


def test_one_seed_has_a_line_an_epoch():
    runs = [{"train_loss": 0.05, "loss": 0.0287, "error": 0.0111, "best_error": 0.0083}]
    line = status_line(
        epoch=30.02, step=337, runs=runs, images_per_second=12345.6, elapsed=36.2, left=125
    )
    assert line == (
        "epoch  30.02  step    337  train loss 0.0500  test loss 0.0287  test error   1.11%  "
        "best   0.83%  12,346 images/s    36 s, 2 min 05 s left"
    )


def test_several_seeds_have_one_line_of_means_and_ranges():
    runs = [
        {"loss": loss, "error": error, "best_error": error, "ema_error": error / 2}
        for loss, error in ((1.0, 0.50), (2.0, 0.60), (3.0, 0.70))
    ]
    line = status_line(epoch=1, step=10, runs=runs, images_per_second=10, elapsed=1)
    assert "test loss 2.0000" in line
    assert "test error  60.00% (50.00%-70.00%)" in line
    assert "averaged  30.00% (25.00%-35.00%)" in line
    assert "best  60.00% (50.00%-70.00%)" in line
    assert "left" not in line
    assert "\n" not in line


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (99.4, "99 s"),
        (99.6, "1 min 40 s"),
        (3599.4, "59 min 59 s"),
        (3599.6, "1 h 00 min"),
        (200_000, "55 h 33 min"),
    ],
)
def test_durations_are_read_at_a_glance(seconds, text):
    assert duration(seconds) == text


def test_a_number_that_json_has_not_is_null(tmp_path):
    with MetricsLog(tmp_path, start_step=0) as log:
        log.write(1, "train", {"loss": math.nan, "error": np.float32(0.5).item()})
        log.write(2, "test", {"loss": math.inf, "error": 1.0})
    assert strict(tmp_path / "metrics.jsonl") == [
        {"step": 1, "kind": "train", "loss": None, "error": 0.5},
        {"step": 2, "kind": "test", "loss": None, "error": 1.0},
    ]


def test_a_resumed_log_has_neither_gap_nor_repeat(tmp_path):
    with MetricsLog(tmp_path, start_step=0) as log:
        for step in (1, 2, 3, 4):
            log.write(step, "train", {"loss": 1 / step})
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes() + b'[]\n\xff\x00\n{"step": 5, "kind": "tr')
    with MetricsLog(tmp_path, start_step=2) as log:
        for step in (3, 4, 5):
            log.write(step, "train", {"loss": 1 / step})
    expected = [(step, 1 / step) for step in (1, 2, 3, 4, 5)]
    assert [(line["step"], line["loss"]) for line in strict(path)] == expected
    assert read_metrics(path) == strict(path)


def test_tensorboard_gets_every_number_and_where_it_goes_on(tmp_path):
    with MetricsLog(tmp_path, start_step=7) as log:
        log.write(8, "train", {"loss": 0.5, "error": 0.25})
        written = scalars(tmp_path)  # before the log is closed
    assert written == [(8, "train/loss", 0.5), (8, "train/error", 0.25)]
    (path,) = (tmp_path / "tensorboard").iterdir()
    start = event_pb2.Event(session_log=event_pb2.SessionLog(status=1)).session_log
    assert start.SerializeToString() in path.read_bytes()


def test_several_runs_have_a_log_each_and_other_processes_none(tmp_path):
    folders = [tmp_path / name for name in ("seed-1", "seed-2", "other")]
    for folder in folders:
        folder.mkdir()
    logs = [MetricsLog(f, start_step=0, enabled=f.name != "other") for f in folders]
    for number, log in enumerate(logs):
        log.write(1, "train", {"loss": float(number)})
    for log in logs:
        log.close()
    assert [strict(f / "metrics.jsonl")[0]["loss"] for f in folders[:2]] == [0.0, 1.0]
    assert not any(folders[2].iterdir())


def test_a_full_disk_ends_the_log_with_an_error(tmp_path):
    """By a limit on the size of files, which a write exceeds as it does a disk."""
    code = """
import resource, signal, sys
from pathlib import Path
from train.run.metrics import MetricsLog
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
with MetricsLog(Path("."), start_step=0) as log:
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)
    for step in range(1000):
        log.write(step, "train", {name: 0.5 for name in sys.argv[2].split()})
"""
    # With many names the events outgrow the limit first, with one of many letters the lines.
    for names in (" ".join("abcdefghijklmnopqrstuvwxyz"), "x" * 1000):
        command = [sys.executable, "-c", code, "4000", names]
        result = subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False
        )
        assert result.returncode == 1
        assert "File too large" in result.stderr


DISPLAY = """
import sys, time
from train.run.display import Display
with Display(enabled=sys.argv[1] == "on") as display:
    display.say("reading [bold]images[/bold] of train[45000:]")
    display.begin(40, 10)
    display.show([{"loss": 1.0, "error": 0.5, "images_per_second": 2000.0},
                  {"loss": 2.0, "error": 0.3, "images_per_second": 2000.0}])
    for step in range(11, 41):
        display.advance(step)
        time.sleep(0.01)
    display.say("done")
"""


def shown(enabled: str, *, terminal: bool) -> str:
    """What the display writes on a terminal of 120 columns, or into a pipe."""
    command = [sys.executable, "-c", DISPLAY, enabled]
    if not terminal:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout
    ours, theirs = pty.openpty()
    environment = {**os.environ, "COLUMNS": "120", "TERM": "xterm-256color"}
    with Process(command, stdout=theirs, env=environment) as process:
        os.close(theirs)
        output = b""
        while True:
            try:
                part = os.read(ours, 10_000)
            except OSError:  # the other side is closed
                break
            output += part
        assert process.wait() == 0
    os.close(ours)
    return output.decode()


def test_a_terminal_has_a_bar_with_speed_loss_error_and_time_left():
    output = shown("on", terminal=True)
    text = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", output)
    assert "training" in text
    assert "40/40" in text
    assert "loss 1.500 error 40.0% 2,000 images/s" in text
    assert re.search(r"\d:\d\d:\d\d", text)
    assert "[bold]images[/bold] of train[45000:]" in text  # no markup


def test_a_pipe_has_plain_lines_and_other_processes_are_silent():
    lines = "reading [bold]images[/bold] of train[45000:]\ndone\n"
    assert shown("on", terminal=False) == lines
    assert shown("off", terminal=False) == ""
    assert shown("off", terminal=True) == ""


def test_a_pipe_has_a_line_a_minute(capsys, monkeypatch):
    """Between two tests of the weights, and none where there was any other line."""
    now = 100.0
    monkeypatch.setattr("train.run.display.time.perf_counter", lambda: now)
    run: Any = types.SimpleNamespace(seed=1, best_error=0.3, log=lambda *line: None)
    trainer: Any = types.SimpleNamespace(
        config=Config(log_every_steps=1000), dataset=None, total_steps=41, epoch=float
    )
    display = Display()
    display.begin(41)
    progress = Progress(trainer, [run], display, diverged=(), first_step=0, start_time=now)
    lines = []
    for step in range(1, 42):  # ten seconds each
        progress.step(step, Metrics(*map(np.float32, (1.5, 0.25, 0))))  # type: ignore[arg-type]
        now += 10
        if step == 9:
            display.say("something else")
        lines.append(capsys.readouterr().out)
    assert "first step done" in lines[0]
    said = [step for step, line in enumerate(lines, start=1) if line]
    assert said == [1, 7, 9, 16, 22, 28, 34, 40]
    assert "step      7  train loss 1.5000  train error  25.00%  13 images/s" in lines[6]
    assert lines[6].endswith("60 s, 5 min 40 s left\n")


def test_a_bar_begins_anew_for_the_next_seed(capsys):
    with Display() as display:
        display.begin(10)
        display.advance(10)
        display.begin(20, 5, title="seed 222")
        display.advance(6)
        display.say("still there")
    assert capsys.readouterr().out == "still there\n"


def test_a_stopwatch_foretells_by_the_pace_so_far(monkeypatch):
    now = 100.0
    monkeypatch.setattr("train.run.display.time.perf_counter", lambda: now)
    watch = Stopwatch()
    assert watch.left(0, 10) is None
    now = 104.0
    assert watch.read(200) == pytest.approx(50)
    assert watch.left(2, 10) == pytest.approx(16)
    now = 105.0
    assert watch.read(300) == pytest.approx(100)


def test_a_stopwatch_counts_no_pause_into_a_rate_but_into_the_pace(monkeypatch):
    now = 100.0
    monkeypatch.setattr("train.run.display.time.perf_counter", lambda: now)
    watch = Stopwatch()
    now = 101.0
    with watch.paused():
        now = 191.0
    now = 192.0
    assert watch.rate(200) == watch.read(200) == pytest.approx(100)
    assert watch.left(2, 4) == pytest.approx(92)
    now = 193.0
    assert watch.rate(500) == pytest.approx(300)


def test_memory_is_that_of_the_process_where_the_device_does_not_tell():
    import psutil

    match = re.fullmatch(r"(\d+\.\d\d) GB of memory in the process", describe_memory())
    assert match
    assert float(match[1]) * 1e9 == pytest.approx(psutil.Process().memory_info().rss, rel=0.1)


@pytest.mark.slow
def test_weights_and_biases_gets_the_metrics_and_goes_on_under_its_id(tmp_path):
    """Offline: what it would send lies in the run's folder."""
    pytest.importorskip("wandb")
    code = """
import sys
from pathlib import Path
from train.config import Config
from train.run.metrics import MetricsLog
start, folders = int(sys.argv[1]), [Path("seed-1"), Path("seed-2")]
logs = [MetricsLog(f, start_step=start, config=Config(wandb="resnets")) for f in folders]
for log in logs:
    log.write(start + 1, "train", {"loss": float("nan"), "a_number": 0.123456})
    log.close()
"""
    folders = [tmp_path / "seed-1", tmp_path / "seed-2"]
    for folder in folders:
        folder.mkdir()
    ids = []
    for start in ("0", "1"):
        subprocess.run(
            [sys.executable, "-W", "error", "-c", code, start],
            cwd=tmp_path,
            env={**os.environ, "WANDB_MODE": "offline"},
            check=True,
        )
        ids.append([(folder / "wandb_id").read_text().strip() for folder in folders])
    assert ids[0] == ids[1]
    assert ids[0][0] != ids[0][1]
    for folder, run_id in zip(folders, ids[0], strict=True):
        files = sorted((folder / "wandb").glob(f"offline-run-*/run-{run_id}.wandb"))
        assert len(files) == 2
        for file in files:
            content = file.read_bytes()
            assert b"train/a_number" in content
            assert b"0.123456" in content
            assert b"resnets" in content
        assert [line["step"] for line in strict(folder / "metrics.jsonl")] == [1, 2]


def test_weights_and_biases_that_is_not_there_is_refused(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"flax-resnet\[wandb\]"):
        MetricsLog(tmp_path, start_step=0, config=Config(wandb="resnets"))


def test_the_best_is_that_of_the_weights_that_are_exported(tmp_path):
    """The averages, where a run keeps them, whatever the newest weights reach."""
    run: Any = types.SimpleNamespace(seed=1, best_error=0.3, log=lambda *line: None)
    trainer: Any = types.SimpleNamespace(
        config=Config(), dataset=types.SimpleNamespace(is_streamed=False), total_steps=9
    )
    trainer.epoch = float
    progress: Any = Progress(
        *(trainer, [run], Display(enabled=False)),
        **{"diverged": (), "first_step": 0, "start_time": 0},
    )
    newest, average = Score(1.0, 0.1, 10), Score(1.0, 0.2, 10)
    assert progress.test(3, [newest], [average]) == [0.2]
    assert progress.test(4, [newest], None) == [0.1]
