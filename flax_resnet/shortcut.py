"""The shortcuts of He et al. 2015, section 4.1 (options A, B, C), and a 3x3 convolution.

A class of your own is used like these: it is built as
`shortcut(in_planes, out_planes, stride, *, rngs, dtype, param_dtype)` and has
`requires_activation`, true where it has weights. It is then followed by a batch normalisation in
post-activation blocks, and reads the activated input in pre-activation ones.
"""

from typing import ClassVar, Unpack

import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Float

from flax_resnet.layers import Context, conv
from resnet_spec import ShortcutKind, check_identity_shortcut, shortcut_conv


class IdentityShortcut(nnx.Module):
    """Option A: subsampling by the stride, and zeros as new channels, at the end.

    Raises:
        ValueError: `out_planes` is smaller than `in_planes`.
    """

    requires_activation = False

    def __init__(self, in_planes: int, out_planes: int, stride: int, **context: Unpack[Context]):
        del context
        check_identity_shortcut(in_planes, out_planes)
        self.in_planes = in_planes
        self.out_planes = out_planes
        self.stride = stride

    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h2 w2 c2"]:
        if self.stride > 1:  # an index gives another symbolic size than a convolution
            x = lax.slice(x, (0, 0, 0, 0), x.shape, (1, self.stride, self.stride, 1))
        return jnp.pad(x, ((0, 0), (0, 0), (0, 0), self.new_planes()))

    def new_planes(self) -> tuple[int, int]:
        """Number of zero channels before and after the input's."""
        return 0, self.out_planes - self.in_planes


class CentredIdentityShortcut(IdentityShortcut):
    """Option A with half of the new channels before and half after (akamaster's CIFAR ResNets)."""

    def new_planes(self) -> tuple[int, int]:
        new = self.out_planes - self.in_planes
        return new // 2, new - new // 2


class _WeightedShortcut(nnx.Module):
    """A convolution where the table has one for this place, else the input itself."""

    kind: ClassVar[ShortcutKind]

    def __init__(self, in_planes: int, out_planes: int, stride: int, **context: Unpack[Context]):
        self.out_planes = out_planes
        spec = shortcut_conv(self.kind, in_planes, out_planes, stride)
        self.requires_activation = spec is not None
        if spec is not None:
            self.conv = conv(spec, **context)

    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h2 w2 c2"]:
        return self.conv(x) if self.requires_activation else x


class ProjectionShortcut(_WeightedShortcut):
    """Option B: a 1x1 convolution where the shape changes, else the input itself."""

    kind = "projection"


class FullProjectionShortcut(_WeightedShortcut):
    """Option C: a 1x1 convolution in every block."""

    kind = "full_projection"


class ConvolutionShortcut(_WeightedShortcut):
    """A 3x3 convolution where the shape changes, which reads every pixel (torch-resnet 0.0.4)."""

    kind = "convolution"


SHORTCUTS: dict[ShortcutKind, type[nnx.Module]] = {
    "identity": IdentityShortcut,
    "centred_identity": CentredIdentityShortcut,
    "projection": ProjectionShortcut,
    "full_projection": FullProjectionShortcut,
    "convolution": ConvolutionShortcut,
}
