"""The command ``fastadam``: its commands, loaded when used, and how errors reach the user."""

import contextlib
import importlib
import io
import os
import sys
from collections.abc import Callable
from typing import Any

import click

from fastadam.errors import FastAdamError
from fastadam.setting import nearest, shown

from .options import group_help, show_version

INTERRUPTED = 130  # 128 + SIGINT, as shells count


class Application(click.Group):
    """Commands imported when they are asked for; an error ends the process with one line."""

    modules: dict[str, str] = {  # noqa: RUF012
        "train": "train",
        "eval": "evaluate",
        "predict": "predict",
        "verify": "verify",
        "bench": "bench",
        "data": "data",
        "doctor": "doctor",
    }

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names of all commands, in the order of use."""
        return list(self.modules)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name, imported now."""
        if cmd_name not in self.modules:
            return None
        return importlib.import_module(f".{self.modules[cmd_name]}", __package__).command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that the first argument names; for one that there is not, the nearest is suggested."""
        if args[0] not in self.modules and not args[0].startswith("-"):
            ctx.fail(f"No such command {shown(args[0])}{nearest(args[0], self.modules)}")
        return super().resolve_command(ctx, args)

    def main(self, *args: Any, standalone_mode: bool = True, **extra: Any) -> Any:
        """Run the command that the arguments name. Standalone, end the process with its exit code."""
        parent: Callable[..., Any] = super().main
        if not standalone_mode:
            return parent(*args, standalone_mode=False, **extra)
        if isinstance(sys.stdout, io.TextIOWrapper):  # a path may hold what the terminal cannot show
            sys.stdout.reconfigure(errors="backslashreplace")
        sys.exit(_exit_code(lambda: parent(*args, standalone_mode=False, **extra)))


def _exit_code(action: Callable[[], Any]) -> int:
    """Do it; an error becomes one line on standard error and the exit code that says its kind."""
    try:
        result = action()
        if sys.stdout is not None:  # None: closed before we began
            sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except FastAdamError as error:
        return _fail(str(error), error.exit_code)
    except click.ClickException as error:
        return _fail(_with_hint(error), error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        return _fail("interrupted", INTERRUPTED)
    except BrokenPipeError:
        _abandon(sys.stdout)
        return 1
    except MemoryError:
        return _fail("out of memory; use fewer images, a smaller batch or a machine with more memory", 1)
    except OSError as error:
        _abandon(sys.stdout)
        where = f"{error.filename}: " if error.filename is not None else ""
        return _fail(f"{where}{error.strerror or error}", 1)


def _fail(message: str, code: int) -> int:
    with contextlib.suppress(OSError):
        click.echo("Error: " + " ".join(message.splitlines()), err=True)
    return code


def _with_hint(error: click.ClickException) -> str:
    message = " ".join(error.format_message().split("\n"))
    if isinstance(error, click.UsageError) and error.ctx is not None:
        stop = "" if message.endswith((".", "?")) else "."
        message += f"{stop} Try '{error.ctx.command_path} --help'."
    return message


def _abandon(stream: Any) -> None:
    """Send what is still buffered nowhere: flushing it at exit would fail once more, with a traceback."""
    if stream is None:  # closed before Python started
        return
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


@click.group(
    cls=Application,
    invoke_without_command=True,
    context_settings={
        "auto_envvar_prefix": "FASTADAM",
        "help_option_names": ["-h", "--help"],
        "max_content_width": 100,
    },
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    allow_from_autoenv=False,
    callback=show_version,
    help="Show the version and exit.",
)
@click.pass_context
def main(ctx: click.Context) -> None:
    """Train small neural networks on CIFAR-like images, fast, on a CPU or an NVIDIA GPU.

    Each option of a command can also be given as FASTADAM_<COMMAND>_<OPTION> in the environment, or in a TOML
    file where the command has --config. The command line wins over the environment, the environment over the
    file, the file over the default.

    \b
    Examples:
      fastadam train
      fastadam train --data cifar-10-binary.tar.gz --model cnn --epochs 10
      fastadam eval runs/20250131-120000-cnn --data cifar-10-binary.tar.gz
    """
    group_help(ctx)
