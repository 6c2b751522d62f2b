"""``fastadam verify``."""

import time
from typing import TYPE_CHECKING

import click

from fastadam.errors import DeviceError

from .options import config_option, human_seconds, json_option, print_json, quiet_option, setting_options
from .report import make_reporter
from .tables import show_table

if TYPE_CHECKING:
    from fastadam.verify import Check


@click.command("verify")
@setting_options("device", "precision")
@json_option
@quiet_option
@config_option
def command(device: str, precision: str, json: bool, quiet: bool) -> None:
    """Prove on this machine that kernels and optimisers are right.

    Every op is held against a float64 reference, whose gradients are held against finite differences; every
    optimiser against its paper, and adam, adamw, sgd, adamax, nadam and radam against PyTorch's where that is
    installed; whole training steps against an interpreter in float64. One thread and two must give the same bits.
    An error is shown as a multiple of what is tolerated: up to 1 is right. Exit 1 if anything is wrong. Takes some
    ten seconds, a minute on the first start. --precision has the ops on tensor cores checked, by the digits these have.

    \b
    Examples:
      fastadam verify
      fastadam verify --device cpu --json
      fastadam verify --device cuda --precision bf16
    """
    from fastadam.verify import verify
    from fastadam.versions import DECISIVE, installed

    start = time.monotonic()
    with make_reporter(quiet) as reporter:
        checks = list(verify(device, reporter.message, precision))
    seconds = round(time.monotonic() - start, 1)
    wrong = [check for check in checks if not check.ok]
    if json:
        results = [check.to_dict() for check in checks]
        print_json({"ok": not wrong, "seconds": seconds, "versions": installed(*DECISIVE), "checks": results})
    else:
        show_table(("check", "of", "cases", "worst error", ""), map(_cells, checks), left=(0, 1, 4))
        for check in wrong:
            if check.problem:
                click.echo(f"{check.name}: {check.problem}")
    if wrong:
        names = ", ".join(f"{check.kind} {check.name}" for check in wrong)
        raise DeviceError(
            f"{len(wrong)} of {len(checks)} checks failed ({names}): results of this installation cannot be trusted; "
            "clear the kernel cache (fastadam doctor --clear-cache), try again, and report it if they fail once more"
        )
    if not json:
        click.echo(f"\nall {len(checks)} checks passed in {human_seconds(seconds)}")


def _cells(check: "Check") -> tuple[str, ...]:
    return check.kind, check.name, str(check.cases), f"{check.error:.3f}", "ok" if check.ok else "WRONG"
