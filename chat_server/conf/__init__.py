"""Settings: config.ini and the environment become frozen, typed groups; each part is handed only its own."""

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
