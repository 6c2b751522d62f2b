"""``fastadam doctor``."""

from typing import Any

import click

from fastadam.units import human_bytes

from .options import json_option, print_json, switch


@click.command("doctor")
@switch("clear_cache", "Delete the compiled kernels; the next start compiles them again.")
@json_option
def command(clear_cache: bool, json: bool) -> None:
    """Versions, CPU, threads, caches, and what is missing with the command that cures it.

    \b
    Examples:
      fastadam doctor
      fastadam doctor --clear-cache
    """
    from fastadam.doctor import clear_kernel_cache, diagnose

    if clear_cache:
        cleared = clear_kernel_cache()
        if json:
            print_json(cleared)
        else:
            folders = len(cleared["folders"])
            click.echo(
                f"deleted {folders} folder{'s' * (folders != 1)} of compiled kernels, {human_bytes(cleared['bytes'])}"
            )
        return
    report = diagnose()
    if json:
        print_json(report)
        return
    for name, value in _rows(report):
        click.echo(f"{name:<16} {value}")
    for item in report["missing"]:
        click.echo(f"{'missing':<16} {item['what']}: {item['cure']}")
    if not report["missing"]:
        click.echo("nothing is missing")


def _rows(report: dict[str, Any]) -> list[tuple[str, str]]:
    cpu, kernels, data = report["cpu"], report["kernel_cache"], report["data_cache"]
    held = ", ".join(f"{name}: {human_bytes(size)}" for name, size in data["bytes"].items() if size)
    return [
        *report["versions"].items(),
        ("cpu", f"{cpu['name']} ({cpu['llvm_name']})"),
        ("vectors", f"{cpu['vectors']}, {cpu['vector_bits']} bits"),
        ("cores", str(report["cores"])),
        ("threads", f"{report['threads']} unless --threads says otherwise"),
        ("threading layer", report["threading_layer"]),
        ("kernel cache", f"{kernels['folder']} ({human_bytes(kernels['bytes'])} of compiled kernels)"),
        ("data cache", f"{data['folder']} ({held or 'no data sets'})"),
        *_gpu_rows(report["gpu"]),
    ]


def _gpu_rows(gpu: dict[str, Any]) -> list[tuple[str, str]]:
    versions = [f"{what} {gpu[what]}" for what in ("driver", "toolkit") if gpu[what]]
    rows = [("cuda", ", ".join([gpu["package"], *versions]))] if gpu["package"] else []
    if gpu["problem"]:
        rows.append(("gpu", f"none: {gpu['problem']}"))
    for card in gpu["cards"]:
        line = f"{card['name']}, compute capability {card['capability']}"
        if card["problem"] is None:
            line = f"{line}, {human_bytes(card['memory_bytes'])}"
        rows.append((card["device"], f"{line}: {card['problem']}" if card["problem"] else line))
    return rows
