"""One residual network as a row of numbers, and every layer that follows from it."""

import dataclasses
import functools
import numbers
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, SupportsIndex, TypedDict

from resnet_spec.blocks import (
    BLOCKS,
    BOTTLENECK_STRIDES,
    PADDINGS,
    RUNNING_VARIANCES,
    SHORTCUTS,
    BlockKind,
    BottleneckStride,
    Conv,
    PaddingKind,
    RunningVariance,
    ShortcutKind,
    branch_drop_rates,
    move_stride,
)
from resnet_spec.blocks import shortcut_conv as make_shortcut_conv
from resnet_spec.blocks import stem_conv as make_stem_conv

Dimensions = Sequence[tuple[int, int]]
"""(number of blocks, planes) of the stem and then of each stage."""


def plan_stages(dimensions: Dimensions) -> tuple[tuple[tuple[int, int], ...], ...]:
    """The (planes, stride) of every block of every stage.

    The first stage keeps its size; the first block of each later stage halves it.

    Raises:
        ValueError: as `split_dimensions`.
    """
    fields = split_dimensions(dimensions)
    stages = zip(fields["stage_depths"], fields["stage_planes"], strict=True)
    return tuple(
        tuple((planes, 2 if stage > 0 and index == 0 else 1) for index in range(depth))
        for stage, (depth, planes) in enumerate(stages)
    )


def split_dimensions(dimensions: Dimensions) -> dict[str, Any]:
    """`dimensions` as the fields `stage_depths`, `stage_planes` and `stem_planes` of a spec.

    Raises:
        ValueError: there is no stage, the stem is not one block, an entry is not a pair, or a
            number of blocks or planes is not a positive integer.
    """
    if not _is_dimensions(dimensions):
        shown = list(dimensions) if isinstance(dimensions, Iterable) else dimensions
        raise ValueError(
            "dimensions is a list of (number of blocks, planes), both positive, with the stem, "
            f"which is one block, first and at least one stage after it: not {shown!r}"
        )
    (_, stem_planes), *stages = dimensions
    depths, planes = zip(*stages, strict=True)
    return {"stage_depths": depths, "stage_planes": planes, "stem_planes": stem_planes}


def _is_dimensions(value: Any) -> bool:
    try:
        pairs = [(depth, planes) for depth, planes in value]
    except (TypeError, ValueError):  # no list, or not of pairs
        return False
    are_positive = all(is_positive_integer(number) for pair in pairs for number in pair)
    return len(pairs) > 1 and are_positive and pairs[0][0] == 1


def is_positive_integer(value: Any) -> bool:
    """Whether `value` is one, of Python's or NumPy's kind."""
    # int first: checking a protocol is slow, and the table needs a thousand checks
    is_integer = isinstance(value, int | SupportsIndex) and not isinstance(value, bool)
    return is_integer and int(value) > 0


CHOICES: dict[str, Collection[str]] = {
    "block": BLOCKS,
    "shortcut": SHORTCUTS,
    "padding": PADDINGS,
    "stem_padding": PADDINGS,
    "bottleneck_stride": BOTTLENECK_STRIDES,
    "running_variance": RUNNING_VARIANCES,
}
"""The allowed values of each field that is a closed choice."""


class Dialect(TypedDict, total=False):
    """The fields in which packages differ for networks of one name; the defaults are torch's."""

    padding: PaddingKind
    stem_padding: PaddingKind
    bottleneck_stride: BottleneckStride
    running_variance: RunningVariance


_TRAINING_ONLY = ("drop_rate", "stochastic_depth", "zero_init_residual", "running_variance")
DIALECT = tuple(Dialect.__annotations__)
_UNSEEN = ("preact", "shortcut", *DIALECT)


_FLAGS = ("preact", "small_images", "zero_init_residual")
RATES = ("drop_rate", "stochastic_depth")
"""The fields that say how much training drops at random."""


@dataclass(frozen=True)
class BlockSpec:
    """One block in its place: `path` is its attribute path in both twins."""

    stage: int
    index: int
    convs: tuple[Conv, ...]
    norm_planes: tuple[int, ...]
    shortcut: Conv | None
    has_shortcut_norm: bool

    @property
    def path(self) -> str:
        return f"stages.{self.stage}.{self.index}"

    @property
    def in_planes(self) -> int:
        return self.convs[0].in_planes

    @property
    def out_planes(self) -> int:
        return self.convs[-1].out_planes


@dataclass(frozen=True)
class ResNetSpec:
    """A residual network without its head; the fields are the twins' keyword arguments.

    Attributes:
        block: two 3x3 convolutions, or the 1x1, 3x3, 1x1 bottleneck.
        stage_depths: number of blocks in each stage.
        stage_planes: planes of each stage, before width and expansion.
        stem_planes: output channels of the first convolution.
        preact: BN-ReLU-conv (He et al. 2016) instead of conv-BN-ReLU (He et al. 2015).
        shortcut: option A, B, C of He et al. 2015, section 4.1, or a 3x3 convolution; option A
            appends its zero channels, or puts half of them before and half after ("centred").
        in_planes: channels of an image.
        width: the k of Wide ResNets (Zagoruyko & Komodakis 2016).
        drop_rate: dropout between the two convolutions of a basic block, in [0, 1].
        stochastic_depth: how often training drops the last block's residual branch, in [0, 1];
            earlier ones less often, see `branch_drop_rates`.
        small_images: a 3x3 stem that keeps the size, without max pooling.
        zero_init_residual: the residual branches start at zero (Goyal et al. 2017, section 5.1).
        padding: of strided convolutions and the max pool: torch's, equal on both sides, or
            TensorFlow's SAME, which adds an odd pixel at the end.
        stem_padding: the same of the first convolution.
        bottleneck_stride: which convolution of a bottleneck has the stride, the 3x3 ("v1.5") or
            the first 1x1 (He et al. 2015, as published).
        running_variance: what a batch adds to the running variance, the unbiased one as in torch
            or the biased one as in Flax. It matters in training only.

    Raises:
        ValueError: any field is out of its range; the message names all of them.
    """

    block: BlockKind
    stage_depths: tuple[int, ...]
    stage_planes: tuple[int, ...]
    stem_planes: int
    preact: bool = False
    shortcut: ShortcutKind = "projection"
    in_planes: int = 3
    width: int = 1
    drop_rate: float = 0.0
    stochastic_depth: float = 0.0
    small_images: bool = False
    zero_init_residual: bool = False
    padding: PaddingKind = "even"
    stem_padding: PaddingKind = "even"
    bottleneck_stride: BottleneckStride = "3x3"
    running_variance: RunningVariance = "unbiased"

    def __post_init__(self) -> None:
        problems = [
            f"{name} must be a positive integer, not {value!r}"
            for name, value in self._integers()
            if not is_positive_integer(value)
        ]
        if not self.stage_depths or len(self.stage_depths) != len(self.stage_planes):
            problems.append("stage_depths and stage_planes need one number for each stage")
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                problems.append(f"{name} is one of {', '.join(known)}, not {getattr(self, name)!r}")
        if self.block == "basic" and self.bottleneck_stride == "1x1":
            problems.append("bottleneck_stride is of a bottleneck: a basic block has no 1x1")
        problems += [
            f"{name} is True or False, not {value!r}"
            for name in _FLAGS
            if not isinstance(value := getattr(self, name), bool)
        ]
        problems += [
            f"{name} must be a number, not {value!r}"
            for name in RATES
            if isinstance(value := getattr(self, name), bool) or not isinstance(value, numbers.Real)
        ]
        if problems:
            raise ValueError("; ".join(problems))
        for name in ("stem_planes", "in_planes", "width"):  # NumPy's numbers to Python's
            object.__setattr__(self, name, int(getattr(self, name)))
        for name in RATES:
            object.__setattr__(self, name, float(getattr(self, name)))
        for name in ("stage_depths", "stage_planes"):
            object.__setattr__(self, name, tuple(map(int, getattr(self, name))))
        # Checks the blocks' own rules: dropout, channels that may not shrink. From the second on
        # a stage's blocks are equal, and each start of a program builds the table.
        for _ in self._blocks([(min(depth, 2), planes) for depth, planes in self.dimensions]):
            pass
        self.branch_drop_rates()  # checks `stochastic_depth`

    def _integers(self) -> Iterator[tuple[str, Any]]:
        for name in ("stem_planes", "in_planes", "width"):
            yield name, getattr(self, name)
        for name in ("stage_depths", "stage_planes"):
            yield from ((f"{name}[{i}]", value) for i, value in enumerate(getattr(self, name)))

    @property
    def dimensions(self) -> tuple[tuple[int, int], ...]:
        """(number of blocks, planes), stem first: the generic classes' first argument."""
        stages = zip(self.stage_depths, self.stage_planes, strict=True)
        return ((1, self.stem_planes), *stages)

    @property
    def stem_conv(self) -> Conv:
        return make_stem_conv(self.in_planes, self.stem_planes, small_images=self.small_images)

    @property
    def out_planes(self) -> int:
        """Number of pooled features."""
        return _all_blocks(self)[-1].out_planes

    def final_size(self, image_size: int) -> int:
        """Height of the last stage's output for an image of this height."""
        halvings = len(self.stage_depths) - 1 + (0 if self.small_images else 2)
        return -(-image_size // 2**halvings)  # the same as rounding up at each halving

    def blocks(self) -> Iterator[BlockSpec]:
        """Every block, in the order of the forward pass."""
        return iter(_all_blocks(self))

    def _blocks(self, dimensions: Dimensions) -> Iterator[BlockSpec]:
        in_planes = self.stem_planes
        for stage, blocks in enumerate(plan_stages(dimensions)):
            for index, (planes, stride) in enumerate(blocks):
                block = self._block(stage, index, in_planes, planes, stride)
                yield block
                in_planes = block.out_planes

    def _block(self, stage: int, index: int, in_planes: int, planes: int, stride: int) -> BlockSpec:
        convs = BLOCKS[self.block](
            in_planes, planes, stride=stride, width=self.width, drop_rate=self.drop_rate
        )
        if self.bottleneck_stride == "1x1":
            convs = move_stride(*convs)
        shortcut = make_shortcut_conv(self.shortcut, in_planes, convs[-1].out_planes, stride)
        return BlockSpec(
            stage=stage,
            index=index,
            convs=convs,
            norm_planes=tuple(c.in_planes if self.preact else c.out_planes for c in convs),
            shortcut=shortcut,
            has_shortcut_norm=shortcut is not None and not self.preact,
        )

    def branch_drop_rates(self) -> tuple[float, ...]:
        """How often training drops the residual branch of each block."""
        return branch_drop_rates(self.stochastic_depth, sum(self.stage_depths))

    def convolutions(self) -> Iterator[tuple[str, Conv]]:
        """(attribute path, convolution) of every convolution."""
        yield "stem.conv", self.stem_conv
        for block in self.blocks():
            for number, conv in enumerate(block.convs, start=1):
                yield f"{block.path}.conv{number}", conv
            if block.shortcut is not None:
                yield f"{block.path}.shortcut.conv", block.shortcut

    def norms(self) -> Iterator[tuple[str, int]]:
        """(attribute path, channels) of every batch normalisation."""
        if not self.preact:
            yield "stem.bn", self.stem_planes
        for block in self.blocks():
            for number, planes in enumerate(block.norm_planes, start=1):
                yield f"{block.path}.bn{number}", planes
            if block.has_shortcut_norm:
                yield f"{block.path}.shortcut_bn", block.out_planes
        if self.preact:
            yield "norm", self.out_planes

    def count_parameters(self, num_classes: int | None = None) -> int:
        """Number of trained values, with a linear head of `num_classes` where it is given."""
        head = 0 if num_classes is None else (self.out_planes + 1) * num_classes
        weights = sum(conv.weight_count for _, conv in self.convolutions())
        return weights + sum(2 * planes for _, planes in self.norms()) + head

    def count_layers(self, num_classes: int | None = None) -> int:
        """Number of convolutions, those of shortcuts too, and the linear head."""
        return len(list(self.convolutions())) + (num_classes is not None)

    def differences(self, other: "ResNetSpec", *, unseen: bool = False) -> list[str]:
        """The fields in which `other` computes something different with the same weights.

        With `unseen`, only those that neither the names nor the shapes of weights show.
        """
        return [
            f"{f.name}: {getattr(other, f.name)!r}, not {getattr(self, f.name)!r}"
            for f in dataclasses.fields(self)
            if f.name not in _TRAINING_ONLY
            and (f.name in _UNSEEN or not unseen)
            and getattr(other, f.name) != getattr(self, f.name)
        ]

    def training_differences(self, other: "ResNetSpec") -> list[str]:
        """The fields in which `other` trains differently, which `differences` leaves out.

        Not `zero_init_residual`, which matters for initial weights only.
        """
        return [
            f"{name}: {getattr(other, name)!r}, not {getattr(self, name)!r}"
            for name in (*RATES, "running_variance")
            if getattr(other, name) != getattr(self, name)
        ]

    def to_json(self) -> dict[str, Any]:
        """The fields as values that `json.dumps` takes, as older versions wrote them."""
        fields = dataclasses.asdict(self)
        if not self.stochastic_depth:  # older versions do not know it
            del fields["stochastic_depth"]
        return fields

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "ResNetSpec":
        """The inverse of `to_json`.

        Raises:
            ValueError: a field is unknown, missing or out of its range.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(set(fields) - known)
        if unknown:
            raise ValueError(f"a ResNet's spec has no field {', '.join(unknown)}")
        tuples = {
            name: tuple(value) for name, value in fields.items() if isinstance(value, list | tuple)
        }
        try:
            return cls(**{**fields, **tuples})
        except TypeError as error:
            raise ValueError(f"incomplete spec of a ResNet: {error}") from error


def count_multiplications(spec: ResNetSpec, image_size: int, num_classes: int = 0) -> int:
    """Multiply-adds of the forward pass of one square image, convolutions and linear head.

    The papers call them FLOPs (He et al. 2015, table 1): ResNet18 has 1.8e9 at 224 pixels.
    """
    convolutions = sum(conv.weight_count * size**2 for conv, size in _sizes(spec, image_size))
    return convolutions + spec.out_planes * num_classes


def _sizes(spec: ResNetSpec, image_size: int) -> Iterator[tuple[Conv, int]]:
    """Every convolution with the height of its output; a stride rounds up."""
    size = -(-image_size // spec.stem_conv.stride)
    yield spec.stem_conv, size
    if not spec.small_images:  # the max pool
        size = -(-size // 2)
    for block in spec.blocks():
        for conv in block.convs:
            size = -(-size // conv.stride)
            yield conv, size
        if block.shortcut is not None:
            yield block.shortcut, size


def check_own_classes(fields: Mapping[str, Any]) -> None:
    """Checks the fields of a network with blocks or shortcuts of a user's own.

    Raises:
        ValueError: a field in which packages differ is not at its default: a class of a user's
            own says itself how it pads, strides and normalises.
    """
    usual = {name: getattr(ResNetSpec, name) for name in DIALECT}
    if dialect := [name for name, value in usual.items() if fields.get(name, value) != value]:
        raise ValueError(f"{', '.join(dialect)}: not for blocks or shortcuts of your own")


@functools.lru_cache(maxsize=16)  # ResNet1202 has 600, and a conversion lists them many times
def _all_blocks(spec: ResNetSpec) -> tuple[BlockSpec, ...]:
    return tuple(spec._blocks(spec.dimensions))
