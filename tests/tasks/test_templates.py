import pytest
from jinja2 import Environment
from lm_eval import utils

from mqasearch.tasks.compiled_templates import compile_templates_once

TEMPLATE = "{{ question }} is asked of nobody else: {{ choices[gold] }}"


def test_a_template_is_compiled_once_and_says_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    documents = [{"question": f"{n}?", "choices": ["a", "b"], "gold": n % 2} for n in range(4)]
    plain = [Environment().from_string(TEMPLATE).render(**document) for document in documents]
    compile_templates_once()
    compiled = []
    compile_one = Environment.compile

    def counted(self: Environment, *arguments: object, **options: object) -> object:
        compiled.append(arguments)
        return compile_one(self, *arguments, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(Environment, "compile", counted)
    assert [utils.apply_template(TEMPLATE, document) for document in documents] == plain
    assert len(compiled) == 1
