"""A process that takes one training step: ``startup.py`` times it from its start."""

from typing import Any

from fastadam.bench.fresh import answer


def first_step(side: str, model: str, batch_size: int, device: str, threads: int) -> dict[str, Any]:
    """One step on random images; returns its loss."""
    return {"loss": (_ours if side == "fastadam" else _theirs)(model, batch_size, device, threads)}


def _ours(model: str, batch_size: int, device: str, threads: int) -> float:
    import fastadam

    trainer = fastadam.Trainer(fastadam.models.build(model), "adam", device=device, threads=threads)
    return trainer.step(*_batch(batch_size))


def _theirs(model: str, batch_size: int, device: str, threads: int) -> float:
    from fastadam import models
    from fastadam.bench import peer

    peer.Place(device, threads, tuned=False)
    built = models.build(model)
    training = peer.Training(built.graph, built.state_dict(), "adam", device, lr=1e-3)
    return training.step(peer.tensors(*_batch(batch_size), peer.memory_format(built.graph), device))


def _batch(size: int) -> tuple[Any, Any]:
    import numpy as np

    rng = np.random.default_rng(0)
    return rng.standard_normal((size, 3, 32, 32), np.float32), rng.integers(0, 10, size)


if __name__ == "__main__":
    answer(first_step)
