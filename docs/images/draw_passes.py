"""Draws the test error of a finished run on CIFAR-10 against its passes over the images.

The picture of docs/training.md is that of `cifar10-fast`. Needs the extras `train` and `plot`.
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt

from train.results.collect import find_runs
from train.results.published import published

BLUE, ORANGE, GREY = "#1f5fbf", "#c2500a", "#5c6370"
USUAL_EPOCHS = {"He 2015": 164, "torch-resnet": 160}
SHOWN = (7, 70)  # percent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument("-o", "--output", type=Path, required=True, help="picture to write (.svg)")
    arguments = parser.parse_args()
    (run,) = find_runs([arguments.run])[0]
    assert run.outcome is not None, f"{arguments.run} is not finished"
    plt.rcParams.update({"font.size": 10, "svg.fonttype": "path", "svg.hashsalt": "resnet"})
    figure, axes = plt.subplots(figsize=(7.2, 3.4), layout="constrained")
    tests = [line for line in run.metrics if line["kind"] == "test"]
    passes = [run.epoch(line["step"]) for line in tests]
    errors = [100 * line["error"] for line in tests]
    model, recipe = run.config.model, run.recipe
    axes.plot(passes, errors, color=BLUE, label=f"{model}, {recipe}: {errors[-1]:.2f} %")
    for figure_of, marker in zip(published(run.config.data, model), "sD", strict=False):
        spread = "" if figure_of.std is None else f" ± {figure_of.std:.2f}"
        label = f"{figure_of.source}: {figure_of.error:.2f}{spread} %, the whole schedule"
        place = USUAL_EPOCHS[figure_of.source]
        axes.errorbar(
            place, figure_of.error, figure_of.std, fmt=marker, color=ORANGE, capsize=3, label=label
        )
        axes.axhline(figure_of.error, color=GREY, linewidth=0.6, linestyle="--")
    axes.set(yscale="log", ylim=SHOWN, xlabel="passes over the training images")
    axes.set(ylabel="error on the test images, %", xlim=(0, None))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_yticks([8, 10, 20, 50], minor=False)
    axes.set_yticks([], minor=True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e4e6ea")
    axes.set_axisbelow(True)
    axes.legend(frameon=False)
    metadata = {"Date": None} if arguments.output.suffix == ".svg" else {}
    figure.savefig(arguments.output, facecolor="white", dpi=110, metadata=metadata)


if __name__ == "__main__":
    main()
