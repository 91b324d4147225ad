"""Eckart: the singular value decomposition for deep learning."""
__version__ = "0.1.0"
