"""Settings: config.ini and the environment become frozen, typed groups; each part is handed only its own."""

from chat_server.conf.load import ConfigError, load
from chat_server.conf.settings import (
    Accounts,
    Chat,
    MongoDB,
    MySQL,
    Redis,
    Server,
    Settings,
    Sockets,
    Stores,
)

__all__ = [
    "Accounts",
    "Chat",
    "ConfigError",
    "MongoDB",
    "MySQL",
    "Redis",
    "Server",
    "Settings",
    "Sockets",
    "Stores",
    "load",
]
