"""Initial values of residual branches; layers draw their own as they are built."""

import jax.numpy as jnp
from flax import nnx


def zero_init_residual(model: nnx.Module) -> None:
    """Zeroes the last layer of every residual branch of `model`, in place.

    Goyal et al. 2017 (arXiv:1706.02677, section 5.1): the layer that a block's class names as its
    `last_layer` starts at zero, the scale of a BatchNorm or the kernel of a convolution. A block
    of your own without that name is left as it is.
    """
    for _, module in nnx.iter_modules(model):
        if isinstance(last_layer := getattr(module, "last_layer", None), str):
            layer = getattr(module, last_layer)
            weight = layer.kernel if hasattr(layer, "kernel") else layer.scale
            weight.set_value(jnp.zeros_like(weight.get_value()))
