from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from mqasearch.score import Documents
from mqasearch.tasks.documents import chosen, digest_of, document_hash, split_of

HASHES = [document_hash({"question": str(number)}) for number in range(5_000)]


def test_a_hash_ignores_the_order_of_keys_and_sees_every_value() -> None:
    assert document_hash({"a": 1, "b": [2]}) == document_hash({"b": [2], "a": 1})
    assert document_hash({"a": 1, "b": [2]}) != document_hash({"a": 1, "b": [3]})


def test_splits_are_disjoint_complete_and_of_their_shares() -> None:
    parts = [set(chosen(HASHES, Documents(split))) for split in ("search", "confirmation")]
    parts.append(set(chosen(HASHES, Documents("calibration"))))
    assert sum(len(part) for part in parts) == len(HASHES) == len(set.union(*parts))
    assert [round(len(part) / len(HASHES), 1) for part in parts] == [0.4, 0.4, 0.2]
    search, confirmation, calibration = parts
    assert set(chosen(HASHES, Documents("full"))) == search | confirmation | calibration
    assert set(chosen(HASHES, Documents("uncalibrated"))) == search | confirmation


@given(
    limit=st.integers(0, 50),
    more=st.integers(0, 50),
    seed=st.integers(0, 3),
    order=st.permutations(HASHES[:120]),
)
def test_a_limit_is_a_prefix_whatever_the_order_of_the_file(
    limit: int, more: int, seed: int, order: list[str]
) -> None:
    small = [order[i] for i in chosen(order, Documents("search", limit, seed))]
    large = [order[i] for i in chosen(order, Documents("search", limit + more, seed))]
    assert large[: len(small)] == small
    assert small == [HASHES[i] for i in chosen(HASHES[:120], Documents("search", limit, seed))]


def test_the_seed_changes_the_order_and_not_the_members() -> None:
    one, two = (chosen(HASHES, Documents("search", seed=seed)) for seed in (0, 1))
    assert one != two
    assert sorted(one) == sorted(two)


def test_equal_documents_share_a_split_and_are_both_kept() -> None:
    twice = [*HASHES[:50], *HASHES[:50]]
    indices = chosen(twice, Documents("search"))
    assert all(count == 2 for count in Counter(twice[i] for i in indices).values())
    assert {split_of(twice[i]) for i in indices} == {"search"}


def test_the_digest_sees_the_order() -> None:
    assert digest_of(HASHES[:3]) != digest_of(HASHES[2::-1])
