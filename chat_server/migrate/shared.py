"""Determines which stores source and target have in common."""

from typing import Any

import msgspec

from chat_server.conf import Settings


class SharedStores(msgspec.Struct, frozen=True):
    """For each kind of store, whether source and target use the same one, so that nothing is copied."""

    users: bool = False
    messages: bool = False
    cache: bool = False


def shared_stores(source: Settings, target: Settings) -> SharedStores:
    """Compare the stores of two settings."""
    same_folder = source.stores.data_dir.resolve() == target.stores.data_dir.resolve()

    def same(source_config: Any, target_config: Any, *backends: str) -> bool:
        if backends == ("embedded", "embedded"):
            return same_folder
        return "embedded" not in backends and bool(source_config == target_config)

    return SharedStores(
        users=same(source.mysql, target.mysql, source.mysql.db, target.mysql.db),
        messages=same(source.mongodb, target.mongodb, source.mongodb.mongodb, target.mongodb.mongodb),
        cache=same(source.redis, target.redis, source.redis.redis_db, target.redis.redis_db),
    )
