"""SIGTERM and SIGINT as a wish to stop after the step that is under way."""

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
        if threading.current_thread() is threading.main_thread():  # no other may have handlers
            self._before = {number: signal.signal(number, self._note) for number in _SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
            outer = getattr(handler, "__self__", None)
            if isinstance(outer, StopSignals):  # of many runs, in which this one was
                outer.received = outer.received or self.received

    def asker(self) -> Callable[[], Any]:
        """Whether a signal came to any process; all of them must ask, see `any_process`."""
        ask_all = processes.any_process()
        return lambda: ask_all(self.received is not None)

    def ends_alone(self) -> bool:
        """Whether a signal came, and no other process has to know: asked where only one works."""
        return self.received is not None and processes.is_only_process()

    def stopped(self, when: str, folder: Path) -> StoppedError:
        """What to raise for it, of a run that is in `folder`."""
        whose = self.received or "another process"
        return StoppedError(f"stopped by {whose} {when}: go on with --resume --run-dir {folder}")

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signal.Signals(number).name
