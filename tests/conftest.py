"""Eight virtual CPU devices, and no silent broadcasting between ranks; set before jax is used."""

import os
import shutil
import subprocess
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
# Tests compile far longer than they compute: LLVM's optimisation is left out, and so are the
# emitters of fusions that take twice as long to compile.
os.environ["XLA_FLAGS"] = (
    "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0 "
    "--xla_cpu_use_fusion_emitters=false"
)

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_runtest_teardown(item, nextitem):
    """Each compiled program maps memory, and Linux lets a process have 65,530 maps in all."""
    maps = Path("/proc/self/maps")
    many = maps.exists() and maps.read_bytes().count(b"\n") > 20_000
    if many or nextitem is None or nextitem.path != item.path:
        jax.clear_caches()


@pytest.fixture(scope="session")
def compiled_once(tmp_path_factory):
    """Programs are compiled once for all launches in this process, and in those it starts."""
    cache = tmp_path_factory.mktemp("cache")
    settings = {
        "jax_compilation_cache_dir": str(cache),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
        os.environ[name.upper()] = str(value)
    yield
    for name, value in before.items():
        jax.config.update(name, value)
        del os.environ[name.upper()]


@pytest.fixture
def small_disk(tmp_path, request):
    """A folder that is a file system of its own, of the size that the parameter says."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={request.param}", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a file system of its own needs the right to mount one")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)
