"""Storage URLs: what people write, and what they may see of it."""

import pytest

from mqasearch.database.database_url import for_optuna, hidden, parse, sqlite_file
from mqasearch.errors import UserError

CANARY = "s3cr3t-canary"


@pytest.mark.parametrize(
    ("text", "driver"),
    [
        ("postgres://u@h/d", "postgresql+psycopg"),
        ("postgresql://u@h/d", "postgresql+psycopg"),
        ("postgresql+psycopg://u@h/d", "postgresql+psycopg"),
        ("postgresql+psycopg2://u@h/d", "postgresql+psycopg2"),
        ("sqlite:///study.db", "sqlite"),
    ],
)
def test_the_driver_is_one_that_we_depend_on(text: str, driver: str) -> None:
    assert parse(text).drivername == driver


@pytest.mark.parametrize(
    "text",
    [
        f"postgresql://worker:{CANARY}@db.example/studies",
        f"postgres://worker:{CANARY}%40%2F%3A@db.example:5432/studies",
        f"postgresql://worker@db.example/studies?password={CANARY}&sslmode=require",
        f"postgresql://worker:{CANARY}/x@db.example/studies",
        f"postgresql://worker:12/{CANARY}@db.example/studies",
        f"postgresql:///studies?host=/run&sslpassword={CANARY}",
    ],
)
def test_no_password_is_shown_and_none_is_lost(text: str) -> None:
    url = parse(text)
    assert CANARY not in hidden(url)
    assert "studies" in hidden(url)
    assert CANARY in for_optuna(url)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "study.db",
        f"worker:{CANARY}@db.example/studies",
        f"postgresql:/worker:{CANARY}@db.example/studies",
        f"postgresql://worker:{CANARY}@x@db.example/studies",
        f"postgresql://worker:{CANARY}@db.example:port/studies",
        f"oracle://worker:{CANARY}@db.example/studies",
        f"postgers://worker:{CANARY}@db.example/studies",
        f"mysql://worker:{CANARY}@db.example/studies",
        "sqlite://",
        "sqlite:///:memory:",
    ],
)
def test_a_bad_url_is_answered_in_one_line_without_the_password(text: str) -> None:
    with pytest.raises(UserError) as caught:
        sqlite_file(parse(text))
    error = caught.value
    assert "\n" not in str(error)
    assert CANARY not in str(error)
    assert error.__suppress_context__ or error.__context__ is None


def test_a_misspelt_database_is_guessed() -> None:
    with pytest.raises(UserError, match="did you mean 'postgresql'"):
        parse("postgersql://h/d")


def test_a_bare_file_name_is_answered_with_its_url() -> None:
    with pytest.raises(UserError, match=r"sqlite:///study\.db"):
        parse("study.db")


def test_braces_in_a_path_are_no_template_to_optuna() -> None:
    url = for_optuna(parse("sqlite:///{a} 10%.db"))
    assert url.format(SCHEMA_VERSION=1) == url
    assert parse(url).database == "{a} 10%.db"
