"""Tries the usual mistakes of a port where two networks first differ."""

import functools
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from convert.parity.axes import nearest
from convert.parity.comparison import ACTIVATIONS, BIASED, Hint, Row, layer_of, measure
from convert.parity.pairing import Pairing
from convert.parity.probe import Arrays, Sections

if TYPE_CHECKING:
    from convert.parity.causes import Cause
    from convert.parity.torch_probe import TorchProbe

_MOST_BRANCHES = 3  # layers before the one that differs, after which a mistake is tried


@dataclass(frozen=True)
class Search:
    """The torch network of two, to be run again with one mistake after the other.

    Attributes:
        probe: of it, in float64.
        side: which of the two it is.
        pairing: of their layers.
        images: as both got them.
        title: its name.
    """

    probe: "TorchProbe"
    side: int
    pairing: Pairing
    images: np.ndarray
    title: str

    def explain(
        self, section: str, rows: Sequence[Row], results: tuple[Sections, Sections]
    ) -> tuple[Hint, ...]:
        """The mistakes with which the first difference of a section is gone, each alone or two.

        Args:
            section: a key of `SECTIONS`: activations or statistics.
            rows: of the section.
            results: of both, under the first one's names; of the section and of its activations.
        """
        from convert.parity.causes import causes, causes_of_statistics

        first = next((row for row in rows if row.differs and not row.is_counter), None)
        if first is None or (np.isinf(first.exact.absolute) and first.note.startswith("shape")):
            return ()
        if section in ACTIVATIONS:
            layer, differing = first.name, [first]
            tries: Sequence[tuple[Cause, ...]] = [(cause,) for cause in causes()]
        else:
            layer = layer_of(first.name)
            differing = [row for row in rows if row.differs and layer_of(row.name) == layer]
            tries = list(causes_of_statistics())
        expected = results[1 - self.side][section]
        for run in self._runs(section, layer, results):
            called: set[str] = set()
            run(_noting(called))
            found: list[Hint] = []
            for tried in tries:
                if called.isdisjoint(tried[0].functions):
                    continue
                arrays = run(_in_turn(tried))
                if all(_agrees(arrays.get(row.name), expected[row.name], row) for row in differing):
                    found += [Hint(layer, c.name, self._sentence(tried, layer)) for c in tried]
                    if section not in ACTIVATIONS:
                        break
            if found:
                return tuple(found)
        return ()

    def name_biased(
        self,
        rows: Sequence[Row],
        results: tuple[Sections, Sections],
        allowed: Collection[str],
    ) -> tuple[Row, ...]:
        """Rows of statistics, in which a biased running variance is named, and allowed."""
        from convert.parity.causes import BIASED_VARIANCE

        if not any(row.differs and row.name.endswith("running_var") for row in rows):
            return tuple(rows)
        _, arrays = self.probe.changed(
            self.images, BIASED_VARIANCE.change, after=None, until="", train=True
        )
        arrays, expected = self._named(arrays), results[1 - self.side]["statistics"]
        return tuple(
            replace(row, note=BIASED, is_allowed=BIASED in allowed)
            if row.differs
            and row.name.endswith("running_var")
            and _agrees(arrays.get(row.name), expected[row.name], row)
            else row
            for row in rows
        )

    def _runs(
        self, section: str, layer: str, results: tuple[Sections, Sections]
    ) -> "Iterator[Callable[[Callable[..., Any]], Arrays]]":
        """Runs of the part between a layer before and the end of this one.

        The nearest layer comes first. Those before it follow, as it may be of another branch: an
        embedding of positions runs between a pool and the layer that takes both.
        """
        mode = section if section in ACTIVATIONS else "train"
        own, others = results[self.side][mode], results[1 - self.side][mode]
        order = [name for name in own if name in others]
        place = order.index(layer) if layer in order else 0
        before = [self._own_name(name) for name in reversed(order[:place])]
        starts = before[:_MOST_BRANCHES] if place > _MOST_BRANCHES else [*before, None]

        def run(after: str | None, change: Any) -> Arrays:
            output, statistics = self.probe.changed(
                self.images, change, after=after, until=self._own_name(layer), train=mode == "train"
            )
            if section not in ACTIVATIONS:
                return self._named(statistics)
            return {} if output is None else {layer: output}

        return (functools.partial(run, after) for after in starts)

    def _own_name(self, layer: str) -> str:
        if self.side == 0 or self.pairing.layers is None:
            return layer
        return next((n for n, ours in self.pairing.layers.items() if ours == layer), layer)

    def _named(self, arrays: Arrays) -> Arrays:
        return self.pairing.tensors(arrays) if self.side else arrays

    def _sentence(self, tried: "tuple[Cause, ...]", layer: str) -> str:
        texts = " and ".join(cause.text for cause in tried)
        return f"with {texts} in {self.title}, {layer} no longer differs"


def _in_turn(tried: "tuple[Cause, ...]") -> Callable[..., Any]:
    """The change of one cause, or of two: the second one's of what the first one calls."""
    first, *others = tried
    if not others:
        return first.change
    second = others[0].change

    def change(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        @functools.wraps(func)
        def changed(*args: Any, **kwargs: Any) -> Any:
            result = second(func, args, kwargs)
            return func(*args, **kwargs) if result is None else result

        return first.change(changed, args, kwargs)

    return change


def _noting(called: set[str]) -> Callable[..., Any]:
    from convert.parity.causes import function_name

    def change(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        called.add(function_name(func))

    return change


def _agrees(array: np.ndarray | None, expected: np.ndarray, row: Row) -> bool:
    if array is None or not (np.isfinite(array).all() and np.isfinite(expected).all()):
        return False
    turned, _ = nearest(array, expected)
    return measure(turned, expected).relative <= row.tolerance
