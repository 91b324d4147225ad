"""`eckart rank`: the number on stdout, its reason on stderr, files of three kinds, and refusals with their status."""

import json

import numpy as np
import pytest
import scipy.sparse as sp
from typer.testing import CliRunner

import eckart
from benchmarks.cases.rank_rules import draw
from eckart.cli import app


def run(*arguments):
    return CliRunner().invoke(app, ["rank", *map(str, arguments)])


@pytest.mark.parametrize("kind", ["npy", "sparse npz", "svd npz"])
def test_every_kind_of_file_gives_the_rank_and_the_reason(tmp_path, kind):
    A, path = draw(90, 60, 3, 4, "white", 0), tmp_path / f"a.{kind[-3:]}"
    if kind == "npy":
        np.save(path, A)
    elif kind == "sparse npz":
        sp.save_npz(path, sp.csr_array(A))
    else:
        eckart.svd(A, 10).save(path)
    shown = run(path)
    assert (shown.exit_code, shown.stdout) == (0, "3\n")
    assert "3 of the 60 components are kept by evbmf" in shown.stderr
    parsed = json.loads(run(path, "--rule", "gavish-donoho", "--json").stdout)
    assert (parsed["rank"], parsed["rule"], parsed["votes"]["evbmf"]) == (3, "gavish-donoho", 3)
    assert run(path, "--energy", "0").stdout == "0\n"


def test_what_cannot_be_read_has_its_status(tmp_path):
    cut, pickled, other = tmp_path / "cut.npy", tmp_path / "pickled.npy", tmp_path / "other.npz"
    np.save(cut, np.ones((9, 9)))
    cut.write_bytes(cut.read_bytes()[:200])
    np.save(pickled, np.array([{}], dtype=object), allow_pickle=True)
    np.savez(other, x=np.ones(3))
    for path in (cut, pickled, other, tmp_path / "none.npy"):
        shown = run(path, "--json")
        assert shown.exit_code == 3, path
        assert str(path) in json.loads(shown.stdout)["error"]["message"]
    np.save(cut, np.array([[1.0, np.nan]]))
    assert run(cut).exit_code == 7
    assert run(cut, "--rule", "elbow").exit_code == 2
