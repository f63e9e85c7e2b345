"""A plugin of pytest: the fixture `assert_same`, and pages of the comparisons that fail.

It imports no framework before the fixture is called, and nothing of ours: a start of pytest that
compares nothing costs nothing.
"""

import itertools
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from convert.parity import Report


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.getgroup("flax-resnet").addoption(
        "--parity-html",
        metavar="FOLDER",
        type=Path,
        help="write a page for each call of the fixture assert_same that fails",
    )


@pytest.fixture
def assert_same(request: pytest.FixtureRequest) -> "Callable[..., Report]":
    """`convert.parity.assert_same`, which also writes a page if `--parity-html` asks for it."""
    numbers = itertools.count(1)

    def check(*args: Any, **options: Any) -> "Report":
        __tracebackhide__ = True
        from convert import parity

        try:
            return parity.assert_same(*args, **options)
        except parity.ParityError as error:
            if folder := request.config.getoption("--parity-html"):
                folder = request.config.invocation_params.dir / folder
                folder.mkdir(parents=True, exist_ok=True)
                name = re.sub(r"[^\w.-]+", "_", request.node.nodeid)
                path = folder / f"{name}-{next(numbers)}.html"
                error.report.html(path)
                error.args = (f"{error}\n\npage: {path}",)
            raise

    return check
