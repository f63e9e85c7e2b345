"""Stem, stages, pooling and head: what all residual networks share."""

from collections.abc import Callable
from typing import Any, ClassVar, TypedDict, Unpack

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import relu

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
from torch_resnet.description import describe_weights, list_differences_of_weights
from torch_resnet.dialect import speak
from torch_resnet.init import init_new
from torch_resnet.layers import AveragePool, batch_norm, conv
from torch_resnet.shortcut import SHORTCUTS, ProjectionShortcut
from torch_resnet.stochastic_depth import set_stochastic_depth


class Options(TypedDict, total=False):
    """The keyword arguments of every model."""

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


class Stem(nn.Module):
    """3x3 for small images; else 7x7 stride 2 and a 3x3 max pool (He et al. 2015, table 1).

    BN and ReLU follow the convolution in post-activation networks only.
    """

    def __init__(self, in_planes: int, planes: int, *, small_images: bool, preact: bool):
        super().__init__()
        self.preact = preact
        self.conv = conv(stem_conv(in_planes, planes, small_images=small_images))
        if not preact:
            self.bn = batch_norm(planes)
        self.pool = nn.Identity() if small_images else nn.MaxPool2d(3, stride=2, padding=1)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c2 h2 w2"]:
        x = self.conv(x)
        if not self.preact:
            x = relu(self.bn(x))
        return self.pool(x)


# Attributes as torch-resnet 0.0.4 calls them, to read and to replace.
_SEED_NAMES = {"init_layer": "stem", "layers": "stages"}


class ResidualNetwork(nn.Module):
    """The skeleton of `ResNet` and `PreActResNet`.

    Args:
        dimensions: (number of blocks, planes), the stem first, then each stage.
        block: class of a block, or its name in the table; see `torch_resnet.blocks` for what one of
            your own needs.
        shortcut: class of a shortcut, or its name in the table; see `torch_resnet.shortcut`.
        in_planes: channels of an image.
        width: the k of Wide ResNets.
        drop_rate: dropout in basic blocks, in [0, 1].
        stochastic_depth: how often training drops the last block's residual branch, in [0, 1];
            earlier ones less often, see `resnet_spec.branch_drop_rates`.
        small_images: a 3x3 stem that keeps the size, instead of 7x7 stride 2 and max pooling.
        zero_init_residual: start each residual branch at zero, see `torch_resnet.init`.
        dialect: `padding`, `stem_padding`, `bottleneck_stride`, `running_variance`: what other
            packages do otherwise, see `resnet_spec.ResNetSpec`.

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
        **dialect: Unpack[Dialect],
    ):
        super().__init__()
        check_keywords(
            type(self).__name__, dialect, ("dimensions", "block", *Options.__annotations__)
        )
        blocks_by_kind = {kind: known for known, kind in self.block_kinds.items()}
        make_block = find_class("block", block, blocks_by_kind, foreign="flax")
        shortcut = find_class("shortcut", shortcut, SHORTCUTS, foreign="flax")
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
        planes = dimensions[0][1]
        self.stem = Stem(in_planes, planes, small_images=small_images, preact=self.preact)
        arguments: dict[str, Any] = {"shortcut": shortcut, "width": width, "drop_rate": drop_rate}
        self.stages = nn.Sequential()
        for stage in stages:
            blocks = nn.Sequential()
            for stage_planes, stride in stage:
                built = make_block(planes, stage_planes, stride=stride, **arguments)
                blocks.append(built)
                planes = built.out_planes
            self.stages.append(blocks)
        if self.preact:
            self.norm = batch_norm(planes)
        self.out_planes = planes
        self.avgpool = AveragePool()
        self.head: nn.Module = nn.Identity()
        self.register_state_dict_post_hook(describe_weights)
        if self.spec is not None:
            speak(self, self.spec)
        set_stochastic_depth(self, stochastic_depth)
        init_new(self, zero_init_residual)

    # plain types, which `torch.fx` writes into the code of a traced network and pickles
    def forward(self, x: Tensor) -> Tensor:
        """(n, c, h, w) -> pooled features (n, out_planes), or what the head makes of them."""
        x = self.stages(self.stem(x))
        if self.preact:
            x = relu(self.norm(x))
        return self.head(self.avgpool(x))

    def set_head(self, head: nn.Module) -> None:
        """Puts `head` behind the pooling: `model.set_head(nn.Linear(model.out_planes, 10))`."""
        self.head = head

    def _load_from_state_dict(
        self,
        state_dict: Any,
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: Any,
        unexpected_keys: Any,
        error_msgs: list[str],
    ) -> None:
        error_msgs += list_differences_of_weights(self.spec, local_metadata)
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )

    def __getattr__(self, name: str) -> Any:
        return super().__getattr__(_SEED_NAMES.get(name, name))

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(_SEED_NAMES.get(name, name), value)

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
