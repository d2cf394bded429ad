"""Pages from templates: Jinja escapes everything that is not ``Markup``."""

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

ROOT = "/mqasearch/"
"""The path of our pages."""

_TEMPLATES = Environment(
    loader=PackageLoader("mqasearch.dashboard"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def page(template: str, title: str, **values: Any) -> bytes:
    """A whole page.

    Args:
        template: a file of ``templates/``.
        title: title of the window.
        values: values of the template's variables.
    """
    return _TEMPLATES.get_template(template).render(title=title, root=ROOT, **values).encode()
