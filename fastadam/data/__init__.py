"""Data sets: reading, checking, writing and generating them, and dividing them.

    load  find_default  cache_folder      a data set by name or path: library.py
    inspect  check                        what it is made of, what is wrong with it: report.py
    fetch                                 published archives into the cache: fetch.py, download.py
    import_folder  read_picture           own images, one folder a class: folders.py, pictures.py
    write_binary                          as CIFAR-10 files: cifar.py
    split  limit  for_test                validation set and subsets: split.py
    channel_statistics                    for the normalisation: statistics.py
    synthetic.generate                    drawn images: synthetic.py

Images are uint8 (N, 3, 32, 32) throughout, labels int32.
"""

from fastadam.data import synthetic
from fastadam.data.cifar import Problem, write_binary
from fastadam.data.dataset import Dataset
from fastadam.data.fetch import Fetched, fetch
from fastadam.data.folders import Imported, import_folder
from fastadam.data.library import cache_folder, find_default, load
from fastadam.data.pictures import read_picture
from fastadam.data.report import DataReport, check, inspect
from fastadam.data.split import for_test, limit, split
from fastadam.data.statistics import channel_statistics

__all__ = [
    "DataReport",
    "Dataset",
    "Fetched",
    "Imported",
    "Problem",
    "cache_folder",
    "channel_statistics",
    "check",
    "fetch",
    "find_default",
    "for_test",
    "import_folder",
    "inspect",
    "limit",
    "load",
    "read_picture",
    "split",
    "synthetic",
    "write_binary",
]
