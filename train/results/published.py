"""What is known without running anything: data sets, and the errors that papers report on them."""

from collections.abc import Iterator
from dataclasses import dataclass

from resnet_spec import ResNetSpec, find_spec

SOURCES = {
    "He 2015": "He et al. 2015, arXiv:1512.03385, table 6: option A shortcuts; ResNet110 the best "
    "of 5 runs, 6.61 ± 0.16 over them",
    "He 2016": "He et al. 2016, arXiv:1603.05027, section 4",
    "Zagoruyko 2016": "Zagoruyko & Komodakis 2016, arXiv:1605.07146, final version",
    "He 2015, list": "KaimingHe/deep-residual-networks, one crop of 224",
    "Goyal 2017": "Goyal et al. 2017, arXiv:1706.02677, section 5.1: batch 256, one crop of 224",
    "torch-resnet": "torch-resnet 0.0.4, README: 160 epochs in mixed precision; mean ± standard "
    "deviation over the seeds 111 to 555, or one run",
}
"""Where a figure is from. All are of the whole test set, after training on all images."""


@dataclass(frozen=True)
class Published:
    """error: percent of the test set. std: over several runs, None for one. source: of SOURCES."""

    error: float
    std: float | None
    source: str

    def __str__(self) -> str:
        deviation = "" if self.std is None else f" ± {self.std:.2f}"
        return f"{self.error:.2f}{deviation} ({self.source})"


@dataclass(frozen=True)
class Data:
    """A whole data set: the channels and height of its images, its classes, its sizes."""

    channels: int
    image_size: int
    classes: int
    train_images: int
    test_images: int


DATA = {
    "digits": Data(1, 8, 10, 1_437, 360),  # a fifth of 1,797 to test, as `train.data` splits them
    "cifar10": Data(3, 32, 10, 50_000, 10_000),
    "cifar100": Data(3, 32, 100, 50_000, 10_000),
    "imagenet2012": Data(3, 224, 1000, 1_281_167, 50_000),
}

# Errors in percent by data set and source: a mean ± a standard deviation, or a single figure
_FIGURES = {
    ("cifar10", "He 2015"): """
        ResNet20 8.75, ResNet32 7.51, ResNet44 7.17, ResNet56 6.97, ResNet110 6.43,
        ResNet1202 7.93""",
    ("cifar10", "He 2016"): """
        PreActResNet110 6.37, PreActResNet164 5.46, PreActResNet1001 4.89 ± 0.14""",
    ("cifar10", "Zagoruyko 2016"): """
        PreActWideResNet40-4-0.0 4.53, PreActWideResNet16-8-0.0 4.27,
        PreActWideResNet28-10-0.0 4.00, PreActWideResNet28-10-0.3 3.89""",
    ("cifar10", "torch-resnet"): """
        ResNet20 8.64 ± 0.16, ResNet32 7.64 ± 0.23, ResNet44 7.47 ± 0.19, ResNet56 7.04 ± 0.26,
        ResNet110 6.60 ± 0.09, ResNet164 5.97 ± 0.20, ResNet1001 7.95, ResNet1202 7.90,
        PreActResNet20 8.61 ± 0.23, PreActResNet32 7.76 ± 0.10, PreActResNet44 7.63 ± 0.10,
        PreActResNet56 7.42 ± 0.13, PreActResNet110 6.79 ± 0.12, PreActResNet164 5.61 ± 0.16,
        PreActResNet1001 4.92, PreActResNet1202 6.66,
        ResNet18-small 5.88 ± 0.15, ResNet34-small 5.50 ± 0.17, ResNet50-small 5.86 ± 0.30,
        ResNet101-small 5.45 ± 0.14, PreActResNet18-small 5.65 ± 0.12,
        PreActResNet34-small 5.29 ± 0.17, PreActResNet50-small 5.83 ± 0.47,
        PreActResNet101-small 5.18 ± 0.11""",
    ("cifar100", "He 2016"): "PreActResNet164 24.33, PreActResNet1001 22.71",
    ("cifar100", "Zagoruyko 2016"): """
        PreActWideResNet28-10-0.0 19.25, PreActWideResNet28-10-0.3 18.85""",
    ("cifar100", "torch-resnet"): "PreActResNet164 25.23 ± 0.21",
    ("imagenet2012", "He 2015, list"): "ResNet50 24.7, ResNet101 23.6, ResNet152 23.0",
    ("imagenet2012", "Goyal 2017"): "ResNet50 23.60 ± 0.12",
}


def published(data: str, model: str) -> list[Published]:
    """The figures of a network, whatever it is called: `WideResNet28-10` drops 0.3."""
    spec = find_spec(model)
    return [figure for name, figure in _figures(data) if find_spec(name) == spec]


def published_models(data: str) -> list[str]:
    """The networks of which a source reports the error on a data set, each once."""
    names: dict[ResNetSpec, str] = {}
    for name, _ in _figures(data):
        names.setdefault(find_spec(name), name)
    return list(names.values())


def _figures(data: str) -> Iterator[tuple[str, Published]]:
    for (known_data, source), text in _FIGURES.items():
        for entry in text.split(",") if known_data == data else ():
            name, error, *deviation = entry.split()
            std = float(deviation[1]) if deviation else None  # after "±"
            yield name, Published(float(error), std, source)
