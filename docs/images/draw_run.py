"""Draws a finished run: its test error while training, and how far its twins are apart by layer.

The README's picture is that of `resnet-train digits`. Needs the extras `torch`, `train` and `plot`.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import jax
import matplotlib.pyplot as plt
import numpy as np

import convert
from convert.parity import compare

BLUE, ORANGE, GREY = "#1f5fbf", "#c2500a", "#5c6370"
OTHER_EPSILON = 1e-3  # of one BatchNorm, 1e-5 everywhere else: what a mistake looks like


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument("-o", "--output", type=Path, required=True, help="picture to write (.svg)")
    arguments = parser.parse_args()
    plt.rcParams.update({"font.size": 10, "svg.fonttype": "path", "svg.hashsalt": "resnet"})
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 3.4), layout="constrained")
    draw_training(left, arguments.run)
    draw_parity(right, arguments.run / "model.safetensors")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#e4e6ea")
        axes.set_axisbelow(True)
    metadata = {"Date": None} if arguments.output.suffix == ".svg" else {}
    figure.savefig(arguments.output, facecolor="white", dpi=110, metadata=metadata)


def draw_training(axes: Any, run: Path) -> None:
    """The error on the test set after each epoch in Flax, and that of the torch twin at the end."""
    config = json.loads((run / "config.json").read_text())["config"]
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    tests = [line for line in lines if line["kind"] == "test"]
    parity = json.loads((run / "result.json").read_text())["parity"]
    steps = [line["step"] for line in tests]
    axes.plot(steps, [100 * line["error"] for line in tests], color=BLUE, label="Flax")
    axes.plot(
        steps[-1],
        100 * parity["torch_error"],
        "o",
        color=ORANGE,
        markersize=8,
        fillstyle="none",
        label="PyTorch, the exported weights:\n"
        f"{100 * parity['torch_error']:.2f} %, {parity['different_predictions']} of "
        f"{parity['images']} predictions differ",
    )
    axes.set(title=f"Test error of {config['model']} on {config['data']}", xlabel="training step")
    axes.set(yscale="log", ylabel="error, %")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.legend(frameon=False)


def draw_parity(axes: Any, weights: Path) -> None:
    """The relative difference of each layer's output, between the twins of one file."""
    jax.config.update("jax_enable_x64", True)
    torch_model = convert.load(weights, backend="torch")
    flax_model = convert.load(weights, backend="flax")
    shape = (4, 32, 32, flax_model.spec.in_planes)
    images = np.random.default_rng(0).standard_normal(shape, np.float32)  # (n, h, w, c)
    same = compare(torch_model, flax_model, images).sections["eval"]
    flax_model.stages[1][1].bn1.epsilon = OTHER_EPSILON
    other = compare(torch_model, flax_model, images, precision="f64").sections["eval"]
    exact = [row.exact.relative for row in same]
    mistaken = [row.exact.relative for row in other]
    reduced = [row.reduced.relative for row in same if row.reduced is not None]
    axes.plot(mistaken, color=ORANGE, label="float64, one BatchNorm has another epsilon")
    axes.plot(reduced, color=GREY, linestyle="--", label="float32")
    axes.plot(exact, color=BLUE, label="float64")
    axes.set(title="Difference of the twins, layer by layer", xlabel="layer, from stem to head")
    axes.set(yscale="log", ylabel="relative difference", ylim=(1e-17, 1e3))
    axes.set_yticks([10.0**power for power in range(-16, 1, 4)])
    axes.legend(frameon=False, loc="upper left")


if __name__ == "__main__":
    main()
