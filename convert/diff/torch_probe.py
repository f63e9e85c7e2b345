"""Reads the outputs of a torch network's layers by forward hooks."""

import contextlib
import copy
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from convert.arrays import to_numpy
from convert.diff.precision import DTYPES, Device, Precision
from convert.diff.probe import OUTPUT, Arrays, Loss, Sections
from convert.errors import ConversionError
from torch_resnet import StochasticDepth

_NORMS = nn.modules.batchnorm._BatchNorm
_DROPOUTS = nn.modules.dropout._DropoutNd


class TorchProbe:
    """A copy of a torch model; see `Probe`."""

    def __init__(
        self,
        model: nn.Module,
        precision: Precision,
        device: Device,
        names: Mapping[str, str] | None,
    ):
        self._device = torch.device("cuda" if device == "gpu" else "cpu")
        self._dtype = getattr(torch, DTYPES[precision])
        self._model = copy.deepcopy(model).to(self._device, self._dtype)
        self._our_names = None if names is None else {their: our for our, their in names.items()}
        for module in self._model.modules():
            if isinstance(module, _NORMS) and self._dtype == torch.bfloat16:
                module.float()  # as in the Flax twin: statistics are at least float32
            elif isinstance(module, _DROPOUTS):
                module.p = 0.0
            elif isinstance(module, StochasticDepth):
                module.rate = 0.0
        self._model.zero_grad(set_to_none=True)
        self._model.requires_grad_(True)

    def evaluate(self, images: np.ndarray) -> Sections:
        self._model.eval()
        with torch.no_grad(), self._recording() as activations:
            _record_output(activations, self._model(self._input(images)))
        return {"eval": activations}

    def train(self, images: np.ndarray, loss: Loss) -> Sections:
        self._model.train()
        with self._recording() as activations:
            try:
                outputs = _record_output(activations, self._model(self._input(images)))
            except ValueError as error:
                if "more than 1 value per channel" not in str(error):
                    raise
                raise ConversionError(
                    "BatchNorm in training needs more than one value per channel: compare on more "
                    f"images, or larger ones (--batch, --size): {error}"
                ) from error
        _value(loss, outputs).backward()
        gradients = self._named(
            (name, torch.zeros_like(p) if p.grad is None else p.grad)
            for name, p in self._model.named_parameters()
        )
        statistics = self._named(self._model.named_buffers())
        return {"train": activations, "gradients": gradients, "statistics": statistics}

    def _input(self, images: np.ndarray) -> torch.Tensor:
        channels_first = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
        return torch.from_numpy(channels_first).to(self._device, self._dtype)

    def _our_name(self, layer: str) -> str | None:
        return layer if self._our_names is None else self._our_names.get(layer)

    def _named(self, tensors: Iterable[tuple[str, torch.Tensor]]) -> Arrays:
        """Tensors under our names, or under their own in layers that we have no name for."""
        arrays: Arrays = {}
        for name, tensor in tensors:
            layer, _, leaf = name.rpartition(".")
            arrays[f"{self._our_name(layer) or layer}.{leaf}"] = to_numpy(tensor)
        return arrays

    @contextlib.contextmanager
    def _recording(self) -> Iterator[Arrays]:
        """Fills a dict with each layer's output; of a layer called twice, the last.

        Dropout and layers that return their input are left out.
        """
        activations: Arrays = {}
        with contextlib.ExitStack() as stack:
            for their_name, module in self._model.named_modules():
                name = self._our_name(their_name)
                if name and not isinstance(module, _DROPOUTS):
                    hook = _recorder(activations, name)
                    stack.callback(module.register_forward_hook(hook).remove)
            yield activations


def _recorder(activations: Arrays, name: str) -> Any:
    def record(module: nn.Module, inputs: Any, output: Any) -> None:
        is_identity = len(inputs) > 0 and output is inputs[0]
        if isinstance(output, torch.Tensor) and not is_identity:
            activations[name] = _channels_last(output)

    return record


def _record_output(activations: Arrays, output: Any) -> torch.Tensor:
    """Records and returns the network's output; models of transformers return an object."""
    output = getattr(output, "logits", output)
    activations[OUTPUT] = _channels_last(output)
    return output


def _channels_last(output: torch.Tensor) -> np.ndarray:
    if output.ndim == 4:  # (n, c, h, w) -> (n, h, w, c)
        output = output.permute(0, 2, 3, 1)
    return to_numpy(output).copy()  # the next layer may be a ReLU that works in place


def _value(loss: Loss, outputs: torch.Tensor) -> torch.Tensor:
    loss.check(tuple(outputs.shape))
    outputs = outputs.to(torch.promote_types(outputs.dtype, torch.float32))
    if loss.labels is not None:
        labels = torch.from_numpy(loss.labels).to(outputs.device, torch.int64)
        return nn.functional.cross_entropy(outputs, labels)
    weights = torch.from_numpy(loss.weights(tuple(outputs.shape)))
    return (outputs * weights.to(outputs)).sum()
