"""`eckart svd`: values and bounds on stdout, a file that SVD.load reads, and refusals with their status."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse as sp
from typer.testing import CliRunner

import eckart
from eckart._decomposed import Certificate
from eckart.cli import app
from eckart.cli._show import show_svd


def run(*arguments):
    return CliRunner().invoke(app, ["svd", *map(str, arguments), "-q"])


@pytest.fixture
def matrix():
    return sp.random_array((60, 40), density=0.2, rng=0, format="csr") + 0.0


@pytest.mark.parametrize("kind", ["npy", "csr", "csc", "coo", "bsr", "dia"])
def test_every_kind_of_file_gives_the_values_and_their_bounds(tmp_path, matrix, kind):
    path, out = tmp_path / ("a.npy" if kind == "npy" else "a.npz"), tmp_path / "svd.npz"
    if kind == "npy":
        np.save(path, matrix.toarray())
    else:
        sp.save_npz(path, matrix.asformat(kind))
    shown = run(path, "-k", 3, "-o", out, "--json")
    assert shown.exit_code == 0, shown.stderr
    parsed, exact = json.loads(shown.stdout), np.linalg.svd(matrix.toarray(), compute_uv=False)
    assert (parsed["schema"], parsed["shape"], parsed["saved"]) == ("eckart.svd/1", [60, 40], str(out))
    assert np.allclose(parsed["s"], exact[:3], rtol=1e-12)
    assert parsed["error"]["spectral"] >= exact[3] * (1 - 1e-12)
    assert parsed["error"]["frobenius"] >= np.linalg.norm(exact[3:]) * (1 - 1e-12)
    assert max(parsed["residuals"]) < 1e-10
    assert parsed["converged"] is True
    saved = eckart.SVD.load(out)
    assert (saved.s.tolist(), saved.method, saved.passes) == (parsed["s"], parsed["method"], parsed["passes"])
    again = run(path, "-k", 3, "-o", out)
    assert again.exit_code == 5
    assert "exists already" in again.stderr


def test_the_same_numbers_for_people_and_for_pipes(tmp_path, matrix):
    path = tmp_path / "a.npy"
    np.save(path, matrix.toarray())
    centred = eckart.svd(matrix, 2, center=True)
    piped = run(path, "-k", 2, "--center", "--values-only")
    assert [float(line) for line in piped.stdout.split()] == pytest.approx(centred.s.tolist(), rel=1e-13)
    shown = run(path, "-k", 2, "--center", "--method", "lapack", "-o", tmp_path / "out.npz")
    first, left_out, _, *rows = shown.stdout.splitlines()
    assert first.startswith("60 x 40: 2 singular values by lapack, which read the matrix ")
    assert f"{centred.error.spectral:.4g} spectral" in left_out
    assert [float(row.split()[1]) for row in rows] == pytest.approx(centred.s.tolist(), rel=1e-6)
    assert shown.stderr == f"saved: {tmp_path / 'out.npz'}\n"


def test_error_and_tolerance_are_those_of_svd(tmp_path, matrix):
    path = tmp_path / "a.npy"
    np.save(path, matrix.toarray())
    wanted = len(eckart.svd(matrix.toarray(), error=0.5).s)
    assert len(json.loads(run(path, "--error", 0.5, "--json").stdout)["s"]) == wanted
    missed = run(path, "-k", 3, "--tol", 1e-20, "--method", "lapack")
    assert missed.exit_code == 0
    assert "warning: the residuals are above" in missed.stderr


def test_a_bound_of_which_nothing_is_known_is_null(capsys):
    found = replace(eckart.svd(np.eye(3), 1), error=Certificate(math.inf, math.inf))
    show_svd(found, as_json=True, values_only=False, saved=None)
    assert json.loads(capsys.readouterr().out)["error"] == {"spectral": None, "frobenius": None, "failure": 0}


def with_index_outside(path):
    sp.save_npz(path, sp.csr_array(np.eye(3)))
    with np.load(path) as file:
        arrays = dict(file)
    np.savez(path, **(arrays | {"indices": np.array([0, 1, 10**6], np.int32)}))


def cut_short(path):
    with open(path, "wb") as file:
        np.save(file, np.eye(9))
    path.write_bytes(path.read_bytes()[:300])


def pickled(path):
    with open(path, "wb") as file:
        np.save(file, np.array([[print]], dtype=object))


def too_large(path):
    path.write_bytes(
        b"\x93NUMPY\x01\x00\x76\x00"
        + b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000, 1000000000), }".ljust(117)
        + b"\n"
    )


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (lambda path: None, "cannot be read"),
        (lambda path: path.write_text("1 2 3"), "no matrix"),
        (lambda path: path.write_bytes(b"\x93NUMPY\x01\x00\x04\x00(((\n"), "no matrix"),
        (cut_short, "no matrix"),
        (pickled, "no matrix"),
        (too_large, "claims to hold"),
        (with_index_outside, "no matrix"),
        (lambda path: np.savez(path, x=np.eye(3)), "not an SVD"),
        (lambda path: eckart.svd(np.eye(3)).save(path), "holds an SVD"),
        (lambda path: np.savez(path, np.zeros((2, 3, 3))), "not an SVD"),
    ],
)
def test_broken_and_hostile_files_are_refused(tmp_path, write, words):
    path = tmp_path / "a.npz"
    write(path)
    shown = run(path, "--json")
    assert shown.exit_code == 3, shown.stdout
    assert words in json.loads(shown.stdout)["error"]["message"]
    assert str(path) in json.loads(shown.stdout)["error"]["message"]


@pytest.mark.parametrize(
    ("A", "arguments", "status"),
    [
        (np.array([[1.0, np.nan]]), (), 7),
        (np.eye(3), ("-k", 4), 2),
        (np.eye(3), ("-k", 1, "--error", 0.1), 2),
        (np.eye(3), ("--method", "jacobi"), 2),
        (np.eye(3) * 1j, (), 2),
        (np.zeros((2, 3, 3)), (), 3),
        (np.eye(3), ("-o", "nowhere/svd.npz"), 5),
    ],
)
def test_what_cannot_be_done_has_its_status(tmp_path, monkeypatch, A, arguments, status):
    monkeypatch.chdir(tmp_path)
    np.save("a.npy", A)
    assert run("a.npy", *arguments).exit_code == status
    assert [path.name for path in tmp_path.iterdir()] == ["a.npy"]
