"""Over how many images BatchNorm normalises: `--batch-norm-images`."""

import dataclasses

from train.config import Config
from train.errors import UserError


def group_images(config: Config, devices: int) -> int | None:
    """Images that are normalised together; None for a whole batch, or its part."""
    images = config.batch_norm_images
    if images == "device":
        images = config.part_size // devices
    return None if images == "batch" or images >= config.part_size else images


def begun_with(config: Config, devices: int) -> Config:
    """The same with a number for `device`, which a run keeps if it goes on on other devices.

    UserError if the batch cannot be cut evenly for the devices.
    """
    if config.batch_norm_images != "device":
        return config
    if config.part_size % devices:
        raise UserError(
            f"--batch-norm-images device: {config.part_size} images do not divide by the {devices} "
            "devices"
        )
    return dataclasses.replace(config, batch_norm_images=group_images(config, devices) or "batch")


def check_groups(config: Config, devices: int, share: int) -> None:
    """Raises a UserError if `share` images on each device cannot form the groups."""
    images = group_images(config, devices) or share
    if max(images, share) % min(images, share):
        raise UserError(
            f"--batch-norm-images {images}: each device has {share} images, neither a multiple nor "
            f"a divisor of that: {share} does"
        )
