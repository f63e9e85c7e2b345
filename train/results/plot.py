"""Training curves as one picture: loss, error and learning rate, mean and range over the seeds."""

import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps, rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from train.results.curves import Curve, curve, line_name
from train.results.groups import Group
from train.results.render import tested_on

FORMATS = ("png", "svg")
# Okabe & Ito 2008, which colour-blind readers can tell apart, without black and yellow. More lines
# than these take their colours from a scale of rising lightness.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_STYLE: Any = {
    "svg.fonttype": "none",  # text as text
    "svg.hashsalt": "flax-resnet",  # the same names in every file
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.3,
}
_TRAINING: Any = {"linestyle": "--", "linewidth": 1, "alpha": 0.8}
_RATES_SHOWN = 1e-3  # lowest learning rate, as a fraction of the highest: a cosine ends at zero
_TICKS = (1, 2, 5)  # of each power of ten
_LEGEND_COLUMNS = 4


def draw(groups: Sequence[Group]) -> dict[str, bytes]:
    """The picture in every format, format -> bytes; equal curves give equal bytes.

    All scales are logarithmic, over epochs. Tests are solid lines, with a band from the lowest to
    the highest value of the seeds; training is dashed.
    """
    with rc_context(_STYLE):
        legend = _legend_entries(groups)
        height = 4.0 + 0.2 * math.ceil(len(legend) / _LEGEND_COLUMNS)
        figure = Figure(figsize=(11, height), dpi=160, layout="constrained")
        FigureCanvasAgg(figure)
        loss, error, rate = figure.subplots(1, 3)
        widths = np.linspace(1.6, 4.5, len(groups))[::-1]  # equal schedules do not hide each other
        for group, colour, width in zip(groups, _colours(len(groups)), widths, strict=True):
            for axes, name in ((loss, "loss"), (error, "error")):
                unit = 100 if name == "error" else 1
                _line(axes, curve(group, "train", name), colour, unit, **_TRAINING)
                _line(axes, curve(group, "test", name), colour, unit, has_band=True)
            rates = curve(group, "train", "learning_rate", is_exact=True)
            _line(rate, rates, colour, linewidth=width)
        _finish(loss, "Loss", "cross-entropy (nats)")
        _finish(error, "Error", "wrong images (%)", top=100)
        _finish(rate, "Learning rate", "learning rate", shown=_RATES_SHOWN)
        tested = dict.fromkeys(tested_on(group) for group in groups)
        figure.suptitle("; ".join(tested), fontweight="bold")
        figure.legend(
            handles=legend, loc="outside lower center", ncols=_LEGEND_COLUMNS, frameon=False
        )
        return {name: _render(figure, name) for name in FORMATS}


def _colours(count: int) -> Any:
    if count <= len(_COLOURS):
        return _COLOURS[:count]
    return colormaps["viridis"](np.linspace(0, 0.9, count))


def _line(
    axes: Any, line: Curve, colour: Any, unit: float = 1, *, has_band: bool = False, **style: Any
) -> None:
    axes.plot(line.epochs, unit * line.mean, color=colour, **{"linewidth": 1.8, **style})
    if has_band:
        low, high = unit * line.low, unit * line.high
        axes.fill_between(line.epochs, low, high, color=colour, alpha=0.2, linewidth=0)


def _finish(axes: Any, title: str, unit: str, *, top: float = np.inf, shown: float = 0.0) -> None:
    """Sets scales and titles; `shown`: the lowest value shown, as a fraction of the highest."""
    axes.set(title=title, xlabel="epoch", ylabel=unit)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    # A mean of zero is not on the scale: its line leaves at the bottom.
    axes.set_yscale("log", nonpositive="clip")
    least, greatest = axes.get_ylim()
    greatest = min(greatest, top)
    axes.set_ylim(max(least, shown * greatest), greatest)
    axes.yaxis.set_major_locator(LogLocator(subs=_TICKS))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())


def _legend_entries(groups: Sequence[Group]) -> list[Line2D]:
    says_data = len({tested_on(group) for group in groups}) > 1
    entries = [
        Line2D([], [], color=colour, linewidth=1.8, label=line_name(group, says_data=says_data))
        for group, colour in zip(groups, _colours(len(groups)), strict=True)
    ]
    grey: Any = {"color": "0.3"}
    return [
        *entries,
        Line2D([], [], **grey, linewidth=1.8, label="test, with the range over seeds"),
        Line2D([], [], **grey, **_TRAINING, label="training, mean of an epoch's logged batches"),
    ]


def _render(figure: Figure, name: str) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format=name, metadata={"Date": None} if name == "svg" else None)
    return buffer.getvalue()
