"""The recipes: one row each, with its source, the reason of its numbers and what was published."""

from dataclasses import dataclass

from train.config import Config


@dataclass(frozen=True)
class Recipe:
    """A named configuration.

    source: where the numbers come from. reason: why they are what they are.
    published: error in percent that the source reports, with its conditions.
    """

    config: Config
    source: str
    reason: str
    published: str


RECIPES: dict[str, Recipe] = {
    "digits": Recipe(
        Config(
            data="digits",
            epochs=30,
            schedule="cosine",
            warmup_steps=0,
            crop_padding=1,  # of 8x8 pixels
            flip=False,  # a mirrored digit is another sign
            log_every_steps=20,
        ),
        source="scikit-learn's handwritten digits, 1,797 images of 8x8 pixels; nothing to download",
        reason="a first run in under a minute on two cores; every fifth image is the test set",
        published="nothing published",
    ),
    "cifar10": Recipe(
        Config(data="cifar10"),
        source="He et al. 2015, section 4.2, with the warm-up of torch-resnet 0.0.4",
        reason="0.01 for 400 steps, as 0.1 at once diverges at 110 layers; then 0.1, a tenth at "
        "32k and 48k steps; batch 128, weight decay 1e-4; 160 epochs of 50,000 are 62.5k steps",
        published="ResNet20 8.75, ResNet56 6.97, ResNet110 6.43 (He et al., best of 5); "
        "ResNet20 8.64 ± 0.16 (torch-resnet, 5 seeds, mixed precision)",
    ),
    "cifar10-45k": Recipe(
        Config(data="cifar10", validation_size=5_000, epochs=178),
        source="He et al. 2015, section 4.2: 45k images to train, 5k to validate",
        reason="as cifar10; 178 epochs of 45,000 images are as many steps as 160 of 50,000",
        published="the paper chose its schedule so and reports the test error after it",
    ),
    "cifar100": Recipe(
        Config(data="cifar100"),
        source="He et al. 2016, section 4, by the schedule of torch-resnet 0.0.4",
        reason="as cifar10",
        published="PreActResNet164 24.33 (He et al. 2016), 25.23 ± 0.21 (torch-resnet)",
    ),
}
DEFAULT = "digits"
