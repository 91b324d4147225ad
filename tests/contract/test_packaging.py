"""What is built from the sources: a wheel with the C library, a wheel without it where no compiler works, an sdist."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SITE_PACKAGES = sysconfig.get_path("purelib")
REPORT = """
import eckart._kernels as k, eckart.matrix as m, numpy as n, scipy.sparse as s
product = m.as_matrix(s.csr_array([[0, 2.0]])).matmat(n.ones((2, 16)))
print(k.__file__, k.loaded(), k.first_nonfinite(n.array([1, n.inf])), int(product.sum()))
"""


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of what a build reads, in a folder whose name has a space."""
    folder = tmp_path_factory.mktemp("sources") / "with space"
    folder.mkdir()
    for name in ("pyproject.toml", "CMakeLists.txt", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "src", folder / "src", ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@pytest.fixture(scope="module")
def native_wheel(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(sources, tmp_path_factory.mktemp("native"))


@pytest.fixture(scope="module")
def wheel_without_compiler(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = tmp_path_factory.mktemp("compiler") / "cc"
    compiler.write_text("#!/bin/sh\nexit 1\n")
    compiler.chmod(0o755)
    return build_wheel(sources, tmp_path_factory.mktemp("pure"), CC=str(compiler))


def build_wheel(sources: Path, into: Path, **environment: str) -> Path:
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # cmake and ninja of this environment
    done = subprocess.run(
        [*command, "--wheel-dir", str(into), str(sources)],
        env={**os.environ, "PATH": path, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = into.glob("*.whl")
    return wheel


def report_of(wheel: Path, folder: Path) -> list[str]:
    """Import the kernels from the unpacked wheel, not from the installed package: -S leaves out the editable finder."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    path = os.pathsep.join([str(folder), SITE_PACKAGES])
    done = subprocess.run(
        [sys.executable, "-S", "-c", REPORT],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    file, *rest = done.stdout.split()
    assert Path(file).is_relative_to(folder)
    return rest


def members(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_native_wheel_holds_the_library_and_serves_every_python_3(native_wheel: Path, tmp_path: Path) -> None:
    _, _, python, abi, platform = native_wheel.stem.split("-")
    assert (python, abi) == ("py3", "none")
    assert platform == sysconfig.get_platform().replace("-", "_").replace(".", "_")
    assert {"eckart/_kernels/eckart_kernels.so", "eckart/py.typed", "eckart/_kernels/__init__.py"} <= members(
        native_wheel
    )
    assert report_of(native_wheel, tmp_path) == ["native", "1", "32"]


def test_without_a_compiler_the_wheel_builds_and_numpy_does_the_work(
    wheel_without_compiler: Path, tmp_path: Path
) -> None:
    names = members(wheel_without_compiler)
    assert "eckart/py.typed" in names
    assert not any(name.endswith((".so", ".dylib", ".dll")) for name in names)
    assert report_of(wheel_without_compiler, tmp_path) == ["fallback", "1", "32"]


@pytest.mark.parametrize("kind", ["native_wheel", "wheel_without_compiler"])
def test_wheel_holds_every_python_and_data_file_and_no_c(
    kind: str, request: pytest.FixtureRequest, sources: Path
) -> None:
    names = members(request.getfixturevalue(kind))
    expected = {str(p.relative_to(sources / "src")) for p in (sources / "src").rglob("*") if p.is_file()}
    assert expected - names == {"eckart/_kernels/kernels.c", "eckart/_kernels/csr.c"}
    licence = next(name for name in names if name.endswith("/licenses/LICENSE"))
    with zipfile.ZipFile(request.getfixturevalue(kind)) as archive:
        assert archive.read(licence) == (ROOT / "LICENSE").read_bytes()


def test_sdist_can_build_the_library(sources: Path, tmp_path: Path) -> None:
    build = f"from scikit_build_core.build import build_sdist; build_sdist({str(tmp_path)!r})"
    subprocess.run([sys.executable, "-c", build], cwd=sources, check=True, capture_output=True)
    (sdist,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    c = {f"src/eckart/_kernels/{name}.c" for name in ("kernels", "csr")}
    assert c | {"CMakeLists.txt", "pyproject.toml", "LICENSE", "README.md"} <= names
