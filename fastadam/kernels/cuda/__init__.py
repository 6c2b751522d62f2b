"""CUDA kernels: twins of those of the CPU. `fastadam.kernels` states the contract they share."""
