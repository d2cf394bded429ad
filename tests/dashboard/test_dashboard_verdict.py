"""The verdict on the page of each comparison of its study file."""

from pathlib import Path

import pytest
from dashboard.sample_studies import fill
from optuna.storages import InMemoryStorage
from studies_on_fake import run_study, spec_of, storage_in, studies_of

from mqasearch.dashboard.site import Site
from mqasearch.scoring import FakeScorer
from mqasearch.study import sentence, verdict

TOLERANCE = {"metric": "acc_norm", "points": 5.0}


@pytest.mark.long
def test_the_page_says_what_the_table_says(tmp_path: Path) -> None:
    storage = storage_in(tmp_path)
    documents = {"search": 40, "confirmation": 400}
    spec = spec_of(
        budget=[1, 3], selectors=["sensitivity"], documents=documents, tolerance=TOLERANCE
    )
    run_study(storage, spec, FakeScorer(6))
    told = verdict(studies_of(storage))
    assert told is not None
    for name in ("s-n1", "s-n3"):
        page = Site(storage.optuna).answer(f"/mqasearch/comparisons/{name}").body.decode()
        assert sentence(told) in page
        assert page.count("<td>within</td>") == sum(s.result == "within" for s in told.sizes) > 0
    storage.close()


def test_a_comparison_without_a_tolerance_has_no_verdict() -> None:
    """Nor one whose stored study file cannot be read."""
    storage = InMemoryStorage()
    fill(storage)
    answer = Site(storage).answer("/mqasearch/comparisons/demo")
    assert answer.status == 200
    assert "erdict" not in answer.body.decode()
