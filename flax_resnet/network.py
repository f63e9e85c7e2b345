"""A network from its spec: stem, stages, pooling and head, and the classes of the table's rows."""

from typing import Any, ClassVar, Required, TypeVar, Unpack

import jax.numpy as jnp
from flax import nnx
from flax.nnx import relu
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from flax_resnet.blocks import BLOCKS
from flax_resnet.depth import run_blocks
from flax_resnet.dialect import apply_dialect
from flax_resnet.layers import AveragePool, Context, Identity, batch_norm, check_rngs, conv
from flax_resnet.shortcut import SHORTCUTS
from flax_resnet.stochastic_depth import set_stochastic_depth
from resnet_spec import MODELS, ResNetSpec, plan_stages, stem_conv
from resnet_spec.arguments import SpecOptions, check_keywords, find_parts


class Options(SpecOptions, total=False):
    """The keyword arguments of every model; `rngs` is required."""

    rngs: Required[nnx.Rngs]
    dtype: DTypeLike | None
    param_dtype: DTypeLike
    scan_blocks: bool
    remat: bool


KEYWORDS = ("dimensions", "block", *Options.__annotations__)
"""What `ResNet`, `PreActResNet`, `create` and `from_spec` take by name."""


class Stem(nnx.Module):
    """3x3 for small images; else 7x7 stride 2 and a 3x3 max pool (He et al. 2015, table 1).

    BN and ReLU follow the convolution in post-activation networks only.
    """

    def __init__(
        self,
        in_planes: int,
        planes: int,
        *,
        small_images: bool,
        preact: bool,
        **context: Unpack[Context],
    ):
        self.preact = preact
        self.small_images = small_images
        self.pool_padding: Any = ((1, 1), (1, 1))
        self.conv = conv(stem_conv(in_planes, planes, small_images=small_images), **context)
        if not preact:
            self.bn = batch_norm(planes, **context)

    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h2 w2 c2"]:
        x = self.conv(x)
        if not self.preact:
            x = relu(self.bn(x))
        if self.small_images:
            return x
        return nnx.max_pool(x, (3, 3), strides=(2, 2), padding=self.pool_padding)


class ResidualNetwork(nnx.Module):
    """Built from a spec; `ResNet` and `PreActResNet` take `dimensions` and a block instead.

    Args:
        spec: a row of the table, which the other arguments change.
        dimensions: (number of blocks, planes), the stem first, then each stage.
        block: class of a block, or its name in the table; see `flax_resnet.blocks` for what one of
            your own needs.
        shortcut: class of a shortcut, or its name in the table; see `flax_resnet.shortcut`.
        in_planes: channels of an image.
        width: the k of Wide ResNets.
        drop_rate: dropout in basic blocks, in [0, 1].
        stochastic_depth: how often training drops the last block's residual branch, in [0, 1];
            earlier ones less often, see `resnet_spec.branch_drop_rates`.
        small_images: a 3x3 stem that keeps the size, instead of 7x7 stride 2 and max pooling.
        zero_init_residual: each residual branch starts at zero (Goyal et al. 2017,
            arXiv:1706.02677, section 5.1): the scale of the BatchNorm or the weight of the
            convolution that a block's class names as its `last_layer`.
        padding, stem_padding, bottleneck_stride, running_variance: what other packages compute
            differently, see `resnet_spec.ResNetSpec`.
        rngs: random streams, `params` for the weights and, where it is used, `dropout`.
        dtype: precision of the convolutions; None takes it from images and parameters. Statistics,
            pooling and the head of `create` stay in float32 at least.
        param_dtype: precision of the parameters.
        scan_blocks: run a stage's equal blocks as one `lax.scan`: their compile time no longer
            grows with depth, see `flax_resnet.depth`. On CPU such a network has no forward-mode
            derivatives (`jax.jvp`).
        remat: keep only the blocks' inputs for the backward pass, and recompute the rest.

    Attributes:
        out_planes: number of pooled features.
        head: identity at first; see `set_head`.
        spec: the table's row, None where `block` or `shortcut` is a class of your own. Set it to
            None after an edit that makes another network, which no row describes.

    Raises:
        ValueError: an argument is out of its range.
        TypeError: there is no such argument, or it is of another type.
    """

    def __init__(
        self,
        spec: ResNetSpec,
        *,
        rngs: nnx.Rngs,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        scan_blocks: bool = False,
        remat: bool = False,
        **changes: Any,
    ):
        parts = find_parts(spec, changes, BLOCKS[spec.preact], SHORTCUTS, foreign="torch")
        spec = parts.spec
        self.spec: ResNetSpec | None = spec if parts.is_in_table else None
        self.preact = spec.preact
        self.scan_blocks = scan_blocks
        self.remat = remat
        check_rngs(rngs)
        context = Context(rngs=rngs, dtype=dtype, param_dtype=param_dtype)
        planes = spec.stem_planes
        self.stem = Stem(
            spec.in_planes, planes, small_images=spec.small_images, preact=spec.preact, **context
        )
        arguments: dict[str, Any] = {
            "shortcut": parts.shortcut,
            "width": spec.width,
            "drop_rate": spec.drop_rate,
            **context,
        }
        self.stages = nnx.List()
        for stage in plan_stages(spec.dimensions):
            blocks = nnx.List()
            for stage_planes, stride in stage:
                built = parts.block(planes, stage_planes, stride=stride, **arguments)
                blocks.append(built)
                planes = built.out_planes
            self.stages.append(blocks)
        if self.preact:
            self.norm = batch_norm(planes, **context)
        self.out_planes = planes
        self.avgpool = AveragePool()
        self.head: nnx.Module = Identity()
        apply_dialect(self, spec)
        set_stochastic_depth(self, spec.stochastic_depth, rngs)
        if spec.zero_init_residual:
            _zero_residual_branches(self)

    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n features"]:
        """Pooled features (n, out_planes), or what the head makes of them.

        Raises:
            ValueError: the images are not (n, h, w, c) with the stem's channels, or have no pixels.
            TypeError: they are not real floating numbers.
        """
        _check_images(x, self.stem)
        x = self.stem(x)
        for blocks in self.stages:
            x = run_blocks(blocks, x, scan=self.scan_blocks, remat=self.remat)
        if self.preact:
            x = relu(self.norm(x))
        return self.head(self.avgpool(x))

    def set_head(self, head: nnx.Module) -> None:
        """Puts `head` behind the pooling:
        `model.set_head(nnx.Linear(model.out_planes, 10, rngs=rngs))`.
        """
        self.head = head

    @staticmethod
    def rebuild(spec: ResNetSpec, rngs: Any) -> "ResidualNetwork":
        """The network of a spec before any edit, with which `edits` compares this one."""
        return ResidualNetwork(spec, rngs=rngs)


def _check_images(x: Array, stem: Any) -> None:
    """Raises what `ResidualNetwork.__call__` says; a stem of a user's own takes any channels."""
    channels = getattr(getattr(stem, "conv", None), "in_features", None)
    if x.ndim != 4 or channels not in (None, x.shape[-1]):
        said = "" if channels is None else f" with {channels} channels"
        raise ValueError(f"images are (n, h, w, c){said}, not {x.shape}")
    if 0 in x.shape[1:3]:
        raise ValueError(f"images of no pixels: {x.shape}")
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"images are real floating numbers, such as float32, not {x.dtype}")


def _zero_residual_branches(model: nnx.Module) -> None:
    """A block of a user's own that names no `last_layer` is left as it is."""
    for _, module in nnx.iter_modules(model):
        if isinstance(last_layer := getattr(module, "last_layer", None), str):
            layer = getattr(module, last_layer)
            weight = layer.kernel if hasattr(layer, "kernel") else layer.scale
            weight.set_value(jnp.zeros_like(weight.get_value()))


class Named(ResidualNetwork):
    """The network of one row of the table; `named` sets `row`."""

    row: ClassVar[ResNetSpec]
    positional: ClassVar[tuple[str, ...]]

    def __init__(self, *values: Any, **options: Unpack[Options]):
        check_keywords(type(self).__name__, options, Options.__annotations__)
        if len(values) > len(self.positional):
            raise TypeError(f"{type(self).__name__} takes keyword arguments, not {values!r}")
        given = dict(zip(self.positional, values, strict=False))
        if twice := given.keys() & options.keys():
            raise TypeError(f"{type(self).__name__} got {', '.join(sorted(twice))} twice")
        ResidualNetwork.__init__(self, self.row, **given, **options)


NamedNetwork = TypeVar("NamedNetwork", bound=Named)


def named(name: str, base: type[NamedNetwork]) -> type[NamedNetwork]:
    """The class of one row of the table: `ResNet20 = named("ResNet20", NamedResNet)`."""
    depths = ", ".join(map(str, MODELS[name].stage_depths))
    positional = ("drop_rate", "small_images") if "Wide" in name else ("small_images",)
    namespace = {
        "row": MODELS[name],
        # torch-resnet 0.0.4 takes these without their names
        "positional": positional if MODELS[name].small_images else (),
        "__module__": base.__module__,
        "__qualname__": name,
        "__doc__": f"{name} of the table: {depths} blocks; keyword arguments as in the base.",
    }
    bases: tuple[Any, ...] = (base,)
    return type(base)(name, bases, namespace)
