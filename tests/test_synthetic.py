"""The generated images: the same for ever, independent of each other, and not to be told by colour."""

import hashlib
import time

import numpy as np
import pytest

from fastadam import data
from fastadam.data import synthetic
from fastadam.draws import keys, mix

ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")


@pytest.fixture(scope="module")
def standard():
    return synthetic.generate()


def digest(*arrays):
    return hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()


def test_standard_set(standard):
    assert standard.train_images.shape == (10000, 3, 32, 32)
    assert standard.test_images.shape == (2000, 3, 32, 32)
    assert (standard.name, standard.source, len(standard.classes)) == ("synthetic", "synthetic", 10)
    assert np.bincount(standard.train_labels).tolist() == [1000] * 10
    assert np.bincount(standard.test_labels).tolist() == [200] * 10
    loaded = data.load("synthetic")
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(loaded, name), getattr(standard, name))


def test_bytes_are_pinned(standard):
    """Whatever the machine and the NumPy release: results on `synthetic` stay comparable."""
    got = digest(standard.train_images[:500], standard.train_labels[:500], standard.test_images[:100])
    assert got == "0b5115358407cac10e6e67c4d17d46103efafd851fca67000c09f79e4f2fbc1a"


def test_images_do_not_depend_on_how_many_are_drawn(standard):
    few = synthetic.generate(train=261, test=7)
    np.testing.assert_array_equal(few.train_images, standard.train_images[:261])
    np.testing.assert_array_equal(few.train_labels, standard.train_labels[:261])
    np.testing.assert_array_equal(few.test_images, standard.test_images[:7])
    np.testing.assert_array_equal(few.test_labels, standard.test_labels[:7])


def test_seeds_and_parts_are_independent(standard):
    other = synthetic.generate(train=300, test=300, seed=1)
    drawn = {
        "train": standard.train_images[:300],
        "test": standard.test_images[:300],
        "other train": other.train_images,
        "other test": other.test_images,
    }
    images = np.concatenate(list(drawn.values())).reshape(1200, -1)
    assert len(np.unique(images, axis=0)) == 1200
    labels = (standard.train_labels[:300], standard.test_labels[:300], other.train_labels, other.test_labels)
    for i, one in enumerate(labels):
        for two in labels[:i]:
            assert 0.03 < (one == two).mean() < 0.2  # one in ten, by chance


@pytest.mark.parametrize("seed", [-1, 2**63, 2**64 - 1])
def test_any_seed(seed):
    drawn = synthetic.generate(train=20, test=10, seed=seed)
    assert sorted(drawn.train_labels[:10].tolist()) == list(range(10))
    assert drawn.train_images.std() > 20


def test_counts_must_be_positive():
    for train, test in ((0, 1), (1, 0), (-1, 5)):
        with pytest.raises(ValueError, match="at least one image"):
            synthetic.generate(train, test)


def test_drawing_is_quick():
    start = time.process_time()
    synthetic.generate(train=2000, test=100)
    assert time.process_time() - start < 5  # about 0.2 s


def test_colour_and_brightness_are_the_same_for_all_classes(standard):
    means = standard.train_images.mean(axis=(2, 3), dtype=np.float64)
    for label in range(10):
        own = means[standard.train_labels == label].mean(0)
        # The mean colour of an image has a deviation of about 50; 1000 images a class.
        np.testing.assert_allclose(own, means.mean(0), atol=6)


def linear_accuracy(train_images, train_labels, test_images, test_labels):
    """Training and test accuracy of multinomial logistic regression on the pixels."""
    rng = np.random.default_rng(0)
    mean, deviation = data.channel_statistics(train_images)

    def prepare(images):
        scaled = (images.astype(np.float32) / 255 - mean[:, None, None]) / deviation[:, None, None]
        return scaled.reshape(len(images), -1)

    x, x_test = prepare(train_images), prepare(test_images)
    w, b = np.zeros((x.shape[1], 10), np.float32), np.zeros(10, np.float32)
    epochs = 6
    for epoch in range(epochs):
        lr = np.float32(0.02 * (1 - epoch / epochs))
        order = rng.permutation(len(x))
        for start in range(0, len(x), 250):
            n = order[start : start + 250]
            z = x[n] @ w + b
            p = np.exp(z - z.max(1, keepdims=True))
            p /= p.sum(1, keepdims=True)
            p[np.arange(len(n)), train_labels[n]] -= 1
            w -= lr * (x[n].T @ p / len(n) + np.float32(0.01) * w)
            b -= lr * p.mean(0)
    return (
        np.mean((x @ w + b).argmax(1) == train_labels),
        np.mean((x_test @ w + b).argmax(1) == test_labels),
    )


def test_a_linear_model_does_not_learn_it(standard):
    fitted, accuracy = linear_accuracy(*(getattr(standard, name) for name in ARRAYS))
    assert fitted > 0.25  # it did learn something by heart
    assert accuracy < 0.5


def test_the_linear_model_learns_what_is_linear(standard):
    """The same images with a bright spot whose place is the class: the test above can fail."""

    def marked(images, labels):
        images = images.copy()
        for image, label in zip(images, labels, strict=True):
            image[:, 3 * label : 3 * label + 3, :3] = 255
        return images, labels

    train = marked(standard.train_images[:4000], standard.train_labels[:4000])
    test = marked(standard.test_images, standard.test_labels)
    _, accuracy = linear_accuracy(*train, *test)
    assert accuracy > 0.6


def test_written_and_read_like_any_other_set(tmp_path):
    drawn = synthetic.generate(train=53, test=11, seed=3)
    data.write_binary(tmp_path, drawn)
    read = data.load(tmp_path)
    assert read.classes == synthetic.CLASSES
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(read, name), getattr(drawn, name))


def test_mix_is_splitmix64():
    """The first outputs of the published generator from state 1234567: its state grows by the constant."""
    golden = 0x9E3779B97F4A7C15
    states = np.array([(1234567 + k * golden) % 2**64 for k in range(5)], np.uint64)
    assert mix(states).tolist() == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]


def test_keys_depend_on_every_part():
    index = np.arange(1000)
    assert len(np.unique(np.concatenate([keys(seed, part, index) for seed in (0, 1) for part in (0, 1)]))) == 4000
    np.testing.assert_array_equal(keys(5, 2, index)[17:18], keys(5, 2, 17))
