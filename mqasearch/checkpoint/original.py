"""Load the model that a mask was made for, from its present place."""

from collections.abc import Mapping
from typing import Any

from mqasearch.errors import ModelError, UnknownNameError
from mqasearch.models import LoadedModel, device_of, dtype_of, is_here, load_model


def load_original(
    of_mask: Mapping[str, Any],
    *,
    moved_to: str | None = None,
    revision: str | None = None,
    device: str = "cpu",
    dtype: str = "auto",
    trust_remote_code: bool = False,
) -> LoadedModel:
    """Load the model that a mask JSON names.

    Args:
        of_mask: ``model`` of a mask JSON: its id and, for a hub id, its revision.
        moved_to: name of the model's present place; None = its id.
        revision: a revision to load instead of the mask's.
        device, dtype, trust_remote_code: as in ``load_model``.

    Raises:
        ModelError, UnknownNameError, AssetError: as in ``load_model``. If the model is not where
            the mask says, the message says what to do.
    """
    name = moved_to or of_mask["id"]
    if moved_to is None:
        revision = revision or of_mask.get("revision")
    dtype_of(dtype, device_of(device))  # a wrong name must not be reported as a missing model
    try:
        return load_model(
            name,
            device=device,
            dtype=dtype,
            revision=revision,
            trust_remote_code=trust_remote_code,
        )
    except (ModelError, UnknownNameError) as error:
        if moved_to is not None or is_here(name):
            raise
        raise ModelError(f"{error}; if the mask's model has moved, say where: --model") from error
