"""Which stores two settings have in common."""

from typing import Any

import msgspec

from chat_server.conf import Settings


class Shared(msgspec.Struct, frozen=True):
    """Which stores are the same on both sides: nothing is to be moved there."""

    users: bool = False
    messages: bool = False
    cache: bool = False


def shared(source: Settings, target: Settings) -> Shared:
    """Which stores are the same on both sides."""
    same_file = source.stores.data_dir.resolve() == target.stores.data_dir.resolve()

    def same(one: Any, other: Any, *words: str) -> bool:
        return same_file if words == ("embedded", "embedded") else "embedded" not in words and bool(one == other)

    return Shared(
        users=same(source.mysql, target.mysql, source.mysql.db, target.mysql.db),
        messages=same(source.mongodb, target.mongodb, source.mongodb.mongodb, target.mongodb.mongodb),
        cache=same(source.redis, target.redis, source.redis.redis_db, target.redis.redis_db),
    )
