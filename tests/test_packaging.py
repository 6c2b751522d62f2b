"""The shape of the project: what is installed, what imports what, what start-up costs."""

import ast
import configparser
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
LEVELS = (
    ("fastadam_cli",),
    ("bench",),
    ("training", "evaluation", "predict", "verify", "plots", "doctor"),
    ("job",),
    ("trainer", "fit", "run"),
    ("models", "transfer", "averages"),
    ("model", "data", "netfile"),
    ("config",),
    ("checkpoint", "engine", "optim"),
    ("setting", "schedule", "recipes", "augment", "files", "interpret", "interrupts"),
    ("gradcheck",),
    ("trial", "cases", "cases_layerwise", "cases_muon", "case"),
    ("reference", "reference_averages", "reference_layerwise", "reference_muon", "program"),
    ("budget", "plan", "planner", "matrices", "values", "memory", "calls", "layout", "arena"),
    ("architectures",),
    ("graph",),
    ("device", "cuda_device"),
    ("kernels",),
    ("errors", "checks", "draws", "versions", "units", "oracles", "bfloat16"),
)
"""Modules import from their own row and the rows below it."""


def imported(path: Path) -> set[str]:
    """Absolute names of the modules a file imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module)
            if node.module == "fastadam":
                names |= {f"fastadam.{alias.name}" for alias in node.names}
    return names


def module_of(path: Path) -> str:
    return (
        "fastadam_cli"
        if path.parent.name == "cli"
        else path.relative_to(ROOT / "fastadam").parts[0].removesuffix(".py")
    )


def sources() -> list[Path]:
    return [p for folder in ("fastadam", "cli") for p in sorted((ROOT / folder).rglob("*.py"))]


def test_imports_point_one_way():
    level = {name: i for i, names in enumerate(LEVELS) for name in names}
    for path in sources():
        if path == ROOT / "fastadam" / "__init__.py":
            continue
        for name in imported(path):
            parts = name.split(".")
            if parts[0] == "fastadam" and len(parts) > 1:
                assert level[parts[1]] >= level[module_of(path)], f"{path} imports {name}"


def test_numba_click_and_torch_stay_in_their_places():
    for path in sources():
        names = {name.split(".")[0] for name in imported(path)}
        inside = module_of(path)
        assert inside in ("kernels", "device") or not names & {"numba", "llvmlite"}, path
        assert inside == "fastadam_cli" or not names & {"click", "rich"}, path
        assert path == ROOT / "fastadam" / "bench" / "peer.py" or "torch" not in names, path


def test_packages_are_listed():
    """Packages are listed by hand, so that no top-level ``cli``, ``tests`` or ``data`` is ever installed."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    listed = setup["options"]["packages"].split()
    folders = {".".join(p.parent.relative_to(ROOT).parts) for p in (ROOT / "fastadam").rglob("__init__.py")}
    assert set(listed) == folders | {"fastadam_cli"}


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_import_is_light():
    """``import fastadam`` and the command line's help load neither numba nor a GPU."""
    code = "import sys, fastadam; print([m for m in ('numba', 'numpy', 'click') if m in sys.modules])"
    assert run(code).strip() == "[]"
    code = (
        "import sys; from click.testing import CliRunner; from fastadam_cli.main import main; "
        "assert CliRunner().invoke(main, ['--help']).exit_code == 0; "
        "print([m for m in ('numba', 'numpy', 'safetensors') if m in sys.modules])"
    )
    assert run(code).strip() == "[]"


def test_sources_do_not_grow_into_drawers():
    for path in sources():
        assert len(path.read_text().splitlines()) <= 500, f"{path} has more than one subject"
