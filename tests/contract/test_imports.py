"""`import eckart` is light, and its names are what they say."""

import subprocess
import sys

import pytest

import eckart

HEAVY = ("torch", "scipy", "transformers", "sklearn", "tensorflow", "jax", "keras", "onnx")


def loaded(code):
    """Return which of the heavy packages a fresh Python has loaded after running code."""
    report = f"\nimport sys\nprint([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code + report], capture_output=True, text=True, check=True)
    return done.stdout.strip().splitlines()[-1]


def test_import_loads_nothing_heavy():
    assert loaded("import eckart; dir(eckart); eckart.__version__") == "[]"
    assert loaded("import sys, eckart; assert 'numpy' not in sys.modules") == "[]"


def test_a_numpy_svd_loads_nothing_else():
    assert loaded("import numpy, eckart; eckart.svd(numpy.eye(3), center=True); eckart.svd_full([[1.0]])") == "[]"


def test_an_svd_loads_no_other_framework_than_that_of_its_matrix():
    assert (
        loaded("import torch, eckart; eckart.svd(torch.eye(3, requires_grad=True)).s.sum().backward()") == "['torch']"
    )
    assert loaded("import jax.numpy, eckart; eckart.svd(jax.numpy.eye(3))") == "['jax']"


def test_the_check_itself_can_fail():
    assert loaded("import scipy") == "['scipy']"


@pytest.mark.parametrize("name", ["EckartError", "Matrix", "SVD", "as_matrix", "svd", "svd_full"])
def test_names_stay_what_they_are_on_second_access(name):
    first = getattr(eckart, name)
    assert getattr(eckart, name) is first
    assert callable(first)
    assert name in dir(eckart)


def test_an_unknown_name_is_an_attribute_error_that_lists_the_others():
    with pytest.raises(AttributeError, match=r"no attribute 'pca'; it has .*svd_full"):
        _ = eckart.pca
    assert eckart.__version__.count(".") == 2
