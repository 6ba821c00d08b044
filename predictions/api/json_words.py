"""What msgspec says of a wrong value, in the words of JSON: who sends a request knows no `str` and no `datetime`."""

import re
from typing import Final

_NAMES: Final = {
    "str": "a string",
    "int": "a number",
    "float": "a number",
    "bool": "a boolean",
    "null": "null",
    "object": "an object",
    "array": "an array",
    "datetime": "a time",
}
_TYPE: Final = re.compile(r"`(\w+(?: \| \w+)*)`(?! field)")
_TEXTS: Final = (
    ("Invalid RFC3339 encoded datetime", "not a time as RFC 3339 writes it"),
    ("`datetime` with a timezone component", "a time with a time zone (`Z` or `+01:00`)"),
    ("Number out of range", "a number out of range"),
    ("Object contains unknown field", "unknown member"),
    ("Object missing required field", "missing member"),
    ("JSON is malformed: ", ""),
)


def in_json_words(error: Exception) -> str:
    """Without where it was, and without a regular expression, whose meaning the field's description says better."""
    text = str(error).partition(" - at `$")[0]
    if " matching regex" in text:
        return "not of this form"
    for said, meant in _TEXTS:
        text = text.replace(said, meant)
    text = _TYPE.sub(lambda found: " or ".join(_NAMES.get(name, f"`{name}`") for name in found[1].split(" | ")), text)
    return text[:1].lower() + text[1:]
