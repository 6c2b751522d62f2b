"""A process that trains, validates and tests by the model's recipe: ``runs.py`` times it from its start."""

import tempfile
from pathlib import Path
from typing import Any

from fastadam.bench.fresh import answer
from fastadam.config import TrainConfig


def whole_run(side: str, device: str = "cpu", **settings: Any) -> dict[str, Any]:
    """{"test_accuracy", "epochs", "compile_seconds"} of a run with these settings of ``TrainConfig``.

    Images are not augmented and nothing is dropped: then both sides see the same batches in the same order.
    """
    config = TrainConfig.from_dict({**settings, "device": device, "augment": (), "dropout": 0.0})
    return (_ours if side == "fastadam" else _theirs)(config)


def _ours(config: TrainConfig) -> dict[str, Any]:
    from fastadam.training import run_training

    with tempfile.TemporaryDirectory(prefix="fastadam-bench-") as folder:
        summary = run_training(config, out=Path(folder) / "run")
    return {key: summary[key] for key in ("test_accuracy", "epochs", "compile_seconds")}


def _theirs(config: TrainConfig) -> dict[str, Any]:
    """The loop of ``fit.Fit``, in PyTorch."""
    import numpy as np

    from fastadam import data, models
    from fastadam.bench import peer
    from fastadam.fit import shuffled
    from fastadam.schedule import MILESTONES, Schedule, milestone_steps

    dataset = data.load(str(config.data))
    config = config.resolved(train_images=len(dataset.train_labels))
    seed, size = config.seed, config.batch_size
    peer.Place(config.device, int(config.threads or 1))
    train, val = data.split(dataset.train_labels, int(config.val_size or 0), seed)
    mean, std = data.channel_statistics(dataset.train_images, train)
    seen, unseen = (
        peer.Pictures(images, labels, mean, std, config.device)
        for images, labels in (
            (dataset.train_images, dataset.train_labels),
            (dataset.test_images, dataset.test_labels),
        )
    )
    model = models.build(config.model, len(dataset.classes), seed)
    training = peer.Training(
        model.graph, model.state_dict(), str(config.optimizer), config.device, **_of_optimizer(config)
    )

    epochs, steps = int(config.epochs or 0), -(-len(train) // size)
    total, warmup = epochs * steps, round((config.warmup or 0.0) * steps)
    milestones = milestone_steps(config.milestones or MILESTONES, total, steps)
    schedule = Schedule(str(config.schedule), float(config.lr or 0), total, warmup, milestones, config.gamma)
    step, best, weights = 0, -1.0, training.snapshot()
    for epoch in range(epochs):
        for batch in seen.batches(shuffled(train, seed, epoch), size):
            training.step(batch, schedule(step))
            step += 1
        accuracy = training.accuracy(seen.batches(val, size))
        if accuracy > best:
            best, weights = accuracy, training.snapshot()
    training.restore(weights)
    tested = training.accuracy(unseen.batches(np.arange(len(dataset.test_labels)), size))
    return {"test_accuracy": tested, "epochs": epochs, "compile_seconds": 0.0}


def _of_optimizer(config: TrainConfig) -> dict[str, Any]:
    """What the optimiser is made with, by the names of ``fastadam.optim``."""
    from fastadam.config import OPTIMIZER_SETTINGS

    names = ("lr", "weight_decay", *OPTIMIZER_SETTINGS[str(config.optimizer)])
    return {name: getattr(config, name) for name in names}


if __name__ == "__main__":
    answer(whole_run)
