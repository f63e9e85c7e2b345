"""Recipes for CIFAR-10 and CIFAR-100: 50,000 images of 32x32 pixels, 10,000 to test on."""

import dataclasses
from typing import Any

from train.config import Config
from train.config.recipes.recipe import Recipe

# 64k iterations of 128 images: 163.84 epochs of 50,000, so that the steps end the run
_HE = Config(data="cifar10", epochs=164, max_steps=64_000, shortcut="identity", warmup_steps=0)
_DEPARTS = (
    "here the mean and the deviation of each channel are normalised, in the paper a mean image is "
    "taken off; BatchNorm and biases do not decay"
)


def _preact(data: str, published: str) -> Recipe:
    """He et al. 2016; the schedule is that of 2015 with the warm-up at every depth."""
    changes: dict[str, Any] = {"shortcut": "projection", "warmup_steps": 400}
    return Recipe(
        dataclasses.replace(_HE, data=data, model="PreActResNet164", **changes),
        source="He et al. 2016 (arXiv:1603.05027), section 4 and appendix",
        reason="0.01 for the first 400 iterations at every depth, then as 2015: 0.1, a tenth at "
        f"32k and 48k of 64k iterations, batch 128, weight decay 1e-4; {_DEPARTS}",
        published=published,
    )


def _wide(data: str, published: str) -> Recipe:
    return Recipe(
        Config(
            data=data,
            model="PreActWideResNet28-10",
            epochs=200,
            drop_epochs=(60.0, 120.0, 160.0),
            drop_factor=0.2,
            warmup_steps=0,
            nesterov=True,
            weight_decay=5e-4,
        ),
        source="Zagoruyko & Komodakis 2016 (arXiv:1605.07146), section 3",
        reason="0.1 times 0.2 at epochs 60, 120 and 160 of 200, batch 128, Nesterov momentum, "
        "weight decay 5e-4, dropout 0.3; their networks are pre-activated, which the name says "
        "here; they pad by reflection, here with the mean colour; in their code BatchNorm decays, "
        "here not",
        published=published,
    )


CIFAR: dict[str, Recipe] = {
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
    "cifar10-he2015": Recipe(
        _HE,
        source="He et al. 2015 (arXiv:1512.03385), section 4.2 and table 6",
        reason="0.1, a tenth at 32k and 48k of 64k iterations, batch 128, weight decay 1e-4, "
        f"option A shortcuts, no warm-up: for 20 to 56 layers; {_DEPARTS}",
        published="ResNet20 8.75, ResNet32 7.51, ResNet44 7.17, ResNet56 6.97",
    ),
    "cifar10-he2015-110": Recipe(
        dataclasses.replace(_HE, model="ResNet110", warmup_steps=400),
        source="He et al. 2015 (arXiv:1512.03385), section 4.2 and table 6",
        reason="as cifar10-he2015, but 0.01 until the training error is below 80 %, which takes "
        "about 400 iterations: 0.1 is slightly too large to start 110 layers with",
        published="ResNet110 6.43 (best of 5; 6.61 ± 0.16)",
    ),
    "cifar10-preact": _preact(
        "cifar10",
        "PreActResNet110 6.37, PreActResNet164 5.46, PreActResNet1001 4.92 (medians of 5 runs)",
    ),
    "cifar10-wide": _wide(
        "cifar10",
        "PreActWideResNet28-10 3.89 with dropout, 4.00 without (WRN-28-10, medians of 5 runs)",
    ),
    "cifar10-small": Recipe(
        Config(
            data="cifar10",
            model="ResNet18-small",
            epochs=350,
            drop_epochs=(150.0, 250.0),
            warmup_steps=0,
            weight_decay=5e-4,
        ),
        source="ImageNet's networks with a 3x3 stem and no pooling: Chen et al. 2020 (SimCLR, "
        "arXiv:2002.05709), appendix B.9; supervised, by kuangliu/pytorch-cifar",
        reason="0.1, a tenth at epochs 150 and 250 of 350, batch 128, weight decay 5e-4: SimCLR "
        "gives no supervised schedule; BatchNorm decays there, here not",
        published="ResNet18-small 6.98, ResNet50-small 6.38, ResNet101-small 6.25 (that package's "
        "list of accuracies)",
    ),
    "cifar100": Recipe(
        Config(data="cifar100"),
        source="He et al. 2016, section 4, by the schedule of torch-resnet 0.0.4",
        reason="the schedule of cifar10",
        published="PreActResNet164 24.33 (He et al. 2016), 25.23 ± 0.21 (torch-resnet)",
    ),
    "cifar100-preact": _preact(
        "cifar100", "PreActResNet164 24.33, PreActResNet1001 22.71 (medians of 5 runs)"
    ),
    "cifar100-wide": _wide(
        "cifar100",
        "PreActWideResNet28-10 18.85 with dropout, 19.25 without (WRN-28-10, medians of 5 runs)",
    ),
}
