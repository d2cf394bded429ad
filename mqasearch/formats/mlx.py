"""``mlx``: MLX-LM's own architecture if one fits, and else the model's code beside the weights."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mqasearch import __version__
from mqasearch.families import COMPACT_SUFFIX
from mqasearch.formats.config import stock_config, template, write_config
from mqasearch.formats.converted import Converted
from mqasearch.formats.format import Format, Options, Serving
from mqasearch.formats.mlx_layers import MODEL_TYPES, entries, fault, layers, tensors
from mqasearch.formats.nemotron_nas import NemotronNAS
from mqasearch.formats.positions import rope_scaling
from mqasearch.formats.safetensors_stream import write_sharded
from mqasearch.formats.tokenizer import write_tokenizer
from mqasearch.models import KV_HEADS_KEY

_CODE = "mlx_mqa.py"


class MLX(Format):
    """A folder for MLX-LM; if the model fits ``nemotron-nas``, it needs no code of ours.

    For every other model, the folder has one Python file (MLX-LM's config key ``model_file``). The
    file is the same for all models; it builds the model that config.json describes under ``mqa``.
    The weights have Llama's names.
    """

    name = "mlx"
    summary = "fewer KV heads for MLX-LM, all model types"
    library = "mlx"
    refused_by = f"No other engine loads a folder that needs {_CODE}."
    model_types = MODEL_TYPES
    _nemotron = NemotronNAS()

    def fault(self, converted: Converted) -> str | None:
        return None if self._fits_nemotron(converted) else fault(converted)

    def n_bytes(self, converted: Converted, options: Options) -> int:
        if self._fits_nemotron(converted):
            return self._nemotron.n_bytes(converted, options)
        return sum(entry.n_bytes for entry in entries(converted))

    def write(self, converted: Converted, folder: Path, options: Options) -> Iterator[int]:
        write_tokenizer(folder, converted)
        if self._fits_nemotron(converted):
            yield from self._nemotron.write_tensors(converted, folder, options)
            write_config(folder, converted.model, self._nemotron.config(converted))
            return
        for entry in write_sharded(
            folder, entries(converted), tensors(converted), options.max_shard_bytes
        ):
            yield entry.n_bytes
        code = template("mlx_mqa").replace("{version}", __version__)
        (folder / _CODE).write_text(code, encoding="utf-8")
        write_config(folder, converted.model, self.config(converted))

    def config(self, converted: Converted) -> dict[str, Any]:
        """The contents of config.json with ``model_file``."""
        return stock_config(converted.model) | {
            "model_type": f"{converted.model_type}{COMPACT_SUFFIX}",
            "architectures": ["MqaForCausalLM"],
            "model_file": _CODE,
            "mqa": layers(converted),
            KV_HEADS_KEY: list(converted.kv_heads),
        }

    def serving(self, model_type: str) -> tuple[Serving, ...]:
        command = 'mlx_lm.generate --model FOLDER --trust-remote-code --prompt "Once upon a time"'
        if model_type in self._nemotron.model_types:
            note = f"# --trust-remote-code: only if the folder has {_CODE}\n"
            command = note + command
        return (Serving("MLX", command),)

    def _fits_nemotron(self, converted: Converted) -> bool:
        """Whether MLX-LM loads the model and its tokenizer without code of ours.

        If transformers does not know the architecture, AutoTokenizer reads config.json with the
        generic config class. This fails (5.24) if the file holds llama3's scaling under the old
        keys, which are the keys that MLX-LM reads.
        """
        if converted.model_type not in self._nemotron.model_types:
            return False
        return (
            self._nemotron.fault(converted) is None
            and (rope_scaling(converted.model.config) or {}).get("rope_type") != "llama3"
        )
