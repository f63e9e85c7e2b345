"""Reads the outputs of a torch network's layers by forward hooks."""

import contextlib
import copy
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from convert.arrays import is_counter, is_floating, to_numpy
from convert.errors import ConversionError
from convert.parity.precision import DTYPES, Device, Precision
from convert.parity.probe import (
    DROPS_BRANCHES,
    LEARNING_RATE,
    MOMENTUM,
    WEIGHT_DECAY,
    Arrays,
    Layer,
    Loss,
    Sections,
    beside_logits,
    end_with,
    first_array,
    flatten_output,
    kind_of,
    layers_of,
)

Change = Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]
"""What a call of a torch function returns instead, from function and arguments, or None."""

_NORMS = nn.modules.batchnorm._BatchNorm
_DROPOUTS = nn.modules.dropout._DropoutNd
# Functions that draw at random; attention has a rate among its arguments.
_DRAWS = re.compile(r"(feature_)?(alpha_)?dropout[123]?d?_?")
_ATTENDS = "scaled_dot_product_attention"
# One tensor of torch's attention is three of Flax's.
_ATTENTION = {"in_proj_weight": "weight", "in_proj_bias": "bias"}
_PARTS = ("query", "key", "value")


class TorchProbe:
    """A copy of a torch model; see `Probe`."""

    def __init__(self, model: nn.Module, precision: Precision, device: Device):
        self._device = torch.device("cuda" if device == "gpu" else "cpu")
        self._dtype = getattr(torch, DTYPES[precision])
        self._model = copy.deepcopy(model).to(self._device, self._dtype)
        self._attentions = {
            name for name, m in self._model.named_modules() if isinstance(m, nn.MultiheadAttention)
        }
        for module in self._model.modules():
            if isinstance(module, _NORMS) and self._dtype == torch.bfloat16:
                module.float()  # as in the Flax twin: statistics are at least float32
            elif isinstance(module, _DROPOUTS):
                module.p = 0.0
            elif isinstance(module, nn.MultiheadAttention | nn.RNNBase):
                module.dropout = 0.0
            for name in DROPS_BRANCHES.get(type(module).__name__, ()):
                if hasattr(module, name):
                    setattr(module, name, 0.0)
        self._model.zero_grad(set_to_none=True)
        self._model.requires_grad_(True)
        self._ran: list[str] = []
        self._calls: dict[str, int] = {}  # of each layer, in eval mode
        self.outputs, self.beside_logits = (), ()
        self._given = model.state_dict()

    def layers(self) -> list[Layer]:
        modules = dict(self._model.named_modules())
        kinds = {name: kind_of(type(modules[name])) for name in self._ran if name in modules}
        return layers_of(kinds, self.weights())

    def weights(self) -> Arrays:
        return self._named(_weights(self._model.state_dict()))

    def given(self) -> Arrays:
        return self._named(_weights(self._given))

    def tied(self) -> dict[str, frozenset[str]]:
        names: dict[int, list[str]] = {}
        for name, parameter in self._parameters():
            names.setdefault(id(parameter), []).extend(self._parts(name))
        return {n: frozenset(group) for group in names.values() if len(group) > 1 for n in group}

    def _parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """By every name: a tied one has more than one."""
        return self._model.named_parameters(remove_duplicate=False)

    def load(self, weights: Arrays) -> None:
        with torch.no_grad():
            for name, tensor in self._model.state_dict().items():
                names = self._parts(name)
                if weights.keys() >= {*names}:
                    parts = [np.atleast_1d(weights[part]) for part in names]
                    array = np.concatenate(parts).reshape(tensor.shape)
                    tensor.copy_(torch.from_numpy(array))

    def evaluate(self, images: np.ndarray) -> Sections:
        self._model.eval()
        self._calls = {}
        with torch.no_grad(), self._recording(calls=self._calls) as activations:
            output = self._call(images)
            outputs = {n: _copied(t) for n, t in flatten_output(output).items()}
        self.outputs, self.beside_logits = tuple(outputs), beside_logits(output)
        self._ran = [name for name in activations if name not in outputs]
        return {"eval": end_with(activations, outputs)}

    def train(self, images: np.ndarray, loss: Loss) -> Sections:
        with self._restoring(), self._recording() as activations:
            outputs = self._forward_and_backward(images, loss)
            returned = {name: _copied(tensor) for name, tensor in outputs.items()}
            gradients = self._named(
                (name, torch.zeros_like(p) if p.grad is None else p.grad)
                for name, p in self._parameters()
            )
            statistics = self._statistics()
        self._model.zero_grad(set_to_none=True)
        trained = end_with(activations, returned)
        return {"train": trained, "gradients": gradients, "statistics": statistics}

    def steps(self, images: np.ndarray, loss: Loss, count: int) -> Sections:
        optimizer = torch.optim.SGD(
            self._model.parameters(),
            lr=LEARNING_RATE,
            momentum=MOMENTUM,
            weight_decay=WEIGHT_DECAY,
        )
        for _ in range(count):
            optimizer.zero_grad()
            self._forward_and_backward(images, loss)
            optimizer.step()
        return {"steps": self._named(self._parameters())}

    def changed(
        self, images: np.ndarray, change: Change, *, after: str | None, until: str, train: bool
    ) -> tuple[np.ndarray | None, Arrays]:
        """The output of the layer `until`, and all statistics, if torch computed otherwise.

        Args:
            images: as `evaluate` takes them.
            change: of the functions that are called in between.
            after: the layer after whose end it begins; None: with the first.
            until: the layer with whose end it ends, and the run; "": when the network returns.
            train: the mode.
        """
        self._model.train(train)
        activations: Arrays
        calls: dict[str, int] = {}
        with self._restoring(), torch.no_grad(), self._recording(until, calls) as activations:

            def is_on() -> bool:
                return after is None or calls.get(after, 0) >= self._calls.get(after, 1)

            refused = _EndedError, RuntimeError, ValueError  # of shapes or values that do not fit
            with contextlib.suppress(*refused):
                output = self._call(images, _Changed(change, is_on))
                activations |= {n: _copied(t) for n, t in flatten_output(output).items()}
            return activations.get(until), self._statistics()

    def _forward_and_backward(self, images: np.ndarray, loss: Loss) -> dict[str, torch.Tensor]:
        self._model.train()
        try:
            outputs = flatten_output(self._call(images))
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise ConversionError(
                "BatchNorm in training needs more than one value per channel: compare on more "
                f"images, or larger ones (--batch, --size): {error}"
            ) from error
        _value(loss, outputs).backward()
        return outputs

    def _call(self, images: np.ndarray, changed: "_Changed | None" = None) -> Any:
        """What the network returns, without random draws."""
        with _Undropped(), changed or contextlib.nullcontext():
            return self._model(self._input(images))

    def _input(self, images: np.ndarray) -> torch.Tensor:
        if images.ndim == 4:
            images = images.transpose(0, 3, 1, 2)
        tensor = torch.from_numpy(np.ascontiguousarray(images)).to(self._device)
        return tensor.to(self._dtype) if is_floating(images.dtype) else tensor

    def _parts(self, name: str) -> list[str]:
        """Names of the arrays of a tensor: of torch's attention, as in Flax, three."""
        layer, _, leaf = name.rpartition(".")
        if layer in self._attentions and leaf in _ATTENTION:
            return [f"{layer}.{part}.{_ATTENTION[leaf]}".lstrip(".") for part in _PARTS]
        parent, _, last = layer.rpartition(".")
        if last == "out_proj" and parent in self._attentions:
            return [f"{parent}.out.{leaf}".lstrip(".")]
        return [name]

    def _named(self, tensors: Iterable[tuple[str, torch.Tensor]]) -> Arrays:
        arrays: Arrays = {}
        for name, tensor in tensors:
            names, array = self._parts(name), to_numpy(tensor)
            pieces = np.split(array, len(names)) if len(names) > 1 else [array]
            arrays |= dict(zip(names, pieces, strict=True))
        return arrays

    def _statistics(self) -> Arrays:
        return {n: np.array(to_numpy(tensor)) for n, tensor in self._model.named_buffers()}

    @contextlib.contextmanager
    def _restoring(self) -> Iterator[None]:
        """Gives statistics the values that they had."""
        before = [(tensor, tensor.clone()) for tensor in self._model.buffers()]
        try:
            yield
        finally:
            with torch.no_grad():
                for tensor, value in before:
                    tensor.copy_(value)

    @contextlib.contextmanager
    def _recording(self, until: str = "", calls: dict[str, int] | None = None) -> Iterator[Arrays]:
        """Fills a dict with each layer's output; of a layer called twice, the last.

        Dropout and layers that return their input are left out. The last call of the layer `until`
        ends the run. `calls` counts those of each layer.
        """
        activations: Arrays = {}
        calls = {} if calls is None else calls
        last = self._calls.get(until, 1)
        with contextlib.ExitStack() as stack:
            for name, module in self._model.named_modules():
                if name and not isinstance(module, _DROPOUTS):
                    hook = _recorder(activations, calls, name, last if name == until else None)
                    stack.callback(module.register_forward_hook(hook).remove)
            yield activations


def _weights(state: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
    """Parameters and statistics; not tables of indices, which a port has elsewhere."""
    for name, tensor in state.items():
        if tensor.dtype.is_floating_point or is_counter(name):
            yield name, tensor


class _EndedError(Exception):
    """The layer that was wanted has run."""


class _Changed(TorchFunctionMode):
    """Calls of torch's functions return what `change` says, while `is_on()`."""

    def __init__(self, change: Change, is_on: Callable[[], bool]):
        super().__init__()
        self._change, self._is_on = change, is_on

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        changed = self._change(func, args, kwargs) if self._is_on() else None
        return func(*args, **kwargs) if changed is None else changed


class _Undropped(TorchFunctionMode):
    """Dropout by a function, not by a layer, returns its input; attention drops nothing."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        if _DRAWS.fullmatch(name):
            return args[0] if args else kwargs["input"]
        if name == _ATTENDS:
            args, kwargs = args[:4], kwargs | _attention_options(args) | {"dropout_p": 0.0}
        return func(*args, **kwargs)


def _attention_options(args: tuple[Any, ...]) -> dict[str, Any]:
    """Arguments of attention that are given by their place, after query, key, value and mask."""
    return dict(zip(("dropout_p", "is_causal"), args[4:], strict=False))


def _recorder(activations: Arrays, calls: dict[str, int], name: str, last: int | None) -> Any:
    """Records each call of a layer; that of number `last` ends the run."""

    def record(module: nn.Module, inputs: Any, output: Any) -> None:
        calls[name] = calls.get(name, 0) + 1
        is_identity = len(inputs) > 0 and output is inputs[0]
        output = first_array(output)
        if isinstance(output, torch.Tensor) and not is_identity:
            activations.pop(name, None)  # its place is that of the last call
            activations[name] = _copied(output)
        if calls[name] == last:
            raise _EndedError

    return record


def _copied(output: torch.Tensor) -> np.ndarray:
    return to_numpy(output).copy()  # the next layer may be a ReLU that works in place


def _value(loss: Loss, outputs: dict[str, torch.Tensor]) -> torch.Tensor:
    floating = {n: t for n, t in outputs.items() if t.dtype.is_floating_point}
    values = [t.to(torch.promote_types(t.dtype, torch.float32)) for t in floating.values()]
    turned = [
        t.movedim(1, -1) if name in loss.channels_first else t
        for name, t in zip(floating, values, strict=True)
    ]
    shapes = [tuple(tensor.shape) for tensor in turned]
    loss.check(shapes)
    if loss.labels is not None:
        labels = torch.from_numpy(loss.labels).to(turned[0].device, torch.int64)
        return nn.functional.cross_entropy(turned[0], labels)
    weighted = zip(turned, loss.weights(shapes), strict=True)
    return torch.stack([(t * torch.from_numpy(w).to(t)).sum() for t, w in weighted]).sum()
