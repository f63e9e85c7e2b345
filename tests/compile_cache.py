"""The folder of compiled programs that all tests share."""

from pathlib import Path

from train.run.compile_cache import make_folder, user_caches


def folder() -> Path:
    """One for each JAX, processor and number of cores.

    It lies outside the checkout, so that a fresh clone finds what an earlier one has compiled.
    """
    try:
        return make_folder(user_caches() / "flax-resnet-tests")
    except OSError:  # a user without a home that can be written to
        return make_folder(Path(__file__).parents[1] / ".pytest_cache" / "jax")
