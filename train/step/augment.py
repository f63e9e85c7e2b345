"""Augmentation in the compiled step: crop, flip, Cutout; mixup, CutMix and label smoothing."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, UInt8

from train.config import Config
from train.data.dataset import Dataset, image_dtype
from train.errors import UserError

# For other draws by the same keys
_MIXING = 0x6D69786D
_CUTOUT = 0x6375746F


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
    The padding is zero after normalisation, which is the mean colour. So is what Cutout erases
    (DeVries & Taylor 2017, arXiv:1708.04552): a square with its centre anywhere in the image,
    clipped at the edges.
    """

    def __init__(self, config: Config, dataset: Dataset):
        # streamed images are cropped and mirrored before
        self.padding = 0 if dataset.is_streamed else config.crop_padding
        self.flip = config.flip and not dataset.is_streamed
        self.image_shape = dataset.image_shape
        self.cutout = 0 if dataset.is_streamed else config.cutout
        self.dtype = image_dtype(config)
        self.mean = jnp.array(dataset.mean, self.dtype)
        self.std = jnp.array(dataset.std, self.dtype)

    def normalise(
        self, images: UInt8[Array, "n h w c"] | UInt8[Array, "n hwc"]
    ) -> Float[Array, "n h w c"]:
        images = images.reshape(-1, *self.image_shape)
        return (images.astype(self.dtype) / 255 - self.mean) / self.std

    def __call__(self, images: UInt8[Array, "n h w c"], keys: Array) -> Float[Array, "n h w c"]:
        return jax.vmap(self._one)(self.normalise(images), keys)

    def _one(self, image: Float[Array, "h w c"], key: Array) -> Float[Array, "h w c"]:
        # explicit dtypes: float64 mode would draw other crops from the same key
        crop_key, flip_key = jax.random.split(key)
        if self.padding:
            edge = (self.padding, self.padding)
            padded = jnp.pad(image, (edge, edge, (0, 0)))
            size = (image.shape[0], image.shape[1])
            row, column = jax.random.randint(crop_key, (2,), 0, 2 * self.padding + 1, jnp.int32)
            image = jax.lax.platform_dependent(
                *(padded, row, column),
                tpu=partial(choose_part, size=size),
                default=partial(slice_part, size=size),
            )
        if self.flip:
            mirrored = jax.random.bernoulli(flip_key, jnp.float32(0.5))
            image = jnp.where(mirrored, image[:, ::-1], image)
        if self.cutout:
            half = jnp.int32(self.cutout // 2)
            keys = jax.random.split(jax.random.fold_in(key, _CUTOUT))
            erased = _draw_box(keys, (half, half), image.shape[:2])
            image = jnp.where(erased[..., None], 0, image)
        return image


def slice_part(
    padded: Float[Array, "h2 w2 c"], row: Array, column: Array, *, size: tuple[int, int]
) -> Float[Array, "h w c"]:
    """The part of this size whose corner is at (row, column)."""
    return jax.lax.dynamic_slice(padded, (row, column, jnp.int32(0)), (*size, padded.shape[-1]))


def choose_part(
    padded: Float[Array, "h2 w2 c"], row: Array, column: Array, *, size: tuple[int, int]
) -> Float[Array, "h w c"]:
    """The same as a choice among all parts: a TPU slices a batch one image after another."""
    height, width = size
    rows = (padded[k : k + height] for k in range(len(padded) - height + 1))
    chosen = jax.lax.select_n(row, *rows)
    columns = (chosen[:, k : k + width] for k in range(padded.shape[1] - width + 1))
    return jax.lax.select_n(column, *columns)


class Mixing:
    """Blends the images of a batch in pairs, and their labels likewise.

    Mixup (Zhang et al. 2018, arXiv:1710.09412): lambda times an image and 1 - lambda times its
    partner, lambda from Beta(alpha, alpha). CutMix (Yun et al. 2019, arXiv:1905.04899): a box of
    the partner's pixels, of about 1 - lambda of the area, and labels by the exact area. With both,
    each batch draws one of the two. Label smoothing (Szegedy et al. 2016, arXiv:1512.00567,
    section 7) spreads a share of each label over all classes, as torch's CrossEntropyLoss does.

    An image's partner is its neighbour in the randomly ordered batch, and each image has its own
    lambda, so that the result does not depend on the number of devices. (The papers permute the
    batch and draw one lambda for it.)

    Attributes:
        is_needed: whether any of this is on; if not, the step keeps its integer labels.
    """

    def __init__(self, config: Config, num_classes: int):
        self.mixup, self.cutmix = config.mixup, config.cutmix
        self.label_smoothing = config.label_smoothing
        self.num_classes = num_classes
        self._blends = config.mixup > 0 or config.cutmix > 0
        self.is_needed = self._blends or config.label_smoothing > 0

    def check_share(self, share: int) -> None:
        """Raises a UserError if the number of images on one device is odd."""
        if self._blends and share % 2:
            raise UserError(
                f"--mixup and --cutmix blend images in pairs, and {share} on each device is odd: "
                "give a --global-batch-size that divides by twice the number of devices and "
                "--accumulate-steps"
            )

    def __call__(
        self, images: Float[Array, "n h w c"], labels: Int[Array, " n"], keys: Any, batch_key: Any
    ) -> tuple[Float[Array, "n h w c"], Float[Array, "n classes"]]:
        """Blended images, and soft labels in float32 or the images' float64.

        `images` are normalised; there is one of the `keys` for each, and one for the whole batch.
        """
        targets = self._smooth(labels, jnp.promote_types(images.dtype, jnp.float32))
        if not self._blends:
            return images, targets
        self.check_share(len(labels))
        _, height, width, _ = images.shape
        weights, share = self._weigh((height, width), keys, batch_key)
        weights, share = weights.astype(images.dtype), share.astype(targets.dtype)
        return _blend(images, weights[..., None]), _blend(targets, share[:, None])

    def _smooth(self, labels: Int[Array, " n"], dtype: Any) -> Float[Array, "n classes"]:
        hard = jax.nn.one_hot(labels, self.num_classes, dtype=dtype)
        return optax.smooth_labels(hard, self.label_smoothing) if self.label_smoothing else hard

    def _weigh(
        self, size: tuple[int, int], keys: Any, batch_key: Any
    ) -> tuple[Float[Array, "n h w"], Float[Array, " n"]]:
        """The share of each pixel and of each label that is the image's own."""
        keys = jax.vmap(lambda key: jax.random.fold_in(key, _MIXING))(keys)
        mixed = jax.vmap(lambda key: _draw_mixup(key, self.mixup, size))
        cut = jax.vmap(lambda key: _draw_cutmix(key, self.cutmix, size))
        if not self.cutmix:
            return mixed(keys)
        if not self.mixup:
            return cut(keys)
        is_cut = jax.random.bernoulli(batch_key, jnp.float32(0.5))
        return jax.tree.map(lambda a, b: jnp.where(is_cut, a, b), cut(keys), mixed(keys))


# Explicit dtypes: float64 mode would draw other numbers from the same key.
def _draw_lambda(key: Any, alpha: float) -> Float[Array, ""]:
    return jax.random.beta(key, jnp.float32(alpha), jnp.float32(alpha), dtype=jnp.float32)


def _draw_mixup(
    key: Any, alpha: float, size: tuple[int, int]
) -> tuple[Float[Array, "h w"], Float[Array, ""]]:
    share = _draw_lambda(key, alpha)
    return jnp.broadcast_to(share, size), share


def _draw_cutmix(
    key: Any, alpha: float, size: tuple[int, int]
) -> tuple[Float[Array, "h w"], Float[Array, ""]]:
    lambda_key, *centre_keys = jax.random.split(key, 3)
    side = jnp.sqrt(1 - _draw_lambda(lambda_key, alpha))  # of the box, as a share of the image's
    halves = [(side * length).astype(jnp.int32) // 2 for length in size]
    own = 1 - _draw_box(centre_keys, halves, size).astype(jnp.float32)
    return own, own.mean()


def _draw_box(keys: Any, halves: Any, size: tuple[int, ...]) -> Bool[Array, "h w"]:
    """The pixels of a box with its centre anywhere in the image, clipped at the edges.

    `keys`, `halves` (of its sides) and `size` are of the height and of the width.
    """
    inside = []
    for key, half, length in zip(keys, halves, size, strict=True):
        centre = jax.random.randint(key, (), 0, length, jnp.int32)
        place = jnp.arange(length, dtype=jnp.int32)
        inside.append((place >= centre - half) & (place < centre + half))
    return inside[0][:, None] & inside[1][None, :]


def _blend(arrays: Array, own: Array) -> Array:
    """Each array times `own`, plus its partner times the rest: partners are 0 and 1, 2 and 3..."""
    pairs = arrays.reshape(-1, 2, *arrays.shape[1:])
    return own * arrays + (1 - own) * pairs[:, ::-1].reshape(arrays.shape)
