"""A data set drawn by formula: ten classes of shapes and textures, 32 x 32 pixels in colour.

Each image shows a figure of its class at a random place, in a random size, turn and pair of colours, with
smaller shapes scattered over it, under a slanting light and noise. Colour and brightness say nothing about
the class, so a linear model of the pixels learns little, while a small convolutional network learns the
classes in a few epochs.

Every image is a pure function of (seed, train or test, index): it does not depend on how many others are
drawn. The arithmetic is ``+ - * /``, square root, floor and comparisons only, which IEEE 754 rounds in one
way, and so the bytes are the same on every machine.
"""

from collections.abc import Callable

import numpy as np

from fastadam.data.dataset import IMAGE_SHAPE, Dataset
from fastadam.draws import keys, mix

CLASSES = (
    "disc",
    "ring",
    "square",
    "triangle",
    "cross",
    "star",
    "stripes",
    "diagonals",
    "checkerboard",
    "dots",
)

SIZE = IMAGE_SHAPE[1]
CHUNK = 250  # images drawn at once: their temporary arrays stay within the cache
CLUTTER = 2  # small shapes scattered over an image
CONTRAST = 0.35  # smallest distance of the two colours, in each channel, of a range of 1
NOISE = 0.06  # largest standard deviation of the noise

_TRAIN, _TEST = 0, 1
_DRAWING, _SPECKLE, _ORDER = 0, 1, 2  # separate streams of one sample

# Unit vectors that point from the centre to the edges of a regular triangle and a regular pentagon.
_TRIANGLE = np.array([(0.0, 1.0), (0.8660254, -0.5), (-0.8660254, -0.5)], np.float32)
_PENTAGON = np.array(
    [
        (0.0, 1.0),
        (0.95105652, 0.30901699),
        (0.58778525, -0.80901699),
        (-0.58778525, -0.80901699),
        (-0.95105652, 0.30901699),
    ],
    np.float32,
)


def generate(train: int = 10000, test: int = 2000, seed: int = 0) -> Dataset:
    """Draw ``train`` and ``test`` images, independent of each other, from ``seed`` (any 64-bit integer).

    Each ten neighbouring images show each class once, in random order, so any number of them is nearly
    balanced. ValueError if a count is below 1.
    """
    if train < 1 or test < 1:
        raise ValueError(f"a data set needs at least one image of each kind, got train={train}, test={test}")
    train_images, train_labels = _draw_split(train, seed, _TRAIN)
    test_images, test_labels = _draw_split(test, seed, _TEST)
    return Dataset(
        name="synthetic",
        train_images=train_images,
        train_labels=train_labels,
        test_images=test_images,
        test_labels=test_labels,
        classes=CLASSES,
        source="synthetic",
    )


def _draw_split(count: int, seed: int, part: int) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 (count, 3, 32, 32) and labels int32 (count,)."""
    images = np.empty((count, *IMAGE_SHAPE), np.uint8)
    labels = _labels(count, seed, part)
    for start in range(0, count, CHUNK):
        stop = min(start + CHUNK, count)
        index = np.arange(start, stop)
        images[start:stop] = _draw(labels[start:stop], keys(seed, part, index))
    return images, labels


def _labels(count: int, seed: int, part: int) -> np.ndarray:
    """Every ten indices hold the ten classes in an order of their own."""
    classes = len(CLASSES)
    tens = -(-count // classes)
    order = keys(seed, part, np.arange(tens * classes), _ORDER).reshape(tens, classes)
    return np.argsort(order, axis=1, kind="stable").astype(np.int32).reshape(-1)[:count]


class _Stream:
    """Uniform numbers, one column of samples a call: the k-th call gives the k-th number of each sample."""

    def __init__(self, sample_keys: np.ndarray):
        self._key = mix(sample_keys ^ np.uint64(_DRAWING))
        self._calls = 0

    def uniform(self, low: float, high: float) -> np.ndarray:
        """float32 (n, 1, 1) in [low, high)."""
        bits = mix(self._key ^ np.uint64(self._calls)) >> np.uint64(40)
        self._calls += 1
        unit = bits.astype(np.float32) * np.float32(2.0**-24)
        return (np.float32(low) + np.float32(high - low) * unit).reshape(-1, 1, 1)

    def direction(self) -> tuple[np.ndarray, np.ndarray]:
        """A unit vector (x, y) that may point anywhere; each float32 (n, 1, 1)."""
        x, y = self.uniform(-1, 1), self.uniform(-1, 1)
        length = np.sqrt(x * x + y * y)
        aside = length < np.float32(1e-3)
        length = np.where(aside, np.float32(1), length)
        return np.where(aside, np.float32(1), x / length), np.where(aside, np.float32(0), y / length)

    def colour(self) -> np.ndarray:
        """float32 (n, 3, 1, 1) in 0..1."""
        return np.stack([self.uniform(0, 1) for _ in range(3)], axis=1)


def _draw(labels: np.ndarray, sample_keys: np.ndarray) -> np.ndarray:
    """uint8 (n, 3, 32, 32): one image a label."""
    stream = _Stream(sample_keys)
    background = stream.colour()
    # The distance of the colours is drawn, then taken modulo 1: each colour by itself is uniform.
    apart = np.float32(CONTRAST) + np.float32(1 - 2 * CONTRAST) * stream.colour()
    figure_colour = background + apart
    figure_colour -= np.floor(figure_colour)

    coverage = _figures(labels, stream)[:, None]
    image = background + (figure_colour - background) * coverage
    for _ in range(CLUTTER):
        image = _scatter(image, stream)
    image *= _light(stream)[:, None]
    image += _noise(sample_keys, stream.uniform(0.02, NOISE)[:, None])
    return np.clip(image * np.float32(255) + np.float32(0.5), 0, 255).astype(np.uint8)


# ------------------------------------------------------------------------------------------ figures

_Figure = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def _figures(labels: np.ndarray, stream: _Stream) -> np.ndarray:
    """How much of each pixel the figure covers: float32 (n, 32, 32) in 0..1."""
    turn_x, turn_y = stream.direction()
    slant, either = stream.uniform(-0.2, 0.2), stream.uniform(-1, 1)
    x0, y0 = stream.uniform(-4, 4), stream.uniform(-4, 4)
    radius, cell = stream.uniform(10, 14), stream.uniform(5, 9)
    free = stream.uniform(0, 1)

    coverage = np.empty((len(labels), SIZE, SIZE), np.float32)
    axis = np.arange(SIZE, dtype=np.float32) - np.float32((SIZE - 1) / 2)
    for label, (figure, turned_by) in enumerate(_FIGURES):
        of = np.flatnonzero(labels == label)
        if turned_by == "any":
            c, s = turn_x[of], turn_y[of]
        else:
            c, s = _tilt(slant[of], either[of], diagonal=turned_by == "diagonal")
        x, y = axis[None, None, :] - x0[of], axis[None, :, None] - y0[of]
        u, v = c * x + s * y, c * y - s * x
        scale = cell[of] if label in _TEXTURES else radius[of]
        distance = figure(u / scale, v / scale, free[of]) * scale
        coverage[of] = np.clip(np.float32(0.5) - distance, 0, 1)
    return coverage


def _tilt(slant: np.ndarray, either: np.ndarray, diagonal: bool) -> tuple[np.ndarray, np.ndarray]:
    """Cosine and sine of about 0 or about 45 degrees to either side, give or take 11 degrees."""
    length = np.sqrt(np.float32(1) + slant * slant)
    c, s = np.float32(1) / length, slant / length
    if diagonal:
        half = np.float32(0.70710678)
        c, s = half * (c - s), half * (c + s)
        s = np.where(either < 0, -s, s)
    return c, s


# A figure gives the signed distance to its edge (negative inside) at the points (u, v), in units of its
# size; `free` in 0..1 is a proportion it may vary.


def _disc(u: np.ndarray, v: np.ndarray, free: np.ndarray) -> np.ndarray:
    return np.sqrt(u * u + v * v) - np.float32(0.9)


def _ring(u: np.ndarray, v: np.ndarray, free: np.ndarray) -> np.ndarray:
    half = np.float32(0.14) + np.float32(0.1) * free
    return np.abs(np.sqrt(u * u + v * v) - (np.float32(1) - half)) - half


def _square(u: np.ndarray, v: np.ndarray, free: np.ndarray) -> np.ndarray:
    return np.maximum(np.abs(u), np.abs(v)) - np.float32(0.8)


def _triangle(u: np.ndarray, v: np.ndarray, free: np.ndarray) -> np.ndarray:
    first, second, third = (a * u + b * v for a, b in _TRIANGLE)
    return np.maximum(np.maximum(first, second), third) - np.float32(0.58)


def _cross(u: np.ndarray, v: np.ndarray, free: np.ndarray) -> np.ndarray:
    half = np.float32(0.22) + np.float32(0.12) * free
    u, v = np.abs(u), np.abs(v)
    return np.minimum(np.maximum(u - half, v - 1), np.maximum(u - 1, v - half))


def _star(u: np.ndarray, v: np.ndarray, free: np.ndarray) -> np.ndarray:
    """A pentagram: all points beyond one edge of its pentagon at most, so the second largest distance."""
    first = second = np.full_like(u, -np.inf)
    for a, b in _PENTAGON:
        d = a * u + b * v
        second = np.maximum(second, np.minimum(first, d))
        first = np.maximum(first, d)
    return second - np.float32(0.37)


def _wave(t: np.ndarray) -> np.ndarray:
    """Distance to the nearest integer, less 1/4: negative in every other half of the line."""
    return np.abs(t - np.floor(t + np.float32(0.5))) - np.float32(0.25)


def _stripes(u: np.ndarray, v: np.ndarray, free: np.ndarray) -> np.ndarray:
    return _wave(v)


def _checkerboard(u: np.ndarray, v: np.ndarray, free: np.ndarray) -> np.ndarray:
    a, b = _wave(u * np.float32(0.7)), _wave(v * np.float32(0.7))
    return np.maximum(np.minimum(a, -b), np.minimum(-a, b)) / np.float32(0.7)


def _dots(u: np.ndarray, v: np.ndarray, free: np.ndarray) -> np.ndarray:
    u, v = u - np.floor(u + np.float32(0.5)), v - np.floor(v + np.float32(0.5))
    return np.sqrt(u * u + v * v) - (np.float32(0.22) + np.float32(0.06) * free)


# In the order of CLASSES, with how each may be turned without becoming another class: "any" way, about "level"
# or about "diagonal". A checkerboard on its corner is too much like dots.
_FIGURES: tuple[tuple[_Figure, str], ...] = (
    (_disc, "any"),
    (_ring, "any"),
    (_square, "any"),
    (_triangle, "any"),
    (_cross, "any"),
    (_star, "any"),
    (_stripes, "level"),
    (_stripes, "diagonal"),
    (_checkerboard, "level"),
    (_dots, "any"),
)
_TEXTURES = frozenset(CLASSES.index(name) for name in ("stripes", "diagonals", "checkerboard", "dots"))


# ------------------------------------------------------------------------------- clutter, light, noise


def _scatter(image: np.ndarray, stream: _Stream) -> np.ndarray:
    """Cover a small ellipse of each image (n, 3, 32, 32), at any place and turn, with a colour of its own."""
    axis = np.arange(SIZE, dtype=np.float32) - np.float32((SIZE - 1) / 2)
    x = axis[None, None, :] - stream.uniform(-16, 16)
    y = axis[None, :, None] - stream.uniform(-16, 16)
    c, s = stream.direction()
    u = (c * x + s * y) / stream.uniform(1, 4)
    v = (c * y - s * x) / stream.uniform(1, 2)
    covered = np.clip(np.float32(1.5) - (u * u + v * v), 0, 1)[:, None]
    return image + (stream.colour() - image) * covered


def _light(stream: _Stream) -> np.ndarray:
    """Brightness float32 (n, 32, 32) that changes evenly across the image, some way around 1."""
    axis = (np.arange(SIZE, dtype=np.float32) - np.float32((SIZE - 1) / 2)) / np.float32(SIZE / 2)
    c, s = stream.direction()
    level, slope = stream.uniform(0.7, 1.1), stream.uniform(0, 0.35)
    return level + slope * (c * axis[None, None, :] + s * axis[None, :, None])


def _noise(sample_keys: np.ndarray, deviation: np.ndarray) -> np.ndarray:
    """float32 (n, 3, 32, 32): the sum of four uniform numbers, nearly normal, scaled to ``deviation``."""
    n = len(sample_keys)
    elements = int(np.prod(IMAGE_SHAPE))
    speckle = mix(sample_keys ^ np.uint64(_SPECKLE))
    bits = mix(speckle[:, None] ^ np.arange(elements, dtype=np.uint64))
    # Four 16-bit numbers of each draw: standard deviation 2**16 / sqrt(3).
    quarters = bits.view(np.uint16).reshape(n, elements, 4)
    total = quarters[..., 0].astype(np.int32)
    for quarter in range(1, 4):
        total += quarters[..., quarter]
    unit = (total - 131070).astype(np.float32) * np.float32(1.7320508 / 65536)
    return unit.reshape(n, *IMAGE_SHAPE) * deviation
