"""Two loops that train a small-image ResNet in torch: as people write it, and as it should be.

`python -m benchmarks.peers.torch_loop plain|good FILE [RECIPE] [--field value ...]`, with the
recipes and the fields of `resnet-train`; the weights are written to FILE. It says what
`resnet-train` says: a line with its images/s, its test error, and that it has exported.
"""

import abc
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy

import torch_resnet
from benchmarks.peers.torch_step import device, make_sgd, synchronise
from convert.runs.sgd import make_schedule
from resnet_spec import find_spec
from train.__main__ import parse
from train.config import Config
from train.data.dataset import Dataset, Split
from train.data.load import load_dataset


def main(arguments: list[str]) -> None:
    """Trains by one of the two loops, tests after each epoch, and writes the weights."""
    kind, path, *rest = arguments
    config = parse(rest)
    dataset = load_dataset(config)
    config = config.resolved(len(dataset.train))
    torch.manual_seed(config.seed)
    in_planes = dataset.image_shape[-1]
    model = torch_resnet.from_spec(
        find_spec(config.model),
        dataset.num_classes,
        in_planes=in_planes,
        shortcut=torch_resnet.ProjectionShortcut,
    )
    {"plain": Plain, "good": Good}[kind](config, dataset, model).train()
    torch.save(model.state_dict(), path)
    print(f"exported {path}", flush=True)


class _Loop(abc.ABC):
    """What both loops have: steps, a schedule, a test and a line after each epoch."""

    def __init__(self, config: Config, dataset: Dataset, model: Any):
        self.config, self.dataset, self.model = config, dataset, model.to(device())
        images = config.epochs * len(dataset.train)
        self.total_steps = min(images // config.global_batch_size, config.max_steps or images)
        self.optimizer = make_sgd(model, 1.0)
        schedule = make_schedule(config.to_json(), len(dataset.train), self.total_steps)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, schedule)
        self.is_gpu = device().type == "cuda"

    @abc.abstractmethod
    def epoch(self) -> Iterator[None]:
        """Trains for an epoch; a step is done whenever it yields."""

    @abc.abstractmethod
    def errors(self) -> int:
        """Of the test set."""

    def train(self) -> None:
        """All steps, or until the first that is one too many."""
        step, size, start = 0, self.config.global_batch_size, time.perf_counter()
        while step < self.total_steps:
            self.model.train()
            for _ in self.epoch():
                step += 1
                if step == 1:  # compiled by now
                    synchronise()
                    start = time.perf_counter()
                if step == self.total_steps:
                    break
            synchronise()
            trained, start_step = time.perf_counter() - start, max(step - 1, 1)
            rate = start_step * size / trained
            self.model.eval()
            with torch.no_grad():
                error = self.errors() / len(self.dataset.test)
            print(f"step {step}  test error {error:.2%}  {rate:,.0f} images/s", flush=True)
            start += time.perf_counter() - start - trained  # the test is no part of the rate


class Pictures(torch.utils.data.Dataset[Any]):
    """A split as torchvision's CIFAR10 gives it: pictures of PIL, transformed one by one."""

    def __init__(self, split: Split, transform: Any):
        self.split, self.transform = split, transform

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        from PIL import Image

        image = Image.fromarray(self.split.images[index].squeeze())  # grey ones have no channel
        return self.transform(image), int(self.split.labels[index])


class Plain(_Loop):
    """As people write it: float16 by AMP on GPU, a DataLoader with workers, loss.item()."""

    def __init__(self, config: Config, dataset: Dataset, model: Any):
        super().__init__(config, dataset, model)
        from tests.peers import import_torchvision

        import_torchvision()
        from torchvision import transforms

        to_tensor = [transforms.ToTensor(), transforms.Normalize(dataset.mean, dataset.std)]
        changes = [transforms.RandomCrop(dataset.image_shape[0], padding=config.crop_padding)]
        changes += [transforms.RandomHorizontalFlip()] if config.flip else []
        train = Pictures(dataset.train, transforms.Compose([*changes, *to_tensor]))
        self.batches = self._loader(train, shuffle=True)
        self.tests = self._loader(Pictures(dataset.test, transforms.Compose(to_tensor)))
        self.scaler = torch.amp.GradScaler(enabled=self.is_gpu)
        self.running_loss = 0.0

    def _loader(self, pictures: Pictures, shuffle: bool = False) -> Any:
        return torch.utils.data.DataLoader(
            pictures,
            self.config.global_batch_size,
            shuffle=shuffle,
            num_workers=min(torch.get_num_threads(), 8),
            pin_memory=self.is_gpu,
            persistent_workers=True,
        )

    def epoch(self) -> Iterator[None]:
        for images, labels in self.batches:
            images = images.to(device(), non_blocking=True)
            labels = labels.to(device(), non_blocking=True)
            with torch.autocast(device().type, torch.float16, self.is_gpu):
                loss = cross_entropy(self.model(images), labels)
            self.optimizer.zero_grad()
            self.scaler.scale(loss).backward()
            self.scaler.step(self.optimizer)
            self.scaler.update()
            self.scheduler.step()
            self.running_loss += loss.item()
            yield

    def errors(self) -> int:
        wrong = 0
        for images, labels in self.tests:
            with torch.autocast(device().type, torch.float16, self.is_gpu):
                logits = self.model(images.to(device()))
            wrong += int((logits.argmax(1) != labels.to(device())).sum())
        return wrong


class Good(_Loop):
    """All images on the device, cropped and mirrored there, bfloat16 on GPU, compiled."""

    def __init__(self, config: Config, dataset: Dataset, model: Any):
        super().__init__(config, dataset, model)
        model.to(memory_format=torch.channels_last)
        self.train_data, self.test_data = self._place(dataset.train), self._place(dataset.test)
        self.mean, self.std = (
            torch.tensor(numbers, device=device()).view(-1, 1, 1) * 255
            for numbers in (dataset.mean, dataset.std)
        )
        self.loss = torch.compile(self._loss)
        self.logits = torch.compile(self._logits, dynamic=False)

    def _place(self, split: Split) -> tuple[torch.Tensor, torch.Tensor]:
        labels = torch.from_numpy(split.labels.astype(np.int64))
        return torch.from_numpy(split.images).to(device()), labels.to(device())

    def _logits(self, images: torch.Tensor) -> torch.Tensor:
        """Of pixels (n, h, w, c)."""
        normalised = (images.permute(0, 3, 1, 2).float() - self.mean) / self.std
        return self._of_normalised(normalised)

    def _of_normalised(self, images: torch.Tensor) -> torch.Tensor:
        with torch.autocast(device().type, torch.bfloat16, self.is_gpu):
            return self.model(images.contiguous(memory_format=torch.channels_last))

    def _loss(self, indices: torch.Tensor) -> torch.Tensor:
        """Of images that are cropped and mirrored here; the padding is the mean colour."""
        images, labels = self.train_data
        padding, size = self.config.crop_padding, images.shape[1]
        count, places = len(indices), torch.arange(size, device=device())
        chosen = (images[indices].permute(0, 3, 1, 2).float() - self.mean) / self.std
        padded = torch.nn.functional.pad(chosen, [padding] * 4)
        corners = torch.randint(2 * padding + 1, (2, count, 1), device=device())
        rows, columns = corners + places
        if self.config.flip:
            is_mirrored = torch.rand(count, 1, device=device()) < 0.5
            columns = torch.where(is_mirrored, columns.flip(1), columns)
        every = torch.arange(count, device=device())[:, None, None]
        cropped = padded.permute(0, 2, 3, 1)[every, rows[:, :, None], columns[:, None, :]]
        return cross_entropy(self._of_normalised(cropped.permute(0, 3, 1, 2)), labels[indices])

    def epoch(self) -> Iterator[None]:
        order, size = torch.randperm(len(self.dataset.train)), self.config.global_batch_size
        for indices in order.to(device()).split(size):
            if len(indices) == size:  # another shape would be compiled anew
                self.loss(indices).backward()
                self.optimizer.step()
                self.optimizer.zero_grad()
                self.scheduler.step()
                yield

    def errors(self) -> int:
        images, labels = self.test_data
        logits = [self.logits(part) for part in images.split(1000)]
        return int((torch.cat(logits).argmax(1) != labels).sum())


if __name__ == "__main__":
    main(sys.argv[1:])
