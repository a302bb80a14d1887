"""Token correspondence: equal blocks one to one, replaced blocks at their ends."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from interventions import align_tokens

ids = st.lists(st.integers(0, 4), max_size=12)


def test_a_replaced_block_is_aligned_at_its_end() -> None:
    assert align_tokens([1, 7, 8, 2], [1, 9, 2]).tolist() == [0, -1, 1, 2]
    assert align_tokens([1, 9, 2], [1, 7, 8, 2]).tolist() == [0, 2, 3]


def test_an_inserted_token_has_no_counterpart() -> None:
    assert align_tokens([1, 5, 2], [1, 2]).tolist() == [0, -1, 1]
    assert align_tokens([1, 2], [1, 5, 2]).tolist() == [0, 2]


@given(ids)
def test_a_text_is_aligned_with_itself_one_to_one(text: list[int]) -> None:
    assert align_tokens(text, text).tolist() == list(range(len(text)))


@given(ids, ids)
def test_the_map_increases_and_stays_within_the_source(base: list[int], source: list[int]) -> None:
    found = [p for p in align_tokens(base, source).tolist() if p >= 0]
    assert found == sorted(set(found)) and all(p < len(source) for p in found)
