"""Reads what a torch module computes from torch's own operations, whatever its code looks like."""

import contextlib
import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from convert.adoption.flow import PADS, Flow, Layer, Node, finish
from convert.arrays import is_floating, to_numpy
from convert.errors import ConversionError
from convert.parity.probe import flatten_output
from resnet_spec import RunningVariance
from torch_resnet.dialect import BiasedBatchNorm2d

# Operations by torch's names for them.
_CONVOLUTIONS = ("convolution", "_convolution", "mkldnn_convolution", "convolution_overrideable")
_NORMS = {  # by what follows their five tensors
    "native_batch_norm": ("training", "momentum", "epsilon"),
    "cudnn_batch_norm": ("training", "momentum", "epsilon"),
    "miopen_batch_norm": ("training", "momentum", "epsilon"),
    "_native_batch_norm_legit": ("training", "momentum", "epsilon"),
    "_native_batch_norm_legit_no_training": ("momentum", "epsilon"),
    "_batch_norm_no_update": ("momentum", "epsilon"),
}
_NORM_LEAVES = ("weight", "bias", "running_mean", "running_var")
_RANDOM = ("dropout", "bernoulli", "rand", "normal", "uniform", "exponential")
_DRAWING = (  # functions, without the underscores of those that write in place
    *("bernoulli", "rand", "rand_like", "randn", "randn_like", "randint", "randperm"),
    *("normal", "uniform", "exponential", "multinomial"),
)
_DRAWN = "(drawn at random)"  # stands for a weight's name
_COUNTER = "num_batches_tracked"
_DROPOUTS = nn.modules.dropout._DropoutNd


class TorchNetwork:
    """A copy of a torch module on the CPU in one precision, to run, to read and to fill.

    Attributes:
        given: all weights and statistics of the module itself, by name.
        running_variance: what a batch adds to it: torch's own layers the unbiased one.
    """

    def __init__(self, module: nn.Module, dtype: str):
        """Raises a ConversionError if the module cannot be copied."""
        self._dtype = getattr(torch, dtype)
        try:
            self._module = copy.deepcopy(module, _computed(module)).to("cpu", self._dtype).eval()
        except Exception as error:  # whatever an author's own code raises
            raise ConversionError(
                f"{type(module).__name__} cannot be copied in {dtype}, and only a copy is run, so "
                f"that the module stays as it is: {error}"
            ) from error
        self._state = _state(self._module)
        biased = any(isinstance(m, BiasedBatchNorm2d) for m in self._module.modules())
        self.running_variance: RunningVariance = "biased" if biased else "unbiased"
        self.given = {n: np.array(to_numpy(tensor)) for n, tensor in _state(module).items()}

    def run(self, images: np.ndarray, *, keep_values: bool = False) -> Flow:
        """One run in evaluation mode; `images` are (n, h, w, c).

        Raises:
            ConversionError: the module raises an error, draws at random, or returns no logits.
        """
        tensor = self._tensor(images)
        title = type(self._module).__name__
        recorder = _Recorder(title, self._state, tensor, keep_values)
        try:
            with torch.no_grad(), recorder:
                output = self._module(tensor)
        except ConversionError:
            raise
        except Exception as error:
            dtype = str(self._dtype).removeprefix("torch.")
            raise ConversionError(
                f"{title} does not run on images {tuple(tensor.shape)} in "
                f"{dtype} on the CPU: {error}"
            ) from error
        return recorder.flow(flatten_output(output))

    def _tensor(self, images: np.ndarray) -> torch.Tensor:
        tensor = torch.from_numpy(np.array(images.transpose(0, 3, 1, 2), order="C"))
        return tensor.to(self._dtype) if is_floating(images.dtype) else tensor

    def fill(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Replaces weights, by their names."""
        with torch.no_grad():
            for name, array in arrays.items():
                self._state[name].copy_(torch.from_numpy(np.ascontiguousarray(array)))

    def draws(self, images: np.ndarray) -> tuple[list[float], set[str]]:
        """The rates of dropout in training, and what else is drawn at random there.

        It moves the statistics of the copy. `images` as in `run`.
        """
        layers = [m for m in self._module.modules() if isinstance(m, _DROPOUTS) and m.p > 0]
        rates = [layer.p for layer in layers]
        for layer in layers:  # what a function drops is found by its call
            layer.p = 0.0
        seen = _Draws()
        is_tried = contextlib.suppress(Exception)  # one image may be too few to train on
        with is_tried, torch.random.fork_rng(devices=[]), torch.no_grad(), seen:
            self._module.train()(self._tensor(images))
        return rates + seen.rates, seen.others

    def momenta(self) -> set[float | None]:
        """The weights of a new batch in running statistics; None is a mean over all batches."""
        found = (
            m for m in self._module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)
        )
        return {module.momentum for module in found if module.track_running_stats}


def _computed(module: nn.Module) -> dict[int, Any]:
    """Copies of tensors that a module keeps and torch does not copy: of pruning, weight norm."""
    kept = [value for inner in module.modules() for value in vars(inner).values()]
    tensors = [value for value in kept if isinstance(value, torch.Tensor) and not value.is_leaf]
    return {id(tensor): tensor.detach().clone() for tensor in tensors}


def _state(module: nn.Module) -> dict[str, torch.Tensor]:
    """Weights and statistics by the names of its state dict, then those that this leaves out."""
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    order = [name for name in module.state_dict() if name in tensors]
    return {name: tensors[name] for name in (*order, *(n for n in tensors if n not in order))}


class _Draws(TorchFunctionMode):
    """Calls in training that drop values, and others that draw at random."""

    def __init__(self):
        super().__init__()
        self.rates: list[float] = []
        self.others: set[str] = set()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        given, name = dict(kwargs or {}), getattr(func, "__name__", "").strip("_")
        if "dropout" in name:
            said = dict(zip(("input", "p", "training"), args, strict=False)) | given
            rate, is_on = float(said.get("p", 0.5)), said.get("training", said.get("train", True))
            if is_on and rate > 0:
                self.rates.append(rate)
        elif name in _DRAWING:
            self.others.add(name)
        return func(*args, **given)


class _Recorder(TorchDispatchMode):
    """Turns each operation on what depends on the images into a node.

    Tensors are kept until the end: a node is found by the identity of its tensor.
    """

    def __init__(
        self,
        title: str,
        state: Mapping[str, torch.Tensor],
        images: torch.Tensor,
        keep_values: bool,
    ):
        super().__init__()
        self._title = title
        self._names = {t.untyped_storage().data_ptr(): n for n, t in state.items() if t.numel()}
        self._state, self._keep_values = state, keep_values
        self._images = Node("images", (), tuple(images.shape), value=to_numpy(images).copy())
        self._nodes: list[Node] = [self._images]
        self._node_of: dict[int, Node] = {id(images): self._images}
        self._kept: list[torch.Tensor] = [images]
        self._sharing: dict[int, list[torch.Tensor]] = {}
        self._computed: dict[int, set[str]] = {}
        self._share(images)
        self._stem_input: np.ndarray | None = None

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        name = func.overloadpacket.__name__
        inputs = [self._node_of[id(t)] for t in given if id(t) in self._node_of]
        if name.endswith("_like") or name.startswith("new_"):  # of which only the shape counts
            inputs = []
        result = func(*args, **kwargs)
        results = [t for t in tree_leaves(result) if isinstance(t, torch.Tensor)]
        self._kept += given
        self._kept += results
        for tensor in results:
            self._share(tensor)
        operation = name.strip("_")
        names = {n for t in given for n in self._names_of(t)}
        if any(word in operation for word in _RANDOM):
            names.add(_DRAWN)
        if not inputs:
            for tensor in results:
                self._computed.setdefault(id(tensor), set()).update(names)
            return result
        if name in _CONVOLUTIONS and self._stem_input is None:
            self._stem_input = self._before_padding(inputs[0])
        if _DRAWN in names:
            raise ConversionError(
                f"{self._title} draws at random in evaluation, too ({operation}), as dropout does "
                "that is always on: its logits differ from run to run"
            )
        layer = self._layer(name, args, _by_name(func, args, kwargs))
        if not results:
            return result
        node = Node(
            "max_pool2d" if operation == "max_pool2d_with_indices" else operation,
            tuple(inputs),
            tuple(results[0].shape),
            layer,
            tuple(n for n in self._state if n in names and layer is None),
            "" if layer else _detail(operation, args),
        )
        if layer is not None and self._keep_values:
            node.value = to_numpy(results[0]).copy()
        self._nodes.append(node)
        self._node_of |= {id(tensor): node for tensor in results}
        for argument, value in zip(func._schema.arguments, args, strict=False):
            if argument.alias_info is not None and argument.alias_info.is_write:
                self._written(value, node)
        return result

    def _before_padding(self, node: Node) -> np.ndarray:
        """(n, h, w, c): what the first convolution gets, before a pad of its own."""
        while node.operation in PADS:
            node = node.inputs[0]
        return to_numpy(self._tensor_of(node)).transpose(0, 2, 3, 1).copy()

    def _tensor_of(self, node: Node) -> torch.Tensor:
        return next(t for t in reversed(self._kept) if self._node_of.get(id(t)) is node)

    def _share(self, tensor: torch.Tensor) -> None:
        self._sharing.setdefault(tensor.untyped_storage().data_ptr(), []).append(tensor)

    def _written(self, tensor: Any, node: Node) -> None:
        """Everything that shares memory with what was written comes from it, too."""
        for other in self._sharing.get(tensor.untyped_storage().data_ptr(), []):
            before = self._node_of.get(id(other))
            if other is tensor or before is node:
                self._node_of[id(other)] = node
                continue
            inputs = (node,) if before is None else (before, node)
            self._nodes.append(Node("write", inputs, tuple(other.shape)))
            self._node_of[id(other)] = self._nodes[-1]

    def _names_of(self, tensor: torch.Tensor) -> set[str]:
        """The weights that a tensor is, or was computed from."""
        name = self._names.get(tensor.untyped_storage().data_ptr()) if tensor.numel() else None
        return {name} if name else self._computed.get(id(tensor), set())

    def _layer(
        self, name: str, args: tuple[Any, ...], arguments: Mapping[str, Any]
    ) -> Layer | None:
        """The layer that an operation is, if any; its weights do not depend on the images."""

        def is_weight(tensor: Any) -> bool:
            return isinstance(tensor, torch.Tensor) and id(tensor) not in self._node_of

        if name in _CONVOLUTIONS and is_weight(args[1]) and not arguments.get("transposed"):
            found = {"weight": args[1], "bias": args[2]}
            keys = ("stride", "padding", "dilation", "groups")
            return self._made("conv", found, {key: arguments[key] for key in keys})
        if name in _NORMS and id(args[0]) in self._node_of:
            said = dict(zip(_NORMS[name], args[5:], strict=False))
            if said.get("training") or args[3] is None:
                return None
            found: dict[str, Any] = dict(zip(_NORM_LEAVES, args[1:5], strict=True))
            for leaf, value in (("weight", 1.0), ("bias", 0.0)):
                if found[leaf] is None:
                    found[leaf] = torch.full_like(args[3], value)
            return self._made("norm", found, {"epsilon": float(said["epsilon"])})
        if name == "addmm" and is_weight(args[2]) and is_weight(args[0]):
            return self._made("linear", {"weight": args[2].t(), "bias": args[0]}, {})
        if name == "mm" and is_weight(args[1]):
            return self._made("linear", {"weight": args[1].t(), "bias": None}, {})
        return None

    def _made(self, kind: str, tensors: dict[str, Any], arguments: dict[str, Any]) -> Layer:
        present = {leaf: tensor for leaf, tensor in tensors.items() if tensor is not None}
        names: dict[str, str] = {}
        computed: set[str] = set()
        for leaf, tensor in present.items():
            name = self._names.get(tensor.untyped_storage().data_ptr())
            if name is not None and self._state[name].shape == tensor.shape:
                names[leaf] = name
            computed |= self._names_of(tensor)
        path = _path(list(names.values()) or sorted(computed))
        arrays = {leaf: to_numpy(tensor).copy() for leaf, tensor in present.items()}
        sources = tuple(n for n in self._state if n in computed - {*names.values()})
        return Layer(kind, path, arrays, names, sources, arguments)

    def flow(self, outputs: Mapping[str, Any]) -> Flow:
        """All that led to the logits, of a run that returned these."""
        if self._stem_input is None:
            raise ConversionError(f"{self._title} has no convolution of the images")
        found = [
            (self._node_of.get(id(tensor)), tensor)
            for tensor in outputs.values()
            if isinstance(tensor, torch.Tensor)
        ]
        assert self._images.value is not None
        return finish(
            self._nodes,
            [(node, None if node is None else to_numpy(tensor)) for node, tensor in found],
            [*self._state],
            self._images.value.transpose(0, 2, 3, 1),
            self._stem_input,
            self._title,
            value_of=lambda node: to_numpy(self._tensor_of(node)),
        )


def _by_name(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    names = [argument.name for argument in func._schema.arguments]
    return {**dict(zip(names, args, strict=False)), **kwargs}


def _detail(operation: str, args: tuple[Any, ...]) -> str:
    """The sizes and numbers that an operation was called with."""
    if not any(word in operation for word in ("pool", "pad", "relu", "clamp", "hardtanh")):
        return ""
    said = [str(value) for value in args[1:] if isinstance(value, int | float | list | tuple)]
    return f"({', '.join(said)})" if said else ""


def _path(names: list[str]) -> str:
    """What the author calls a layer of these tensors: the module that has them, or the first."""
    modules = set[str]()
    for name in names:
        module, is_computed, _ = name.partition(".parametrizations.")
        if not is_computed:
            module, _, leaf = name.rpartition(".")
            module = module if leaf.startswith(("weight", "bias", "running_")) else name
        modules.add(module)
    return modules.pop() if len(modules) == 1 else names[0]
