"""What this machine and this installation offer to fastadam, and what is missing with its cure."""

import os
import platform
import re
import shutil
from importlib import metadata
from pathlib import Path
from typing import Any

from fastadam import data
from fastadam.config import DATA_SETS
from fastadam.cuda_device import describe_gpus
from fastadam.device import cache_folder, cache_roots, cpu_features, get_device, threading_layer
from fastadam.kernels.start import cores
from fastadam.versions import DECISIVE, installed

_VECTORS = (("avx512f", "AVX-512", 512), ("avx2", "AVX2", 256), ("neon", "NEON", 128), ("sse2", "SSE2", 128))
_KERNEL_FOLDER = re.compile(r"[0-9a-f]{16}")


def diagnose() -> dict[str, Any]:
    """All of it, ready for JSON. ``missing`` lists {"what", "cure"} and is empty if all is well."""
    missing = _missing_packages()
    kernels = _kernel_cache()
    if not kernels["kept"]:
        tried = ", ".join(map(str, cache_roots()))
        missing.append(
            {
                "what": f"no folder to keep compiled kernels in (tried {tried}): each start compiles them",
                "cure": "export NUMBA_CACHE_DIR=/a/folder/you/may/write/to",
            }
        )
    cpu = get_device("cpu")
    with cpu.running():  # numba chooses its threading layer now
        layer = threading_layer()
    return {
        "versions": installed(*DECISIVE, "scipy", "safetensors", "click", "rich"),
        "cpu": describe_cpu(),
        "cores": cores(),
        "threads": cpu.threads,
        "threading_layer": layer,
        "kernel_cache": kernels,
        "data_cache": _data_cache(),
        "gpu": describe_gpus(),
        "missing": missing,
    }


def clear_kernel_cache() -> dict[str, Any]:
    """Delete all compiled kernels, of older versions too; returns what is gone: {"folders", "bytes"}."""
    folders = _kernel_folders()
    size = sum(folder_bytes(folder) for folder in folders)
    for folder in folders:
        shutil.rmtree(folder)
    return {"folders": [str(folder) for folder in folders], "bytes": size}


def folder_bytes(folder: Path) -> int:
    """Bytes of all files below ``folder``; 0 if it is not there."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(place, name)).st_size
            except FileNotFoundError:  # deleted meanwhile
                continue
    return total


def describe_cpu() -> dict[str, Any]:
    """Name of the CPU, and its widest vectors."""
    llvm_name, features = cpu_features()
    name, bits = next(
        ((label, bits) for flag, label, bits in _VECTORS if flag in features),
        ("no vector instructions", 32),
    )
    return {"name": _cpu_name(), "llvm_name": llvm_name, "vectors": name, "vector_bits": bits}


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _kernel_cache() -> dict[str, Any]:
    folder = cache_folder()
    kept = folder.parent in cache_roots()
    return {"folder": str(folder), "kept": kept, "bytes": sum(map(folder_bytes, _kernel_folders()))}


def _kernel_folders() -> list[Path]:
    """Folders of compiled kernels: one for each state of the sources, named by its hash."""
    return [
        folder
        for root in cache_roots()
        if root.is_dir()
        for folder in sorted(root.iterdir())
        if _KERNEL_FOLDER.fullmatch(folder.name) and folder.is_dir() and not folder.is_symlink()
    ]


def _data_cache() -> dict[str, Any]:
    names = [name for name in DATA_SETS if name != "synthetic"]
    return {
        "folder": str(data.cache_folder()),
        "bytes": {name: folder_bytes(data.cache_folder(name)) for name in names},
    }


def _missing_packages() -> list[dict[str, str]]:
    """Requirements of the installed fastadam that are absent or too old."""
    try:
        requirements = metadata.requires("fastadam") or []
    except metadata.PackageNotFoundError:
        return [{"what": "fastadam is not installed, only importable", "cure": "pip install -e ."}]
    missing = []
    for requirement in requirements:
        if "extra ==" in requirement:
            continue
        found = re.match(r"([\w.-]+)\s*(?:>=\s*([\d.]+))?", requirement)
        if found is None:
            continue
        name, least = found[1], found[2] or "0"
        cure = f"pip install '{name}>={least}'"
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            missing.append({"what": f"{name} is not installed", "cure": cure})
            continue
        if _numbers(version) < _numbers(least):
            missing.append({"what": f"{name} {version} is older than {least}", "cure": cure})
    return missing


def _numbers(version: str) -> tuple[int, ...]:
    numbers = [int(number) for number in re.findall(r"\d+", version)[:3]]
    return (*numbers, *(0,) * (3 - len(numbers)))
