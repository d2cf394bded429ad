"""The tokenizer in the form of GGUF files: ``tokenizer.ggml.*``.

Everything is read from ``tokenizer.json``, which transformers tokenizes by; if the tokenizer is in
other files, transformers makes a ``tokenizer.json`` from them. llama.cpp has two tokenizers for
these models: "gpt2", which is BPE on bytes after a pre-tokenizer that the file names, and "llama",
which is SentencePiece's BPE with single bytes for everything else.
"""

import contextlib
import json
import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from gguf import GGUFWriter, SpecialVocab, TokenType

from mqasearch.formats.converted import Converted
from mqasearch.formats.gguf_pre_tokenizer import pre_tokenizer_name
from mqasearch.formats.tokenizer import write_tokenizer

_SPACE = "▁"
_ADDED_SCORE = -1000.0  # llama.cpp's converter gives it to tokens that no merge makes


@dataclass(frozen=True)
class TokenizerBlock:
    """A tokenizer that was read and can be written.

    Attributes:
        json: the contents of ``tokenizer.json``.
        vocab_size: number of rows of the embedding.
        special: ids of special tokens, merges and chat template, as the gguf library reads them.
    """

    json: Mapping[str, Any]
    vocab_size: int
    special: SpecialVocab

    @classmethod
    def of(cls, converted: Converted) -> Self | None:
        """Read a tokenizer; None if there is no ``tokenizer.json`` and none can be made."""
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            write_tokenizer(folder, converted)
            if not (folder / "tokenizer.json").is_file():
                converted.tokenizer.save_pretrained(folder)
            if not (folder / "tokenizer.json").is_file():
                return None
            config = converted.model.config
            (folder / "config.json").write_text(config.to_json_string(use_diff=False))
            read = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
            with _silent_library():
                special = SpecialVocab(
                    folder, load_merges=not _is_sentencepiece(read), n_vocab=config.vocab_size
                )
        special.add_special_token = _added_around(converted, special.special_token_ids)
        return cls(read, config.vocab_size, special)

    def fault(self) -> str | None:
        """Why llama.cpp would tokenize differently; None = it would not."""
        kind = self.json["model"].get("type")
        if kind != "BPE":
            return f"llama.cpp has no tokenizer for a {kind} model with these weights"
        largest = max(self._ids().values())
        if largest >= self.vocab_size:
            return f"its tokenizer has token {largest}, its embedding only {self.vocab_size} rows"
        if not _is_sentencepiece(self.json) and pre_tokenizer_name(self.json) is None:
            return "its tokenizer splits text in a way that llama.cpp has no name for"
        return None

    def add_to(self, writer: GGUFWriter) -> None:
        """Write the keys; ``fault`` must have returned None."""
        tokens, types = self._tokens()
        if _is_sentencepiece(self.json):
            writer.add_tokenizer_model("llama")
            writer.add_tokenizer_pre("default")
            writer.add_token_list(tokens)
            writer.add_token_scores(self._scores(tokens))
            writer.add_add_space_prefix(_begins_with_space(self.json))
        else:
            writer.add_tokenizer_model("gpt2")
            writer.add_tokenizer_pre(str(pre_tokenizer_name(self.json)))
            writer.add_token_list(tokens)
            writer.add_add_space_prefix(False)
        writer.add_token_types(types)
        self.special.add_to_gguf(writer, quiet=True)

    def _ids(self) -> dict[str, int]:
        added = {token["content"]: token["id"] for token in self.json["added_tokens"]}
        return {**self.json["model"]["vocab"], **added}

    def _tokens(self) -> tuple[list[str], list[TokenType]]:
        """The token of every row of the embedding, and its type for llama.cpp."""
        tokens = [f"[PAD{row}]" for row in range(self.vocab_size)]
        types = [TokenType.UNUSED] * self.vocab_size
        has_bytes = _is_sentencepiece(self.json)
        for token, row in self.json["model"]["vocab"].items():
            tokens[row] = token
            is_byte = has_bytes and len(token) == 6 and token.startswith("<0x")
            types[row] = TokenType.BYTE if is_byte else TokenType.NORMAL
        for added in self.json["added_tokens"]:
            token, row = added["content"], added["id"]
            if added["special"] or (token.startswith("<|") and token.endswith("|>")):
                tokens[row], types[row] = token, TokenType.CONTROL
            else:
                tokens[row], types[row] = token.replace(_SPACE, " "), TokenType.USER_DEFINED
        unknown = self.special.special_token_ids.get("unk")
        if has_bytes and unknown is not None:
            types[unknown] = TokenType.UNKNOWN
        return tokens, types

    def _scores(self, tokens: Sequence[str]) -> list[float]:
        """SentencePiece's scores: higher for earlier merges, and 0 for single characters."""
        scores = dict.fromkeys(self.json["model"]["vocab"], 0.0)
        for rank, merge in enumerate(self.json["model"]["merges"], start=1):
            merged = merge.replace(" ", "") if isinstance(merge, str) else "".join(merge)
            scores[merged] = scores.get(merged) or -float(rank)
        return [scores.get(token, _ADDED_SCORE) for token in tokens]


@contextlib.contextmanager
def _silent_library() -> Iterator[None]:
    """Silence the library's warning that it does not know which special tokens are added.

    We ask the tokenizer about them.
    """
    logger = logging.getLogger("gguf.vocab")
    before = logger.disabled
    logger.disabled = True
    try:
        yield
    finally:
        logger.disabled = before


def _is_sentencepiece(read: Mapping[str, Any]) -> bool:
    return bool(read["model"].get("byte_fallback"))


def _begins_with_space(read: Mapping[str, Any]) -> bool:
    """Whether a text gets a space before its first word."""
    normalizer = read.get("normalizer") or {}
    steps = [*normalizer.get("normalizers", [normalizer])]
    splitter = read.get("pre_tokenizer") or {}
    return any(step.get("type") == "Prepend" for step in steps) or (
        splitter.get("type") == "Metaspace" and splitter.get("prepend_scheme") != "never"
    )


def _added_around(converted: Converted, special: Mapping[str, int]) -> dict[str, bool]:
    """Which special tokens the tokenizer puts before and after a text."""
    ids = converted.tokenizer("a")["input_ids"]
    return {
        "bos": ids[:1] == [special.get("bos")],
        "eos": ids[-1:] == [special.get("eos")],
    }
