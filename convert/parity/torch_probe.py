"""Reads the outputs of a torch network's layers by forward hooks."""

import contextlib
import copy
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
    LEARNING_RATE,
    MOMENTUM,
    WEIGHT_DECAY,
    Arrays,
    Layer,
    Loss,
    Sections,
    first_array,
    flatten_output,
    kind_of,
    layers_of,
)

Change = Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]
"""What a call of a torch function returns instead, from function and arguments, or None."""

_NORMS = nn.modules.batchnorm._BatchNorm
_DROPOUTS = nn.modules.dropout._DropoutNd
_DROPS_BRANCHES = {"StochasticDepth": ("rate", "p"), "DropPath": ("drop_prob",)}
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
            elif isinstance(module, nn.MultiheadAttention):
                module.dropout = 0.0
            for name in _DROPS_BRANCHES.get(type(module).__name__, ()):
                if hasattr(module, name):
                    setattr(module, name, 0.0)
        self._model.zero_grad(set_to_none=True)
        self._model.requires_grad_(True)
        self._ran: list[str] = []
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
        with torch.no_grad(), self._recording() as activations:
            output = self._model(self._input(images))
            activations |= {n: _copied(t) for n, t in flatten_output(output).items()}
        self._ran = list(activations)
        return {"eval": activations}

    def train(self, images: np.ndarray, loss: Loss) -> Sections:
        with self._restoring(), self._recording() as activations:
            outputs = self._forward_and_backward(images, loss)
            activations |= {name: _copied(tensor) for name, tensor in outputs.items()}
            gradients = self._named(
                (name, torch.zeros_like(p) if p.grad is None else p.grad)
                for name, p in self._parameters()
            )
            statistics = self._statistics()
        self._model.zero_grad(set_to_none=True)
        return {"train": activations, "gradients": gradients, "statistics": statistics}

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
        with self._restoring(), torch.no_grad(), self._recording(until) as activations:
            mode = _Changed(change, lambda: after is None or after in activations)
            refused = _EndedError, RuntimeError, ValueError  # of shapes or values that do not fit
            with mode, contextlib.suppress(*refused):
                output = self._model(self._input(images))
                activations |= {n: _copied(t) for n, t in flatten_output(output).items()}
            return activations.get(until), self._statistics()

    def _forward_and_backward(self, images: np.ndarray, loss: Loss) -> dict[str, torch.Tensor]:
        self._model.train()
        try:
            outputs = flatten_output(self._model(self._input(images)))
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise ConversionError(
                "BatchNorm in training needs more than one value per channel: compare on more "
                f"images, or larger ones (--batch, --size): {error}"
            ) from error
        _value(loss, outputs).backward()
        return outputs

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
    def _recording(self, until: str = "") -> Iterator[Arrays]:
        """Fills a dict with each layer's output; of a layer called twice, the last.

        Dropout and layers that return their input are left out. The layer `until` ends the run.
        """
        activations: Arrays = {}
        with contextlib.ExitStack() as stack:
            for name, module in self._model.named_modules():
                if name and not isinstance(module, _DROPOUTS):
                    hook = _recorder(activations, name, until)
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


def _recorder(activations: Arrays, name: str, until: str) -> Any:
    def record(module: nn.Module, inputs: Any, output: Any) -> None:
        is_identity = len(inputs) > 0 and output is inputs[0]
        output = first_array(output)
        if isinstance(output, torch.Tensor) and not is_identity:
            activations[name] = _copied(output)
        if name == until:
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
