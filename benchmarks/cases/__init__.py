"""The cases: one file each, as benchmarks.case describes."""
