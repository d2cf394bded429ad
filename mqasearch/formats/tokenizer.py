"""The tokenizer's files, copied byte for byte.

``save_pretrained`` writes the same tokenizer differently. Programs that recognise a tokenizer by
its files (llama.cpp's converter by its pre-tokenizer) then do not recognise it any more.
"""

import json
import shutil
from pathlib import Path

from mqasearch.formats.converted import Converted

_NAMES = (
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "merges.txt",
    "special_tokens_map.json",
    "spiece.model",
    "tekken.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
)
"""Names of files that transformers' tokenizers are read from."""


def write_tokenizer(folder: Path, converted: Converted) -> None:
    """Copy the tokenizer's files into ``folder``; if there are none, save the tokenizer instead."""
    source = converted.source
    if source is None or not (source / "tokenizer_config.json").is_file():
        converted.tokenizer.save_pretrained(folder)
        return
    for name in (*_NAMES, *_code(source)):
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    if (templates := source / "additional_chat_templates").is_dir():
        shutil.copytree(templates, folder / templates.name)


def _code(source: Path) -> list[str]:
    """Python files that the tokenizer says it needs."""
    config = json.loads((source / "tokenizer_config.json").read_text(encoding="utf-8"))
    named = (config.get("auto_map") or {}).get("AutoTokenizer") or []
    references = named if isinstance(named, list) else [named]
    return [f"{reference.split('.')[0]}.py" for reference in references if reference]
