"""On real photographs the same recipe must reach the same accuracy as in PyTorch. Minutes: ``pytest -m slow``."""

import copy
import os
from pathlib import Path

import numpy as np
import pytest

from fastadam import data, models, training
from fastadam.config import TrainConfig
from fastadam.schedule import Schedule

FOLDER = os.environ.get("FASTADAM_DATA")
SEEDS = (0, 1, 2)
TRAIN, EPOCHS, BATCH, LR = 10_000, 3, 128, 1e-3


def pytorch_accuracy(dataset: data.Dataset, seed: int) -> float:
    """Test accuracy, a fraction, of the recipe of ``test_cnn_reaches_pytorchs_accuracy`` in PyTorch."""
    import torch
    from torch.nn.functional import cross_entropy
    from torch_twins import twin

    torch.set_num_threads(os.cpu_count() or 1)
    train, val = data.split(dataset.train_labels, 5000, seed)
    train = data.limit(train, dataset.train_labels, TRAIN, seed)
    mean, std = (x.reshape(3, 1, 1) for x in data.channel_statistics(dataset.train_images, train))

    def tensor(images: np.ndarray) -> "torch.Tensor":
        normal = (images / np.float32(255) - mean) / std
        return torch.tensor(normal).contiguous(memory_format=torch.channels_last)

    def accuracy(module: "torch.nn.Module", images: np.ndarray, labels: np.ndarray) -> float:
        with torch.no_grad():
            parts = [module(tensor(images[i : i + 500])).argmax(1).numpy() for i in range(0, len(images), 500)]
        return float((np.concatenate(parts) == labels).mean())

    module = twin("cnn", models.build("cnn", seed=seed).state_dict())
    biases = [p for p in module.parameters() if p.ndim == 1]
    groups = [{"params": [p for p in module.parameters() if p.ndim > 1]}, {"params": biases, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, LR, fused=True)
    rng, steps = np.random.default_rng(seed), -(-len(train) // BATCH)
    schedule, step, best = Schedule("cosine", LR, EPOCHS * steps), 0, (-1.0, module)
    for _ in range(EPOCHS):
        order = rng.permutation(train)
        for start in range(0, len(order), BATCH):
            index = order[start : start + BATCH]
            for group in optimizer.param_groups:
                group["lr"] = schedule(step)
            optimizer.zero_grad()
            labels = torch.tensor(dataset.train_labels[index], dtype=torch.int64)
            cross_entropy(module(tensor(dataset.train_images[index])), labels).backward()
            optimizer.step()
            step += 1
        now = accuracy(module, dataset.train_images[val], dataset.train_labels[val])
        if now > best[0]:
            best = now, copy.deepcopy(module)
    return accuracy(best[1], dataset.test_images, dataset.test_labels)


@pytest.mark.slow
@pytest.mark.skipif(not FOLDER, reason="set FASTADAM_DATA to a folder with the CIFAR-10 binary files")
def test_cnn_reaches_pytorchs_accuracy(tmp_path: Path) -> None:
    """``cnn``, 10,000 images, 3 epochs, AdamW with a cosine, three seeds: the means differ by less than 1.5 points."""
    pytest.importorskip("torch", reason="PyTorch is not installed: pip install torch")
    assert FOLDER
    dataset, ours, theirs = data.load(FOLDER), [], []
    for seed in SEEDS:
        config = TrainConfig(
            data=FOLDER, model="cnn", epochs=EPOCHS, batch_size=BATCH, lr=LR, limit_train=TRAIN, seed=seed
        )
        ours.append(training.run_training(config, out=tmp_path / str(seed))["test_accuracy"])
        theirs.append(pytorch_accuracy(dataset, seed))
    print(f"\ntest accuracies: fastadam {ours}, PyTorch {theirs}")
    assert np.mean(ours) == pytest.approx(np.mean(theirs), abs=0.015)
