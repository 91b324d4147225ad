"""docs/svd.md: its code runs, every row of its tables gives what Eckart gives, and its choice table is the code's."""

import importlib
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import eckart

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "svd.md").read_text(encoding="utf-8")
MODULES = (
    "scipy.linalg",
    "scipy.sparse.linalg",
    "sklearn.utils.extmath",
    "sklearn.decomposition",
    "jax.numpy",
    "torch",
)


def table(heading):
    """Return the rows of the first table whose head begins so, as lists of cells."""
    lines = PAGE[PAGE.index(f"| {heading} |") :].split("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[2:]]


def code(cell):
    return re.fullmatch(r"`(.+)`", cell)[1]


def names_for(text):
    """Return the packages that a piece of code names, with what it names of them imported."""
    wanted = [name for name in MODULES if f"{name}." in text]
    if "tf." in text:
        wanted.append("tensorflow")
    for name in wanted:
        importlib.import_module(name)
    packages = {name.split(".")[0]: sys.modules[name.split(".")[0]] for name in wanted}
    return packages | {"numpy": np, "tf": packages.get("tensorflow")}


def matrix():
    """Return 30 x 8, float64, with singular values that are far apart and means that are not zero."""
    rng = np.random.default_rng(0)
    U, V = (np.linalg.qr(rng.standard_normal((size, 8)))[0] for size in (30, 8))
    return (U * 10.0 ** -np.arange(8)) @ V.T + 0.01


@pytest.mark.parametrize("row", table("library"), ids=lambda row: row[0])
def test_what_others_give_becomes_what_eckart_gives(row):
    library, call, _, converted = row
    A = matrix()
    names = names_for(code(call) + code(converted)) | {"A": A}
    if library.startswith("MATLAB"):  # A = U S V', S of the size of its econ form
        left, values, right = np.linalg.svd(A, full_matrices=False)
        names |= {"U": left, "S": np.diag(values), "V": right.T}
        assert np.allclose(names["U"] @ names["S"] @ names["V"].T, A)
    else:
        with jax.enable_x64(False):  # other tests of this process turn it on
            exec(code(call), names)
    U, s, Vt = (np.asarray(x) for x in eval(code(converted), names))
    k = len(s)
    ours = eckart.svd(A, k, center="PCA" in library)
    assert (U.shape, Vt.shape) == ((30, k), (k, 8))
    single = s.dtype == np.float32
    assert s.dtype == (np.float32 if single else np.float64)
    assert single == ("x64" in row[2])
    tolerance = 30 * np.finfo(s.dtype).eps
    assert np.abs(s - ours.s).max() <= tolerance
    signs = np.sign(np.sum(Vt * ours.Vt, axis=1))
    # Wedin: vectors turn by the error over the distance to the next singular value, here at least 0.9 s_i
    assert (np.abs(Vt - signs[:, None] * ours.Vt).max(axis=1) <= 10 * tolerance / s).all()
    assert (np.abs(U - signs * ours.U).max(axis=0) <= 10 * tolerance / s).all()


@pytest.mark.parametrize("row", table("question"), ids=lambda row: row[0])
@pytest.mark.parametrize("rank", [8, 5])
def test_questions_have_the_same_answer(row, rank):
    _, theirs, ours = row
    rng = np.random.default_rng(0)
    A = rng.standard_normal((30, rank)) @ rng.standard_normal((rank, 8))
    expected, answer = (eval(code(cell), {"A": A, "numpy": np, "eckart": eckart}) for cell in (theirs, ours))
    if row[0] == "condition" and rank < 8:
        assert min(expected, answer) > 1e14
    else:
        assert np.allclose(answer, expected, rtol=1e-12, atol=1e-13)


def test_the_code_of_the_page_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    names = {}
    for block in blocks:
        exec(block, names)
    assert len(blocks) == 2
    assert names["five"].s.shape == (5,)
    assert names["whole"].numerical_rank() == 40
    shapes = [tuple(int(size) for size in re.findall(r"\d+", text)) for text in ("(300, 40)", "(40,)", "(40, 40)")]
    assert [names[name].shape for name in ("U", "s", "Vt")] == shapes


def test_the_choice_table_is_the_codes():
    spec = importlib.util.spec_from_file_location("choice_table", DOCS / "choice_table.py")
    generator = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generator)
    assert generator.with_table(PAGE) == PAGE, "run: make docs"
    for method in re.findall(r"^- `([a-z-]+)`:", PAGE, re.MULTILINE):
        assert f"| `{method}` |" in PAGE
    described = set(re.findall(r"^- `([a-z-]+)`:", PAGE, re.MULTILINE))
    assert described == {row.name for row in generator.TABLE}


def test_the_generator_writes_the_page(tmp_path):
    for name in ("svd.md", "choice_table.py"):
        (tmp_path / name).write_text((DOCS / name).read_text(encoding="utf-8"), encoding="utf-8")
    page = tmp_path / "svd.md"
    page.write_text(page.read_text(encoding="utf-8").replace("| `lapack` |", "| `linpack` |"), encoding="utf-8")
    subprocess.run([sys.executable, str(tmp_path / "choice_table.py")], check=True)
    assert page.read_text(encoding="utf-8") == PAGE
