"""Fashion-MNIST where it is not installed."""

from __future__ import annotations

import pytest

from tests.tasks.small_fashion import write_fashion


@pytest.fixture(scope="session")
def fashion(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder of four small files in Fashion-MNIST's format: bright on the left or on the right."""
    folder = tmp_path_factory.mktemp("fashion")
    write_fashion(folder)
    return str(folder)
