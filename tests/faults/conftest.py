"""The small models of tests/models, for breaking."""

from tests.models.conftest import texts, tiny  # noqa: F401
