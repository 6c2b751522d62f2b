"""From what a user names to a data set: ``synthetic``, ``cifar10``, ``cifar100``, a folder or an archive."""

import os
from pathlib import Path

import platformdirs

from fastadam.config import DATA_SETS
from fastadam.data import cifar, synthetic
from fastadam.data.dataset import Dataset
from fastadam.data.formats import FORMATS, HOME_PAGE
from fastadam.data.source import Source, holds_data, open_source
from fastadam.errors import DataError
from fastadam.setting import nearest

SYNTHETIC = "synthetic"


def load(spec: str | Path | None) -> Dataset:
    """The data set that ``spec`` names, wholly in memory.

    "synthetic"             generated images
    "cifar10", "cifar100"   the files in the cache folder
    a path                  a folder of binary files, or a binary .tar.gz archive
    None                    CIFAR-10 if it is in the cache, generated images if not

    DataError, one line, if there is nothing of the kind or it is damaged.
    """
    if spec is None:
        return find_default() or synthetic.generate()
    if str(spec) == SYNTHETIC:
        return synthetic.generate()
    return cifar.read(find_source(spec))


def find_default() -> Dataset | None:
    """CIFAR-10 from the cache, None if it is not there. DataError if it is there and damaged."""
    folder = cache_folder("cifar10")
    return cifar.read(open_source(folder)) if holds_data(folder) else None


def cache_folder(name: str | None = None) -> Path:
    """The folder that this user's data sets are kept in, or that of the data set ``name`` in it."""
    folder = Path(platformdirs.user_cache_dir("fastadam"))
    return folder if name is None else folder / name


def find_source(spec: str | Path) -> Source:
    """The files that ``spec`` names: a path, or a data set in the cache. DataError if they are not there."""
    if not str(spec):
        raise DataError("an empty name for the data; give a folder, a .tar.gz archive, cifar10, cifar100 or synthetic")
    for form in FORMATS:
        if str(spec) == form.name:
            folder = cache_folder(form.name)
            if not holds_data(folder):
                raise DataError(
                    f"{form.title} is not in the cache; get it by {form.cure}, put {form.archive.name} "
                    f"({HOME_PAGE}) into {folder}, or give the path of a folder or archive"
                )
            return open_source(folder)
    if "://" in str(spec):
        raise DataError(f"{spec} is an address, not a file; download it and give the path of what you got")
    path = Path(os.path.expanduser(spec))
    meant = nearest(str(spec), DATA_SETS)
    if meant and not os.path.lexists(path):
        raise DataError(f"there is no file or folder {path}, and no data set of that name{meant}")
    return open_source(path)
