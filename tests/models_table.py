"""The table of models in docs/models.md, made from the spec: `python -m tests.models_table`."""

from resnet_spec import MODELS, ResNetSpec


def family(name: str, spec: ResNetSpec) -> str:
    if name.endswith("-small"):
        return "small"
    kind = "CIFAR" if spec.small_images else "ImageNet"
    return f"{kind}, wide" if "Wide" in name else kind


def rows() -> list[str]:
    """Markdown, one line a network; each has a twin called PreAct... with as many blocks."""
    lines = [
        "| model | for | blocks | parameters | parameters, PreAct |",
        "|---|---|---|---:|---:|",
    ]
    for name, spec in MODELS.items():
        if name.startswith("PreAct"):
            continue
        num_classes = 10 if spec.small_images else 1000
        counts = [MODELS[n].count_parameters(num_classes) for n in (name, f"PreAct{name}")]
        blocks = "-".join(map(str, spec.stage_depths)) + f" {spec.block}"
        numbers = " | ".join(f"{count:,}" for count in counts)
        lines.append(f"| `{name}` | {family(name, spec)} | {blocks} | {numbers} |")
    return lines


if __name__ == "__main__":
    print("\n".join(rows()))
