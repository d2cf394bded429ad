"""The checkpoint formats that a converted model can be written in: one file each."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from mqasearch.errors import ModelError, UnknownNameError, UserError
from mqasearch.formats.converted import Converted
from mqasearch.formats.expanded import Expanded
from mqasearch.formats.format import DEFAULTS, MAX_SHARD_BYTES, Format, Options, Serving
from mqasearch.formats.gguf_file import GGUF
from mqasearch.formats.hf import CompactHF
from mqasearch.formats.mlx import MLX
from mqasearch.formats.nemotron_nas import NemotronNAS
from mqasearch.formats.own_code import compact_classes

FORMATS: Mapping[str, Format] = MappingProxyType(
    {written.name: written for written in (CompactHF(), NemotronNAS(), GGUF(), MLX(), Expanded())}
)
"""Name → format."""


def format_of(name: str, model_type: str) -> Format:
    """The format of that name, for a model of that type.

    Raises:
        UnknownNameError: no such format.
        ModelError: the format cannot express the model type; the message says which formats can.
    """
    if name not in FORMATS:
        raise UnknownNameError("format", name, FORMATS)
    if model_type not in FORMATS[name].model_types:
        able = [other.name for other in FORMATS.values() if model_type in other.model_types]
        raise ModelError(
            f"format {name!r} cannot express a {model_type} model; "
            f"formats that can: {', '.join(able) or 'none'}"
        )
    return FORMATS[name]


def check_expressible(written: Format, converted: Converted) -> None:
    """Refuse a model that the format's engines would refuse or misread.

    Raises:
        ModelError: the format cannot express the model; the message says why, and which formats
            can.
    """
    fault = _fault(written, converted)
    if fault is None:
        return
    able = [other.name for other in FORMATS.values() if _fault(other, converted) is None]
    raise ModelError(
        f"format {written.name!r} cannot express this {converted.model_type} model: {fault}; "
        f"formats that can: {', '.join(able) or 'none'}"
    )


def formats_by_engine(converted: Sequence[Converted]) -> dict[str, Format]:
    """Engine, in small letters → the first format in which it loads every one of ``converted``.

    Only formats with a smaller KV cache count.

    Args:
        converted: conversions of one model.
    """
    loading: dict[str, Format] = {}
    for written in FORMATS.values():
        if written.saves_memory and all(_fault(written, each) is None for each in converted):
            for serving in written.serving(converted[0].model_type):
                loading.setdefault(serving.engine.lower(), written)
    return loading


def _fault(written: Format, converted: Converted) -> str | None:
    if converted.model_type not in written.model_types:
        return "not of its model types"
    return written.fault(converted)


def check_outtype(written: Format, outtype: str | None) -> None:
    """Refuse an ``--outtype`` that the format does not have.

    Raises:
        UnknownNameError: the format has other outtypes.
        UserError: the format has no outtypes.
    """
    if outtype is None or outtype in written.outtypes:
        return
    if written.outtypes:
        raise UnknownNameError("outtype", outtype, written.outtypes)
    able = [other.name for other in FORMATS.values() if other.outtypes]
    hint = f"; formats with outtypes: {', '.join(able)}" if able else ""
    raise UserError(
        f"format {written.name!r} writes the model's own dtype and takes no outtype: "
        f"give --dtype instead{hint}"
    )


__all__ = [
    "DEFAULTS",
    "FORMATS",
    "MAX_SHARD_BYTES",
    "CompactHF",
    "Converted",
    "Format",
    "Options",
    "Serving",
    "check_expressible",
    "check_outtype",
    "compact_classes",
    "format_of",
    "formats_by_engine",
]
