"""llama.cpp's names of the ways in which tokenizers split a text before BPE.

llama.cpp has the ways of splitting in its code, and the file has the name of one of them
(``tokenizer.ggml.pre``). Its converter recognises a tokenizer by a hash of a tokenized test text.
Here the name follows from the contents of ``tokenizer.json``, so that new vocabularies are
recognised too. Names and patterns are those of llama.cpp's ``src/llama-vocab.cpp``.
"""

from collections.abc import Mapping
from typing import Any

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_WORD_START = r"[^\r\n\p{L}\p{N}]?"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"


def _cl100k(digits: str) -> str:
    """The pattern of tiktoken's cl100k and of tokenizers derived from it."""
    return (
        rf"{_CONTRACTIONS}|{_WORD_START}\p{{L}}+|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}"
    )


_LLAMA3 = _cl100k(r"\p{N}{1,3}")
_QWEN2 = _cl100k(r"\p{N}")
_TEKKEN = (
    rf"{_WORD_START}{_UPPER}*{_LOWER}+|{_WORD_START}{_UPPER}+{_LOWER}*|\p{{N}}"
    rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
)

_BY_PATTERN = {
    (_LLAMA3, True): "llama-bpe",
    (_LLAMA3, False): "smaug-bpe",
    (_QWEN2, False): "qwen2",
    (_TEKKEN, True): "tekken",
}
"""(Pattern, whether words in the vocabulary are not built by merges) → name."""


def pre_tokenizer_name(read: Mapping[str, Any]) -> str | None:
    """llama.cpp's name of the way that a tokenizer splits text; None if we know no name for it.

    Args:
        read: contents of ``tokenizer.json`` of a byte-level BPE.
    """
    splitter = read.get("pre_tokenizer") or {}
    steps = splitter.get("pretokenizers", [splitter])
    if not steps or steps[-1].get("type") != "ByteLevel" or steps[-1].get("add_prefix_space"):
        return None
    before, splits_words = steps[:-1], steps[-1].get("use_regex", True)
    ignores_merges = bool(read["model"].get("ignore_merges"))
    match before:
        case [] if splits_words and not ignores_merges:
            return "gpt-2"
        case [{"type": "Digits", "individual_digits": True}] if splits_words and not ignores_merges:
            return "smollm"
        case [
            {
                "type": "Split",
                "pattern": {"Regex": pattern},
                "behavior": "Isolated",
                "invert": False,
            }
        ] if not splits_words:
            return _BY_PATTERN.get((pattern, ignores_merges))
    return None
