"""The algorithms, one file each; the table that chooses among them; and what happens to a matrix before and after."""

from eckart._algorithms._accuracy import left_out_probability
from eckart._algorithms._solve import Goal, Solution, find, finish, prepare, rank_within
from eckart._algorithms._table import METHODS, TABLE

__all__ = ["METHODS", "TABLE", "Goal", "Solution", "find", "finish", "left_out_probability", "prepare", "rank_within"]
