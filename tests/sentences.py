"""What people read when something went wrong."""

from __future__ import annotations

import re

NOT_FOR_PEOPLE = re.compile(r"https?:|\b[45]\d\d\b|Exception|Error\b|Traceback|[<>{}\[\]]|None|[0-9a-f]{8}-[0-9a-f]{4}")


def is_plain(sentence: str) -> bool:
    """A sentence, without what only programs and operators understand."""
    return bool(sentence) and sentence[0].isupper() and sentence.endswith(".") and not NOT_FOR_PEOPLE.search(sentence)
