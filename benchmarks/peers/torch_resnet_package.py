"""PyPI's torch-resnet 0.0.4, the package re-created here, whose import name is ours too."""

import functools
import importlib.util
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

REQUIREMENT = "torch-resnet==0.0.4"
_NAME = "torch_resnet_package"


def install(folder: Path) -> None:
    """Puts the package into a folder of its own, as beside ours it would hide it.

    Raises:
        subprocess.CalledProcessError: pip could not; it has said why on stderr.
    """
    install = ["-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder)]
    subprocess.run([sys.executable, *install, REQUIREMENT], check=True)


@functools.cache
def load() -> Any:
    """The package under another name beside ours; it is installed for this process only.

    Raises:
        ImportError: pip could not install it, for want of a network for one.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            install(folder)
        except subprocess.CalledProcessError as error:
            raise ImportError(f"pip could not install {REQUIREMENT}") from error
        root = folder / "torch_resnet"
        spec = importlib.util.spec_from_file_location(
            _NAME, root / "__init__.py", submodule_search_locations=[str(root)]
        )
        assert spec is not None
        assert spec.loader is not None
        package = importlib.util.module_from_spec(spec)
        sys.modules[_NAME] = package  # its modules import each other by relative names
        spec.loader.exec_module(package)
    return package


def create(name: str, num_classes: int) -> Any:
    """Its network of one of our full names, such as `WideResNet28-10-0.0`, with a linear head."""
    from torch import nn

    base, *numbers = name.split("-")
    options = dict(zip(("width", "drop_rate"), (float(n) for n in numbers), strict=False))
    if "width" in options:
        options["width"] = int(options["width"])
    model = getattr(load(), base)(**options)
    model.set_head(nn.Linear(model.out_planes, num_classes))
    return model
