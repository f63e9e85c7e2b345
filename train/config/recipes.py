"""The recipes: one row each, with its source, the reasons of its numbers and what was published."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from train.config.config import Config

DEFAULT = "digits"


@dataclass(frozen=True)
class Recipe:
    """A named configuration.

    Attributes:
        source: paper and section that the numbers come from.
        reason: why the numbers are so, and where they depart from the source; separated by "; ".
        published: errors in percent that the source reports, with their conditions.
    """

    config: Config
    source: str
    reason: str
    published: str


# 64k iterations of 128 images: 163.84 epochs of 50,000, so that the steps end the run
_HE = Config(
    data="cifar10",
    epochs=164,
    max_steps=64_000,
    shortcut="identity",
    warmup_steps=0,
)
_TWO_GPUS = (
    "BatchNorm over the whole batch: the paper trained on two GPUs and does not say whether each "
    "normalised its own 64 images (--batch-norm-images 64)"
)
_DEPARTS = (
    "it departs: each channel's mean and deviation are normalised, the paper subtracts a mean "
    "image; BatchNorm and biases do not decay"
)


def _preact(data: str, published: str) -> Recipe:
    """He et al. 2016: the schedule of 2015 with the warm-up at every depth."""
    changes: dict[str, Any] = {"shortcut": "projection", "warmup_steps": 400}
    return Recipe(
        dataclasses.replace(_HE, data=data, model="PreActResNet164", **changes),
        source="He et al. 2016 (arXiv:1603.05027), section 4 and appendix",
        reason="0.01 for the first 400 iterations at every depth, then as in 2015: 0.1, a tenth at "
        f"32k and 48k of 64k iterations, batch 128, weight decay 1e-4; {_TWO_GPUS}; {_DEPARTS}",
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
        "weight decay 5e-4, dropout 0.3; their networks are pre-activated, as the name says here; "
        "it departs: images are padded with the mean colour, theirs by reflection; BatchNorm does "
        "not decay, in their code it does",
        published=published,
    )


_CIFAR = {
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
        published="none: the paper chose its schedule on these images",
    ),
    "cifar10-fast": Recipe(
        Config(
            data="cifar10",
            epochs=53,
            global_batch_size=256,
            learning_rate=0.1,
            learning_rate_batch_size=128,
            schedule="cosine",
            warmup="linear",
            warmup_epochs=5.0,
            warmup_learning_rate=0.0,
            nesterov=True,
            weight_decay=5e-4,
        ),
        source="Page 2018, davidcpage/cifar10-fast (dawn.py): 24 epochs of a network of 9 layers",
        reason="0.1 for each 128 images, from zero in the first five epochs, Nesterov momentum and "
        "weight decay 5e-4 are Page's; it departs: 53 epochs, a third of the passes of cifar10, in "
        "batches of 256; half a cosine instead of a line to zero; without Cutout, which made a "
        "ResNet20 of 10 epochs worse on held-out images (docs/training.md)",
        published="none for exactly these numbers; docs/training.md says what was reached here",
    ),
    "cifar10-he2015": Recipe(
        _HE,
        source="He et al. 2015 (arXiv:1512.03385), section 4.2 and table 6",
        reason="0.1, a tenth at 32k and 48k of 64k iterations, batch 128, weight decay 1e-4, "
        f"option A shortcuts, no warm-up: for 20 to 56 layers; {_TWO_GPUS}; {_DEPARTS}",
        published="ResNet20 8.75, ResNet32 7.51, ResNet44 7.17, ResNet56 6.97",
    ),
    "cifar10-he2015-110": Recipe(
        dataclasses.replace(_HE, model="ResNet110", warmup_steps=400),
        source="He et al. 2015 (arXiv:1512.03385), section 4.2 and table 6",
        reason="as cifar10-he2015, but 0.01 until the training error is below 80 %, which takes "
        "about 400 iterations: 0.1 is slightly too large to start 110 layers with; "
        f"{_TWO_GPUS}",
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
        source="Chen et al. 2020 (SimCLR, arXiv:2002.05709), appendix B.9: ImageNet's networks "
        "with a 3x3 stem and no pooling; supervised as in kuangliu/pytorch-cifar",
        reason="0.1, a tenth at epochs 150 and 250 of 350, batch 128, weight decay 5e-4: SimCLR "
        "gives no supervised schedule; it departs: BatchNorm does not decay",
        published="ResNet18-small 6.98, ResNet50-small 6.38, ResNet101-small 6.25 (that package's "
        "list of accuracies)",
    ),
    "cifar100": Recipe(
        Config(data="cifar100"),
        source="He et al. 2016, section 4, with the schedule of torch-resnet 0.0.4",
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

_IMAGENET = Config(data="imagenet2012", model="ResNet50", global_batch_size=256, warmup_steps=0)
_CROPS = "crops of 8 % to 100 % of the area and mirrors are the only augmentation"
_AREA = "training images are resized by means of areas, theirs"

_OF_IMAGENET = {
    "imagenet-he2015": Recipe(
        dataclasses.replace(
            _IMAGENET,
            bottleneck_stride="1x1",
            batch_norm_images=32,
            epochs=120,
            max_steps=600_000,
            drop_epochs=(30.0, 60.0, 90.0),
        ),
        source="He et al. 2015 (arXiv:1512.03385), section 3.4 and table 3",
        reason="batch 256, 0.1, weight decay 1e-4, momentum 0.9, up to 600k iterations, which are "
        "120 epochs; the paper divides the rate by 10 when the error stops falling, without "
        "numbers: quarters of the run are ours; the stride is on the first 1x1, as published; "
        "BatchNorm over the 32 images of a GPU, as in the authors' list; "
        f"{_CROPS}, the paper also uses scales of 256 to 480 pixels and changes colours; {_AREA} "
        "in a way that the paper does not say",
        published="ResNet50 24.7, ResNet101 23.6, ResNet152 23.0 (one crop of 224, the authors' "
        "list at KaimingHe/deep-residual-networks); ten crops: 22.85, 21.75, 21.43 (table 3)",
    ),
    "imagenet": Recipe(
        dataclasses.replace(
            _IMAGENET,
            epochs=90,
            batch_norm_images=32,
            zero_init_residual=True,
            nesterov=True,
            learning_rate_batch_size=256,
            drop_epochs=(30.0, 60.0, 80.0),
            warmup="linear",
            warmup_epochs=5.0,
            warmup_learning_rate=0.1,
            label_smoothing=0.1,
        ),
        source="Goyal et al. 2017 (arXiv:1706.02677), section 5.1",
        reason="0.1 for each 256 images of the batch, a tenth at epochs 30, 60 and 80 of 90, from "
        "0.1 to the peak in 5 epochs, residual branches that start at zero, Nesterov momentum, "
        "weight decay 1e-4 except for BatchNorm; BatchNorm over 32 images, as on each of their "
        "GPUs, at every batch size; it departs: label smoothing 0.1 is from Szegedy et al. 2016 "
        f"(--label-smoothing 0 for Goyal's own); {_CROPS}; "
        f"{_AREA} in a way that the paper does not say",
        published="ResNet50 23.60 ± 0.12 (batch 256), 23.74 ± 0.09 (batch 8192), both without "
        "label smoothing",
    ),
    "imagenet-modern": Recipe(
        dataclasses.replace(
            _IMAGENET,
            epochs=600,
            global_batch_size=1024,
            batch_norm_images=128,
            learning_rate=0.5,
            learning_rate_batch_size=1024,
            schedule="cosine",
            warmup="linear",
            warmup_epochs=5.0,
            warmup_learning_rate=0.005,
            weight_decay=2e-5,
            ema_decay=0.99997,
            label_smoothing=0.1,
            mixup=0.2,
            cutmix=1.0,
            rand_augment=2,
            rand_augment_magnitude=9.0,
            stochastic_depth=0.05,
            crop_fraction=0.95,
        ),
        source="torchvision 2021, its recipe for the second weights of ResNet50 (pytorch/vision "
        "issue 3995 and its article); RandAugment: Cubuk et al. 2020 (arXiv:1909.13719); "
        "stochastic depth and the test's crop: Wightman et al. 2021 (arXiv:2110.00476), table 2",
        reason="SGD, 0.5 for a batch of 1024, 5 epochs of warm-up from a hundredth, half a cosine "
        "over 600 epochs, weight decay 2e-5 except for BatchNorm, smoothing 0.1, mixup 0.2 or "
        "CutMix 1.0; BatchNorm over 128 images, as on each of their 8 GPUs; the average moves as "
        "fast as theirs of 0.99998, which is updated once in 32 steps with 55 times the weight; it "
        "departs: RandAugment (2 operations of strength 9) for TrivialAugment and random erasing, "
        "no repeated augmentation, training crops of 224 instead of 176, stochastic depth 0.05; "
        f"{_AREA} by Pillow's bilinear filter (--train-interpolation bilinear)",
        published="ResNet50 19.33 (80.674 % by torchvision's recipe, which differs as above); "
        "nothing for exactly these numbers",
    ),
    "imagenet-lars": Recipe(
        dataclasses.replace(
            _IMAGENET,
            epochs=90,
            global_batch_size=32_768,
            batch_norm_images=64,
            optimizer="lars",
            learning_rate=34.0,
            learning_rate_batch_size=32_768,
            schedule="cosine",
            warmup="linear",
            warmup_epochs=12.0,
            warmup_learning_rate=0.0,
            label_smoothing=0.1,
        ),
        source="You et al. 2017 (arXiv:1708.03888); the numbers are those of tensorflow/tpu, "
        "models/official/resnet/lars_util.py, for a batch of 32,768",
        reason="from 0 to 34 in 12 of 90 epochs, trust coefficient 0.001, momentum 0.9, weight "
        "decay 1e-4, neither decay nor trust ratio for BatchNorm and biases; BatchNorm over 64 "
        "images, as each of 512 cores has in its configs/cloud/v2-512.yaml; it departs: half a "
        "cosine instead of a polynomial of degree 2, label smoothing 0.1; a much smaller batch "
        "scales the rate down in proportion, and does not need LARS; "
        f"{_AREA} bicubic (--train-interpolation bicubic)",
        published="ResNet50 23.7 (76.3 % at a batch of 32,768: Ying et al. 2018, "
        "arXiv:1811.06992, and the commit of LARS to TensorFlow)",
    ),
}

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
        source="scikit-learn's digits, 1,797 handwritten ones of 8x8 pixels; nothing to download",
        reason="a first run in under a minute on two cores; every fifth image is the test set",
        published="nothing published",
    ),
    "finetune": Recipe(
        Config(
            model="ResNet50",
            init_from=Path("pretrained.safetensors"),
            data="folder:images",
            epochs=20,
            global_batch_size=64,
            learning_rate=0.01,
            learning_rate_batch_size=256,
            nesterov=True,
            schedule="cosine",
            warmup="linear",
            warmup_epochs=1.0,
            warmup_learning_rate=0.0,
            min_crop_area=0.25,
        ),
        source="Kornblith et al. 2019 (arXiv:1805.08974), fine-tuning: SGD with Nesterov momentum, "
        "batches of 256, half a cosine, the learning rate chosen between 0.0001 and 0.1",
        reason="name your weights by --init-from and your images by --data folder:PATH, otherwise "
        "the run is refused; 0.01 for 256 images is the middle of that range; the head is new, so "
        "the first epoch warms up; few epochs and larger crops than from scratch, because the "
        "features are learned; the paper's 20,000 steps are for sets of thousands of images and "
        "more; choose learning rate and epochs on a validation set",
        published="nothing published for these numbers",
    ),
    **_CIFAR,
    **_OF_IMAGENET,
}
