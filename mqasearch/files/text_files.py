"""Text files that are written whole or not at all."""

import uuid
from pathlib import Path


def write_whole(path: Path, text: str) -> None:
    """Write beside the file and rename; a failure leaves nothing beside it.

    The file gets the rights of any new file. A link is followed.

    Raises:
        OSError: the folder cannot be written to.
    """
    path = path.resolve()
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with beside.open("x", encoding="utf-8") as file:
            file.write(text)
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
