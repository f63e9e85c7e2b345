"""The classes of the table's rows: networks whose dimensions and block are known."""

from typing import Any, ClassVar, TypeVar, Unpack

from flax_resnet.network import Options, ResidualNetwork
from resnet_spec import MODELS, ResNetSpec
from resnet_spec.arguments import check_keywords


class Named(ResidualNetwork):
    """A network of one row of the table; `row` is set by `named`."""

    row: ClassVar[ResNetSpec]
    positional: ClassVar[tuple[str, ...]]

    def __init__(self, *values: Any, **options: Unpack[Options]):
        check_keywords(type(self).__name__, options, Options.__annotations__)
        if len(values) > len(self.positional):
            raise TypeError(f"{type(self).__name__} takes keyword arguments, not {values!r}")
        arguments = self.spec_arguments(self.row)
        dimensions, block = arguments.pop("dimensions"), arguments.pop("block")
        given = dict(zip(self.positional, values, strict=False))
        if twice := given.keys() & options.keys():
            raise TypeError(f"{type(self).__name__} got {', '.join(sorted(twice))} twice")
        merged: dict[str, Any] = {**arguments, **given, **options}
        super().__init__(dimensions, block, **merged)


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
