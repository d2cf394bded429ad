"""No number may change unless the identity of its score does."""

import ast
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from models.checkpoints import tokenizer as byte_tokenizer
from tasks.small_tasks import load_small, small_tokenizer
from tiny import tiny_model
from tokenizers import AddedToken, normalizers, processors
from transformers import PreTrainedTokenizerBase
from transformers.models.byt5.tokenization_byt5 import ByT5Tokenizer

import mqasearch
from mqasearch import source_code
from mqasearch.conversion import ConvertibleModel
from mqasearch.families import family_of
from mqasearch.merging import merge_of
from mqasearch.score import Documents, ScoreKey, TaskSpec
from mqasearch.scoring import healers, identity
from mqasearch.scoring.fake import FakeScorer
from mqasearch.scoring.harness import HarnessScorer
from mqasearch.scoring.healers import healed_key, healing_code
from mqasearch.scoring.identity import (
    COMPUTING,
    HEALING_CODE,
    PACKAGES,
    scoring_code,
    tokenizer_digest,
)
from mqasearch.scoring.scorer import Scorer
from mqasearch.source_code import code_digest
from mqasearch.tasks import TaskLibrary

PACKAGE = Path(mqasearch.__file__).parent

SCORERS = ("scoring/shared_prefix.py", "scoring/fake.py", "scoring/scorers.py")
"""From which everything that computes a score is imported."""

HARMLESS = {
    "__init__.py": "the version of the package; what it computes with is hashed itself",
    "assets/__init__.py": "fetches data, which the key knows by their content: see the next two",
    "assets/cache.py": "where files lie",
    "assets/wheels.py": "documents are in the key, weights in the fingerprint",
    "budget.py": "how many layers to convert; which ones were is in the key",
    "search_space.py": "which masks a search may propose; the KV heads are in the key",
    "errors.py": "messages",
    "files/__init__.py": "a list of names",
    "files/folders.py": "where files lie",
    "files/text_files.py": "where files lie",
    "registry.py": "which parameters there are; those that are given are in the key",
    "score.py": "the key itself, and the type of a score",
    "source_code.py": "this digest",
    "time_left.py": "messages",
    "spec/__init__.py": "a list of names",
    "spec/budgets.py": "a part of the study file",
    "spec/differing.py": "messages",
    "spec/faults.py": "messages",
    "spec/rendered.py": "the study file as text",
    "spec/study_spec.py": "what to score, each part of which is in the key",
    "spec/yaml_text.py": "reads the study file",
    "tolerance.py": "what is said of scores that are there",
}
"""Reached from a scorer, and unable to change a number that it returns; why."""


def imported(file: str) -> Iterator[str]:
    """Files of this package that a file imports, with the packages they lie in."""
    if file == "__init__.py":
        return  # what it imports, it imports for whoever asks for mqasearch.load
    for node in ast.walk(ast.parse((PACKAGE / file).read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] != "mqasearch":
                continue
            for n in range(1, len(parts) + 1):
                stem = "/".join(parts[1:n])
                for candidate in (f"{stem}.py", f"{stem}/__init__.py".lstrip("/")):
                    if (PACKAGE / candidate).is_file():
                        yield candidate


def reached() -> set[str]:
    found, ahead = set[str](), list(SCORERS)
    while ahead:
        file = ahead.pop()
        if file not in found:
            found.add(file)
            ahead += imported(file)
    return found


def files_of(parts: Iterable[str]) -> set[str]:
    """Python files, and what becomes one, below some files and folders of the package."""
    below = (file for part in parts for file in (PACKAGE / part, *(PACKAGE / part).rglob("*")))
    return {
        file.relative_to(PACKAGE).as_posix()
        for file in below
        if file.is_file() and file.name.endswith((".py", ".py.txt"))
    }


def counted() -> set[str]:
    """The files whose bytes the digest sees."""
    return files_of(COMPUTING) - files_of(HEALING_CODE)


def test_every_module_that_a_score_goes_through_is_in_its_identity() -> None:
    assert len(reached()) > 40
    assert reached() - counted() - files_of(HEALING_CODE) == set(HARMLESS)
    assert files_of(HEALING_CODE) <= reached()


def test_a_change_of_the_healing_is_another_identity_of_healed_scores_alone(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert healing_code() == code_digest(HEALING_CODE, ())
    key = key_of(FakeScorer(3, n_kv_heads=2))
    seen = {key.digest(), healed_key(key, "how").digest(), healed_key(key, "else").digest()}
    for file in sorted(files_of(HEALING_CODE)):
        with (copied / file).open("a", encoding="utf-8") as opened:
            opened.write("\n# changed\n")
        monkeypatch.setattr(healers, "healing_code", lambda: code_digest(HEALING_CODE, ()))
        assert now() == scoring_code()
        seen.add(healed_key(key, "how").digest())
    assert len(seen) == 3 + len(files_of(HEALING_CODE))


def test_what_no_scorer_imports_is_not_counted() -> None:
    assert counted() <= reached()


@pytest.fixture
def copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The package as it might be after a change."""
    copy = shutil.copytree(PACKAGE, tmp_path / "mqasearch")
    monkeypatch.setattr(source_code, "files", lambda name: tmp_path / name)
    return copy


def now() -> str:
    return code_digest(COMPUTING, PACKAGES, HEALING_CODE)


def test_a_change_of_any_of_them_is_another_identity(copied: Path) -> None:
    assert now() == scoring_code()
    seen = {scoring_code()}
    for file in sorted(counted()):
        with (copied / file).open("a", encoding="utf-8") as opened:
            opened.write("\n# changed\n")
        seen.add(now())
    assert len(seen) == len(counted()) + 1


def test_a_file_that_comes_goes_or_is_renamed_counts_and_the_rest_does_not(copied: Path) -> None:
    before = now()
    (copied / "dashboard/style.py").write_text("")
    (copied / "evaluation/racing.py").write_text("")
    (copied / "conversion/notes.txt").write_text("")
    assert now() == before
    (copied / "conversion/new.py").write_text("")
    with_new = now()
    (copied / "conversion/new.py").rename(copied / "conversion/newer.py")
    assert len({before, with_new, now()}) == 3


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_count_and_their_builds_do_not(
    package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def with_version(number: str) -> str:
        real = source_code.version
        with monkeypatch.context() as patched:
            patched.setattr(source_code, "version", lambda p: number if p == package else real(p))
            return now()

    assert with_version("1.2+cpu") == with_version("1.2+cu126") != with_version("1.3+cpu")


def scorers() -> list[Scorer]:
    model = tiny_model("llama", n_kv_heads=2)
    convertible = ConvertibleModel(model, family_of("llama"), merge_of("mean"))
    library = TaskLibrary(load_small)
    return [
        FakeScorer(3, n_kv_heads=2),
        HarnessScorer(convertible, small_tokenizer(), "f", model.dtype, library=library),
    ]


def key_of(scorer: Scorer) -> ScoreKey:
    return scorer.key((1, 1, 1), TaskSpec("choice"), Documents("search", 4))


@pytest.mark.parametrize("index", [0, 1], ids=["fake", "model"])
def test_the_key_of_every_scorer_names_the_code(
    index: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = key_of(scorers()[index])
    assert before.code == scoring_code()
    monkeypatch.setattr(identity, "scoring_code", lambda: "another")
    after = key_of(scorers()[index])
    assert after == replace(before, code="another")
    assert after.digest() != before.digest()


def test_the_key_of_a_model_names_its_tokenizer() -> None:
    model = tiny_model("llama")
    convertible = ConvertibleModel(model, family_of("llama"), merge_of("mean"))
    library = TaskLibrary(load_small)
    one, two = (
        HarnessScorer(convertible, tokenizer, "f", model.dtype, library=library)
        for tokenizer in (small_tokenizer(), byte_tokenizer())
    )
    assert key_of(one) == replace(key_of(two), tokenizer=one.tokenizer)
    assert len({one.tokenizer, two.tokenizer}) == 2
    assert "" not in asdict(replace(key_of(one), calibration="-")).values()


def test_a_tokenizer_is_the_same_wherever_it_lies_and_whatever_it_did(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    before = tokenizer_digest(tokenizer)
    tokenizer.pad_token = "</s>"
    tokenizer(["a", "bcd"], padding=True, truncation=True, max_length=2)
    assert tokenizer_digest(tokenizer) == before
    for name in ("one", "two"):
        tokenizer.save_pretrained(tmp_path / name)
        tokenizer = type(tokenizer).from_pretrained(tmp_path / name)
        assert tokenizer_digest(tokenizer) == before


def lower_case(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()


def start(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )


def split_apart(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.backend_tokenizer.model = type(tokenizer.backend_tokenizer.model)(
        vocab=tokenizer.get_vocab(), merges=[], unk_token="<unk>"
    )


def other_end(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.eos_token = "<s>"


def no_start(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.bos_token = None


def new_token(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.add_tokens(AddedToken("abc"))


@pytest.mark.parametrize("change", [lower_case, start, split_apart, other_end, no_start, new_token])
def test_whatever_changes_its_tokens_is_another_tokenizer(change) -> None:  # type: ignore[no-untyped-def]
    changed = byte_tokenizer()
    change(changed)
    assert tokenizer_digest(changed) != tokenizer_digest(byte_tokenizer())


def test_a_tokenizer_in_python_has_a_digest_too(tmp_path: Path) -> None:
    tokenizer = ByT5Tokenizer()
    assert getattr(tokenizer, "backend_tokenizer", None) is None
    tokenizer.save_pretrained(tmp_path)
    again = ByT5Tokenizer.from_pretrained(tmp_path)
    assert tokenizer_digest(again) == tokenizer_digest(tokenizer)
    for changed in (ByT5Tokenizer(extra_ids=7), ByT5Tokenizer(eos_token="</e>")):
        assert tokenizer_digest(changed) != tokenizer_digest(tokenizer)
