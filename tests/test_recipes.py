"""The recipes against the numbers of their papers: lengths, drops, peaks and networks."""

import dataclasses
import re

import numpy as np
import pytest

from resnet_spec import find_spec
from train.config import Config
from train.config.recipes import DEFAULT, RECIPES
from train.results.published import published
from train.run.trainer import count_steps
from train.step.optimizer import make_schedule, unreached

TRAIN_IMAGES = {"digits": 1437, "cifar10": 50_000, "cifar100": 50_000, "imagenet2012": 1_281_167}


def resolve(name: str, **changes: object) -> tuple[Config, int]:
    """A recipe in steps, on its whole data set, and its length."""
    config = dataclasses.replace(RECIPES[name].config, **changes)  # type: ignore[arg-type]
    images = TRAIN_IMAGES.get(config.data, 1000) - (config.validation_size or 0)
    return config.resolved(images), count_steps(config, images)


def rates(name: str, *steps: int, **changes: object) -> list[float]:
    config, total = resolve(name, **changes)
    schedule = make_schedule(config, total)
    return [float(np.asarray(schedule(step))) for step in steps]


# Figures of other schedules than those of the networks' papers.
OF_OTHERS = ("cifar10-small", "imagenet-modern", "imagenet-lars")


@pytest.mark.parametrize("name", [name for name in RECIPES if name not in OF_OTHERS])
def test_the_figures_that_a_recipe_names_stand_beside_what_is_measured(name):
    recipe = RECIPES[name]
    said = recipe.published
    figures = re.findall(r"(\w*ResNet[\w-]+) ([\d.]+\d)(?: ± ([\d.]+\d))?", said)
    assert bool(figures) == any(digit in said for digit in "0123456789")
    for network, error, deviation in figures:
        known = published(recipe.config.data, network)
        found = [figure for figure in known if figure.error == float(error)]
        assert found, f"{network} {error}"
        assert not deviation or float(deviation) in [figure.std for figure in found]


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_whole_and_its_schedule_ends_with_it(name):
    recipe = RECIPES[name]
    assert all(len(text) > 10 for text in (recipe.source, recipe.reason, recipe.published))
    assert Config.from_json(recipe.config.to_json()) == recipe.config
    config, total = resolve(name)
    assert (config.drop_epochs, config.warmup_epochs, config.learning_rate_batch_size) == (
        None,
    ) * 3
    assert config.warmup_steps < total
    if config.schedule == "drops":
        assert max(config.drop_steps) < total
    assert not unreached(config, total)
    last = rates(name, total - 1)[0]
    assert last < 0.02 * config.learning_rate


def test_the_names_of_before_and_the_default_are_there():
    assert {"digits", "cifar10", "cifar10-45k", "cifar100"} <= set(RECIPES)
    assert DEFAULT in RECIPES


@pytest.mark.parametrize(
    ("name", "steps"),
    [
        ("cifar10", 62_500),
        ("cifar10-45k", 62_579),
        ("cifar10-he2015", 64_000),
        ("cifar10-he2015-110", 64_000),
        ("cifar10-preact", 64_000),
        ("cifar100-preact", 64_000),
        ("cifar10-wide", 78_125),
        ("cifar100-wide", 78_125),
        ("imagenet-he2015", 600_000),
        ("imagenet-lars", 3_519),  # as You et al. count 90 epochs of batches of 32k
    ],
)
def test_a_run_has_as_many_steps_as_its_paper_says(name, steps):
    assert resolve(name)[1] == steps


def test_he_2015_and_2016_fall_at_32k_and_48k_and_only_deep_networks_warm_up():
    steps = (0, 399, 400, 31_999, 32_000, 47_999, 48_000, 63_999)
    plain, warm = (
        [0.1] * 4 + [0.01] * 2 + [1e-3] * 2,
        [0.01] * 2 + [0.1] * 2 + [0.01] * 2 + [1e-3] * 2,
    )
    assert rates("cifar10-he2015", *steps) == pytest.approx(plain)
    for name in ("cifar10-he2015-110", "cifar10-preact", "cifar100-preact"):
        assert rates(name, *steps) == pytest.approx(warm)
    assert RECIPES["cifar10-he2015"].config.shortcut == "identity"
    for name in ("cifar10-preact", "cifar100-preact"):
        assert find_spec(RECIPES[name].config.model).preact


@pytest.mark.parametrize("name", ["cifar10-wide", "cifar100-wide"])
def test_zagoruyko_multiplies_by_a_fifth_at_epochs_60_120_and_160(name):
    steps = [round(epoch * 50_000 / 128) for epoch in (0, 59.9, 60.1, 119.9, 120.1, 159.9, 160.1)]
    expected = [0.1, 0.1, 0.02, 0.02, 0.004, 0.004, 0.0008]
    assert rates(name, *steps) == pytest.approx(expected)
    config = RECIPES[name].config
    spec = find_spec(config.model)
    assert (config.nesterov, config.weight_decay, spec.drop_rate) == (True, 5e-4, 0.3)
    assert (spec.preact, spec.width, sum(spec.stage_depths)) == (True, 10, 12)
    assert round(spec.count_parameters(10) / 1e6, 1) == 36.5  # table 4 of the paper


@pytest.mark.parametrize(("batch_size", "peak"), [(256, 0.1), (8192, 3.2), (1024, 0.4)])
def test_goyal_scales_the_rate_with_the_batch_and_rises_to_it_in_five_epochs(batch_size, peak):
    per_epoch = 1_281_167 / batch_size
    config, total = resolve("imagenet", global_batch_size=batch_size)
    assert total == int(np.ceil(90 * per_epoch))
    assert config.learning_rate == pytest.approx(peak)
    middle = config.warmup_steps // 2
    steps = [0, middle, config.warmup_steps]
    steps += [round(epoch * per_epoch) for epoch in (29.9, 30.1, 59.9, 60.1, 79.9, 80.1)]
    share = middle / config.warmup_steps
    expected = [0.1, 0.1 + (peak - 0.1) * share, peak]
    expected += [peak, peak / 10, peak / 10, peak / 100, peak / 100, peak / 1000]
    assert rates("imagenet", *steps, global_batch_size=batch_size) == pytest.approx(expected)
    assert config.warmup_steps == round(5 * per_epoch)


def test_torchvisions_recipe_rises_from_a_hundredth_of_its_peak_and_ends_at_zero():
    config, total = resolve("imagenet-modern")
    assert total == 750_684  # 600 epochs of 1,251.14 batches of 1024
    middle = (config.warmup_steps + total) // 2
    found = rates("imagenet-modern", 0, config.warmup_steps, middle, total)
    assert found == pytest.approx([0.005, 0.5, 0.25, 0], abs=1e-6)
    per_step = (1 - 0.99998) * (8 * 128 * 32 / 600) / 32  # of their average's weight of the new
    assert 1 - RECIPES["imagenet-modern"].config.ema_decay == pytest.approx(per_step, rel=0.15)  # type: ignore[operator]


def test_lars_rises_from_zero_to_34_in_twelve_epochs():
    config, _ = resolve("imagenet-lars")
    assert config.warmup_steps == round(12 * 1_281_167 / 32_768) == 469
    assert rates("imagenet-lars", 0, 469) == pytest.approx([0, 34])
    assert config.optimizer == "lars"


def test_the_fast_recipe_rises_for_five_epochs_to_a_cosine_in_a_third_of_the_passes():
    config, total = resolve("cifar10-fast")
    assert total * config.global_batch_size <= 62_500 * 128 / 3
    middle = (config.warmup_steps + total) // 2
    found = rates("cifar10-fast", 0, config.warmup_steps, middle, total)
    assert found == pytest.approx([0, 0.2, 0.1, 0], abs=1e-4)  # 0.4 for 512 images: Page 2018
    assert config.warmup_steps == round(5 * 50_000 / 256)


def test_fine_tuning_needs_weights_and_images_of_ones_own():
    config = RECIPES["finetune"].config
    assert config.init_from is not None
    assert config.data.startswith("folder:")
    assert resolve("finetune")[0].learning_rate == pytest.approx(0.0025)  # 0.01 for 256, at 64
