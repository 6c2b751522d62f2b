"""A Python process from its start to an answer, on the clock: ``python -m MODULE QUESTION``."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from fastadam.bench.children import OWN_VARIABLES, died, without
from fastadam.errors import BenchError, FastAdamError


@dataclass(frozen=True)
class Outcome:
    """What a process answered, and seconds from its start: to the answer, and to its end."""

    answer: dict[str, Any]
    answer_seconds: float
    end_seconds: float


def ask_fresh(
    name: str,
    module: str,
    question: Mapping[str, Any],
    *,
    peer: bool = False,
    variables: Mapping[str, str] | None = None,
) -> Outcome:
    """Run a module in a fresh process and wait for its end; BenchError, with its last words, if it fails.

    name        what the process is called in messages
    module      one that ends with ``answer``
    peer        whether it is PyTorch's, as in ``children.Child``
    variables   of the environment, besides those of this process
    """
    command = [sys.executable, "-P", "-m", module, json.dumps(question)]
    with ExitStack() as stack:
        stack.enter_context(without(OWN_VARIABLES if peer else ()))
        errors = stack.enter_context(tempfile.TemporaryFile())
        environment = {**os.environ, **(variables or {})}
        begun = time.perf_counter()
        process = stack.enter_context(
            subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, env=environment)
        )
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            answered = time.perf_counter() - begun
            process.communicate()  # what else it prints is nobody's
            code = process.returncode
            ended = time.perf_counter() - begun
        except BaseException:
            process.kill()
            raise
        errors.seek(0)
        words = errors.read().decode(errors="replace").strip().splitlines()
    if code > 0 and words:
        raise BenchError(f"the process of {name} failed: {words[-1]}")
    if code or not line:
        raise BenchError(died(name, code))
    return Outcome(json.loads(line), answered, ended)


def answer(function: Callable[..., Mapping[str, Any]]) -> None:
    """The process: call the function with the question's values, and print what it returns as a line of JSON."""
    try:
        print(json.dumps(function(**json.loads(sys.argv[1]))), flush=True)
    except FastAdamError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
