"""Crop, flip and normalisation on the device, inside the compiled step."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from train.config import Config
from train.data import Dataset


class Augment:
    """uint8 images (n, h, w, c) to normalised float32 ones; each image has a key of its own.

    He et al. 2015, section 4.2: padding on each side, a random crop of the image or its mirror.
    The padding is zero after normalisation, the mean colour.
    """

    def __init__(self, config: Config, dataset: Dataset):
        self.padding = config.crop_padding
        self.flip = config.flip
        self.mean = jnp.array(dataset.mean, jnp.float32)
        self.std = jnp.array(dataset.std, jnp.float32)

    def normalise(self, images: UInt8[Array, "n h w c"]) -> Float[Array, "n h w c"]:
        return (images.astype(jnp.float32) / 255 - self.mean) / self.std

    def __call__(self, images: UInt8[Array, "n h w c"], keys: Array) -> Float[Array, "n h w c"]:
        return jax.vmap(self._one)(self.normalise(images), keys)

    def _one(self, image: Float[Array, "h w c"], key: Array) -> Float[Array, "h w c"]:
        crop_key, flip_key = jax.random.split(key)
        if self.padding:
            edge = (self.padding, self.padding)
            padded = jnp.pad(image, (edge, edge, (0, 0)))
            row, column = jax.random.randint(crop_key, (2,), 0, 2 * self.padding + 1)
            image = jax.lax.dynamic_slice(padded, (row, column, 0), image.shape)
        if self.flip:
            image = jnp.where(jax.random.bernoulli(flip_key), image[:, ::-1], image)
        return image
