"""Recipes for ImageNet: 1,281,167 images to train, 50,000 to test on, crops of 224x224 pixels."""

import dataclasses

from train.config import Config
from train.config.recipes.recipe import Recipe

_IMAGENET = Config(data="imagenet2012", model="ResNet50", global_batch_size=256, warmup_steps=0)
_CROPS = "crops of 8 % to 100 % of the area and mirrors are the only augmentation"

IMAGENET: dict[str, Recipe] = {
    "imagenet-he2015": Recipe(
        dataclasses.replace(
            _IMAGENET,
            bottleneck_stride="1x1",
            epochs=120,
            max_steps=600_000,
            drop_epochs=(30.0, 60.0, 90.0),
        ),
        source="He et al. 2015 (arXiv:1512.03385), section 3.4 and table 3",
        reason="batch 256, 0.1, weight decay 1e-4, momentum 0.9, up to 600k iterations, which are "
        "120 epochs; the paper divides the rate by 10 when the error stands still, without "
        "numbers: quarters of the run are ours; the stride is on the first 1x1, as published; "
        f"{_CROPS}, the paper has scales of 256 to 480 pixels and changes colours, too",
        published="ResNet50 24.7, ResNet101 23.6, ResNet152 23.0 (one crop of 224, the authors' "
        "list at KaimingHe/deep-residual-networks); ten crops: 22.85, 21.75, 21.43 (table 3)",
    ),
    "imagenet": Recipe(
        dataclasses.replace(
            _IMAGENET,
            epochs=90,
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
        "weight decay 1e-4 but for BatchNorm; label smoothing 0.1 is not of this paper but of "
        "Szegedy et al. 2016 (--label-smoothing 0 for Goyal's own); BatchNorm is over the whole "
        f"batch, there over the 32 images of a GPU; {_CROPS}",
        published="ResNet50 23.60 ± 0.12 (batch 256), 23.74 ± 0.09 (batch 8192), both without "
        "label smoothing",
    ),
    "imagenet-modern": Recipe(
        dataclasses.replace(
            _IMAGENET,
            epochs=600,
            global_batch_size=1024,
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
        source="torchvision's recipe of 2021 for its second weights of ResNet50 (pytorch/vision "
        "issue 3995 and its article); RandAugment: Cubuk et al. 2020 (arXiv:1909.13719); "
        "stochastic depth and the test's crop: Wightman et al. 2021 (arXiv:2110.00476), table 2",
        reason="SGD, 0.5 for a batch of 1024, 5 epochs of warm-up from a hundredth, half a cosine "
        "over 600 epochs, weight decay 2e-5 but for BatchNorm, smoothing 0.1, mixup 0.2 or CutMix "
        "1.0; the average moves as theirs of 0.99998, which counts 55-fold and once in 32 steps. "
        "It departs: RandAugment (2 operations of strength 9) for TrivialAugment and random "
        "erasing, no repeated augmentation, training crops of 224 instead of 176, stochastic "
        "depth 0.05",
        published="ResNet50 19.33 (80.674 % of torchvision's recipe, which differs as said); "
        "nothing is published for these very numbers",
    ),
    "imagenet-lars": Recipe(
        dataclasses.replace(
            _IMAGENET,
            epochs=90,
            global_batch_size=32_768,
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
        "decay 1e-4, neither decay nor trust ratio for BatchNorm and biases; it departs: half a "
        "cosine for a falling square, label smoothing 0.1; for a much smaller batch the rate is "
        "scaled down in proportion, and LARS is not needed",
        published="ResNet50 23.7 (76.3 % at a batch of 32,768: Ying et al. 2018, "
        "arXiv:1811.06992, and the commit of LARS to TensorFlow)",
    ),
}
