"""The numbers by which images are prepared: taken from the weights, or stated by the user."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import convert
import torch_resnet
from resnet_spec import PREPROCESSINGS, Preprocessing
from resnet_spec.preprocessing import as_text, parse_preprocessing
from tests.commands import assert_refused, run_here
from tests.peers import import_torchvision
from tests.pictures import encode, make_pixels
from tests.test_data import needs_cifar10
from tests.twins import randomise
from train.config import Config
from train.config.recipes import RECIPES
from train.data.load import load_dataset

MODEL = "WideResNet16-1-0.0"
KUANGLIU = "mean=0.4914,0.4822,0.4465,std=0.2023,0.1994,0.2010"
KUANGLIU_NUMBERS = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
NAMES = tuple("0123456789")


def network(channels: int, classes: int = 10) -> torch.nn.Module:
    model = torch_resnet.create(MODEL, classes, in_planes=channels)
    randomise(model)
    return model.eval()


def error_of(model: torch.nn.Module, images: np.ndarray, labels: np.ndarray) -> str:
    """As the trainer prints it, of normalised images (n, h, w, c)."""
    with torch.no_grad():
        logits = model(torch.from_numpy(images.transpose(0, 3, 1, 2).astype(np.float32)))
    loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels).long())
    return f"test loss {loss:.4f}, test error {(logits.argmax(1).numpy() != labels).mean():.2%}"


def evaluate(cwd: Path, *arguments: str | Path) -> str:
    result = run_here("train", *arguments, "--eval-only", cwd=cwd)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def digits() -> Any:
    """The weights in a file that says other numbers than the data set's own, and what is right."""
    test = load_dataset(RECIPES["digits"].config).test
    return network(1), test.images / 255, test.labels


def test_a_test_uses_the_normalisation_that_the_file_says(digits, tmp_path):
    model, images, labels = digits
    said = Preprocessing((0.5,), (0.25,), 8, NAMES, interpolation="bicubic")
    convert.save(tmp_path / "m.safetensors", model, preprocessing=said)
    arguments = ("digits", "--model", MODEL, "--init-from", tmp_path / "m.safetensors")
    right = error_of(model, (images - 0.5) / 0.25, labels)
    assert right in evaluate(tmp_path, *arguments)
    assert right in evaluate(tmp_path, *arguments, "--preprocessing", "file")
    own = error_of(model, (images - 0.3053) / 0.3762, labels)
    assert own != right
    output = evaluate(tmp_path, *arguments, "--preprocessing", "mean=0.3053,std=0.3762")
    assert own in output
    assert "was trained on images of mean [0.5]" in output
    assert "assumed" not in output
    convert.save(tmp_path / "silent.safetensors", model)
    silent = (*arguments[:-1], tmp_path / "silent.safetensors")
    output = evaluate(tmp_path, *silent)
    assert own in output
    assert "does not say how its images were prepared; assumed are" in output
    for text in (tmp_path / "m.safetensors", " mean = 0.5, std = 0.25 "):
        output = evaluate(tmp_path, *silent, "--preprocessing", text)
        assert right in output
        assert "assumed" not in output


@pytest.mark.parametrize("data", ["digits", "folder"])
def test_a_run_from_such_a_file_goes_on_with_its_numbers(digits, tmp_path, data):
    """Also after a stop, when the file is gone, and however its command names them."""
    model, path, said = digits[0], tmp_path / "m.safetensors", Preprocessing((0.5,), (0.25,), 8)
    options: tuple[str, ...] = ("digits", "--model", MODEL, "--max-steps", "1")
    if data == "folder":
        model, said = (
            network(3, 2),
            Preprocessing((0.5,) * 3, (0.25,) * 3, 16, None, "bicubic", 0.8),
        )
        make_pictures(tmp_path / "pictures")
        options = ("finetune", *options[1:], "--data", f"folder:{tmp_path / 'pictures'}")
        options = (*options, "--global-batch-size", "8")
    convert.save(path, model, preprocessing=said)
    command = (*options, "--init-from", path, "--preprocessing", "file", "--run-dir", "run")
    result = run_here("train", *command, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    path.unlink()
    found = convert.load_preprocessing(tmp_path / "run" / "model.safetensors")
    assert found is not None
    assert dataclasses.replace(found, class_names=None) == dataclasses.replace(
        said, interpolation=found.interpolation if data == "digits" else said.interpolation
    )
    saved = json.loads((tmp_path / "run" / "config.json").read_text())["config"]
    assert saved["preprocessing"].startswith("mean=0.5")
    longer = [*command, "--resume"]
    longer[longer.index("--max-steps") + 1] = "2"
    result = run_here("train", *longer, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "resumed at 1" in result.stdout
    assert convert.load_preprocessing(tmp_path / "run" / "model.safetensors") == found


def make_pictures(root: Path) -> list[tuple[Image.Image, int]]:
    """Two classes of JPEGs of odd sizes in train/ and test/; those of the test."""
    pictures = []
    for split in ("train", "test"):
        for number in range(8):
            place = root / split / f"class{number % 2}"
            place.mkdir(parents=True, exist_ok=True)
            content = encode(make_pixels(number, 33 + 4 * number, 61 - 3 * number), "PNG")
            (place / f"{number}.png").write_bytes(content)
            if split == "test":
                with Image.open(place / f"{number}.png") as picture:
                    pictures.append((picture.copy(), number % 2))
    return pictures


@pytest.fixture(scope="module")
def small_pictures(tmp_path_factory) -> tuple[str | Path, ...]:
    """Options of `finetune` for pictures and weights that say 20 pixels of 25, bicubic."""
    root = tmp_path_factory.mktemp("small")
    make_pictures(root / "pictures")
    said = Preprocessing((0.5,) * 3, (0.25,) * 3, 20, None, "bicubic", 0.8)
    convert.save(root / "m.safetensors", network(3, 2), preprocessing=said)
    options = ("--model", MODEL, "--data", f"folder:{root / 'pictures'}", "--max-steps", "1")
    return "finetune", *options, "--global-batch-size", "8", "--init-from", root / "m.safetensors"


USUAL = ("--image-size", "224", "--crop-fraction=0.875", "--interpolation", "bilinear")


def test_an_option_that_is_given_counts_more_than_a_file_though_it_is_the_default(
    small_pictures, tmp_path
):
    output = evaluate(tmp_path, *small_pictures, *USUAL[:3])
    assert "resized by --interpolation bicubic, as" in output
    assert "20 pixels of 25, bicubic, here they are of 224 pixels of 256, bicubic" in output
    output = evaluate(tmp_path, *small_pictures, "--preprocessing", "file,size=24", *USUAL[2:])
    assert "here they are of 24 pixels of 27, bilinear" in output


def test_a_file_counts_more_than_a_recipe_and_a_text_more_than_both(small_pictures, tmp_path):
    """The recipe says `--crop-fraction 0.95`."""
    _, *options = small_pictures
    output = evaluate(tmp_path, "imagenet-modern", *options)
    changed = "--image-size 20 --crop-fraction 0.8 --interpolation bicubic"
    assert f"images are resized by {changed}, as " in output
    assert "is for pictures of" not in output
    output = evaluate(tmp_path, "imagenet-modern", *options, "--preprocessing", "file,crop=0.5")
    assert "is for pictures of 20 pixels of 25, bicubic, here they are of 20 pixels of 40" in output


def test_a_run_records_the_size_that_was_given_and_goes_on_with_it(small_pictures, tmp_path):
    command = [*small_pictures, *USUAL, "--image-size", "32", "--run-dir", "run"]
    result = run_here("train", *command, cwd=tmp_path)
    assert result.returncode == 0, result.stderr

    def recorded() -> tuple[Any, ...]:
        saved = json.loads((tmp_path / "run" / "config.json").read_text())["config"]
        return saved["image_size"], saved["crop_fraction"], saved["interpolation"]

    assert recorded() == (32, 0.875, "bilinear")
    refused = run_here("train", *command, "--resume", "--image-size", "224", cwd=tmp_path)
    assert_refused(refused, "--image-size 224, the run began with 32")
    longer = (*command, "--resume", "--max-steps", "2")
    result = run_here("train", *longer, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert recorded() == (32, 0.875, "bilinear")
    found = convert.load_preprocessing(tmp_path / "run" / "model.safetensors")
    assert found is not None
    assert (found.image_size, found.shorter_side, found.interpolation) == (32, 36, "bilinear")
    refused = run_here("train", *longer, "--preprocessing", "file,size=20", cwd=tmp_path)
    assert_refused(refused, "--image-size 32 and size=20 contradict each other")


def test_a_run_by_the_files_size_refuses_the_default_when_it_is_given(small_pictures, tmp_path):
    command = [*small_pictures, "--run-dir", "run"]
    assert run_here("train", *command, cwd=tmp_path).returncode == 0
    resumed = (*command, "--resume", "--max-steps", "2")
    for option in (USUAL[:2], ("--preprocessing", "file,size=224")):
        refused = run_here("train", *resumed, *option, cwd=tmp_path)
        assert_refused(refused, "--image-size 224, the run began with 20")


def test_a_run_of_an_older_version_keeps_the_size_that_its_preprocessing_says():
    old = {"data": "folder:a", "preprocessing": "mean=0.5,std=0.2,size=20,interpolation=bicubic"}
    config = Config.from_json({**old, "image_size": 224, "interpolation": "lanczos"})
    assert config.preprocessing == "mean=0.5,std=0.2"
    assert (config.image_size, config.interpolation) == (20, "lanczos")
    in_memory = Config.from_json({**old, "data": "digits"})
    assert in_memory.preprocessing == old["preprocessing"]


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "lanczos", "box"])
def test_pictures_are_tested_at_the_files_size_crop_and_interpolation(tmp_path, interpolation):
    """The error of torchvision's transforms, where the trainer's own would be another."""
    transforms = import_torchvision().transforms
    pictures, model = make_pictures(tmp_path / "pictures"), network(3, 2)
    mode = transforms.InterpolationMode(interpolation)
    theirs = transforms.Compose([transforms.Resize(25, mode), transforms.CenterCrop(20)])
    images = np.stack([np.asarray(theirs(picture)) / 255 for picture, _ in pictures])
    labels = np.array([label for _, label in pictures])
    said = Preprocessing((0.5,) * 3, (0.25,) * 3, 20, None, interpolation, 0.8)
    convert.save(tmp_path / "m.safetensors", model, preprocessing=said)
    arguments = ("--data", f"folder:{tmp_path / 'pictures'}", "--model", MODEL)
    arguments = ("finetune", *arguments, "--init-from", tmp_path / "m.safetensors")
    output = evaluate(tmp_path, *arguments)
    expected = float(error_of(model, (images - 0.5) / 0.25, labels).split()[2].strip(","))
    assert abs(float(output.split("test loss ")[1].split(",")[0]) - expected) <= 2e-3 * expected
    output = evaluate(tmp_path, *arguments, "--image-size", "24")
    assert f"is for pictures of 20 pixels of 25, {interpolation}, here they are of 24" in output


def test_what_is_no_preprocessing_is_refused(tmp_path):
    path = tmp_path / "m.safetensors"
    convert.save(path, network(1))
    for text, part in (
        ("imagnet", "did you mean imagenet"),
        ("mean=0.5", "must say mean= and std="),
        ("mean=a,std=0.2", "mean must be numbers with commas between them, not 'a'"),
        ("mean=0.5,std=0", "std must be positive"),
        ("mean=0.5,std=0.2,interpolation=cubic", "bicubic"),
        ("mean=0.5,std=0.2,size=16", "images of 8 pixels, which are not resized: leave size= out"),
        ("mean=0.5,std=0.2,interpolation=bicubic", "not resized: leave interpolation= out"),
        ("mean=125.3,std=63", "divide values of 0 to 255 by 255"),
        ("mean=0.5,mean=0.4,std=0.2", "mean= is there twice"),
        ("mean=0.5,std=0.2,sise=8", "there is no sise=, but mean=, std=, size="),
        ("inception,sise=8", "there is no sise=, but mean="),
        ("inception,mean=0.4", "must say both mean= and std="),
        ("mean=0.5,std=0.2,size=8.0", "size must be a whole number of pixels, not '8.0'"),
        ("imagenet", "3 channels, images of digits have 1"),
        (str(path), "does not say how its images were prepared"),
        ("file", "does not say how its images were prepared"),
    ):
        arguments = ("digits", "--model", MODEL, "--eval-only", "--init-from", path)
        refused = run_here("train", *arguments, "--preprocessing", text, cwd=tmp_path)
        assert_refused(refused, "--preprocessing", part)
    refused = run_here("train", "digits", "--preprocessing", "file", cwd=tmp_path)
    assert_refused(refused, "needs --init-from")


def test_import_and_save_take_names_files_and_numbers(tmp_path):
    model, path, out = network(3), tmp_path / "m.pt", tmp_path / "out.safetensors"
    convert.save(path, model)
    for text, expected in (
        (KUANGLIU, dataclasses.replace(PREPROCESSINGS["kuangliu-cifar10"], class_names=None)),
        ("kuangliu-cifar10", PREPROCESSINGS["kuangliu-cifar10"]),
        (
            "imagenet,size=160,crop=0.95,interpolation=bicubic",
            dataclasses.replace(
                PREPROCESSINGS["imagenet"],
                image_size=160,
                crop_fraction=0.95,
                interpolation="bicubic",
            ),
        ),
        (str(tmp_path / "said.pt"), PREPROCESSINGS["clip"]),
    ):
        convert.save(tmp_path / "said.pt", model, preprocessing=PREPROCESSINGS["clip"])
        result = run_here(
            "convert", "import", path, "--preprocessing", text, "-o", out, cwd=tmp_path
        )
        assert result.returncode == 0, result.stderr
        assert ("assumed: images of 32 pixels" in result.stdout) == (text == KUANGLIU)
        assert convert.load_preprocessing(out) == expected
        if "said" not in text:
            convert.save(tmp_path / "saved.pt", model, preprocessing=text)
            assert convert.load_preprocessing(tmp_path / "saved.pt") == expected
    refused = run_here("convert", "import", path, "--preprocessing", "x", "-o", out, cwd=tmp_path)
    assert_refused(refused, "no preprocessing or file called 'x'")


@pytest.mark.parametrize("name", PREPROCESSINGS)
def test_a_text_keeps_every_bit(name):
    fields = vars(PREPROCESSINGS[name])
    assert parse_preprocessing(as_text(fields)) == (
        "",
        {field: value for field, value in fields.items() if field != "class_names"},
    )


@pytest.mark.slow
@needs_cifar10
def test_an_authors_accuracy_by_his_own_numbers_in_one_command(tmp_path):
    """A CIFAR network that plain torch trains for a minute on kuangliu's normalisation."""
    dataset = load_dataset(RECIPES["cifar10"].config)
    mean, std = (torch.tensor(n).view(3, 1, 1) for n in KUANGLIU_NUMBERS)
    model, order = torch_resnet.create("ResNet20", 10), torch.Generator().manual_seed(0)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=5e-4)

    def prepare(images: np.ndarray) -> torch.Tensor:
        return (torch.from_numpy(images.transpose(0, 3, 1, 2)) / 255 - mean) / std

    for _ in range(120):
        places = torch.randint(50_000, (128,), generator=order).numpy()
        labels = torch.from_numpy(dataset.train.labels[places]).long()
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(
            model(prepare(dataset.train.images[places])), labels
        )
        loss.backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        parts = np.array_split(dataset.test.images, 20)
        classes = np.concatenate([model(prepare(part)).argmax(1).numpy() for part in parts])
    error = np.mean(classes != dataset.test.labels)
    assert error < 0.8
    torch.save(dict(model.state_dict()), tmp_path / "net.pth")
    arguments = ("cifar10", "--init-from", tmp_path / "net.pth")
    output = evaluate(tmp_path, *arguments, "--preprocessing", "kuangliu-cifar10")
    assert f"test error {error:.2%} of 10000 images" in output
    assert f"test error {error:.2%}" not in evaluate(tmp_path, *arguments)
