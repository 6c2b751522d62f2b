"""Own images, one folder a class, as a data set: the facts behind ``fastadam data import``."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastadam.checks import finite
from fastadam.data.cifar import MOST_CLASSES, OWN, write_binary
from fastadam.data.dataset import IMAGE_SHAPE, Dataset
from fastadam.data.pictures import read_picture, require_pillow
from fastadam.data.progress import Progress, Silent
from fastadam.data.source import cannot_read
from fastadam.data.split import split
from fastadam.draws import keys
from fastadam.errors import DataError

TEST_SHARE = 0.2
"""Share of the images that the test set gets, if the folder does not say which."""

_NEVER_IMAGES = ("thumbs.db", "desktop.ini", "__macosx")  # what systems leave in folders, beside hidden files
_VALIDATION = ("val", "valid", "validation", "dev")
_TRAIN, _TEST = 0, 1  # streams of the order that images are written in
_SHOWN = 3  # file names told in a message


@dataclass(frozen=True)
class Imported:
    """A data set made of own images: where it is, its files, its classes, and images of each part."""

    path: str
    files: tuple[str, ...]
    classes: tuple[str, ...]
    train: int
    test: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}


def import_folder(
    folder: str | Path,
    out: str | Path,
    *,
    test_share: float | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Imported:
    """Read images from class folders, write them into the new folder ``out`` as CIFAR-10 binary files.

    ``folder`` holds ``train/CLASS/*`` and ``test/CLASS/*``, or ``CLASS/*``; then ``test_share`` of the images, by
    class in proportion and chosen by ``seed``, are for the test. Classes are numbered by the alphabet. Images become
    32 x 32 pixels as ``read_picture`` says; hidden files are passed over. The order of the images is shuffled.

    DataError, one line naming the file and the cure, for anything that is not as described; nothing is written then.
    """
    told: Progress = progress or Silent()
    share = TEST_SHARE if test_share is None else finite("test_share", test_share)
    if not 0 < share < 1:
        raise ValueError(f"test_share must be above 0 and below 1, it is {test_share}")
    require_pillow()
    folder, out = Path(os.path.expanduser(folder)), Path(os.path.expanduser(out))
    _require_new(folder, out)
    divided = _is_divided(folder)
    if divided and test_share is not None:
        raise DataError(f"{folder} has a test folder of its own; leave --test-share away")
    train = _class_files(folder / "train" if divided else folder)
    test = _class_files(folder / "test", among=train) if divided else {}
    classes = tuple(train)
    images, labels = _read(train, classes, told)
    if divided:
        test_images, test_labels = _read(test, classes, told)
    else:
        images, labels, test_images, test_labels = _divide(images, labels, classes, share, seed)
    order, test_order = (_order(len(part), seed, s) for part, s in ((labels, _TRAIN), (test_labels, _TEST)))
    data = Dataset(
        name=OWN,
        train_images=images[order],
        train_labels=labels[order],
        test_images=test_images[test_order],
        test_labels=test_labels[test_order],
        classes=classes,
        source=str(folder),
    )
    files = write_binary(out, data)
    return Imported(str(out), tuple(path.name for path in files), classes, len(labels), len(test_labels))


# ------------------------------------------------------------------------------------------------ looking


def _require_new(folder: Path, out: Path) -> None:
    _entries(folder)  # says so if there is no such folder
    inside = Path(os.path.realpath(out)).is_relative_to(os.path.realpath(folder))
    if inside:
        raise DataError(f"{out} lies in {folder}, the folder that is imported; choose another --out")
    if not os.path.lexists(out):
        return
    if not out.is_dir():
        raise DataError(f"{out} is a file; give a new folder as --out")
    held = _entries(out)
    if held:
        raise DataError(f"{out} is not empty (it holds {held[0].name!r}); give a new or empty folder as --out")


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """What is in a folder, by name, without hidden files and what systems leave behind."""
    try:
        with os.scandir(folder) as found:
            seen = [entry for entry in found if not entry.name.startswith(".")]
    except NotADirectoryError as error:
        raise DataError(f"{folder} is a file; give the folder that holds a folder of images for each class") from error
    except FileNotFoundError as error:
        raise DataError(f"there is no folder {folder}; check the path") from error
    except OSError as error:
        raise cannot_read(folder, error) from error
    return sorted((e for e in seen if e.name.lower() not in _NEVER_IMAGES), key=lambda entry: entry.name)


def _is_divided(folder: Path) -> bool:
    """Whether ``folder`` holds ``train`` and ``test``, each with class folders."""
    entries = {entry.name: entry for entry in _entries(folder) if entry.is_dir()}
    parts = [name for name in ("train", "test") if name in entries and _holds_folders(entries[name])]
    if not parts:
        return False  # classes may be called so
    validation = next((name for name in _VALIDATION if name in entries), None)
    if validation is not None:
        raise DataError(
            f"{folder / validation} has no place: fastadam sets validation images apart itself (--val-size); "
            f"move its images into those of {folder / 'train'}"
        )
    others = sorted(entries.keys() - {"train", "test"})
    if others:
        raise DataError(f"{folder} holds train and test, but also {others[0]!r}; move that away")
    if len(parts) == 1:
        (only,) = parts
        missing = "test" if only == "train" else "train"
        raise DataError(
            f"{folder} has {only} but no {missing} with class folders; "
            f"import {folder / only} by itself with --test-share, or add {folder / missing}"
        )
    return True


def _holds_folders(entry: os.DirEntry[str]) -> bool:
    return any(inner.is_dir() for inner in _entries(Path(entry.path)))


def _class_files(place: Path, among: dict[str, list[Path]] | None = None) -> dict[str, list[Path]]:
    """The image files of each class in ``place``; ``among``: the classes there may be."""
    entries = _entries(place)
    loose = [entry.name for entry in entries if not entry.is_dir()]
    folders = [entry for entry in entries if entry.is_dir()]
    if not folders:
        raise DataError(
            f"{place} has no class folders{_found(loose)}; put the images of each class into a folder of its own, "
            f"such as {place / 'cat'}"
        )
    if loose:
        raise DataError(f"{place / loose[0]} is in no class folder{_more(loose)}; move it into one, or away")
    if among is None and len(folders) < 2:
        raise DataError(f"{place} has one class only ({folders[0].name}); there is nothing to learn below two")
    if among is None and len(folders) > MOST_CLASSES:
        raise DataError(f"{place} has {len(folders)} classes; the format has room for {MOST_CLASSES}: merge some")
    files = {}
    for entry in folders:
        name = entry.name.strip()
        if not name or not name.isprintable():
            raise DataError(f"{place}: the folder {entry.name!a} cannot be the name of a class; rename it")
        if name in files:
            raise DataError(f"{place}: two folders give the class {name!r}; rename one of them")
        if among is not None and name not in among:
            raise DataError(f"{entry.path} is a class that the training images do not have; remove it or add images")
        files[name] = _images_in(Path(entry.path))
    return files


def _images_in(folder: Path) -> list[Path]:
    files = []
    for entry in _entries(folder):
        if entry.is_dir():
            raise DataError(
                f"{entry.path} is a folder within a class folder; move its images up into {folder}, or make it a class"
            )
        files.append(Path(entry.path))
    if not files:
        raise DataError(f"{folder} holds no images; add some, or remove the folder")
    return files


def _found(names: list[str]) -> str:
    return f" (found {names[0]}{_more(names)})" if names else ""


def _more(names: list[Any]) -> str:
    return f", and {len(names) - 1:,} more like it" if len(names) > 1 else ""


# ------------------------------------------------------------------------------------------------ reading


def _read(files: dict[str, list[Path]], classes: tuple[str, ...], progress: Progress) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 (N, 3, 32, 32) and labels int32 (N,), class by class. All files are tried before any is blamed."""
    paths = [path for name in files for path in files[name]]
    labels = np.array([classes.index(name) for name in files for _ in files[name]], np.int32)
    images = np.empty((len(paths), *IMAGE_SHAPE), np.uint8)
    broken: list[DataError] = []
    progress.begin("reading images", len(paths), unit="images")
    try:
        for index, image in enumerate(_pictures(paths)):
            if isinstance(image, DataError):
                broken.append(image)
            else:
                images[index] = image
            progress.advance(index + 1)
    finally:
        progress.end()
    if broken:
        for error in broken[1 : 1 + 10]:
            progress.message(str(error))
        raise DataError(f"{broken[0]}{_more(broken)}")
    return images, labels


def _pictures(paths: list[Path]) -> Iterator[np.ndarray | DataError]:
    """The picture in each file, or why there is none; pillow unpacks and resizes without holding up other threads."""

    def read(path: Path) -> np.ndarray | DataError:
        try:
            return read_picture(path)
        except DataError as error:
            return error

    step = 1024  # files at a time: an interrupt need not wait for the rest
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(paths), step):
            yield from pool.map(read, paths[start : start + step])


def _divide(
    images: np.ndarray, labels: np.ndarray, classes: tuple[str, ...], share: float, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    count = max(1, round(share * len(labels)))
    train, test = split(labels, min(count, len(labels) - 1), seed)
    left = np.bincount(labels[train], minlength=len(classes))
    if not left.all():
        name = classes[int(np.argmin(left))]
        raise DataError(f"class {name!r} has too few images to spare some for the test; add images or remove it")
    return images[train], labels[train], images[test], labels[test]


def _order(count: int, seed: int, part: int) -> np.ndarray:
    return np.argsort(keys(seed, part, np.arange(count)), kind="stable")
