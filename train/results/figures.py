"""The charts of a page as Plotly figures: training curves, and errors beside published ones.

A colour is the name of a CSS variable of the page, `var(--text)`, so that it follows the theme.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from train.results.curves import Curve, curve, line_name
from train.results.groups import Group

Figure = dict[str, Any]
"""`data` and `layout`, as plotly.js takes them."""

THEME_COLOURS = 6  # variables --line-0 to --line-5
_RATES_SHOWN = 1e-3  # lowest learning rate, as a fraction of the highest: a cosine ends at zero
_NUMBER = {"loss": ".4f", "error": ".2f", "learning_rate": ".3g"}
_UNIT = {"error": " %"}
_UNIFIED = 6  # more lines than these are named one at a time under the pointer
_ROW_HEIGHT, _FRAME_HEIGHT = 46, 130  # pixels of the chart of errors


def line_names(groups: Sequence[Group]) -> list[str]:
    """The name of each group's lines."""
    says_data = len({group.first.config.data for group in groups}) > 1
    return [line_name(group, says_data=says_data) for group in groups]


def colours(count: int) -> list[str]:
    """Of so many lines: those of the theme, or evenly spaced hues if they do not suffice."""
    if count <= THEME_COLOURS:
        return [f"var(--line-{number})" for number in range(count)]
    return [f"hsl({360 * number / count:.0f}, 65%, 48%)" for number in range(count)]


def curve_figure(groups: Sequence[Group], name: str) -> Figure:
    """The metric `name` over epochs: tests solid, with a band over the seeds, training dashed.

    A line's `legendgroup` is the number of its group. The learning rate is a training metric.
    """
    data: list[Figure] = []
    lows: list[float] = []
    factor = 100 if name == "error" else 1
    kinds = ("train",) if name == "learning_rate" else ("train", "test")
    known = list(zip(groups, line_names(groups), colours(len(groups)), strict=True))
    for number, (group, label, colour) in enumerate(known):
        for kind in kinds:
            points = curve(group, kind, name, is_exact=name == "learning_rate")
            is_main = kind == kinds[-1]
            style = {"width": 2} if is_main else {"width": 1.2, "dash": "dash"}
            text = f"%{{y:{_NUMBER[name]}}}{_UNIT.get(name, '')}<extra>{label}"
            line = {
                "x": _numbers(points.epochs),
                "y": _numbers(factor * points.mean),
                "line": {"color": colour, **style},
                "name": label if is_main else f"{label}, training",
                "hovertemplate": text + ("" if is_main else ", training") + "</extra>",
            }
            if is_main and np.any(points.high > points.low):
                data.append({"legendgroup": str(number), **_band(points, factor, colour)})
            data.append({"type": "scatter", "mode": "lines", "legendgroup": str(number), **line})
            lows += [value for value in line["y"] if value]
    axis: Figure = {"type": "log", "tickformat": "~g", "dtick": "D2", "title": {"text": ""}}
    if name == "learning_rate" and lows:
        shown = max(min(lows), _RATES_SHOWN * max(lows))
        axis["range"] = [math.log10(shown) - 0.1, math.log10(max(lows)) + 0.1]
    hover = "x unified" if len(groups) <= _UNIFIED else "closest"
    layout = _layout(yaxis=axis, hovermode=hover, hoverdistance=-1, height=340)
    return {"data": data, "layout": layout}


def _band(points: Curve, factor: float, colour: str) -> Figure:
    """The range over the seeds as an area; a value of zero is not on a logarithmic scale."""
    shown = np.isfinite(points.mean) & (points.high > 0)
    epochs, low, high = points.epochs[shown], points.low[shown], points.high[shown]
    low = np.maximum(low, np.min(high, initial=1.0) / 10)
    return {
        "type": "scatter",
        "mode": "lines",
        "x": _numbers(np.concatenate([epochs, epochs[::-1]])),
        "y": _numbers(factor * np.concatenate([high, low[::-1]])),
        "fill": "toself",
        "fillcolor": colour,
        "line": {"width": 0},
        "opacity": 0.18,
        "hoverinfo": "skip",
    }


def error_figure(groups: Sequence[Group]) -> Figure | None:
    """Each group's error with its standard error, beside the published ones; None if none has one.

    An open circle is no match for a published error: another schedule, or other test images.
    """
    measured = [group for group in groups if group.finished]
    if not measured:
        return None
    names = [_row_name(group) for group in measured]
    ours: dict[str, list[Any]] = {"x": [], "errors": [], "symbols": [], "texts": []}
    papers: dict[str, list[Any]] = {"x": [], "y": [], "errors": [], "texts": []}
    for group, name in zip(measured, names, strict=True):
        error, sampling = group.statistics("error"), group.standard_error()
        assert error is not None, "a finished run has an error"
        ours["x"].append(100 * error.mean)
        ours["errors"].append(100 * (sampling or 0))
        is_match = group.asked is not None and not group.is_scaled and not group.is_partial
        is_match = is_match and group.whole_test_size is not None
        ours["symbols"].append("circle" if is_match else "circle-open")
        of = f" over {group.first.test_images:,} images" if sampling else ""
        ours["texts"].append(f"{100 * error.mean:.2f} ± {100 * (sampling or 0):.2f} %{of}")
        for figure in group.published:
            papers["x"].append(figure.error)
            papers["y"].append(name)
            papers["errors"].append(figure.std or 0)
            papers["texts"].append(f"{figure} %")
    data = [
        {
            **_dots("published, ± standard deviation", "var(--published)", papers["texts"]),
            **{"x": papers["x"], "y": papers["y"]},
            "error_x": _bars(papers["errors"], "var(--published)"),
        },
        {
            **_dots("here, ± standard error", "var(--line-0)", ours["texts"]),
            **{"x": ours["x"], "y": names},
            "error_x": _bars(ours["errors"], "var(--line-0)"),
        },
    ]
    data[0]["marker"] |= {"symbol": "diamond", "size": 9}
    data[1]["marker"] |= {"symbol": ours["symbols"], "size": 12}
    rows: Figure = {
        **{"type": "category", "categoryarray": names[::-1], "categoryorder": "array"},
        **{"range": [-0.6, len(names) - 0.4], "fixedrange": True, "ticklabelstandoff": 8},
    }
    layout = _layout(yaxis=rows)
    layout["xaxis"] |= {"title": {"text": "error (%)"}}
    layout |= {"hovermode": "closest", "height": _FRAME_HEIGHT + _ROW_HEIGHT * len(names)}
    legend = {"orientation": "h", "x": 0, "y": 0, "yref": "container", "yanchor": "bottom"}
    layout |= {"showlegend": True, "legend": legend}
    layout["margin"] |= {"b": 70}
    return {"data": data if papers["x"] else data[1:], "layout": layout}


def _row_name(group: Group) -> str:
    """Two lines: the network, and what tells it from other rows."""
    epochs = f"{group.epochs:.4g}"
    if group.is_scaled:
        epochs += f" of {group.recipe_epochs:.4g}"
    options = {k: v for k, v in group.options.items() if not k.endswith(("steps", "epochs"))}
    more = [f"{epochs} epochs", *(f"{name} {value}" for name, value in options.items())]
    return f'{group.first.config.model}<br><span style="font-size:11px">{", ".join(more)}</span>'


def _dots(name: str, colour: str, texts: list[str]) -> Figure:
    return {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "marker": {"color": colour, "line": {"width": 2, "color": colour}},
        "text": texts,
        "hovertemplate": "%{text}<extra>%{y}</extra>",
    }


def _bars(lengths: list[float], colour: str) -> Figure:
    return {"array": lengths, "color": colour, "thickness": 1.5, "width": 5}


def _layout(yaxis: Figure, **others: Any) -> Figure:
    lines: Figure = {"gridcolor": "var(--grid)", "linecolor": "var(--grid)", "zeroline": False}
    return {
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"color": "var(--faint)", "family": "system-ui, sans-serif", "size": 12},
        "hoverlabel": {
            "bgcolor": "var(--card)",
            "bordercolor": "var(--grid)",
            "font": {"color": "var(--text)"},
            "namelength": -1,
        },
        "modebar": {
            "bgcolor": "rgba(0,0,0,0)",
            "color": "var(--faint)",
            "activecolor": "var(--text)",
        },
        "margin": {"l": 8, "r": 12, "t": 28, "b": 8},
        "xaxis": {**lines, "automargin": True, "rangemode": "tozero", "title": {"text": "epoch"}},
        "yaxis": {**lines, "automargin": True, **yaxis},
        "showlegend": False,
        "uirevision": "kept",
        **others,
    }


def _numbers(values: np.ndarray) -> list[float | None]:
    """Six significant digits; None where a value is no finite number."""
    return [float(f"{value:.6g}") if math.isfinite(value) else None for value in values.tolist()]
