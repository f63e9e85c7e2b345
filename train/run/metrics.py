"""The metrics of one run: JSON lines, TensorBoard events, and Weights & Biases where asked for."""

import contextlib
import json
import math
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from train.config import Config
from train.errors import UserError
from train.run.json_files import write_whole

FILE = "metrics.jsonl"
_WANDB_ID = "wandb_id"
_MOST = 2**63


class MetricsLog:
    """Writes what is measured in one run into its folder.

    A line of `metrics.jsonl` is `{"step": 100, "kind": "train", "loss": 0.5, ...}`, with `null` for
    NaN and infinity, which JSON lacks. Lines that an interrupted run left after `start_step` are
    dropped, so that a resumed run has neither gap nor repeat; so is a test of `start_step` itself,
    unless it `is_tested`. If not `enabled`, as in every process but the first, nothing is written.

    Raises:
        UserError: `config.wandb` asks for Weights & Biases, which is not installed or refuses.
        OSError: a file cannot be written, here or later: no run goes on without its metrics.
    """

    def __init__(
        self,
        folder: Path,
        *,
        start_step: int,
        is_tested: bool = True,
        config: Config | None = None,
        enabled: bool = True,
    ):
        self._sinks: list[_Sink] = []
        if not enabled:
            return
        with contextlib.ExitStack() as opened:  # closed again if a later one fails

            def add(sink: _Sink) -> None:
                self._sinks.append(opened.enter_context(contextlib.closing(sink)))

            if (
                config is not None and config.wandb is not None
            ):  # first, because it alone may refuse
                add(_WeightsAndBiases(folder, config.wandb, config))
            add(_Lines(folder, start_step, is_tested))
            add(_Events(folder, start_step))
            opened.pop_all()

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def write(self, step: int, kind: str, values: Mapping[str, float]) -> None:
        """Writes what was measured after `step` steps; `kind` is train or test."""
        for sink in self._sinks:
            sink.write(step, kind, values)

    def close(self) -> None:
        with contextlib.ExitStack() as closing:
            for sink in self._sinks:
                closing.callback(sink.close)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl`; none if there is no file.

    Truncated lines, and lines that are not metrics, are left out.
    """
    if not path.exists():
        return []
    lines = (_parse(line) for line in path.read_text(errors="replace").splitlines())
    return [line for line in lines if line is not None]


def _parse(line: str) -> dict[str, Any] | None:
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(fields, dict) or not isinstance(fields.get("kind"), str):
        return None
    if not isinstance(fields.get("step"), int):
        return None
    return fields if all(_is_number(v) for k, v in fields.items() if k != "kind") else None


def _is_number(value: Any) -> bool:
    """None stands for NaN and infinity; a whole number that int64 cannot hold is damage."""
    if isinstance(value, int) and not isinstance(value, bool):
        return abs(value) < _MOST
    return value is None or isinstance(value, float)


class _Sink(Protocol):
    def write(self, step: int, kind: str, values: Mapping[str, float]) -> None: ...
    def close(self) -> None: ...


class _Lines:
    """`metrics.jsonl`, cut after the lines of `start_step`."""

    def __init__(self, folder: Path, start_step: int, is_tested: bool):
        path = folder / FILE
        last = {"train": start_step, "test": start_step if is_tested else start_step - 1}
        kept = [
            line
            for line in read_metrics(path)
            if line["step"] <= last.get(line["kind"], start_step)
        ]
        write_whole(path, "".join(json.dumps(line) + "\n" for line in kept))
        self._file = path.open("a")

    def write(self, step: int, kind: str, values: Mapping[str, float]) -> None:
        finite = {k: v if math.isfinite(v) else None for k, v in values.items()}
        line = json.dumps({"step": step, "kind": kind, **finite}, allow_nan=False)
        self._file.write(line + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class _Events:
    """TensorBoard's events, written at once.

    `tensorboardX.SummaryWriter` writes them in a thread: if the disk is full, the thread ends, and
    the eleventh event after that waits for ever.

    The file is opened by the first event: tensorboardX imports torch, which no first step need
    wait for.
    """

    def __init__(self, folder: Path, start_step: int):
        self._folder = folder / "tensorboard"
        self._start_step = start_step
        self._writer: Any = None

    def write(self, step: int, kind: str, values: Mapping[str, float]) -> None:
        from tensorboardX.summary import scalar

        if self._writer is None:
            self._writer = self._open()
            start = self._protocol.SessionLog(status=self._protocol.SessionLog.START)
            # hides later steps of the earlier start
            self._write(step=self._start_step + 1, session_log=start)
        for name, value in values.items():
            self._write(step=step, summary=scalar(f"{kind}/{name}", value))
        self._writer.flush()

    def _open(self) -> Any:
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto import event_pb2

        self._folder.mkdir(exist_ok=True)
        self._protocol: Any = event_pb2  # its names are made at run time
        return EventsWriter(str(self._folder / "events"))

    def _write(self, **fields: Any) -> None:
        self._writer.write_event(self._protocol.Event(wall_time=time.time(), **fields))

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


class _WeightsAndBiases:
    """A run of Weights & Biases; a resumed run continues it, by the id in the folder.

    Its x axis is our step: steps that are repeated after an interruption are logged twice, with the
    same values at the same place.
    """

    def __init__(self, folder: Path, project: str, config: Config):
        try:
            import wandb
        except ModuleNotFoundError as error:
            raise UserError("--wandb needs the package: install flax-resnet[wandb]") from error
        path = folder / _WANDB_ID
        is_resumed = path.exists()
        run_id = path.read_text().strip() if is_resumed else uuid.uuid4().hex[:12]
        try:
            self._run = wandb.init(
                project=project,
                id=run_id,
                name=folder.name,
                dir=folder,
                config=config.to_json(),
                resume="allow" if is_resumed else None,
                reinit="create_new",  # several runs at once
                settings=wandb.Settings(console="off", silent=True),
            )
        except (wandb.Error, ValueError) as error:
            raise UserError(
                f"--wandb {project}: {error} (log in by `wandb login`, or set WANDB_MODE=offline)"
            ) from error
        write_whole(path, run_id + "\n")
        self._run.define_metric("*", step_metric="step")

    def write(self, step: int, kind: str, values: Mapping[str, float]) -> None:
        self._run.log({"step": step, **{f"{kind}/{name}": v for name, v in values.items()}})

    def close(self) -> None:
        self._run.finish()
