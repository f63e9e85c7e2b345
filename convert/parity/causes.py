"""The usual mistakes of a port, each as another result of a call of one of torch's functions."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

Arguments = dict[str, Any]

_ARGUMENTS = {
    "batch_norm": "input running_mean running_var weight bias training momentum eps",
    "layer_norm": "input normalized_shape weight bias eps",
    "group_norm": "input num_groups weight bias eps",
    "instance_norm": "input running_mean running_var weight bias use_input_stats momentum eps",
    "rms_norm": "input normalized_shape weight eps",
    "conv1d": "input weight bias stride padding dilation groups",
    "conv2d": "input weight bias stride padding dilation groups",
    "linear": "input weight bias",
    "gelu": "input approximate",
    "max_pool2d": "input kernel_size stride padding dilation ceil_mode return_indices",
    "interpolate": "input size scale_factor mode align_corners recompute_scale_factor antialias",
    "flatten": "input start_dim end_dim",
    "reshape": "input",
    "view": "input",
}
_NORMS = ("batch_norm", "layer_norm", "group_norm", "instance_norm", "rms_norm")
_EPSILONS = (1e-3, 1e-4, 1e-5, 1.001e-5, 1e-6, 1e-7, 1e-8, 1e-12)
_MOMENTA = (0.1, 0.01, 0.001)  # as torch counts: the defaults of torch, Flax, and of some Keras


@dataclass(frozen=True)
class Cause:
    """A mistake.

    Attributes:
        name: one of ten.
        text: what torch has to compute with, for the difference to go.
        functions: of torch, by name.
        call: the other result of such a function with these arguments; None: this is no such call.
    """

    name: str
    text: str
    functions: tuple[str, ...]
    call: Callable[[Callable[..., Any], Arguments], Tensor | None]

    def change(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
        """As `torch_probe.Change`."""
        name = function_name(func)
        if name not in self.functions:
            return None
        names = _ARGUMENTS[name].split()
        if name in ("reshape", "view") or len(args) > len(names):
            names = [*names, *(f"_{i}" for i in range(len(names), len(args)))]
        return self.call(func, dict(zip(names, args, strict=False)) | kwargs)


def function_name(func: Any) -> str:
    return getattr(func, "__name__", "").lstrip("_")


def _again(func: Callable[..., Any], arguments: Arguments, **changes: Any) -> Any:
    return func(**(arguments | changes))


def _epsilon(value: float) -> Cause:
    def call(func: Any, arguments: Arguments) -> Tensor | None:
        if arguments.get("eps") == value:
            return None
        return _again(func, arguments, eps=value)

    return Cause("epsilon", f"epsilon {value:g}", _NORMS, call)


def _momentum(value: float | None) -> Callable[..., Tensor | None]:
    def call(func: Any, arguments: Arguments) -> Tensor | None:
        momentum = arguments["momentum"]
        changed = 1 - momentum if value is None else value
        return None if changed == momentum else _again(func, arguments, momentum=changed)

    return call


def _biased_variance(func: Any, arguments: Arguments) -> Tensor | None:
    x, running = arguments["input"], arguments.get("running_var")
    if running is None or not arguments.get("training"):
        return None
    momentum = arguments["momentum"]
    before = running.clone()
    output = _again(func, arguments)
    variance = x.transpose(0, 1).flatten(1).var(1, unbiased=False)
    with torch.no_grad():
        running.copy_((1 - momentum) * before + momentum * variance)
    return output


def _swapped_statistics(func: Any, arguments: Arguments) -> Tensor | None:
    mean, variance = arguments.get("running_mean"), arguments.get("running_var")
    if mean is None or variance is None:
        return None
    return _again(func, arguments, running_mean=variance, running_var=mean)


def _pad_as_same(x: Tensor, kernel: Any, stride: Any, dilation: Any, value: float) -> Tensor:
    """Padding of TensorFlow's SAME: of an odd number of pixels, the odd one is at the end."""
    widths: list[int] = []
    for size, k, s, d in zip(x.shape[2:], kernel, stride, dilation, strict=True):
        total = max((-(-size // s) - 1) * s + (k - 1) * d + 1 - size, 0)
        widths = [total // 2, total - total // 2, *widths]
    return functional.pad(x, widths, value=value)


def _tuple(value: Any, count: int) -> tuple[int, ...]:
    return (value,) * count if isinstance(value, int) else tuple(value)


def _same_padding(func: Any, arguments: Arguments) -> Tensor | None:
    x, weight = arguments["input"], arguments["weight"]
    axes = weight.ndim - 2
    strides, dilations = (_tuple(arguments.get(n, 1), axes) for n in ("stride", "dilation"))
    padded = _pad_as_same(x, weight.shape[2:], strides, dilations, 0.0)
    return _again(func, arguments, input=padded, padding=0)


def _transposed(one: int, other: int) -> Callable[..., Tensor | None]:
    def call(func: Any, arguments: Arguments) -> Tensor | None:
        weight = arguments["weight"]
        if weight.ndim <= max(one, other) or weight.shape[one] != weight.shape[other]:
            return None
        return _again(func, arguments, weight=weight.transpose(one, other))

    return call


def _gelu(approximate: str) -> Callable[..., Tensor | None]:
    def call(func: Any, arguments: Arguments) -> Tensor | None:
        if arguments.get("approximate", "none") == approximate:
            return None
        return _again(func, arguments, approximate=approximate)

    return call


def _align_corners(is_aligned: bool) -> Callable[..., Tensor | None]:
    def call(func: Any, arguments: Arguments) -> Tensor | None:
        smooth = arguments.get("mode") in ("linear", "bilinear", "bicubic", "trilinear")
        if not smooth or bool(arguments.get("align_corners")) == is_aligned:
            return None
        return _again(func, arguments, align_corners=is_aligned)

    return call


def _flatten_channels_last(func: Any, arguments: Arguments) -> Tensor | None:
    x = arguments["input"]
    if x.ndim < 3:
        return None
    flat = x.movedim(1, -1).flatten(1)
    return flat if func(*arguments.values()).shape == flat.shape else None


def _max_pool(padding: str) -> Callable[..., Tensor | None]:
    def call(func: Any, arguments: Arguments) -> Tensor | None:
        x, kernel = arguments["input"], _tuple(arguments["kernel_size"], 2)
        stride = _tuple(arguments.get("stride") or kernel, 2)
        if padding == "none":
            return _again(func, arguments, padding=0)
        if padding == "SAME":
            dilation = _tuple(arguments.get("dilation", 1), 2)
            padded = _pad_as_same(x, kernel, stride, dilation, -torch.inf)
        else:
            height, width = _tuple(arguments.get("padding", 0), 2)
            padded = functional.pad(x, (width, width, height, height))
        return _again(func, arguments, input=padded, padding=0)

    return call


def causes() -> Iterator[Cause]:
    """All that are tried where an output differs."""
    convolutions, flattening = ("conv1d", "conv2d"), ("flatten", "reshape", "view")
    yield from map(_epsilon, _EPSILONS)
    yield Cause(
        "swapped statistics", "mean and variance exchanged", ("batch_norm",), _swapped_statistics
    )
    yield Cause("SAME padding", "padding as SAME, odd at the end", convolutions, _same_padding)
    kernels = (*convolutions, "linear")
    yield Cause("transposed kernel", "a kernel (in, out)", kernels, _transposed(0, 1))
    yield Cause("transposed kernel", "a kernel (w, h)", convolutions, _transposed(2, 3))
    yield Cause("GELU", "GELU by tanh", ("gelu",), _gelu("tanh"))
    yield Cause("GELU", "exact GELU", ("gelu",), _gelu("none"))
    for value in (True, False):
        text = f"align_corners={value}"
        yield Cause("align_corners", text, ("interpolate",), _align_corners(value))
    yield Cause("flatten order", "(h, w, c) flattened", flattening, _flatten_channels_last)
    for padding, text in (
        ("SAME", "padded as SAME"),
        ("none", "without padding"),
        ("zeros", "padded with zeros"),
    ):
        yield Cause("max pool padding", f"a max pool {text}", ("max_pool2d",), _max_pool(padding))


BIASED_VARIANCE = Cause(
    "running variance", "a biased running variance", ("batch_norm",), _biased_variance
)


def causes_of_statistics() -> Iterator[tuple[Cause, ...]]:
    """All that are tried where only statistics differ: one alone, or two together."""
    texts = {None: "1 - momentum as momentum of statistics"}
    texts |= {value: f"a momentum of statistics of {value:g}" for value in _MOMENTA}
    momenta = [
        Cause("momentum", text, ("batch_norm",), _momentum(value)) for value, text in texts.items()
    ]
    yield from ((cause,) for cause in (*momenta, BIASED_VARIANCE))
    yield from ((cause, BIASED_VARIANCE) for cause in momenta)
