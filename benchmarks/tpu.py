"""`python -m benchmarks.tpu`: what the TPU's compiler makes of our steps, beside Flax's example.

Nothing is executed, so the figures do not depend on the machine, but for the time to compile.
"""

import argparse
import datetime
import json
import math
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.apart import StoppedError, call_apart
from benchmarks.peers.linen_resnet import compile_ahead

RESULTS = Path(__file__).parent / "results" / "tpu"
_LINEN = "linen"
_OVER_ALL = ("--batch-norm-images", "batch")  # the recipe of ImageNet normalises over 32 images
_LIMIT = 4 * 3600.0  # seconds of one case: ResNet50 takes an hour on a busy machine
_IMAGENET, _CIFAR, _CIFAR_BATCH, _IMAGENET_BATCH = "imagenet", "cifar10", 128, 256


@dataclass(frozen=True)
class Case:
    """A command of ours, and whether linen has the same network.

    Attributes:
        recipe: names data and optimizer.
        images: on each device.
        options: switches of `resnet-train`, such as `--scan-blocks`.
    """

    model: str
    recipe: str
    topology: str
    images: int
    options: tuple[str, ...] = ()
    has_peer: bool = False

    @property
    def name(self) -> str:
        words = (self.topology, self.model, *(option.removeprefix("--") for option in self.options))
        return " ".join(words)


def _cases() -> list[Case]:
    cases = []
    for topology in ("v5e:2x2", "v6e:2x2"):
        cases += [
            Case("ResNet20", _CIFAR, topology, _CIFAR_BATCH, has_peer=True),
            Case("ResNet50", _IMAGENET, topology, _IMAGENET_BATCH, has_peer=True),
            Case("ResNet50", _IMAGENET, topology, _IMAGENET_BATCH, _OVER_ALL),
            Case("PreActResNet164", "cifar10-preact", topology, _CIFAR_BATCH),
            Case("PreActWideResNet28-10", "cifar10-wide", topology, _CIFAR_BATCH),
            Case("ResNet1202", _CIFAR, topology, _CIFAR_BATCH, ("--scan-blocks",)),
            Case("ResNet1202", _CIFAR, topology, _CIFAR_BATCH, ("--scan-blocks", "--remat")),
        ]
    return [*cases, Case("ResNet50", _IMAGENET, "v5e:16x16", _IMAGENET_BATCH)]


CASES = {case.name: case for case in _cases()}


def main() -> None:
    """Compiles the cases that are named, all without a name, and writes the table after each."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tpu", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="CASE", help="; ".join(CASES))
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    options = parser.parse_args()
    if unknown := set(options.names) - set(CASES):
        parser.error(f"no case {', '.join(sorted(unknown))}; there are {'; '.join(CASES)}")
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "compiled.json"
    for name in options.names or CASES:
        print(name, flush=True)
        for found in measure(CASES[name]):
            known = json.loads(path.read_text()) if path.exists() else {}
            known[name] = {"date": datetime.date.today().isoformat(), **found}
            known = {case: known[case] for case in CASES if case in known}
            path.write_text(json.dumps(known, indent=2) + "\n")
            path.with_suffix(".md").write_text(to_markdown(known))


def measure(case: Case) -> Iterator[dict[str, Any]]:
    """What the command prints, then linen's figures, too; or why there are none."""
    command = [
        *(case.recipe, "--model", case.model, "--precision", "bf16", *case.options),
        *("--global-batch-size", str(_count(case.topology) * case.images)),
        *("--compile-for", case.topology, "--json"),
    ]
    run = subprocess.run(
        [sys.executable, "-m", "train", *command], stdout=subprocess.PIPE, text=True, check=False
    )
    found: dict[str, Any] = {"command": " ".join(["resnet-train", *command])}
    if not run.stdout:
        yield {**found, "failed": f"exit code {run.returncode}"}
        return
    found["ours"] = json.loads(run.stdout)
    yield found
    if case.has_peer:
        sizes = (32, 10) if case.recipe == _CIFAR else (224, 1000)
        arguments = (case.model, case.topology, case.images, *sizes)
        try:
            peer = call_apart(compile_ahead, *arguments, seconds=_LIMIT, memory_gib=32)
            yield {**found, _LINEN: peer}
        except StoppedError as error:
            yield {**found, "linen_failed": str(error)}


def _count(topology: str) -> int:
    """Devices of a topology whose chips are one device each."""
    return math.prod(map(int, topology.partition(":")[2].split("x")))


def to_markdown(known: dict[str, Any]) -> str:
    """A row for each case; those that were not compiled are there, too."""
    lines = [
        "# What the TPU's compiler says of a training step",
        "",
        "bfloat16, of one device. Nothing was executed. Ours normalises over all chips, ImageNet's "
        "recipe over 32 images, linen (the network and the step of Flax's ImageNet example) over "
        "each chip's images. Ours crops and normalises uint8 images, linen is given normalised "
        "ones. `make benchmark-tpu` writes this table.",
        "",
        "| topology, network | images a device | | bytes accessed | compiler's time | "
        "all-reduces | peak memory | compiled in | versions |",
        "|---|--:|---|--:|--:|--:|--:|--:|---|",
    ]
    for name, case in CASES.items():
        found = known.get(name, {"failed": "not compiled"})
        if "failed" in found:
            lines.append(f"| {name} | {case.images} | {found['failed']} | | | | | | |")
            continue
        ours = found["ours"]
        versions = ", ".join(f"{k} {v}" for k, v in ours["versions"].items())
        step = ours["attempts"][0]["step"]
        if step is None:
            lacks = f"needs {ours['attempts'][0]['needed_bytes'] / 2**30:.1f} GiB of "
            lacks += f"{ours['available_bytes'] / 2**30:.1f}: does not fit"
            lines.append(f"| {name} | {case.images} | ours | {lacks} | | | | | {versions} |")
        else:
            lines.append(f"| {name} | {case.images} | ours | {_cells(step)} | {versions} |")
        if _LINEN in found:
            lines.append(f"| | | linen | {_cells(found[_LINEN])} | |")
            ratios = [
                f"{step[key] / found[_LINEN][key]:.3f}" if step else ""
                for key in ("bytes_accessed", "seconds")
            ]
            lines.append(f"| | | ours / linen | {' | '.join(ratios)} | | | | |")
        elif case.has_peer:
            lines.append(f"| | | linen | {found.get('linen_failed', 'not compiled')} | | | | | |")
    return "\n".join(lines) + "\n"


def _cells(step: dict[str, Any]) -> str:
    loops = f", loops x {step['loops']:.2f}" if step["loops"] > 1.005 else ""
    return " | ".join(
        (
            f"{step['bytes_accessed'] / 1e9:.4g} GB",
            f"{1e3 * step['seconds']:.4g} ms{loops}",
            f"{step['all_reduces']}",
            f"{step['peak_bytes'] / 1e9:.3g} GB",
            f"{step['compile_seconds']:.0f} s",
        )
    )


if __name__ == "__main__":
    main()
