"""lm-eval tasks of every type over a few made-up documents, and a tokenizer for tiny models."""

import random
from typing import Any

from datasets import Dataset, DatasetDict
from lm_eval.api.task import ConfigurableTask, Task
from tiny import VOCABULARY
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

_WORDS = [f"w{number}" for number in range(VOCABULARY - 3)]
_MEAN = {"aggregation": "mean", "higher_is_better": True}


def small_tokenizer() -> PreTrainedTokenizerFast:
    """One token per word, of tests/tiny.py's vocabulary: 0 pad, 1 beginning, 2 end."""
    words = {"<pad>": 0, "<s>": 1, "</s>": 2, **{w: 3 + i for i, w in enumerate(_WORDS)}}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="</s>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\s+"), "removed")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )


def words(rng: random.Random, least: int, most: int) -> str:
    """A text of that many words."""
    return " ".join(rng.choices(_WORDS, k=rng.randint(least, most)))


class SmallTask(ConfigurableTask):  # type: ignore[misc]
    """A task whose documents are given in its configuration."""

    def __init__(self, name: str, documents: list[dict[str, Any]], **config: Any) -> None:
        self._given = documents
        super().__init__(config={"task": name, "test_split": "test", **config})

    def download(self, *_: Any, **__: Any) -> None:
        self.dataset = DatasetDict({"test": Dataset.from_list(self._given)})


def small_task(kind: str, *, n_documents: int = 12, seed: int = 0, name: str | None = None) -> Task:
    """A task of ``kind``: choice, long (choice beyond the model's length), word (loglikelihood),
    rolling, generate, contexts (the choices are in the context, as in winogrande)."""
    rng = random.Random(f"{kind}{seed}")
    make, config = _KINDS[kind]
    documents = [{"number": number, **make(rng)} for number in range(n_documents)]
    return SmallTask(name or kind, documents, **config)


def load_small(name: str, num_fewshot: int = 0, seed: int = 0) -> list[Task]:
    """As ``load_task``, for a kind of small task, or for ``group``: two multiple-choice tasks."""
    if name == "group":
        tasks = [
            small_task("choice", seed=1, n_documents=9, name="one"),
            small_task("choice", seed=2, n_documents=21, name="two"),
        ]
    else:
        tasks = [small_task(name)]
    for task in tasks:
        task.set_config("num_fewshot", num_fewshot)
        task.set_fewshot_seed(seed)
    return tasks


def _choice(rng: random.Random) -> dict[str, Any]:
    choices = [words(rng, 1, 9) for _ in range(rng.randint(2, 4))]
    return {"text": words(rng, 3, 25), "choices": choices, "gold": rng.randrange(len(choices))}


def _long(rng: random.Random) -> dict[str, Any]:
    return {**_choice(rng), "text": words(rng, 110, 200)}


def _word(rng: random.Random) -> dict[str, Any]:
    return {"text": words(rng, 3, 25), "target": words(rng, 1, 2)}


def _page(rng: random.Random) -> dict[str, Any]:
    return {"page": words(rng, 20, 300)}


def _blank(rng: random.Random) -> dict[str, Any]:
    start = words(rng, 2, 6)
    starts = [f"{start} {words(rng, 1, 2)}" for _ in range(2)]
    return {"starts": starts, "rest": words(rng, 2, 6), "gold": rng.randrange(2)}


_CHOICE = {
    "output_type": "multiple_choice",
    "doc_to_text": "text",
    "doc_to_target": "gold",
    "doc_to_choice": "choices",
    "metric_list": [{"metric": "acc", **_MEAN}, {"metric": "acc_norm", **_MEAN}],
}

_KINDS: dict[str, tuple[Any, dict[str, Any]]] = {
    "choice": (_choice, _CHOICE),
    "long": (_long, _CHOICE),
    "word": (
        _word,
        {
            "output_type": "loglikelihood",
            "doc_to_text": "text",
            "doc_to_target": " {{target}}",
            "metric_list": [
                {"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False},
                {"metric": "acc", **_MEAN},
            ],
        },
    ),
    "rolling": (
        _page,
        {
            "output_type": "loglikelihood_rolling",
            "doc_to_text": "",
            "doc_to_target": "page",
            "metric_list": [
                {
                    "metric": "word_perplexity",
                    "aggregation": "weighted_perplexity",
                    "higher_is_better": False,
                },
                {
                    "metric": "bits_per_byte",
                    "aggregation": "bits_per_byte",
                    "higher_is_better": False,
                },
            ],
        },
    ),
    "generate": (
        _word,
        {
            "output_type": "generate_until",
            "doc_to_text": "text",
            "doc_to_target": "target",
            "generation_kwargs": {"until": ["w7"], "max_gen_toks": 4, "do_sample": False},
            "metric_list": [{"metric": "exact_match", **_MEAN}],
        },
    ),
    "contexts": (
        _blank,
        {
            "output_type": "multiple_choice",
            "doc_to_text": lambda document: document["gold"],
            "doc_to_target": lambda document: document["rest"],
            "doc_to_choice": lambda document: document["starts"],
            "metric_list": [{"metric": "acc", **_MEAN}],
        },
    ),
}
