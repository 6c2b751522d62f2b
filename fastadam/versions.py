"""Versions of what is installed."""

import platform
from importlib import metadata

DECISIVE = ("fastadam", "numba", "llvmlite", "numpy")
"""Packages that decide the bits and the speed of a run; a device names others, see ``device.Device``."""


def installed(*packages: str) -> dict[str, str]:
    """{"python": its version, package: its version, or "not installed"}."""
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found
