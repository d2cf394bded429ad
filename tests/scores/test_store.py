"""Laws of the score store, on both databases."""

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, text

from mqasearch.database import schema
from mqasearch.errors import ScoreError, StorageError
from mqasearch.record import open_storage
from mqasearch.score import Score, ScoreKey
from mqasearch.scores import score_rows
from mqasearch.scores.score_rows import pack, unpack
from mqasearch.scores.store import ScoreStore

KEY = ScoreKey(
    model="f" * 64,
    tokenizer="t" * 64,
    dtype="float32",
    merge='{"name": "mean"}',
    calibration="",
    kv_heads=(3, 1, 3),
    task="hellaswag",
    task_version="1.0",
    num_fewshot=0,
    documents="d" * 64,
    seed=7,
    lm_eval="0.4.13",
    code="c" * 64,
)


def a_score(value: float = 0.1) -> Score:
    return Score(
        values={"acc": value, "bits_per_byte": value / 3},
        stderr={"acc": 0.01, "bits_per_byte": 0.02},
        n_docs=3,
        seconds=1.5,
        documents={"acc": (0.0, 1.0, 0.1 + 0.2), "bits_per_byte": (1 / 3, 1e-300, 2.5)},
    )


@pytest.fixture(params=["sqlite", "postgresql"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path}/scores.db"
    else:
        url = request.getfixturevalue("postgres_url")
    storage = open_storage(url)
    yield storage.engine
    storage.close()


def test_what_is_put_comes_back_exactly(engine: Engine) -> None:
    store = ScoreStore(engine)
    assert store.get(KEY) is None
    assert store.put(KEY, a_score()) == a_score()
    assert store.get(KEY) == a_score()


def test_first_writer_wins_and_twice_equals_once(engine: Engine) -> None:
    store = ScoreStore(engine)
    first, second = a_score(0.1), a_score(0.2)
    assert store.put(KEY, first) == first
    assert store.put(KEY, second) == first
    assert store.put(KEY, first) == first
    with engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM mqasearch_score")).scalar() == 1


def test_any_field_of_the_key_makes_another_score(engine: Engine) -> None:
    store = ScoreStore(engine)
    others = [
        replace(KEY, **{name: value})
        for name, value in {
            "model": "e" * 64,
            "dtype": "bfloat16",
            "merge": '{"name": "first"}',
            "calibration": "c",
            "kv_heads": (1, 3, 3),
            "task": "piqa",
            "task_version": "2.0",
            "num_fewshot": 1,
            "documents": "e" * 64,
            "seed": 8,
            "lm_eval": "0.5",
            "tokenizer": "u" * 64,
            "code": "d" * 64,
        }.items()
    ]
    for number, key in enumerate([KEY, *others]):
        store.put(key, a_score(number))
    found = store.get_many([*others, replace(KEY, seed=99), KEY])
    assert {key: score.values["acc"] for key, score in found.items()} == {
        key: number for number, key in enumerate([KEY, *others])
    }


@pytest.mark.parametrize("name", ["tokenizer", "code", "calibration", "task_version", "lm_eval"])
def test_documents_of_another_identity_are_no_prefix(engine: Engine, name: str) -> None:
    store = ScoreStore(engine)
    store.put(KEY, a_score())
    assert store.document_sets(replace(KEY, kv_heads=(1, 1, 1), documents="x")) == {("d" * 64, 3)}
    assert store.document_sets(replace(KEY, **{name: "another"})) == set()


def test_many_keys_take_few_queries_and_none_is_lost(engine: Engine) -> None:
    store = ScoreStore(engine)
    keys = [replace(KEY, seed=seed) for seed in range(1201)]
    for key in keys[::100]:
        store.put(key, a_score(key.seed))
    assert {key.seed for key in store.get_many(keys)} == set(range(0, 1201, 100))
    assert store.get_many([]) == {}


def test_writers_at_once_agree(engine: Engine) -> None:
    store = ScoreStore(engine)
    with ThreadPoolExecutor(8) as pool:
        kept = list(pool.map(lambda n: store.put(KEY, a_score(n)), range(24)))
    assert {score.values["acc"] for score in kept} == {store.get(KEY).values["acc"]}


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_never_kept(engine: Engine, bad: float) -> None:
    store = ScoreStore(engine)
    in_documents = replace(a_score(), documents={"acc": (0.0, bad, 1.0)})
    for score in (a_score(bad), in_documents):
        with pytest.raises(ScoreError, match="not finite"):
            store.put(KEY, score)
    assert store.get(KEY) is None


def test_a_single_document_has_no_standard_error(engine: Engine) -> None:
    store = ScoreStore(engine)
    store.put(KEY, replace(a_score(), stderr={"acc": math.nan}))
    assert math.isnan(store.get(KEY).stderr["acc"])


@pytest.mark.long
@settings(max_examples=30, deadline=None)
@given(
    st.dictionaries(
        st.text(max_size=8),
        st.lists(st.floats(allow_nan=False, allow_infinity=False)).map(tuple),
        max_size=3,
    )
)
def test_values_of_documents_survive_packing(documents: dict[str, tuple[float, ...]]) -> None:
    assert unpack(pack(documents)) == documents


def test_a_blob_that_would_fill_the_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = pack({"acc": tuple(map(float, range(1000)))})
    assert len(unpack(honest)["acc"]) == 1000
    monkeypatch.setattr(score_rows, "MOST_BYTES", 1000)
    with pytest.raises(StorageError, match="unpacks to more than"):
        unpack(honest)


def test_each_field_of_the_key_can_be_asked_for_in_sql(engine: Engine) -> None:
    ScoreStore(engine).put(KEY, a_score())
    with engine.connect() as connection:
        row = connection.execute(text("SELECT * FROM mqasearch_score")).mappings().one()
    assert row["kv_heads"] == "3,1,3"
    assert row["task"] == "hellaswag"
    assert row["digest"] == KEY.digest()
    assert schema.current(engine) == schema.head()
