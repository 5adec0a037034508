"""How the published code of long-tailed recognition trains, written plainly: what our figures are compared with.

Pictures one by one through Pillow in a loader's processes, contiguous NCHW, a loop over experts, a loop over ordered pairs of
them in the loss, every loss fetched by `.item()` in every step, metrics by NumPy. Same network, same recipe, same mathematics;
`tests/test_benchmarks.py` holds both to the same loss curve. Nothing here is slow on purpose.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms as T
from torchvision.models import resnet as torchvision_resnet

CIFAR_MEAN, CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)


class PlainBlock(nn.Module):
    """conv - bn - relu - conv - bn, plus the shortcut (option A), relu."""

    def __init__(self, in_planes: int, planes: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_planes, planes, kernel_size=3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, kernel_size=3, stride=1, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.stride, self.grows = stride, planes - in_planes

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        shortcut = x
        if self.stride != 1 or self.grows:
            before = self.grows // 2
            shortcut = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, before, self.grows - before))
        out = out + shortcut
        return F.relu(out)


def plain_stage(in_planes: int, planes: int, blocks: int, stride: int) -> nn.Sequential:
    """Blocks in a row, the first with the stride."""
    return nn.Sequential(
        *(PlainBlock(planes if index else in_planes, planes, 1 if index else stride) for index in range(blocks))
    )


class PlainExpert(nn.Module):
    """Stages 2 and 3 of a CIFAR ResNet at 3/4 of the width, and pooling."""

    def __init__(self, blocks: int, width: float) -> None:
        super().__init__()
        planes = [round(32 * width), round(64 * width)]
        self.stage2 = plain_stage(16, planes[0], blocks, 2)
        self.stage3 = plain_stage(planes[0], planes[1], blocks, 2)
        self.pool = nn.AdaptiveAvgPool2d(1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.flatten(self.pool(self.stage3(self.stage2(x))), 1)


class PlainCifarExperts(nn.Module):
    """Experts of a CIFAR ResNet on a common stem and stage 1; its parameters are named as ours are."""

    def __init__(self, num_experts: int, num_classes: int = 100, blocks: int = 5, width: float = 0.75) -> None:
        super().__init__()
        stem = nn.Sequential(nn.Conv2d(3, 16, kernel_size=3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.trunk = nn.Sequential()
        self.trunk.add_module("stem", stem)
        self.trunk.add_module("stage1", plain_stage(16, 16, blocks, 1))
        self.experts = nn.ModuleList(PlainExpert(blocks, width) for _ in range(num_experts))
        self.heads = nn.ModuleList(nn.Linear(round(64 * width), num_classes) for _ in range(num_experts))

    def forward(self, x: Tensor) -> list[Tensor]:
        shared = self.trunk(x)
        logits = []
        for expert, head in zip(self.experts, self.heads, strict=True):
            logits.append(head(expert(shared)))
        return logits


class PlainResNetExperts(nn.Module):
    """Experts of torchvision's ResNet-50 on a common stem, stage 1 and stage 2, the others at 3/4 of the width."""

    def __init__(self, num_experts: int, num_classes: int) -> None:
        super().__init__()
        whole = torchvision_resnet.resnet50()
        self.trunk = nn.Sequential(whole.conv1, whole.bn1, whole.relu, whole.maxpool, whole.layer1, whole.layer2)
        self.experts = nn.ModuleList(self._private() for _ in range(num_experts))
        self.heads = nn.ModuleList(nn.Linear(1536, num_classes) for _ in range(num_experts))

    @staticmethod
    def _private() -> nn.Sequential:
        stages, in_planes = [], 512
        for planes, blocks in ((192, 6), (384, 3)):
            for index in range(blocks):
                shortcut = None
                if not index:
                    shortcut = nn.Sequential(nn.Conv2d(in_planes, planes * 4, 1, 2, bias=False), nn.BatchNorm2d(planes * 4))
                stages.append(torchvision_resnet.Bottleneck(in_planes, planes, 1 if index else 2, shortcut))
                in_planes = planes * 4
        return nn.Sequential(*stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(1))

    def forward(self, x: Tensor) -> list[Tensor]:
        shared = self.trunk(x)
        return [head(expert(shared)) for expert, head in zip(self.experts, self.heads, strict=True)]


class PillowImages(Dataset[Any]):
    """Pictures in memory, each augmented by itself, by Pillow."""

    def __init__(
        self,
        images: NDArray[np.uint8],
        labels: Sequence[int],
        *,
        train: bool = True,
        rotation: float = 0.0,
        autoaugment: str | None = None,
        cutout: int = 0,
    ) -> None:
        self.images, self.labels = images, labels  # (n, H, W, 3)
        augment = [T.RandomCrop(images.shape[1], padding=4), T.RandomHorizontalFlip()] if train else []
        turn = [T.RandomRotation(rotation)] if train and rotation else []
        turn += [T.AutoAugment(T.AutoAugmentPolicy(autoaugment))] if autoaugment else []
        share = (cutout / images.shape[1]) ** 2
        hole = [T.RandomErasing(1.0, (share, share), (1.0, 1.0))] if cutout else []
        self.transform = T.Compose([*augment, *turn, T.ToTensor(), *hole, T.Normalize(CIFAR_MEAN, CIFAR_STD)])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


def plain_loader(images: NDArray[np.uint8], labels: Sequence[int], batch_size: int, workers: int, **kind: Any) -> DataLoader:
    """A loader as everyone writes it."""
    return DataLoader(
        PillowImages(images, labels, **kind),
        batch_size=batch_size,
        shuffle=True,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
    )


def mutual_loss(logits: list[Tensor], target: Tensor) -> tuple[Tensor, dict[str, float]]:
    """Cross entropy of every expert and the divergence from each of its peers; every term is fetched, to be logged."""
    loss, log = torch.zeros((), device=target.device), {}
    for i, own in enumerate(logits):
        entropy = F.cross_entropy(own, target)
        log[f"ce{i}"] = entropy.item()
        loss = loss + entropy
        for j, peer in enumerate(logits):
            if i != j:
                kl = F.kl_div(F.log_softmax(own, dim=1), F.softmax(peer.detach(), dim=1), reduction="batchmean")
                log[f"kl{i}{j}"] = kl.item()
                loss = loss + kl / (len(logits) - 1)
    log["loss"] = loss.item()
    return loss, log


def plain_sgd(model: nn.Module, lr: float = 0.1) -> torch.optim.Optimizer:
    """SGD with the recipe's momentum and weight decay."""
    return torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4)


def plain_step(model: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, target: Tensor) -> dict[str, float]:
    """One step of training; what it logged."""
    loss, log = mutual_loss(model(images), target)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return log


def endless(loader: DataLoader) -> Iterator[Any]:
    """Batches, epoch after epoch."""
    while True:
        yield from loader


@torch.no_grad()
def plain_test(model: nn.Module, loader: DataLoader, class_counts: Sequence[int], device: str = "cpu") -> dict[str, float]:
    """Accuracy of every expert and of their mean, raw and compensated, by shot group: all logits fetched, then NumPy."""
    model.eval()
    fetched, targets = [], []
    for images, target in loader:
        fetched.append([logits.cpu().numpy() for logits in model(images.to(device))])
        targets.append(target.numpy())
    model.train()
    truth = np.concatenate(targets)
    experts = [np.concatenate([batch[index] for batch in fetched]) for index in range(len(fetched[0]))]
    counts = np.asarray(class_counts)
    return plain_table([*experts, np.mean(experts, axis=0)], truth, counts)


def plain_table(rows: list[NDArray[np.floating]], truth: NDArray[np.int_], counts: NDArray[np.int_]) -> dict[str, float]:
    """The accuracies of each row of logits, by loops over classes."""
    prior, table = np.log(counts / counts.sum()), {}
    groups = {"many": counts > 100, "medium": (counts <= 100) & (counts >= 20), "few": counts < 20}
    for number, logits in enumerate(rows):
        for kind, scores in (("raw", logits), ("compensated", logits - prior)):
            predicted = scores.argmax(axis=1)
            right = {c: (predicted[truth == c] == c).mean() for c in range(len(counts)) if (truth == c).any()}
            table[f"{number}/{kind}/all"] = float((predicted == truth).mean())
            for name, mask in groups.items():
                of_group = [share for c, share in right.items() if mask[c]]
                table[f"{number}/{kind}/{name}"] = float(np.mean(of_group)) if of_group else float("nan")
    return table
