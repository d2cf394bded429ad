"""HTML without a template language: elements are functions, text is escaped unless it is HTML."""

from html import escape


class Html(str):
    """A string that is HTML already."""

    __slots__ = ()


def element(name: str, *children: str, **attributes: str) -> Html:
    """``<name attribute="…">children</name>``.

    Args:
        name: of the element.
        children: ``Html`` is taken as it is, any other string is escaped.
        attributes: values are escaped; a trailing underscore of a name is dropped, inner ones
            become hyphens.
    """
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(value)}"'
        for key, value in attributes.items()
    )
    inner = "".join(child if isinstance(child, Html) else escape(child) for child in children)
    return Html(f"<{name}{written}>{inner}</{name}>")


def table(head: tuple[str, ...], rows: list[tuple[str, ...]], **attributes: str) -> Html:
    """A table with one header row."""
    return element(
        "table",
        element("thead", element("tr", *(element("th", cell) for cell in head))),
        element("tbody", *(element("tr", *(element("td", cell) for cell in row)) for row in rows)),
        **attributes,
    )


def document(title: str, *body: Html, scripts: tuple[str, ...] = ()) -> bytes:
    """A whole page.

    Args:
        title: of the window.
        body: what is inside.
        scripts: addresses, loaded in this order after the page is parsed.
    """
    head = element(
        "head",
        Html('<meta charset="utf-8">'),
        Html('<meta name="viewport" content="width=device-width, initial-scale=1">'),
        element("title", title),
        Html('<link rel="stylesheet" href="/mqasearch/static/style.css">'),
        Html('<link rel="icon" href="/favicon.ico">'),
        *(element("script", src=script, defer="") for script in scripts),
    )
    page = element("html", head, element("body", *body), lang="en")
    return f"<!doctype html>\n{page}\n".encode()
