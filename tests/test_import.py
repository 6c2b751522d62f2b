"""Own images in class folders become a data set; whatever is not as described is told in one line."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from click.testing import CliRunner
from fastadam_cli.main import main
from hypothesis import given, settings
from hypothesis import strategies as st

from fastadam import data
from fastadam.errors import DataError

Image = pytest.importorskip("PIL.Image", reason="pillow (extra `images`) is not installed")

COLOURS = {"blue": (20, 40, 230), "green": (20, 220, 60), "red": (240, 30, 20)}


def picture(path, colour=(0, 0, 0), size=(40, 48), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path, **options)
    return path


@pytest.fixture
def photographs(tmp_path):
    """Ten pictures of one colour in each of three folders."""
    for name, colour in COLOURS.items():
        for number in range(10):
            suffix = ("png", "jpg", "bmp", "gif")[number % 4]
            picture(tmp_path / "photographs" / name / f"{number}.{suffix}", colour, (32 + 7 * number, 90 - 3 * number))
    return tmp_path / "photographs"


def refused(folder, out, **extra):
    with pytest.raises(DataError) as caught:
        data.import_folder(folder, out, **extra)
    message = str(caught.value)
    assert "\n" not in message
    assert "; " in message  # the cure
    assert not out.exists() or out.is_file() or any(out.iterdir())  # nothing was made
    return message


def colours_of(images):
    """The mean of each image: (N, 3)."""
    return images.mean(axis=(2, 3))


# ------------------------------------------------------------------------------------------- what is made


def test_class_folders_are_divided_by_class(photographs, tmp_path):
    made = data.import_folder(photographs, tmp_path / "own")
    assert (made.classes, made.train, made.test) == (("blue", "green", "red"), 24, 6)
    assert sorted(made.files) == sorted(os.listdir(tmp_path / "own"))
    read = data.load(tmp_path / "own")
    assert read.classes == made.classes
    assert np.bincount(read.train_labels).tolist() == [8, 8, 8]
    assert np.bincount(read.test_labels).tolist() == [2, 2, 2]
    for images, labels in ((read.train_images, read.train_labels), (read.test_images, read.test_labels)):
        wanted = np.array([COLOURS[read.classes[label]] for label in labels])
        np.testing.assert_allclose(colours_of(images), wanted, atol=12)  # JPEG and GIF change colours a little
    assert len(np.unique(read.train_labels[:8])) > 1, "shuffled"
    assert data.check(tmp_path / "own") == []
    report = data.inspect(tmp_path / "own")
    assert (report.name, report.train_counts, report.classes) == ("images", (8, 8, 8), made.classes)


def test_choice_and_order_follow_the_seed(photographs, tmp_path):
    def content(name, **extra):
        data.import_folder(photographs, tmp_path / name, **extra)
        return b"".join(path.read_bytes() for path in sorted((tmp_path / name).iterdir()))

    assert content("a") == content("b")
    assert content("a1", seed=1) != content("c")
    data.import_folder(photographs, tmp_path / "half", test_share=0.5)
    assert len(data.load(tmp_path / "half").test_labels) == 15
    for share in (0.0, 1.0, -0.5, 5, float("nan")):
        with pytest.raises(ValueError, match="test_share must be"):
            data.import_folder(photographs, tmp_path / "none", test_share=share)
    assert not (tmp_path / "none").exists()


def test_train_and_test_folders(photographs, tmp_path):
    both = tmp_path / "both"
    both.mkdir()
    photographs.rename(both / "train")
    for name in ("green", "red"):  # a test set may lack a class; labels go by the training set
        picture(both / "test" / name / "x.png", COLOURS[name])
    made = data.import_folder(both, tmp_path / "own")
    assert (made.train, made.test) == (30, 2)
    read = data.load(tmp_path / "own")
    for image, label in zip(read.test_images, read.test_labels, strict=True):
        assert tuple(image[:, 0, 0]) == COLOURS[read.classes[label]]


def test_what_is_in_folders_besides_images(photographs, tmp_path):
    for name in (".DS_Store", ".hidden/x.txt", "Thumbs.db", "red/.DS_Store", "red/desktop.ini", "__MACOSX/x"):
        path = photographs / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"junk")
    assert data.import_folder(photographs, tmp_path / "own").train == 24


def test_classes_may_be_called_train_and_test(tmp_path):
    for name in ("train", "test", "plane"):
        for number in range(5):
            picture(tmp_path / "vehicles" / name / f"{number}.png")
    assert data.import_folder(tmp_path / "vehicles", tmp_path / "own").classes == ("plane", "test", "train")


def test_a_model_trained_on_it_keeps_the_names(photographs, tmp_path):
    own, run = tmp_path / "own", tmp_path / "run"
    data.import_folder(photographs, own)
    args = ["train", "--data", own, "--model", "mlp", "--val-size", 3, "--batch-size", 8, "--steps", 3, "--out", run]
    result = CliRunner().invoke(main, [*map(str, args), "--json", "--quiet"])
    assert result.exit_code == 0, result.output
    summary = json.loads(result.stdout)
    assert summary["dataset"] == "images"
    import fastadam

    model = fastadam.load(run / "last.safetensors")
    assert tuple(model.classes) == ("blue", "green", "red")
    assert model.predict_proba(data.load(own).test_images).shape == (6, 3)


# --------------------------------------------------------------------------------------------- pictures


def test_the_middle_is_kept(tmp_path):
    """A wide picture loses its sides, a tall one top and bottom."""
    image = Image.new("RGB", (96, 32), (255, 0, 0))
    image.paste((0, 0, 255), (32, 0, 64, 32))
    image.save(tmp_path / "wide.png")
    image.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "tall.png")
    for name in ("wide.png", "tall.png"):
        read = data.read_picture(tmp_path / name)
        assert (read.shape, read.dtype, read.flags.c_contiguous) == ((3, 32, 32), np.uint8, True)
        assert (read == np.array([0, 0, 255])[:, None, None]).all()


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_pictures_of_the_right_size_are_kept_bit_for_bit(tmp_path_factory, seed):
    path = tmp_path_factory.mktemp("exact") / "x.png"
    pixels = np.random.default_rng(seed).integers(0, 256, (32, 32, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    np.testing.assert_array_equal(data.read_picture(path), pixels.transpose(2, 0, 1))


def test_kinds_of_pictures(tmp_path):
    grey = np.arange(32 * 32, dtype=np.uint32).reshape(32, 32) * 64
    Image.fromarray((grey // 257).astype(np.uint8)).save(tmp_path / "grey.png")
    Image.fromarray(grey.astype(np.uint16)).save(tmp_path / "deep.png")
    for name in ("grey.png", "deep.png"):
        np.testing.assert_array_equal(data.read_picture(tmp_path / name), np.broadcast_to(grey // 257, (3, 32, 32)))

    Image.new("RGBA", (32, 32), (10, 20, 30, 0)).save(tmp_path / "clear.png")
    assert (data.read_picture(tmp_path / "clear.png") == 255).all()
    Image.new("CMYK", (32, 32), (0, 255, 255, 0)).save(tmp_path / "print.jpg")
    assert np.allclose(colours_of(data.read_picture(tmp_path / "print.jpg")[None]), [[255, 0, 0]], atol=6)

    turned = Image.new("RGB", (32, 64), (255, 0, 0))
    turned.paste((0, 0, 255), (0, 16, 32, 32))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: to be turned by 90 degrees
    turned.save(tmp_path / "turned.png", exif=exif)
    read = data.read_picture(tmp_path / "turned.png")
    assert (read[2, :, 16:] == 255).all()
    assert (read[0, :, :16] == 255).all()


@pytest.mark.parametrize("size", [(1, 1), (3, 500), (31, 33), (1000, 40)])
def test_sizes_of_pictures(tmp_path, size):
    read = data.read_picture(picture(tmp_path / "x.png", (9, 8, 7), size))
    assert (read == np.array([9, 8, 7])[:, None, None]).all()


# ------------------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    "content", [b"", b"text", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"GIF89a", b"BM" + bytes(60)]
)
def test_broken_images_are_named(photographs, tmp_path, content):
    (photographs / "red" / "broken.png").write_bytes(content)
    message = refused(photographs, tmp_path / "own")
    assert str(photographs / "red" / "broken.png") in message
    assert "remove it" in message
    (photographs / "blue" / "broken.png").write_bytes(content)
    assert "and 1 more like it" in refused(photographs, tmp_path / "own")


@settings(max_examples=40, deadline=None)
@given(cut=st.floats(0, 1, exclude_max=True), kind=st.sampled_from(["png", "jpg", "gif", "bmp", "tiff", "webp"]))
def test_truncated_images_are_refused_or_read(tmp_path_factory, cut, kind):
    place = tmp_path_factory.mktemp("cut")
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    Image.fromarray(pixels).save(place / f"x.{kind}")
    content = (place / f"x.{kind}").read_bytes()
    (place / f"x.{kind}").write_bytes(content[: int(cut * len(content))])
    try:
        read, message = data.read_picture(place / f"x.{kind}"), None
    except DataError as error:
        read, message = None, str(error)
    if message is None:
        assert read.shape == (3, 32, 32)  # all pixels were there
    else:
        assert f"x.{kind}" in message
        assert "\n" not in message


def test_pictures_that_are_none(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe.png")
    for path, expected in (
        (tmp_path, "is a folder"),
        (tmp_path / "none.png", "there is no file"),
        (tmp_path / "pipe.png", "is no file"),
    ):
        with pytest.raises(DataError, match=expected):
            data.read_picture(path)
    Image.fromarray(np.zeros((32, 32), np.float32)).save(tmp_path / "f.tiff")
    with pytest.raises(DataError, match="convert it to 8 bits"):
        data.read_picture(tmp_path / "f.tiff")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(DataError, match="more pixels than any photograph"):
        data.read_picture(picture(tmp_path / "x.png"))


def test_folders_that_are_not_as_described(photographs, tmp_path):
    own = tmp_path / "own"
    assert "there is no folder" in refused(tmp_path / "nowhere", own)
    assert "is a file" in refused(photographs / "red" / "0.png", own)
    assert "has no class folders (found 0.png, and 9 more like it)" in refused(photographs / "red", own)
    (tmp_path / "empty").mkdir()
    assert "has no class folders" in refused(tmp_path / "empty", own)
    picture(tmp_path / "single" / "cat" / "x.png")
    assert "one class only (cat)" in refused(tmp_path / "single", own)
    (tmp_path / "single" / "dog").mkdir()
    assert f"{tmp_path / 'single' / 'dog'} holds no images" in refused(tmp_path / "single", own)
    picture(tmp_path / "single" / "dog" / "x.png")
    picture(tmp_path / "single" / "dog" / "y.png")
    assert "too few images" in refused(tmp_path / "single", own, test_share=0.9)
    (photographs / "notes.txt").touch()
    assert f"{photographs / 'notes.txt'} is in no class folder" in refused(photographs, own)
    (photographs / "notes.txt").unlink()
    picture(photographs / "red" / "dark" / "x.png")
    assert f"{photographs / 'red' / 'dark'} is a folder within a class folder" in refused(photographs, own)


def test_divided_folders_that_are_not_as_described(tmp_path):
    own, both = tmp_path / "own", tmp_path / "both"
    for name in ("cat", "dog"):
        picture(both / "train" / name / "x.png")
    assert "has train but no test" in refused(both, own)
    picture(both / "test" / "cat" / "x.png")
    assert "leave --test-share away" in refused(both, own, test_share=0.1)
    picture(both / "test" / "cow" / "x.png")
    assert f"{both / 'test' / 'cow'} is a class that the training images do not have" in refused(both, own)
    (both / "val").mkdir()
    assert "--val-size" in refused(both, own)
    (both / "val").rename(both / "other")
    assert "also 'other'" in refused(both, own)


def test_names_of_classes(photographs, tmp_path):
    (photographs / "red").rename(photographs / "re\nd")
    assert "cannot be the name of a class" in refused(photographs, tmp_path / "own")
    (photographs / "re\nd").rename(photographs / " blue")
    assert "two folders give the class 'blue'" in refused(photographs, tmp_path / "own")
    for number in range(300):
        (tmp_path / "many" / str(number)).mkdir(parents=True)
    assert "has 300 classes" in refused(tmp_path / "many", tmp_path / "own")


def test_places_that_are_taken(photographs, tmp_path):
    assert "lies in" in refused(photographs, photographs / "out")
    taken = tmp_path / "taken"
    data.import_folder(photographs, taken)
    before = sorted(taken.iterdir())
    assert "is not empty" in refused(photographs, taken)
    assert sorted(taken.iterdir()) == before
    (tmp_path / "file").touch()
    assert "is a file" in refused(photographs, tmp_path / "file")
    (tmp_path / "new").mkdir()
    assert data.import_folder(photographs, tmp_path / "new").train == 24


# ---------------------------------------------------------------------------------------------- the command


def test_command(photographs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run(*args, code=0):
        result = CliRunner().invoke(main, ["data", *map(str, args)], prog_name="fastadam")
        assert result.exit_code == code, result.output
        return result

    done = run("import", photographs, "--out", "own", "--test-share", 0.1)
    assert done.stdout == "own: 27 training and 3 test images of 3 classes\n"
    assert "reading images" in done.stderr
    assert run("check", "own").stdout == "own is in order\n"
    assert json.loads(run("info", "own", "--json").stdout)["classes"] == ["blue", "green", "red"]
    made = run("import", photographs, "--out", "two", "--json", "--quiet")
    assert (json.loads(made.stdout)["train"], made.stderr) == (24, "")
    assert "is not empty" in run("import", photographs, "--out", "own", code=1).stderr
    assert "must be above 0" in run("import", photographs, "--out", "x", "--test-share", 0, code=2).stderr
    assert "Missing option '--out'" in run("import", photographs, code=2).stderr


def test_without_pillow(photographs, tmp_path):
    """One line with the cure, before anything else; the package itself does not need it."""
    code = (
        "import sys; sys.modules['PIL'] = None; from fastadam_cli.main import main; "
        f"sys.argv = ['fastadam', 'data', 'import', {str(photographs)!r}, '--out', {str(tmp_path / 'own')!r}]; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("Error: reading image files needs pillow")
    assert "python -m pip install pillow" in done.stderr
    assert done.stderr.count("\n") == 1
