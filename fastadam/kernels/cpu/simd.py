"""The width of this machine's float vectors, in floats: 16 with AVX-512, 8 with AVX2, else 4."""

import llvmlite.binding as llvm
from numba import config


def vector_width(features: str) -> int:
    """Width from a feature string such as ``+avx2,+fma,-avx512f`` (LLVM's names).

    A vector is only as wide as the fused multiply-add of the machine: AVX without FMA counts as 4.
    """
    have = {name[1:] for name in features.split(",") if name.startswith("+")}
    if "avx512f" in have:
        return 16
    if {"avx2", "fma"} <= have:
        return 8
    return 4


def host_features() -> str:
    """The features numba compiles for: ``NUMBA_CPU_FEATURES`` if the user set it, else the host's."""
    if config.CPU_FEATURES is not None:
        return config.CPU_FEATURES
    return llvm.get_host_cpu_features().flatten()


WIDTH = vector_width(host_features())
