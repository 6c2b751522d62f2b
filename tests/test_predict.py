"""``fastadam predict``, and predicting from Python."""

import json
import sys
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from fastadam_cli.main import main

import fastadam
from fastadam import models
from fastadam.data.names import CIFAR10_CLASSES
from fastadam.errors import DataError
from fastadam.predict import predict_files


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A checkpoint that knows the class names of CIFAR-10."""
    path = tmp_path_factory.mktemp("predict") / "mlp.safetensors"
    model = models.build("mlp", seed=4)
    model.classes = CIFAR10_CLASSES
    model.set_normalization(np.full(3, 0.5), np.full(3, 0.25))
    model.save(path)
    return str(path)


@pytest.fixture
def images(rng) -> np.ndarray:
    return rng.integers(0, 256, (6, 3, 32, 32), np.uint8)


def write(path, images: np.ndarray, labels: tuple[int, ...], coarse: bool = False) -> str:
    """A file of records."""
    head = [np.zeros(len(images), np.uint8)] * coarse + [np.array(labels, np.uint8)]
    records = np.concatenate([np.stack(head, 1), images.reshape(len(images), -1)], axis=1)
    path.write_bytes(records.tobytes())
    return str(path)


def save_picture(path, image: np.ndarray, **options: Any) -> str:
    Image = pytest.importorskip("PIL.Image")
    Image.fromarray(image.transpose(1, 2, 0)).save(path, **options)
    return str(path)


def run(*arguments: Any) -> Any:
    return CliRunner().invoke(main, ["predict", *map(str, arguments)], prog_name="fastadam")


def fails(*arguments: Any) -> str:
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (1, ""), result.output
    assert result.stderr.count("\n") == 1
    return result.stderr


def test_records_with_their_labels_and_the_models_probabilities(model, images, tmp_path):
    path = write(tmp_path / "some.bin", images, (3, 0, 9, 1, 1, 2))
    found = json.loads(run(model, path, "--top", 10, "--json", "--quiet").stdout)
    assert list(found) == ["checkpoint", "predictions"]
    want = fastadam.load(model).predict_proba(images)
    for i, row in enumerate(found["predictions"]):
        assert (row["file"], row["record"]) == (path, i)
        assert row["label"] == CIFAR10_CLASSES[(3, 0, 9, 1, 1, 2)[i]]
        assert [best["class"] for best in row["top"]] == [CIFAR10_CLASSES[c] for c in np.argsort(-want[i])]
        assert sum(best["probability"] for best in row["top"]) == pytest.approx(1, abs=1e-5)
        assert row["top"][0] == {"class": row["class"], "probability": row["probability"]}
        assert row["probability"] == pytest.approx(want[i].max())


def test_pictures_of_every_kind_in_their_order(model, images, tmp_path):
    first = save_picture(tmp_path / "first.png", images[0])
    second = save_picture(tmp_path / "second.bmp", images[1])
    records = write(tmp_path / "third.bin", images[2:4], (5, 6))
    found = predict_files(model, [first, records, second])["predictions"]
    want = fastadam.load(model).predict_proba(images[[0, 2, 3, 1]])
    assert [row["class"] for row in found] == [CIFAR10_CLASSES[c] for c in want.argmax(1)]
    np.testing.assert_allclose([row["probability"] for row in found], want.max(1))
    shown = run(model, first, records, second, "--top", 2).stdout.splitlines()
    assert shown[0].split() == ["image", "record", "label", "class", "probability", "class", "2", "probability"]
    assert [line.split()[0] for line in shown[1:]] == [first, records, records, second]
    assert "record" not in run(model, first).stdout
    large = np.kron(images[4], np.ones((1, 10, 10), np.uint8))
    paths = [save_picture(tmp_path / name, large, quality=95) for name in ("large.jpg", "large.png")]
    jpeg, png = (row["probability"] for row in predict_files(model, paths)["predictions"])
    assert jpeg == pytest.approx(png, abs=0.05)


def test_nothing_is_asked_for(model, images):
    with pytest.raises(ValueError, match="top must be a whole number of 1 or more"):
        predict_files(model, ["x.png"], top=0)
    with pytest.raises(DataError, match="no files to look at"):
        predict_files(model, [])


def test_threads_do_not_change_the_bits(model, images, tmp_path):
    path = write(tmp_path / "some.bin", images, (0,) * 6)
    assert run(model, path, "--threads", 1, "--json").stdout == run(model, path, "--threads", 2, "--json").stdout


def test_a_broken_file_is_one_line_and_nothing_is_printed(model, images, tmp_path):
    good = write(tmp_path / "good.bin", images, (0,) * 6)
    cut = tmp_path / "cut.bin"
    cut.write_bytes((tmp_path / "good.bin").read_bytes()[:5000])
    (tmp_path / "empty.bin").touch()
    beyond = write(tmp_path / "beyond.bin", images, (0, 9, 17, 0, 0, 0))
    (tmp_path / "text.png").write_text("no picture")
    for bad, told in (
        (cut, "5,000 bytes, which is no whole number of records of 3073 bytes (CIFAR-10) or 3074"),
        (tmp_path / "empty.bin", "0 bytes"),
        (beyond, "record 2 (counted from 0)"),
        (tmp_path / "missing.bin", "there is no file"),
        (tmp_path / "missing.png", "there is no file"),
    ):
        assert told in fails(model, good, bad)
    pytest.importorskip("PIL")
    assert "no image that pillow can read" in fails(model, good, tmp_path / "text.png")
    picture = save_picture(tmp_path / "whole.png", images[0])
    data = (tmp_path / "whole.png").read_bytes()
    (tmp_path / "half.png").write_bytes(data[: len(data) // 2])
    assert "damaged image" in fails(model, picture, tmp_path / "half.png")


def test_without_pillow_pictures_have_a_cure_and_records_need_none(model, images, tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "PIL"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "PIL", None)
    (tmp_path / "x.png").write_bytes(b"")
    assert "python -m pip install pillow" in fails(model, tmp_path / "x.png")
    assert run(model, write(tmp_path / "some.bin", images, (0,) * 6)).exit_code == 0


def test_records_of_cifar_100_for_its_models(images, tmp_path):
    model = models.build("mlp", classes=100, seed=1)
    model.save(tmp_path / "hundred.safetensors")
    path = write(tmp_path / "test.bin", images, (99, 3, 50, 0, 0, 0), coarse=True)
    found = predict_files(tmp_path / "hundred.safetensors", [path], top=1)["predictions"]
    assert [row["label"] for row in found[:3]] == ["99", "3", "50"]
    assert [row["class"] for row in found] == [str(c) for c in model.predict(images)]


def test_models_of_other_shapes_are_refused(images, tmp_path):
    models.build("cnn", shape=(8, 8, 3)).save(tmp_path / "small.safetensors")
    path = write(tmp_path / "some.bin", images, (0,) * 6)
    assert "takes images of 8 x 8 x 3" in fails(tmp_path / "small.safetensors", path)


def test_a_diverged_checkpoint_is_refused(images, tmp_path):
    model = models.build("mlp")
    model.parameters.views["fc.bias"][:] = np.nan
    model.save(tmp_path / "nan.safetensors")
    assert "not finite" in fails(tmp_path / "nan.safetensors", write(tmp_path / "some.bin", images, (0,) * 6))


# ------------------------------------------------------------------------------------------------- from Python


def test_saving_and_loading_gives_the_same_probabilities(images, tmp_path):
    model = models.build("cnn", seed=2)
    model.set_normalization(np.array([0.4, 0.5, 0.6]), np.array([0.2, 0.3, 0.4]))
    model.save(str(tmp_path / "cnn.safetensors"))
    again = fastadam.load(str(tmp_path / "cnn.safetensors"))
    probabilities = model.predict_proba(images)
    np.testing.assert_array_equal(probabilities, again.predict_proba(images))
    np.testing.assert_array_equal(model.predict(images), probabilities.argmax(1))
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-6)
    assert probabilities.dtype == np.float32
    normalised = (images / 255 - model.mean[:, None, None]) / model.std[:, None, None]
    np.testing.assert_allclose(model.predict_proba(normalised.astype(np.float32)), probabilities, atol=1e-5)


def test_to_takes_threads_and_keeps_the_bits(images):
    model = models.build("cnn", seed=2)
    assert model.to("cpu", threads=1) is model
    one = model.predict_proba(images)
    np.testing.assert_array_equal(one, model.to(threads=2).predict_proba(images))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda x: x[0], r"shape \(N, 3, 32, 32\), they have \(3, 32, 32\); give one image as image\[None\]"),
        (lambda x: x.transpose(0, 2, 3, 1), r"give images\.transpose\(0, 3, 1, 2\)"),
        (lambda x: x[:, :, :28, :28], r"they have \(6, 3, 28, 28\)$"),
        (lambda x: x / 255, "uint8 pixels, or float32 already normalised .* they are float64"),
        (lambda x: x.astype(np.int64), "they are int64"),
    ],
)
def test_images_that_do_not_fit_are_told_how_they_would(images, change, told):
    with pytest.raises(ValueError, match=told):
        models.build("mlp").predict_proba(change(images))
