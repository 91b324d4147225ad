"""Benchmarks: run.py measures cases and keeps lines in results/; report.py makes docs/benchmarks.md of them."""
