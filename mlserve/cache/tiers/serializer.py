"""Plain values through Django's cache API on the `l2` alias: msgpack instead of django-redis' default, pickle."""

from typing import Any

import msgspec
from django_redis.serializers.base import BaseSerializer


class MsgspecSerializer(BaseSerializer):
    """Raises `msgspec.DecodeError` on bytes that are no msgpack; they are never code."""

    def __init__(self, options: dict[str, Any]) -> None:
        super().__init__(options)
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder()

    def dumps(self, value: Any) -> bytes:
        return self._encoder.encode(value)

    def loads(self, value: bytes) -> Any:
        return self._decoder.decode(value)
