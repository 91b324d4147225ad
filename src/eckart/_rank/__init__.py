"""How many components of a matrix are more than noise, by which rule, and why.

`_noise_law` is what noise does to singular values, `_values` the rules that need no more than those, `_whitened` and
`_parallel` the rules that need the entries, `_noise_model` the tests that choose between them.
"""

from __future__ import annotations

from eckart._rank._answer import Margin, Rank
from eckart._rank._choose import RULES, choose_rank
from eckart._rank._shrink import LOSSES, shrink

__all__ = ["LOSSES", "RULES", "Margin", "Rank", "choose_rank", "shrink"]
