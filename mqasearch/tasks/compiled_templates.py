"""Each of lm-eval's Jinja templates is compiled once.

lm-eval compiles a task's template again for every document of every score. That takes 1 ms per
document, which is more than a GPU takes to run a small model on it.
"""

from functools import cache, lru_cache

from lm_eval import utils


@cache
def compile_templates_once() -> None:
    """Make lm-eval's Jinja environment cache compiled templates; the texts stay the same."""
    utils.env.from_string = lru_cache(1024)(utils.env.from_string)
