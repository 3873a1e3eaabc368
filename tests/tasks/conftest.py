"""Fashion-MNIST, and a text, where they are not installed."""

from __future__ import annotations

import pytest

from curvlab.tasks.character_gpt import FILE
from tests.tasks.small_fashion import write_fashion

#: 1,050 characters, 9 kinds
TEXT = "abcd, efg. " * 95 + "abcde"


@pytest.fixture(scope="session")
def fashion(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder: four small files in Fashion-MNIST's format, bright on the left or right; and a text."""
    folder = tmp_path_factory.mktemp("fashion")
    write_fashion(folder)
    (folder / FILE).write_text(TEXT, encoding="utf-8")
    return str(folder)
