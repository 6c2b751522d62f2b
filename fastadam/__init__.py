"""fastadam: a small, fast, readable neural-network trainer with hand-written Numba kernels.

    import fastadam

    model = fastadam.models.build("cnn", classes=10, seed=0)
    trainer = fastadam.Trainer(model, optimizer="adamw", lr=1e-3)
    for record in trainer.fit((images, labels), epochs=5):
        print(record)
    model.save("cnn.safetensors")

Submodules load when they are first used: ``import fastadam`` is quick and starts neither numba nor a GPU.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_SUBMODULES = (
    "checkpoint",
    "data",
    "errors",
    "evaluation",
    "kernels",
    "models",
    "optim",
    "predict",
    "schedule",
    "trainer",
    "training",
    "verify",
)
_NAMES = {
    "FastAdamError": "errors",
    "Model": "model",
    "Trainer": "trainer",
    "load": "models",
}

__all__ = ["FastAdamError", "Model", "Trainer", "__version__", "load", *_SUBMODULES]


def __getattr__(name: str) -> Any:
    if name in _SUBMODULES:
        return importlib.import_module(f"fastadam.{name}")
    if name in _NAMES:
        return getattr(importlib.import_module(f"fastadam.{_NAMES[name]}"), name)
    raise AttributeError(f"module 'fastadam' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
