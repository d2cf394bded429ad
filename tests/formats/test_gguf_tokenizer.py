"""The tokenizer in a GGUF file: llama.cpp's token ids are transformers', whatever the kind."""

import json
from pathlib import Path
from typing import Any

import gguf
import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from mqasearch.assets import smollm2_gguf
from mqasearch.conversion import ConvertibleModel
from mqasearch.engines.engine import Engine, Settings
from mqasearch.errors import ModelError
from mqasearch.families import family_of
from mqasearch.formats import check_expressible
from mqasearch.formats.converted import Converted
from mqasearch.formats.gguf_tokenizer import TokenizerBlock
from mqasearch.merging import merge_of
from mqasearch.models import load_model
from tests.formats.gguf_models import GGUF, converted_of, model_of, write

CAPITALS = "Ünïcode ÉCOLE"
TEXTS = (
    "",
    "Hello world, it's 1989! We'll see; I'VE told you.",
    " 1 12  345 6789 3.14159\n\n  0.5",
    "tabs\tand   spaces \n\n\n  and\r\nlines ",
    "naïve ünïcode école 你好世界 🙂👍🏽 עברית",
    CAPITALS,
    "def f(x):\n    return x**2 # why?!\n",
    "camelCase HTTPServer iPhone/path\n/",
    "<s>after a special token</s> and <|tool|> another",
)
CORPUS = [text * 3 for text in TEXTS[1:8]]
WORDS = ["the therein then other another north there are here where were ever never every"]
SPECIAL = ["<unk>", "<s>", "</s>"]

_CL100K = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|DIGITS"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3 = _CL100K.replace("DIGITS", r"\p{N}{1,3}")
QWEN2 = _CL100K.replace("DIGITS", r"\p{N}")
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def byte_level(*before: Any, use_regex: bool) -> Any:
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)
    return pre_tokenizers.Sequence([*before, last]) if before else last


def split(pattern: str) -> Any:
    return byte_level(pre_tokenizers.Split(Regex(pattern), "isolated"), use_regex=False)


SPLITTERS = {
    "gpt-2": (byte_level(use_regex=True), False),
    "smollm": (byte_level(pre_tokenizers.Digits(individual_digits=True), use_regex=True), False),
    "llama-bpe": (split(LLAMA3), True),
    "smaug-bpe": (split(LLAMA3), False),
    "qwen2": (split(QWEN2), False),
    "tekken": (split(TEKKEN), True),
}
"""llama.cpp's name → (how tokenizer.json splits, whether whole words are taken without merging)."""


def fast(plain: Tokenizer, *, with_bos: bool = False) -> PreTrainedTokenizerFast:
    if with_bos:
        plain.post_processor = TemplateProcessing(
            single="<s> $A",
            pair="<s> $A <s> $B",
            special_tokens=[("<s>", plain.token_to_id("<s>"))],
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=plain, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


def byte_bpe(splitter: Any, *, ignore_merges: bool) -> Tokenizer:
    plain = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    plain.pre_tokenizer = splitter
    plain.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    plain.train_from_iterator(CORPUS, trainer)
    plain.add_tokens([AddedToken("<|tool|>", normalized=False)])
    return plain


def sentencepiece(*, by_metaspace: bool) -> Tokenizer:
    """As transformers writes Llama-2's: bytes as last resort, every split of a token a merge."""
    plain = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    plain.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=True)
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=SPECIAL, show_progress=False)
    plain.train_from_iterator(WORDS * 3, trainer)
    read = json.loads(plain.to_str())
    learnt = [token for token in read["model"]["vocab"] if token not in SPECIAL]
    pieces = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), *learnt]
    read["model"]["vocab"] = {piece: row for row, piece in enumerate(pieces)}
    read["model"]["merges"] = [
        [piece[:cut], piece[cut:]]
        for piece in learnt
        for cut in range(1, len(piece))
        if piece[:cut] in learnt and piece[cut:] in learnt
    ]
    if by_metaspace:
        read["pre_tokenizer"] = {
            "type": "Metaspace",
            "replacement": "▁",
            "prepend_scheme": "first",
            "split": False,
        }
    else:
        read["pre_tokenizer"] = None
        read["normalizer"] = {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            ],
        }
    return Tokenizer.from_str(json.dumps(read))


def converted_with(used: PreTrainedTokenizerBase) -> Converted:
    return converted_of(model_of("llama", vocab_size=len(used) + 3), used=used)


def tokenized(used: PreTrainedTokenizerBase, folder: Path, texts: tuple[str, ...]) -> None:
    """llama.cpp gives the ids of ``used`` for every text."""
    path = write(converted_with(used), folder)
    with Engine("llama.cpp", Settings(str(path), max_tokens=64, n_threads=1)) as engine:
        got = engine.tokenize(texts)
    for text, ids in zip(texts, got, strict=True):
        assert ids == used(text)["input_ids"], text


@pytest.mark.parametrize("name", SPLITTERS)
@pytest.mark.parametrize("with_bos", [False, True], ids=["bare", "bos"])
def test_llama_cpp_tokenizes_as_transformers_does(
    name: str, with_bos: bool, tmp_path: Path
) -> None:
    splitter, ignore_merges = SPLITTERS[name]
    used = fast(byte_bpe(splitter, ignore_merges=ignore_merges), with_bos=with_bos)
    # llama.cpp's pattern for tekken takes a capital outside ASCII for small too
    skipped = CAPITALS if name == "tekken" else None
    tokenized(used, tmp_path, tuple(text for text in TEXTS if text != skipped))
    fields = gguf.GGUFReader(tmp_path / "model.gguf").fields
    assert fields["tokenizer.ggml.pre"].contents() == name
    assert fields["tokenizer.ggml.add_bos_token"].contents() is with_bos


@pytest.mark.parametrize("by_metaspace", [False, True], ids=["normalizer", "metaspace"])
def test_so_it_does_by_sentencepiece(by_metaspace: bool, tmp_path: Path) -> None:
    used = fast(sentencepiece(by_metaspace=by_metaspace), with_bos=True)
    texts = [text for text in TEXTS[1:] if not by_metaspace or not text.startswith((" ", "<s>"))]
    texts += ["thereafter nevertheless hereof otherwise northern whether everywhere"]
    # llama.cpp puts a space before one, and after special tokens; Metaspace does not
    tokenized(used, tmp_path, tuple(texts))


def test_rows_without_a_token_and_kinds_of_tokens_are_marked(tmp_path: Path) -> None:
    splitter, _ = SPLITTERS["gpt-2"]
    used = fast(byte_bpe(splitter, ignore_merges=False))
    fields = gguf.GGUFReader(write(converted_with(used), tmp_path)).fields
    tokens = fields["tokenizer.ggml.tokens"].contents()
    types = fields["tokenizer.ggml.token_type"].contents()
    assert tokens[-3:] == [f"[PAD{row}]" for row in range(len(used), len(used) + 3)]
    assert types[-3:] == [gguf.TokenType.UNUSED] * 3
    assert types[:3] == [gguf.TokenType.CONTROL] * 3
    assert types[tokens.index("a")] == gguf.TokenType.NORMAL


def test_the_real_tokenizer_is_what_stock_conversion_wrote(tmp_path: Path) -> None:
    loaded = load_model("smollm2-135m", device="cpu", dtype="float32")
    convertible = ConvertibleModel(loaded.model, family_of("llama"), merge_of("mean"))
    converted = Converted(convertible, (1,) * 30, loaded.tokenizer, loaded.folder)
    writer = gguf.GGUFWriter(tmp_path / "tokenizer.gguf", "deci")
    block = TokenizerBlock.of(converted)
    assert block is not None
    block.add_to(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    ours = gguf.GGUFReader(tmp_path / "tokenizer.gguf").fields
    for name, field in gguf.GGUFReader(smollm2_gguf()).fields.items():
        if name.startswith("tokenizer."):
            assert ours[name].contents() == field.contents(), name


def unknown_split() -> Tokenizer:
    return byte_bpe(split(r"\w+|\s+|."), ignore_merges=False)


def prefixed() -> Tokenizer:
    plain = byte_bpe(byte_level(use_regex=True), ignore_merges=False)
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    return plain


def words() -> Tokenizer:
    vocabulary = {token: row for row, token in enumerate([*SPECIAL, "a", "word"])}
    return Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))


@pytest.mark.parametrize(
    ("plain", "said"),
    [
        (unknown_split, "splits text in a way that llama.cpp has no name for"),
        (prefixed, "splits text in a way that llama.cpp has no name for"),
        (words, "no tokenizer for a WordLevel model"),
    ],
    ids=["pattern", "prefix", "words"],
)
def test_a_tokenizer_that_llama_cpp_has_not_is_refused(plain: Any, said: str) -> None:
    with pytest.raises(ModelError, match=f"format 'gguf' cannot .*{said}.*: hf, .*expanded"):
        check_expressible(GGUF, converted_with(fast(plain())))


def test_more_tokens_than_rows_are_refused() -> None:
    used = fast(byte_bpe(SPLITTERS["gpt-2"][0], ignore_merges=False))
    converted = converted_of(model_of("llama", vocab_size=len(used) - 1), used=used)
    with pytest.raises(ModelError, match="its embedding only"):
        check_expressible(GGUF, converted)
