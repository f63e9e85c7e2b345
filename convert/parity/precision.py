"""The precisions of a run of a network, and settings that silently reduce them."""

import contextlib
import os
from collections.abc import Collection, Iterator
from typing import Any, Literal, get_args

from convert.errors import ConversionError

Precision = Literal["f64", "f32", "bf16", "tf32"]
Device = Literal["cpu", "gpu"]
Framework = Literal["torch", "flax"]

PRECISIONS: tuple[Precision, ...] = get_args(Precision)
DEVICES: tuple[Device, ...] = get_args(Device)
FRAMEWORKS: tuple[Framework, ...] = get_args(Framework)
DTYPES = {"f64": "float64", "f32": "float32", "bf16": "bfloat16", "tf32": "float32"}
UNIT_ROUNDOFF = {"f64": 2.0**-53, "f32": 2.0**-24, "tf32": 2.0**-11, "bf16": 2.0**-8}

# All flags that torch's convolutions and matrix products read. `allow_tf32` and
# `set_float32_matmul_precision` set these too, and reading them can raise once these are set.
_TORCH_FLAGS = ("cuda.matmul", "cudnn.conv", "mkldnn.matmul", "mkldnn.conv")
_JAX_FULL = ("highest", "float32")


def float64(frameworks: Collection[Framework]) -> Any:
    """Runs JAX with float64, which tells rounding from error, if it is among the frameworks."""
    if "flax" not in frameworks:
        return contextlib.nullcontext()
    import jax

    return jax.enable_x64(True)


def check_ready(frameworks: Collection[Framework], device: Device) -> None:
    """Raises a ConversionError if one of these frameworks has no such device here."""
    problems: list[str] = []
    if "flax" in frameworks:
        import jax

        try:
            jax.devices(device)
        except RuntimeError as error:
            problems.append(f"JAX has no {device}: {error}")
    if "torch" in frameworks and device == "gpu":
        import torch

        if not torch.cuda.is_available():
            problems.append("torch has no gpu: torch.cuda.is_available() is False")
    if problems:
        raise ConversionError("these models cannot be compared here:", problems)


def reduced_flags(frameworks: Collection[Framework], device: Device) -> list[str]:
    """Every setting that reduces the precision of float32, and how to change it.

    torch's default of TF32 in cuDNN counts on a GPU only. JAX's default precision is full on a CPU
    and less than float32 on a GPU.
    """
    flags = _torch_flags(device) if "torch" in frameworks else []
    if "flax" in frameworks:
        value = _jax_config("jax_default_matmul_precision")
        if value not in _JAX_FULL and (value is not None or device == "gpu"):
            flags.append(f"jax_default_matmul_precision is {value!r}: set it to 'highest'")
    if device == "gpu" and os.environ.get("NVIDIA_TF32_OVERRIDE") == "1":
        flags.append("the environment variable NVIDIA_TF32_OVERRIDE is 1: unset it")
    return flags


def _torch_flags(device: Device) -> list[str]:
    import torch

    flags = [
        f"torch.backends.{name}.fp32_precision is {value!r} (allow_tf32 and "
        "torch.set_float32_matmul_precision also set it): set it to 'ieee'"
        for name in _TORCH_FLAGS
        if (value := _torch_backend(name).fp32_precision) not in ("none", "ieee")
        and (device == "gpu" or name != "cudnn.conv")
    ]
    kind = "cuda" if device == "gpu" else "cpu"
    if torch.is_autocast_enabled(kind):
        flags.append(f"torch.autocast({kind!r}) is on: compare outside it")
    return flags


def raise_defaults(frameworks: Collection[Framework], device: Device) -> None:
    """Sets full float32 where a framework's own default is less, in this process.

    What the user set on purpose stays, and is refused later.
    """
    if device == "cpu":
        return
    if "torch" in frameworks:
        _torch_backend("cudnn.conv").fp32_precision = "ieee"
    if "flax" in frameworks:
        import jax

        if _jax_config("jax_default_matmul_precision") is None:
            jax.config.update("jax_default_matmul_precision", "highest")


@contextlib.contextmanager
def tensor_float32(frameworks: Collection[Framework]) -> Iterator[None]:
    """Runs these frameworks in TF32, if the device has it, and restores the flags."""
    with contextlib.ExitStack() as stack:
        if "flax" in frameworks:
            import jax

            stack.enter_context(jax.default_matmul_precision("tensorfloat32"))
        if "torch" in frameworks:
            for name in _TORCH_FLAGS:
                backend = _torch_backend(name)
                stack.callback(setattr, backend, "fp32_precision", backend.fp32_precision)
                backend.fp32_precision = "tf32"
        yield


def _torch_backend(name: str) -> Any:
    import torch

    family, operation = name.split(".")
    return getattr(getattr(torch.backends, family), operation)


def _jax_config(name: str) -> Any:
    """The current value: `jax.config.read` ignores context managers."""
    import jax

    return getattr(jax.config, name)
