"""From a spec to a scorer: the model loaded once, calibrated once, every layer merged once."""

from dataclasses import dataclass

from mqasearch.conversion import ConvertibleModel, merge_of
from mqasearch.evaluation.harness import HarnessScorer
from mqasearch.evaluation.scorer import Scorer
from mqasearch.families import family_of
from mqasearch.mask import ModelShape
from mqasearch.models import load_model, load_shape
from mqasearch.spec import StudySpec


@dataclass(frozen=True)
class Scoring:
    """A scorer and what its scores depend on.

    Attributes:
        scorer: lives as long as the worker.
        fingerprint: of the original weights.
        dtype: torch's name without the prefix.
        merge: name and parameters, canonical.
        calibration: digest of the statistics; empty where the merge needs none.
    """

    scorer: Scorer
    fingerprint: str
    dtype: str
    merge: str
    calibration: str


def model_shape(spec: StudySpec) -> ModelShape:
    """Sizes of the spec's model, from its config alone.

    Raises:
        ModelError: no such model, or a model type that cannot be converted.
    """
    model_type, shape = load_shape(
        spec.model.name,
        dtype=spec.model.dtype,
        revision=spec.model.revision,
        trust_remote_code=spec.model.trust_remote_code,
    )
    family_of(model_type)
    return shape


def open_scoring(spec: StudySpec, device: str = "auto") -> Scoring:
    """Load the model and make its scorer.

    Raises:
        ModelError: no such model or device, or a model that cannot be converted.
        AssetError: offline data cannot be fetched.
    """
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
    scorer = HarnessScorer(convertible, loaded.tokenizer, loaded.fingerprint, loaded.dtype)
    return Scoring(
        scorer=scorer,
        fingerprint=loaded.fingerprint,
        dtype=scorer.dtype,
        merge=convertible.merge_name,
        calibration=convertible.calibration,
    )
