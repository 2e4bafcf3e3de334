"""The search for the largest batch and the reading of the compiler's words; the compiler itself is not needed."""

import pytest

from scripts import tpu_compile
from scripts.tpu_compile import GIB, largest, refused_sizes, shape_bytes


class MadeUpStep:
    """A step of 2 GiB and so many GiB a row, on a chip that takes 15.75 GiB."""

    def __init__(self, row: float):
        self.row, self.asked = row, []

    def compiled(self, chip: str, rows: int, micro_batches: int) -> dict:
        self.asked.append(rows)
        total = (2 + self.row * rows) * GIB
        fits = total <= 15.75 * GIB
        found = {"chip": chip, "rows": rows, "micro_batches": micro_batches, "fits": fits, "total_bytes": total}
        return found if fits else {**found, "limit_bytes": int(15.75 * GIB)}


@pytest.mark.parametrize(("row", "start", "most"), [(0.4, 16, 34), (0.4, 200, 34), (3.0, 1, 4), (0.01, 8, 1375)])
def test_the_search_ends_within_an_eighth_below_the_most_rows_that_fit(row: float, start: int, most: int):
    step = MadeUpStep(row)
    found = largest(step, "v5e", step.compiled("v5e", start, 1))
    assert found is not None and found["fits"]
    assert most - max(1, most // 8) <= found["rows"] <= most
    # Each size costs minutes of compiling.
    assert len(step.asked) <= 12 and len(set(step.asked)) == len(step.asked)


def test_nothing_fits_where_one_row_does_not():
    step = MadeUpStep(20.0)
    assert largest(step, "v5e", step.compiled("v5e", 4, 1)) is None


def test_both_forms_of_the_compilers_refusal_are_read():
    # As libtpu 0.0.52 wrote them.
    memory = "Ran out of memory in memory space hbm. Used 24.40G of 15.75G hbm."
    assert refused_sizes(memory) == (int(24.4 * GIB), int(15.75 * GIB))
    temporaries = "the total memory required for HLO temporaries (15.32G) exceeds available HBM (15.25G)."
    assert refused_sizes(temporaries) == (int(15.32 * GIB), int(15.25 * GIB))
    assert refused_sizes("something else") == (None, None)


def test_bytes_of_shapes():
    assert shape_bytes("(f32[2,3]{1,0}, bf16[4]{0}, s64[])") == 24 + 8 + 8


def test_the_card_says_that_nothing_was_run():
    facts = {"parameters": 10**9, "optimizer": "adamw", "dtype": "mixed_bfloat16", "rematerialize": True, "libtpu": "0"}
    sizes = {"rows": 4, "micro_batches": 2, "sequence_length": 2048, "fits": False}
    refused = {"total_bytes": 20 * GIB, "limit_bytes": 15 * GIB, "largest": None}
    card = tpu_compile.card({**facts, **sizes, **refused, "chip": "v5e"})
    assert "compiled, not run" in card and "does not fit: 20.00 of 15.00 GiB" in card
    assert "not even one row fits" in card
