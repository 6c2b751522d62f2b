"""Data sets: reading, checking, writing and generating them, and dividing them.

    load  find_default  cache_folder      a data set by name or path: library.py
    inspect  check                        what it is made of, what is wrong with it: report.py
    write_binary                          as CIFAR-10 files: cifar.py
    split  limit                          validation set and subsets: split.py
    channel_statistics                    for the normalisation: statistics.py
    synthetic.generate                    drawn images: synthetic.py

Images are uint8 (N, 3, 32, 32) throughout, labels int32.
"""

from fastadam.data import synthetic
from fastadam.data.cifar import Problem, write_binary
from fastadam.data.dataset import Dataset
from fastadam.data.library import cache_folder, find_default, load
from fastadam.data.report import DataReport, check, inspect
from fastadam.data.split import limit, split
from fastadam.data.statistics import channel_statistics

__all__ = [
    "DataReport",
    "Dataset",
    "Problem",
    "cache_folder",
    "channel_statistics",
    "check",
    "find_default",
    "inspect",
    "limit",
    "load",
    "split",
    "synthetic",
    "write_binary",
]
