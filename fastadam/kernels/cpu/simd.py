"""The width of this machine's float vectors, in floats: 16 with AVX-512, 8 with AVX2, else 4."""

from fastadam.kernels.cache import cpu_features


def vector_width(features: set[str]) -> int:
    """Width on a CPU with these instruction sets, by LLVM's names.

    A vector is only as wide as the fused multiply-add of the machine: AVX without FMA counts as 4.
    """
    if "avx512f" in features:
        return 16
    if {"avx2", "fma"} <= features:
        return 8
    return 4


WIDTH = vector_width(cpu_features()[1])
