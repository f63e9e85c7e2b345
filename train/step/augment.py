"""Random crop, flip and normalisation in the compiled step, and its random keys."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt8

from train.config import Config
from train.data.dataset import Dataset, image_dtype


class Keys(NamedTuple):
    """Random keys of a step: one for each image, one for dropout, and one for the batch."""

    images: Array
    dropout: Array
    batch: Array


def draw_keys(seed: Any, step: Any, places: Int[Array, " n"]) -> Keys:
    """The keys of one step, for images at these places in the global batch.

    They depend on the arguments alone, not on the number of devices or earlier steps.
    """
    image_key, dropout, batch = jax.random.split(jax.random.fold_in(jax.random.key(seed), step), 3)
    images = jax.vmap(lambda place: jax.random.fold_in(image_key, place))(places)
    return Keys(images, dropout, batch)


class Augment:
    """uint8 images (n, h, w, c) to normalised ones, float32 or float64; one key for each image.

    He et al. 2015, section 4.2: padding on each side, a random crop of the image or its mirror.
    The padding is zero after normalisation, which is the mean colour.
    """

    def __init__(self, config: Config, dataset: Dataset):
        # streamed images are cropped and mirrored before
        self.padding = 0 if dataset.is_streamed else config.crop_padding
        self.flip = config.flip and not dataset.is_streamed
        self.dtype = image_dtype(config)
        self.mean = jnp.array(dataset.mean, self.dtype)
        self.std = jnp.array(dataset.std, self.dtype)

    def normalise(self, images: UInt8[Array, "n h w c"]) -> Float[Array, "n h w c"]:
        return (images.astype(self.dtype) / 255 - self.mean) / self.std

    def __call__(self, images: UInt8[Array, "n h w c"], keys: Array) -> Float[Array, "n h w c"]:
        return jax.vmap(self._one)(self.normalise(images), keys)

    def _one(self, image: Float[Array, "h w c"], key: Array) -> Float[Array, "h w c"]:
        # explicit dtypes: float64 mode would draw other crops from the same key
        crop_key, flip_key = jax.random.split(key)
        if self.padding:
            edge = (self.padding, self.padding)
            padded = jnp.pad(image, (edge, edge, (0, 0)))
            row, column = jax.random.randint(crop_key, (2,), 0, 2 * self.padding + 1, jnp.int32)
            image = jax.lax.dynamic_slice(padded, (row, column, jnp.int32(0)), image.shape)
        if self.flip:
            mirrored = jax.random.bernoulli(flip_key, jnp.float32(0.5))
            image = jnp.where(mirrored, image[:, ::-1], image)
        return image
