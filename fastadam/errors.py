"""Errors that are the user's situation: one clear line each, and the exit code the command line gives them.

Every message says what was asked, what was found and what to do. A mistake of the programmer
(wrong shape, wrong type) is a ``ValueError`` or ``TypeError`` instead, with its traceback.
"""


class FastAdamError(Exception):
    """Something about the data, the device, a file or the settings keeps fastadam from going on."""

    exit_code = 1


class ConfigError(FastAdamError):
    """A setting that does not exist or has a value that makes no sense."""

    exit_code = 2


class DataError(FastAdamError):
    """A data set that is missing, damaged or of the wrong kind."""


class DeviceError(FastAdamError):
    """A device that is not there or cannot do what was asked."""


class CheckpointError(FastAdamError):
    """A checkpoint that cannot be read, written or used here."""


class RunError(FastAdamError):
    """A run folder that is missing, in use, or not a run."""


class MissingExtraError(FastAdamError):
    """A package that only an extra of fastadam brings along."""

    def __init__(self, purpose: str, package: str, extra: str):
        super().__init__(
            f"{purpose} needs {package}, which is not installed; python -m pip install {package} "
            f"(or install fastadam with its extra `{extra}`)"
        )


class BenchError(FastAdamError):
    """A measurement that cannot be made, or whose two sides did not do the same work."""


class OutOfMemoryError(FastAdamError):
    """A memory plan that does not fit the machine."""


class DivergedError(FastAdamError):
    """Training gave a loss that is not finite."""

    exit_code = 3


class InterruptedRunError(FastAdamError):
    """A signal stopped training; the checkpoint was written."""

    def __init__(self, message: str, signal: int):
        super().__init__(message)
        self.exit_code = 128 + signal
