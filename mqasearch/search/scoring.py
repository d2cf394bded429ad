"""From a spec to a scorer: the model loaded once, calibrated once, every layer merged once."""

import re
from dataclasses import dataclass

from mqasearch.conversion import ConvertibleModel, merge_of
from mqasearch.errors import ModelError
from mqasearch.evaluation.fake import FakeScorer
from mqasearch.evaluation.scorer import Scorer
from mqasearch.evaluation.shared_prefix import SharedPrefixScorer
from mqasearch.families import family_of
from mqasearch.mask import ModelShape
from mqasearch.models import check_name, load_model, load_shape
from mqasearch.spec import StudySpec

_FAKE = re.compile(r"fake(?::(?P<layers>[1-9][0-9]{0,3})(?::(?P<seconds>[0-9]+(\.[0-9]+)?))?)?")


@dataclass(frozen=True)
class Scoring:
    """A scorer and what its scores depend on.

    Attributes:
        scorer: lives as long as the worker.
        fingerprint: of the original weights.
        dtype: torch's name without the prefix.
        merge: name and parameters, canonical.
        calibration: digest of the statistics; empty where the merge needs none.
        device: that it computes on.
    """

    scorer: Scorer
    fingerprint: str
    dtype: str
    merge: str
    calibration: str
    device: str


def check_model_name(name: str) -> None:
    """Check a model's name as far as that goes without loading it.

    ``fake``, ``fake:LAYERS`` or ``fake:LAYERS:SECONDS`` is a scorer without a model, for trying a
    database, a cluster or a selector.

    Raises:
        ModelError: no such model.
    """
    if name.startswith("fake:") and not _FAKE.fullmatch(name):
        raise ModelError(f"model {name!r}: write fake:LAYERS or fake:LAYERS:SECONDS, as in fake:12")
    if not _FAKE.fullmatch(name):
        check_name(name)


def model_shape(spec: StudySpec) -> ModelShape:
    """Sizes of the spec's model, from its config alone.

    Raises:
        ModelError: no such model, or a model type that cannot be converted.
    """
    if (fake := _fake(spec.model.name)) is not None:
        return fake.shape
    entry = spec.model
    model_type, shape = load_shape(
        entry.name,
        dtype=entry.dtype,
        revision=entry.revision,
        trust_remote_code=entry.trust_remote_code,
    )
    family_of(model_type)
    return shape


def open_scoring(spec: StudySpec, device: str = "auto") -> Scoring:
    """Load the model and make its scorer.

    Raises:
        ModelError: no such model or device, or a model that cannot be converted.
        AssetError: offline data cannot be fetched.
    """
    if (fake := _fake(spec.model.name)) is not None:
        return Scoring(fake, fake.model, "float32", spec.merge.name, "", "none")
    entry = spec.model
    loaded = load_model(
        entry.name,
        device=device,
        dtype=entry.dtype,
        revision=entry.revision,
        trust_remote_code=entry.trust_remote_code,
    )
    family = family_of(loaded.model.config.model_type)
    merge = merge_of(spec.merge.name, **spec.merge.parameters)
    convertible = ConvertibleModel(loaded.model, family, merge)
    scorer = SharedPrefixScorer(convertible, loaded.tokenizer, loaded.fingerprint, loaded.dtype)
    return Scoring(
        scorer=scorer,
        fingerprint=loaded.fingerprint,
        dtype=scorer.dtype,
        merge=convertible.merge_name,
        calibration=convertible.calibration,
        device=str(loaded.device),
    )


def _fake(name: str) -> FakeScorer | None:
    match = _FAKE.fullmatch(name)
    if match is None:
        return None
    return FakeScorer(int(match["layers"] or 12), seconds=float(match["seconds"] or 0))
