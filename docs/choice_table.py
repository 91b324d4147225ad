"""Write the table by which svd chooses an algorithm into docs/svd.md, from the table that it chooses by."""

from __future__ import annotations

from pathlib import Path

from eckart._algorithms._table import TABLE, Problem, Row, admissible, cheapest

PAGE = Path(__file__).with_name("svd.md")
START, END = "<!-- choice table: written by docs/choice_table.py -->\n", "<!-- end of the choice table -->\n"
TOLERANCE = 1e-4 / 2.0**-23  # eps: tol=1e-4 in float32

PROBLEMS = {
    "array 2000 x 1000, all": Problem(2000, 1000, 1000, TOLERANCE, 2_000_000, True),
    "array 500000 x 200, all": Problem(500_000, 200, 200, TOLERANCE, 100_000_000, True),
    "array 20000 x 4000, k = 100": Problem(20_000, 4000, 100, TOLERANCE, 80_000_000, True),
    "sparse 100000 x 50000, 10 M stored, k = 100": Problem(100_000, 50_000, 100, TOLERANCE, 10_000_000, False),
    "sparse 5000 x 2000, 100 k stored, all": Problem(5000, 2000, 2000, TOLERANCE, 100_000, False),
}


def choice_table() -> str:
    """Return the table in Markdown: Gflop of every row that applies to each problem, the choice in bold."""
    head = ["`method=`", "needs", *PROBLEMS]
    lines = [head, ["---"] * len(head)]
    chosen = {name: cheapest(admissible(problem, "auto"), problem) for name, problem in PROBLEMS.items()}
    for row in TABLE:
        works = [_work(row, problem, row is chosen[name]) for name, problem in PROBLEMS.items()]
        lines.append([f"`{row.name}`", row.requires, *works])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def with_table(page: str) -> str:
    """Return the page with the table between its marks made anew."""
    before, _, rest = page.partition(START)
    return before + START + choice_table() + END + rest.partition(END)[2]


def _work(row: Row, problem: Problem, chosen: bool) -> str:
    if not row.applies(problem):
        return ""
    gflop = float(f"{row.flops(problem) / 1e9:.2g}")
    work = f"{gflop:,.0f}" if gflop >= 10 else f"{gflop:g}"
    return f"**{work}**" if chosen else work


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
