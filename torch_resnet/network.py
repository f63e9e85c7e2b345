"""A network from its spec: stem, stages, pooling and head, and the classes of the table's rows."""

from typing import Any, ClassVar, TypeVar, Unpack

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import relu

from resnet_spec import MODELS, ResNetSpec, plan_stages, stem_conv
from resnet_spec.arguments import SpecOptions, check_keywords, find_parts
from torch_resnet.blocks import BLOCKS
from torch_resnet.dialect import apply_dialect
from torch_resnet.edits import describe_weights, list_differences_of_weights
from torch_resnet.layers import AveragePool, batch_norm, conv, draw_convolutions
from torch_resnet.shortcut import SHORTCUTS
from torch_resnet.stochastic_depth import set_stochastic_depth

KEYWORDS = ("dimensions", "block", *SpecOptions.__annotations__)
"""What `ResNet`, `PreActResNet`, `create` and `from_spec` take by name."""


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


# Attributes under their names in torch-resnet 0.0.4, to read and to replace.
_SEED_NAMES = {"init_layer": "stem", "layers": "stages"}


class ResidualNetwork(nn.Module):
    """Built from a spec; `ResNet` and `PreActResNet` take `dimensions` and a block instead.

    Args:
        spec: a row of the table, which the other arguments change.
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
        zero_init_residual: each residual branch starts at zero (Goyal et al. 2017,
            arXiv:1706.02677, section 5.1): the scale of the BatchNorm or the weight of the
            convolution that a block's class names as its `last_layer`.
        padding, stem_padding, bottleneck_stride, running_variance: what other packages compute
            differently, see `resnet_spec.ResNetSpec`.

    Attributes:
        out_planes: number of pooled features.
        head: identity at first; see `set_head`.
        spec: the table's row, None where `block` or `shortcut` is a class of your own. Set it to
            None after an edit that makes another network, which no row describes.

    Raises:
        ValueError: an argument is out of its range.
        TypeError: there is no such argument, or it is of another type.
    """

    def __init__(self, spec: ResNetSpec, **changes: Any):
        super().__init__()
        parts = find_parts(spec, changes, BLOCKS[spec.preact], SHORTCUTS, foreign="flax")
        spec = parts.spec
        self.spec: ResNetSpec | None = spec if parts.is_in_table else None
        self.preact = spec.preact
        planes = spec.stem_planes
        self.stem = Stem(spec.in_planes, planes, small_images=spec.small_images, preact=spec.preact)
        arguments: dict[str, Any] = {
            "shortcut": parts.shortcut,
            "width": spec.width,
            "drop_rate": spec.drop_rate,
        }
        self.stages = nn.Sequential()
        for stage in plan_stages(spec.dimensions):
            blocks = nn.Sequential()
            for stage_planes, stride in stage:
                built = parts.block(planes, stage_planes, stride=stride, **arguments)
                blocks.append(built)
                planes = built.out_planes
            self.stages.append(blocks)
        if self.preact:
            self.norm = batch_norm(planes)
        self.out_planes = planes
        self.avgpool = AveragePool()
        self.head: nn.Module = nn.Identity()
        self.register_state_dict_post_hook(describe_weights)
        apply_dialect(self, spec)
        set_stochastic_depth(self, spec.stochastic_depth)
        draw_convolutions(self)
        if spec.zero_init_residual:
            _zero_residual_branches(self)

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

    @staticmethod
    def rebuild(spec: ResNetSpec) -> "ResidualNetwork":
        """The network of a spec before any edit, with which `edits` compares this one."""
        return ResidualNetwork(spec)

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


def _zero_residual_branches(model: nn.Module) -> None:
    """A block of a user's own that names no `last_layer` is left as it is."""
    for module in model.modules():
        if isinstance(last_layer := getattr(module, "last_layer", None), str):
            nn.init.zeros_(module.get_submodule(last_layer).get_parameter("weight"))


class Named(ResidualNetwork):
    """The network of one row of the table; `named` sets `row`."""

    row: ClassVar[ResNetSpec]
    positional: ClassVar[tuple[str, ...]]

    def __init__(self, *values: Any, **options: Unpack[SpecOptions]):
        check_keywords(type(self).__name__, options, SpecOptions.__annotations__)
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
    return type(name, bases, namespace)
