"""lm-eval's Jinja templates, compiled once each.

lm-eval compiles a task's template again for every document of every score: 1 ms a document, more
than a GPU takes to run a small model on it.
"""

from functools import cache, lru_cache

from lm_eval import utils


@cache
def compile_templates_once() -> None:
    """From now on, lm-eval's environment remembers what it has compiled; the texts are the same."""
    utils.env.from_string = lru_cache(1024)(utils.env.from_string)
