"""Stem, stages, pooling and head: what all residual networks share."""

from collections.abc import Callable
from typing import Any, ClassVar, Required, TypedDict, Unpack

import jax.numpy as jnp
from flax import nnx
from flax.nnx import relu
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from flax_resnet.depth import run_blocks
from flax_resnet.dialect import speak
from flax_resnet.init import zero_init_residual as zero_residual_branches
from flax_resnet.layers import AveragePool, Context, Identity, batch_norm, check_rngs, conv
from flax_resnet.shortcut import SHORTCUTS, ProjectionShortcut
from flax_resnet.stochastic_depth import set_stochastic_depth
from resnet_spec import (
    BlockKind,
    BottleneckStride,
    Dialect,
    Dimensions,
    PaddingKind,
    ResNetSpec,
    RunningVariance,
    ShortcutKind,
    check_own_classes,
    plan_stages,
    stem_conv,
)
from resnet_spec.arguments import check_keywords, find_class


class Options(TypedDict, total=False):
    """The keyword arguments of every model; `rngs` is required."""

    rngs: Required[nnx.Rngs]
    dtype: DTypeLike | None
    param_dtype: DTypeLike
    scan_blocks: bool
    remat: bool

    shortcut: Callable[..., Any] | ShortcutKind
    in_planes: int
    width: int
    drop_rate: float
    stochastic_depth: float
    small_images: bool
    zero_init_residual: bool
    padding: PaddingKind
    stem_padding: PaddingKind
    bottleneck_stride: BottleneckStride
    running_variance: RunningVariance


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
    """The skeleton of `ResNet` and `PreActResNet`.

    Args:
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
        zero_init_residual: start each residual branch at zero, see `flax_resnet.init`.
        dialect: `padding`, `stem_padding`, `bottleneck_stride`, `running_variance`: what other
            packages do otherwise, see `resnet_spec.ResNetSpec`.
        rngs: random streams, `params` for the weights and, where it is used, `dropout`.
        dtype: precision of the convolutions; None takes it from images and parameters. Statistics,
            pooling and the head of `create` stay in float32 at least.
        param_dtype: precision of the parameters.
        scan_blocks: run a stage's equal blocks as one `lax.scan`: the compile time of what they
            compute no longer grows with depth, see `flax_resnet.depth`. On CPU such a network has
            no forward-mode derivatives (`jax.jvp`).
        remat: keep only the blocks' inputs for the backward pass, and recompute the rest.

    Attributes:
        out_planes: number of pooled features.
        head: identity at first; see `set_head`.
        spec: the table's row, None where `block` or `shortcut` is a class of your own. Set it to
            None after an edit that makes another network: it is then described as none.

    Raises:
        ValueError: an argument is out of its range.
        TypeError: there is no such argument, or it is of another kind.
    """

    preact: ClassVar[bool]
    block_kinds: ClassVar[dict[Any, BlockKind]]

    def __init__(
        self,
        dimensions: Dimensions,
        block: Callable[..., Any] | BlockKind,
        *,
        shortcut: Callable[..., Any] | ShortcutKind = ProjectionShortcut,
        in_planes: int = 3,
        width: int = 1,
        drop_rate: float = 0.0,
        stochastic_depth: float = 0.0,
        small_images: bool = False,
        zero_init_residual: bool = False,
        rngs: nnx.Rngs,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        scan_blocks: bool = False,
        remat: bool = False,
        **dialect: Unpack[Dialect],
    ):
        check_keywords(
            type(self).__name__, dialect, ("dimensions", "block", *Options.__annotations__)
        )
        blocks_by_kind = {kind: known for known, kind in self.block_kinds.items()}
        make_block = find_class("block", block, blocks_by_kind, foreign="torch")
        shortcut = find_class("shortcut", shortcut, SHORTCUTS, foreign="torch")
        stages = plan_stages(dimensions)
        self.spec = self._describe(
            dimensions,
            make_block,
            shortcut,
            in_planes=in_planes,
            width=width,
            drop_rate=drop_rate,
            stochastic_depth=stochastic_depth,
            small_images=small_images,
            zero_init_residual=zero_init_residual,
            **dialect,
        )
        self.scan_blocks = scan_blocks
        self.remat = remat
        check_rngs(rngs)
        context = Context(rngs=rngs, dtype=dtype, param_dtype=param_dtype)
        planes = dimensions[0][1]
        self.stem = Stem(
            in_planes, planes, small_images=small_images, preact=self.preact, **context
        )
        arguments: dict[str, Any] = {
            "shortcut": shortcut,
            "width": width,
            "drop_rate": drop_rate,
            **context,
        }
        self.stages = nnx.List()
        for stage in stages:
            blocks = nnx.List()
            for stage_planes, stride in stage:
                built = make_block(planes, stage_planes, stride=stride, **arguments)
                blocks.append(built)
                planes = built.out_planes
            self.stages.append(blocks)
        if self.preact:
            self.norm = batch_norm(planes, **context)
        self.out_planes = planes
        self.avgpool = AveragePool()
        self.head: nnx.Module = Identity()
        if self.spec is not None:
            speak(self, self.spec)
        set_stochastic_depth(self, stochastic_depth, rngs)
        if zero_init_residual:
            zero_residual_branches(self)

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

    @classmethod
    def _describe(
        cls, dimensions: Dimensions, block: Any, shortcut: Any, **fields: Any
    ) -> ResNetSpec | None:
        kind = cls.block_kinds.get(block)
        shortcut_kinds: dict[Any, ShortcutKind] = {known: kind for kind, known in SHORTCUTS.items()}
        shortcut_kind = shortcut_kinds.get(shortcut)
        if kind is None or shortcut_kind is None:
            check_own_classes(fields)
            return None
        return ResNetSpec(
            block=kind,
            stage_depths=tuple(depth for depth, _ in dimensions[1:]),
            stage_planes=tuple(planes for _, planes in dimensions[1:]),
            stem_planes=dimensions[0][1],
            preact=cls.preact,
            shortcut=shortcut_kind,
            **fields,
        )

    @classmethod
    def spec_arguments(cls, spec: ResNetSpec) -> dict[str, Any]:
        """A row of the table as this class's arguments, `dimensions` and `block` among them."""
        return {
            "dimensions": spec.dimensions,
            "block": next(block for block, kind in cls.block_kinds.items() if kind == spec.block),
            "shortcut": SHORTCUTS[spec.shortcut],
            **spec.options(),
        }


def _check_images(x: Array, stem: Any) -> None:
    """Raises what `ResidualNetwork.__call__` says; a stem of one's own takes any channels."""
    channels = getattr(getattr(stem, "conv", None), "in_features", None)
    if x.ndim != 4 or channels not in (None, x.shape[-1]):
        said = "" if channels is None else f" with {channels} channels"
        raise ValueError(f"images are (n, h, w, c){said}, not {x.shape}")
    if 0 in x.shape[1:3]:
        raise ValueError(f"images of no pixels: {x.shape}")
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"images are real floating numbers, such as float32, not {x.dtype}")
