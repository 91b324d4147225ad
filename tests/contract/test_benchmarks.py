"""The benchmark harness: what is measured again, what is kept, what is refused; the page says what the lines say."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
from tests.children import HEED_INTERRUPTS, prepared

from benchmarks import records, report, timing
from benchmarks.case import Claim, Measured
from benchmarks.contest import Bars, contest
from benchmarks.solvers import ECKART, Solver

ROOT = Path(__file__).resolve().parents[2]
CASE = '''
"""A case of one figure.

Its text.
"""
import os, time
from benchmarks.case import Cell, Claim, Measured
CODE = ()
ORDER = 1
def cells(tiny):
    return [Cell("row", {"n": N, "data": {"name": "none"}}, limit_s=60.0)]
def measure(settings, threads, before):
    print("a library that prints")
    seen = before.facts["threads"] if before else 0
    facts = {"threads": int(os.environ["OMP_NUM_THREADS"]), "before": seen, "forced": "OPENBLAS_CORETYPE" in os.environ}
    return Measured([Claim("ratio", 2.5, 2.0, low=2.4, high=2.6)], [{"solver": "x", "s": 1.5}], facts)
'''


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


class Bench:
    """A folder with one case, its results and its page."""

    def __init__(self, folder: Path) -> None:
        self.cases, self.results, self.page = folder / "cases", folder / "results", folder / "docs" / "page.md"
        self.cases.mkdir()
        self.write("3")

    def write(self, n: str, text: str = CASE) -> None:
        (self.cases / "figure.py").write_text(text.replace("N}", n + "}").replace("N,", n + ",").strip())

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "benchmarks.run", *arguments, *self.where()]
        environment = {**os.environ, "OPENBLAS_CORETYPE": "Haswell"}
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)

    def where(self) -> list[str]:
        return ["--cases", str(self.cases), "--results", str(self.results), "--page", str(self.page)]

    def records(self) -> list[records.Record]:
        return records.read(self.results / "figure.jsonl")


def test_a_case_may_say_what_its_cells_come_to_together(bench: Bench) -> None:
    text = (
        CASE
        + """
def together(found):
    total = sum(measured.claims[0].reached for _, measured in found)
    return Measured([Claim("sum of ratios", total, 6.0)], [{"n": found[0][0]["n"]}])
"""
    )
    bench.write("3", text)
    assert bench.run().returncode == 0
    page = bench.page.read_text()
    assert "| figure | All cells together | sum of ratios |" in page
    assert "**miss**" in page
    assert page.index("### All cells together") < page.index("### row")


def test_a_finished_cell_is_kept_skipped_and_measured_again_on_demand(bench: Bench) -> None:
    done = bench.run()
    assert done.returncode == 0, done.stderr
    one, two = bench.records()
    assert (one.threads, two.threads) == (1, 2)
    assert one.measured.facts == {"threads": 1, "before": 0, "forced": False}
    assert two.measured.facts == {"threads": 2, "before": 1, "forced": False}
    assert one.machine["cores"] >= 1
    assert {"eckart", "numpy", "scipy"} <= set(one.machine["versions"])
    page = bench.page.read_text()
    assert "| figure | row | ratio | 2.5 [2.4, 2.6] of ≥ 2: pass | 2.5 [2.4, 2.6] of ≥ 2: pass |" in page

    again = bench.run("figure")
    assert again.returncode == 0
    assert again.stderr.count("finished") == 2
    assert len(bench.records()) == 2
    assert bench.run("--redo", "figure").returncode == 0
    assert len(bench.records()) == 4

    bench.write("4")  # another size of the data is another measurement; and the hash of the code is another
    listed = bench.run("--list")
    assert listed.stderr.count("missing") == 2
    bench.write("3", CASE.replace("Its text.", "Its text was changed."))
    assert bench.run("--list").stderr.count("stale") == 2
    skipped = bench.run()
    assert skipped.stderr.count("older code") == 2
    assert len(bench.records()) == 4
    assert bench.page.read_text().count("*stale*") == 3  # two figures, and the sentence that explains the word


def test_a_failing_cell_leaves_no_line_and_the_others_are_measured(bench: Bench) -> None:
    (bench.cases / "broken.py").write_text(CASE.strip().replace("N,", "1,").replace("seen =", "seen = 1 / 0 #"))
    done = bench.run()
    assert done.returncode == 1
    assert "ZeroDivisionError" in done.stderr
    assert len(bench.records()) == 2
    assert not (bench.results / "broken.jsonl").exists()


def test_a_cell_is_stopped_at_its_limit(bench: Bench) -> None:
    bench.write("1", CASE.replace("limit_s=60.0", "limit_s=0.2").replace("seen =", "time.sleep(60); seen ="))
    done = bench.run()
    assert done.returncode == 1
    assert "stopped after 0.2 s" in done.stderr
    assert bench.records() == []


def test_ctrl_c_keeps_what_is_finished(bench: Bench) -> None:
    bench.write("1", CASE.replace("seen =", "time.sleep(60 * (threads - 1)); seen ="))
    command = prepared([sys.executable, "-m", "benchmarks.run", *bench.where()], HEED_INTERRUPTS)
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stderr is not None
    while "2 threads: measuring" not in (line := process.stderr.readline()):
        assert line, "it ended before the second cell"
    time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    assert "finished cells are kept" in process.communicate(timeout=20)[1]
    assert process.returncode == 130
    assert [record.threads for record in bench.records()] == [1]


def test_an_unknown_case_is_refused_with_the_known_ones(bench: Bench) -> None:
    done = bench.run("figures")
    assert done.returncode == 2
    assert "no case is called figures; there are: figure" in done.stderr


GOOD = {
    "case": "figure",
    "cell": "row",
    "settings": {"n": 3},
    "threads": 1,
    "code": "0" * 16,
    "machine": {},
    "seconds": 1.0,
    "measured": {"claims": [], "table": [], "facts": {}},
}


@pytest.mark.parametrize(
    "line",
    [
        json.dumps(GOOD)[:40],
        "[]",
        "",
        json.dumps({**GOOD, "more": 1}),
        json.dumps({**GOOD, "case": "other"}),
        json.dumps({**GOOD, "seconds": float("nan")}),
        json.dumps({**GOOD, "measured": {"claims": [{"what": "x", "odd": 1}], "table": [], "facts": {}}}),
    ],
    ids=["cut", "list", "empty", "field", "case", "nan", "claim"],
)
def test_a_bad_line_is_refused_with_its_place(tmp_path: Path, line: str) -> None:
    path = tmp_path / "figure.jsonl"
    path.write_text(f"{json.dumps(GOOD)}\n{line}\n")
    with pytest.raises(records.BadLine, match=r"figure\.jsonl, line 2: .*take the line out"):
        records.read(path)


def test_a_line_that_the_disk_cannot_take_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "figure.jsonl"
    record = records.Record("figure", "row", {}, 1, "0", {}, 1.0, Measured())
    records.append(path, record)
    whole, write = path.read_bytes(), os.write
    monkeypatch.setattr(os, "write", lambda file, data: write(file, data[:10]))
    with pytest.raises(OSError, match="no room"):
        records.append(path, record)
    assert path.read_bytes() == whole


def test_the_page_says_what_is_missed_and_why(tmp_path: Path, bench: Bench) -> None:
    machine = {
        "processor": "P", "cores": 2, "memory_gb": 8, "system": "Linux", "versions": {"numpy": "2"}, "blas": [],
        "kernels": "native",
    }  # fmt: skip
    claims = [
        Claim("faster", 1.23456, 3.0),
        Claim("errors", 0, 0, at_most=True),
        Claim("errors too", 1, 0, at_most=True),
        Claim("nothing", None, 1.0, note="it failed"),
        Claim("printed", 7.0),
    ]
    for threads in (1, 2):
        measured = Measured(claims, [{"solver": "a|b", "setting": {"tol": 0.1}, "error": None}], {"shape": [3, 2]})
        code = records.code_hash(bench.cases, "figure")
        records.append(
            bench.results / "figure.jsonl", records.Record("figure", "row", {}, threads, code, machine, 1.0, measured)
        )
    limits = tmp_path / "limits.toml"
    limits.write_text('[figure]\nrow = "Memory."\n')
    page = report.render(bench.cases, bench.results, limits)
    assert "| figure | row | faster | 1.23 of ≥ 3: **miss** | 1.23 of ≥ 3: **miss** |" in page
    assert "| figure | row | errors | 0 of ≤ 0: pass |" in page
    assert "| figure | row | errors too | 1 of ≤ 0: **miss** |" in page
    assert "| figure | row | nothing | none of ≥ 1: **miss** |" in page
    assert "| figure | row | printed" not in page
    assert "| printed | 7 |  |  |  |" in page
    assert "What limits it: Memory." in page
    assert r"| a\|b | tol = 0.1 | none |" in page
    assert "shape: 3 x 2." in page


def test_every_case_names_cells_with_settings_of_their_own() -> None:
    modules = records.load_cases(ROOT / "benchmarks" / "cases")
    assert {"sparse_float32", "dense_float32", "tall", "products", "certificate"} <= set(modules)
    for name, module in modules.items():
        for tiny in (True, False):
            cells = records.cells_of(module, tiny)
            assert len({cell.name for cell in cells}) == len(cells) > 0, name
            assert len({json.dumps(cell.settings) for cell in cells}) == len(cells), name


def test_committed_results_can_be_read_and_the_page_is_made_from_them() -> None:
    results = ROOT / "benchmarks" / "results"
    for path in results.glob("*.jsonl"):
        records.read(path)
    assert "# Benchmarks" in report.render(ROOT / "benchmarks" / "cases", results, ROOT / "benchmarks" / "limits.toml")


def test_errors_take_the_larger_of_both_residuals() -> None:
    A = np.diag([4.0, 2.0, 1.0])
    U, s, Vt = np.eye(3)[:, :2], np.array([4.0, 2.0]), np.eye(3)[:2]
    errors = timing.Errors(A)
    assert errors((U, s, Vt)) == 0
    tilted = Vt + np.array([[0, 0, 0], [0, 0, 0.5]])  # A v is off by 0.5; Aᵀ u - s v by 1
    assert errors((U, s, tilted)) == 0.25
    assert errors((tilted.T, s, U.T)) == 0.25
    assert errors((U, s * np.nan, Vt)) == np.inf


def test_solvers_take_turns() -> None:
    order: list[str] = []
    turns = timing.take_turns({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, seconds=0)
    assert order == ["a", "b", "b", "a", "a", "b"]
    assert len(turns["a"].seconds) == timing.LEAST
    slow, fast = timing.Timed([2.0, 4.0, 6.0], None), timing.Timed([1.0, 1.0, 2.0], None)
    assert timing.claim_ratio(slow, fast) == {"reached": 4.0, "low": 2.5, "high": 3.5}


def test_a_contest_takes_the_loosest_setting_that_reaches_the_target() -> None:
    calls: list[dict] = []

    def cut(A, k, setting):
        calls.append(dict(setting))
        U, s, Vt = np.linalg.svd(A.toarray() if sp.issparse(A) else A, full_matrices=False)
        V = Vt[:k] + setting.get("off", 0.0)
        return U[:, :k], s[:k], V

    ladder = [{"off": off} for off in (1e-1, 1e-4, 0.0)]
    ladders = lambda k, target: [ladder]  # noqa: E731

    def without_first(A, k, setting):
        U, s, Vt = cut(A, k + 1, setting)
        return U[:, 1:], s[1:], Vt[1:]

    peer, blind = Solver("peer", cut, ladders), Solver("blind", without_first, lambda k, target: [[{}]])
    A = np.diag(np.arange(30.0, 0, -1)).astype(np.float32)
    found = contest(A, 3, [1e-2, 1e-6], [peer], [blind], Bars(at=1e-2, best=1e9), None)
    rows = {(row["solver"], row["target"]): row for row in found.table}
    assert rows["peer", 1e-2]["setting"] == {"off": 1e-4}
    assert rows["peer", 1e-6]["setting"] == {"off": 0.0}
    assert rows["Eckart", 1e-2]["error"] <= 1e-2
    assert rows["blind", 1e-2]["remark"] == "leaves out a singular value"
    bars = [claim for claim in found.claims if claim.wanted is not None]
    assert [claim.what for claim in bars] == ["peer / Eckart, time at 0.01"]

    calls.clear()
    again = contest(A, 3, [1e-2, 1e-6], [peer], [blind], Bars(at=1e-2, best=1e9), found)
    assert {"off": 0.1} not in calls  # no second search
    assert [row["setting"] for row in again.table] == [row["setting"] for row in found.table]
    assert ECKART.name in {row["solver"] for row in again.table}
