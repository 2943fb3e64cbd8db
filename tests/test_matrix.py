"""Every module under every adapter, called in every way: see `tests/matrix.py`."""

from collections.abc import Iterator

import pytest

from tests.loopback import LoopbackServer
from tests.matrix import CELLS, COMMAND, PAGE, REFUSED, Cell, Matrix, page
from tests.matrix_parts import Model


@pytest.fixture(scope="module")
def matrix() -> Iterator[Matrix]:
    with LoopbackServer(Model()) as server:
        yield Matrix(server)


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_D6_three_turns(cell: Cell, matrix: Matrix) -> None:
    outcome, refusal = matrix[cell], REFUSED.get((cell.module, cell.adapter))
    if refusal is None:
        assert (bool(outcome.shown), outcome.error) == (True, "")
    else:
        assert refusal.error in outcome.error
        assert outcome.error == matrix.error_without_session(cell)  # so the reason is DSPy's


def test_D6_the_reference_page_says_what_the_cells_gave(matrix: Matrix) -> None:
    assert PAGE.read_text("utf-8") == page(matrix), f"docs/reference/matrix.md is old: {COMMAND}"
