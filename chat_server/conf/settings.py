"""All settings: key in config.ini, type, range and default. config.ini explains what each one means."""

from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, field

Port = Annotated[int, Meta(ge=0, le=65535)]
Count = Annotated[int, Meta(ge=0, le=1_000_000_000)]
Positive = Annotated[int, Meta(ge=1, le=1_000_000_000)]
Duration = Annotated[float, Meta(ge=0.001, le=1_000_000)]
Days = Annotated[float, Meta(ge=0.001, le=3650)]
Text = Annotated[str, Meta(min_length=1)]
# A shorter window would not limit anything.
Minutes = Annotated[float, Meta(ge=0.02, le=1_000_000)]


class SettingsGroup(msgspec.Struct, frozen=True, kw_only=True, rename="pascal"):
    """A group of settings. The key in config.ini is the field name in pascal case, or the explicit `name`."""


class ServerSettings(SettingsGroup, frozen=True):
    """[service]: addresses, origins, proxies and language of the server. `request_timeout` in seconds."""

    app_mode: Literal["debug", "release"] = "debug"
    http_host: str = "127.0.0.1"
    http_port: Port = 8081
    language: Literal["zh", "en"] = "zh"
    allowed_origins: tuple[str, ...] = ()
    trusted_proxies: tuple[str, ...] = ()
    request_timeout: Duration = 75
    metrics_host: str = "127.0.0.1"
    metrics_port: Port = 0


class StoreSettings(SettingsGroup, frozen=True):
    """[service]: settings of all stores. Timeouts in seconds; `message_days` in days, 0 keeps all messages.

    `processes`: whether other processes with the same settings may use the same stores.
    """

    processes: Literal["one", "many"] = "one"
    data_dir: Path = Path("data")
    start_timeout: Duration = 30
    store_timeout: Duration = 5
    message_days: Annotated[float, Meta(ge=0, le=36500)] = 0


class AccountSettings(SettingsGroup, frozen=True):
    """[service]: users, passwords and sessions. `login_window` in minutes, `password_wait` in seconds."""

    password_cost: Annotated[int, Meta(ge=4, le=16)] = 12
    min_password_length: Annotated[int, Meta(ge=1, le=72)] = 6
    session_days: Days = 30
    registration: Literal["open", "closed"] = "open"
    login_failures: Positive = 10
    login_failures_per_address: Positive = 300
    login_window: Minutes = 5
    registrations_per_hour: Count = 1000
    password_wait: Duration = 10


class ChatSettings(SettingsGroup, frozen=True):
    """[service]: limits of messages. `stranger_window` in days."""

    stranger_limit: Annotated[int, Meta(ge=0, le=1000)] = 5
    stranger_window: Days = 3
    max_text_bytes: Annotated[int, Meta(ge=1, le=16_777_216)] = 16384
    broadcasts_per_minute: Count = 30
    group_members: Annotated[int, Meta(ge=1, le=1000)] = 200
    groups_per_user: Annotated[int, Meta(ge=1, le=1000)] = 100


class SocketSettings(SettingsGroup, frozen=True):
    """[service]: limits of a socket. Sizes in bytes, `frames_per_second` as a rate, `frames_burst` in frames."""

    heartbeat_seconds: Annotated[float, Meta(ge=0.05, le=3600)] = 30
    max_frame_bytes: Annotated[int, Meta(ge=256, le=67_108_864)] = 65536
    outbox_bytes: Annotated[int, Meta(ge=4096, le=1_073_741_824)] = 1048576
    frames_per_second: Count = 200
    frames_burst: Positive = 1000
    sockets_per_user: Positive = 32
    sockets_per_address: Count = 0
    compress: bool = False


class MySQLSettings(SettingsGroup, frozen=True):
    """[mysql]: the store of users. A `db_host` that begins with / is the path of a Unix socket."""

    db: Literal["embedded", "mysql"] = "embedded"
    db_host: Text = "127.0.0.1"
    db_port: Port = 3306
    db_user: str = ""
    db_password: str = field(name="DbPassWord", default="")
    db_name: Text = "chat_demo"
    db_tls: Literal["off", "verified", "unverified"] = "off"
    db_tls_ca: str = ""


class RedisSettings(SettingsGroup, frozen=True):
    """[redis]: the store of sessions, counters and limits."""

    redis_db: Literal["embedded", "redis"] = "embedded"
    redis_addr: Text = "127.0.0.1:6379"
    redis_pw: str = ""
    redis_db_name: Annotated[int, Meta(ge=0, le=65535)] = 0
    redis_prefix: Text = "chat_server:"


class MongoDBSettings(SettingsGroup, frozen=True):
    """[MongoDB]: the store of messages."""

    mongodb: Literal["embedded", "mongodb"] = field(name="MongoDb", default="embedded")
    name: Text = field(name="MongoDBName", default="chat_demo")
    addr: Text = field(name="MongoDBAddr", default="localhost")
    user: str = field(name="MongoDBUser", default="")
    pwd: str = field(name="MongoDBPwd", default="")
    port: Port = field(name="MongoDBPort", default=27017)


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """All groups. `source` names their file; `warnings` are sentences about ignored environment variables."""

    server: ServerSettings = ServerSettings()
    stores: StoreSettings = StoreSettings()
    accounts: AccountSettings = AccountSettings()
    chat: ChatSettings = ChatSettings()
    sockets: SocketSettings = SocketSettings()
    mysql: MySQLSettings = MySQLSettings()
    redis: RedisSettings = RedisSettings()
    mongodb: MongoDBSettings = MongoDBSettings()
    source: str = "the defaults"
    warnings: tuple[str, ...] = ()


SECTIONS: dict[str, dict[str, type[SettingsGroup]]] = {
    "service": {
        "server": ServerSettings,
        "stores": StoreSettings,
        "accounts": AccountSettings,
        "chat": ChatSettings,
        "sockets": SocketSettings,
    },
    "mysql": {"mysql": MySQLSettings},
    "redis": {"redis": RedisSettings},
    "MongoDB": {"mongodb": MongoDBSettings},
}
