"""`python -m eckart` is the command `eckart`."""

from eckart.cli import main

main()
