"""Arrays of every rank and of awkward sizes, and Adam in NumPy."""

import numpy as np

CHUNK = 1 << 14  # what the kernels cut large arrays into

SHAPES = {
    "scalar": (), "one": (1,), "vector": (7,), "matrix": (13, 5), "empty": (0, 3), "filter": (3, 3, 16, 16),
    "exact": (CHUNK,), "more": (CHUNK + 1,), "large": (3 * CHUNK + 17,),
}  # fmt: skip


def drawn(seed, shapes=SHAPES, dtype=np.float32):
    rng = np.random.default_rng(seed)
    return {name: np.array(rng.standard_normal(shape), dtype) for name, shape in shapes.items()}


def copied(arrays):
    return {name: array.copy() for name, array in arrays.items()}


def same_bits(one, other):
    assert one.keys() == other.keys()
    for name, array in one.items():
        assert array.dtype == other[name].dtype
        assert array.tobytes() == other[name].tobytes(), name


def plain_adam(p, g, m, v, t, lr, beta1, beta2, eps):
    """Kingma & Ba 2015, Algorithm 1, in NumPy."""
    m[...] = beta1 * m + (1 - beta1) * g
    v[...] = beta2 * v + (1 - beta2) * g * g
    p[...] = p - lr * (m / (1 - beta1**t)) / (np.sqrt(v / (1 - beta2**t)) + eps)
