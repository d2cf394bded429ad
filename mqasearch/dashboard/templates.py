"""Pages from templates: Jinja escapes whatever is not ``Markup``."""

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

ROOT = "/mqasearch/"
"""Where our pages are."""

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
        title: of the window.
        values: what the template names.
    """
    return _TEMPLATES.get_template(template).render(title=title, root=ROOT, **values).encode()
