"""The floors of the house: nothing imports from a floor above its own, and TensorFlow stays in."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "aigc_jax"
FLOORS = [
    {"types", "errors", "runtime", "tiles"},
    {"parallel", "config", "config_checks", "plugins", "operations", "torch_weights"},
    {"losses"},
    {"layers", "filters"},
    {"models"},
    {"optim", "augment"},
    {"data"},
    {"metrics"},
    {"adversary", "domains"},
    {"methods"},
    {"checkpoint"},
    {"writers", "runs", "history", "scores"},
    {"networks", "sampling", "scoring", "watch"},
    {"suite", "sets", "anysize", "pair_scores"},
    {"latents"},
    {"picture_files", "latent_search", "degrading"},
    {"translation", "restoration", "enhancing", "inspecting"},
    {"inpainting", "sample_scores", "judge"},
    {"evaluate", "selfcheck", "robustness", "sifting"},
    {"train", "exporting", "memorization"},
    {"self_training"},
    {"commands"},
    {"cli"},
    {"__main__"},
]
FLOOR = {room: i for i, rooms in enumerate(FLOORS) for room in rooms}


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path):
    """(room, imported room, whether from `aigc_jax` itself) for every import of the package."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("aigc_jax"):
            parts = node.module.split(".")
            yield from [parts[1]] if len(parts) > 1 else [a.name for a in node.names]
        elif isinstance(node, ast.Import):
            yield from [a.name.split(".")[1] for a in node.names if a.name.startswith("aigc_jax.")]


FILES = sorted(p for p in PACKAGE.rglob("*.py") if p != PACKAGE / "__init__.py")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_down(path):
    assert room(path) in FLOOR, f"give {path.name} a floor"
    above = [r for r in imported(path) if r in FLOOR and FLOOR[r] > FLOOR[room(path)]]
    beside = [r for r in imported(path) if FLOOR.get(r) == FLOOR[room(path)] and r != room(path)]
    assert not above, f"{path.name} (floor {FLOOR[room(path)]}) imports {above} from above"
    # Two rooms of one floor may meet in one direction only.
    for other in beside:
        files = [p for p in FILES if room(p) == other]
        assert not any(room(path) in imported(p) for p in files), (
            f"{path.name} and {other}: a cycle"
        )


def test_methods_import_no_method():
    """But parts of their own: `vae` has `_vae_use`, and they each other."""
    for path in (PACKAGE / "methods").glob("*.py"):
        owner = path.stem
        if owner.startswith("_"):
            owner = owner.split("_")[1]
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                module = (node.module or "").removeprefix(f"aigc_jax.methods._{owner}_")
                assert not module.startswith("aigc_jax.methods"), path.name


def test_only_data_and_what_launches_it_imports_tensorflow():
    code = (
        "import sys, importlib, pkgutil, aigc_jax\n"
        "for room in ('losses', 'layers', 'models', 'metrics', 'methods'):\n"
        "    package = importlib.import_module(f'aigc_jax.{room}')\n"
        "    for m in pkgutil.iter_modules(package.__path__):\n"
        "        importlib.import_module(f'aigc_jax.{room}.{m.name}')\n"
        "import aigc_jax.optim, aigc_jax.parallel, aigc_jax.train, aigc_jax.sampling\n"
        "assert not {'tensorflow', 'clu', 'sklearn', 'matplotlib'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
