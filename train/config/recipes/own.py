"""Recipes for data sets that no paper is about: the first run, and images of one's own."""

from pathlib import Path

from train.config import Config
from train.config.recipes.recipe import Recipe

OWN: dict[str, Recipe] = {
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
        reason="name your weights by --init-from and your images by --data folder:PATH, or this "
        "ends at once rather than train from nothing; 0.01 for 256 images is the middle of that "
        "range; a new head is drawn, so the first epoch warms up; few epochs and larger crops "
        "than from scratch, as the features are learned; the paper's 20,000 steps are for sets of "
        "thousands of images and more; choose learning rate and epochs on a validation set",
        published="nothing published for these numbers",
    ),
}
