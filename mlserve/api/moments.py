"""Moments in answers: RFC 3339 with a time zone, and said to be so in the OpenAPI document."""

from datetime import datetime
from typing import Annotated

from msgspec import Meta

Instant = Annotated[datetime, Meta(tz=True)]
"""Without the zone in its type, the document would call it any string, and clients made from it would read one."""
