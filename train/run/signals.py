"""SIGTERM and SIGINT stop a run after the current step."""

import signal
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from train.errors import StoppedError
from train.step import processes

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopSignals:
    """Notes the first signal while the context lasts; a second SIGINT interrupts at once.

    Attributes:
        received: the signal's name, None before one comes.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():  # others may not
            self._before = {number: signal.signal(number, self._note) for number in _SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
            outer = getattr(handler, "__self__", None)
            if isinstance(outer, StopSignals):  # around several runs, of which this was one
                outer.received = outer.received or self.received

    def asker(self) -> Callable[[], Any]:
        """A function for all processes to call: whether any got a signal, see `any_process`."""
        ask_all = processes.any_process()
        return lambda: ask_all(self.received is not None)

    def ends_alone(self) -> bool:
        """Whether a signal came, and no other process of this run has to know."""
        return self.received is not None and processes.is_only_process()

    def stopped(self, when: str, folder: Path) -> StoppedError:
        """The error to raise for the signal, for a run in `folder`."""
        whose = self.received or "another process"
        return StoppedError(f"stopped by {whose} {when}: go on with --resume --run-dir {folder}")

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signal.Signals(number).name
