import pytest
from hypothesis import given
from hypothesis import strategies as st

from mqasearch.forward.trees import Row, Tokens, chain_rows, forest_rows

SEQUENCES = st.lists(
    st.lists(st.integers(0, 2), min_size=1, max_size=14).map(tuple),
    min_size=1,
    max_size=25,
    unique=True,
)


def spelled(row: Row, sequence: int) -> Tokens:
    """A sequence read back from its last token to its first."""
    place, tokens = row.ends[sequence], []
    while place >= 0:
        tokens.append(row.tokens[place])
        place = row.parents[place]
    return tuple(reversed(tokens))


@given(sequences=SEQUENCES, row_tokens=st.integers(1, 60))
def test_every_sequence_is_in_one_row_and_can_be_read_back(
    sequences: list[Tokens], row_tokens: int
) -> None:
    for rows in (forest_rows(sequences, row_tokens), chain_rows(sequences)):
        found = {index: spelled(row, index) for row in rows for index in row.ends}
        assert found == dict(enumerate(sequences))
        assert sum(len(row.ends) for row in rows) == len(sequences)


@given(sequences=SEQUENCES, row_tokens=st.integers(1, 60))
def test_no_row_holds_a_beginning_twice_and_parents_come_first(
    sequences: list[Tokens], row_tokens: int
) -> None:
    for row in forest_rows(sequences, row_tokens):
        steps = list(zip(row.parents, row.tokens, strict=True))
        assert len(set(steps)) == len(steps)
        assert all(parent < place for place, parent in enumerate(row.parents))
        positions = row.positions()
        assert all(
            positions[place] == (positions[parent] + 1 if parent >= 0 else 0)
            for place, parent in enumerate(row.parents)
        )


@given(sequences=SEQUENCES)
def test_a_large_row_takes_everything_once(sequences: list[Tokens]) -> None:
    (row,) = forest_rows(sequences, 10_000)
    beginnings = {tokens[:stop] for tokens in sequences for stop in range(1, len(tokens) + 1)}
    assert len(row) == len(beginnings)


def test_a_context_runs_once_and_its_answers_after_it() -> None:
    context = tuple(range(100, 140))
    answers = [(1, 2, 3), (1, 2, 4), (5,), (6, 7)]
    (row,) = forest_rows([context + answer for answer in answers], 16)
    assert len(row) == 40 + 2 + 1 + 1 + 1 + 2
    assert row.positions()[-1] in (40, 41, 42)


def test_examples_in_the_prompt_are_shared_by_many_questions() -> None:
    examples = tuple(range(300))
    questions = [examples + (1000 + q,) * 30 + (answer,) for q in range(50) for answer in (1, 2)]
    rows = forest_rows(questions, 256)
    assert sum(map(len, rows)) < 2 * (300 + 50 * 32)
    assert max(map(len, rows)) <= 900


def test_rows_of_small_trees_are_of_nearly_equal_length() -> None:
    sequences = [(start,) + (7,) * (start % 40 + 5) for start in range(200)]
    lengths = [len(row) for row in forest_rows(sequences, 256)]
    assert max(lengths) <= 256
    assert max(lengths) - min(lengths) <= 10


@pytest.mark.parametrize("length", [1, 5])
def test_a_single_sequence_is_a_chain(length: int) -> None:
    (row,) = forest_rows([tuple(range(length))], 256)
    assert row.is_chain
    assert row.last(0, 1) == [length - 1]
