"""Settings from config.ini and the environment, in frozen, typed groups. Each service gets only its own group."""

from chat_server.conf.load import ConfigError, load
from chat_server.conf.settings import (
    AccountSettings,
    ChatSettings,
    MongoDBSettings,
    MySQLSettings,
    RedisSettings,
    ServerSettings,
    Settings,
    SocketSettings,
    StoreSettings,
)

__all__ = [
    "AccountSettings",
    "ChatSettings",
    "ConfigError",
    "MongoDBSettings",
    "MySQLSettings",
    "RedisSettings",
    "ServerSettings",
    "Settings",
    "SocketSettings",
    "StoreSettings",
    "load",
]
