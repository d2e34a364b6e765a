"""The client, and calls to MongoDB whose errors are translated."""

import asyncio
import re
import warnings
from collections.abc import Awaitable
from typing import Any, TypeVar

import pymongo
from pymongo.errors import BulkWriteError, OperationFailure, PyMongoError

from chat_server.conf import MongoDBSettings
from chat_server.model.mongodb.documents import MESSAGES
from chat_server.utils.errors import StartError, StoreMisconfigured, StoreUnavailable, cause
from chat_server.utils.locks import ConcurrencyLimiter
from chat_server.utils.metrics import NO_STORE_METRICS, StoreMetrics

T = TypeVar("T")

# Connections at most.
POOL = 16
# Seconds, at most, for the last command of a client.
CLOSE_SECONDS = 1
# Error codes that the server will return again until an operator changes something.
_MISTAKES = {
    13: "MongoDBUser lacks a right on MongoDBName: grant it the role readWrite",
    18: "MongoDBUser or MongoDBPwd is wrong",
    73: "MongoDBName is not a name that MongoDB allows",
    8000: "MongoDBUser or MongoDBPwd is wrong",  # Atlas
}
# The part of the driver's text about a failed connection that is passed on; the rest may contain a secret.
_REASON = re.compile(
    r"\[Errno -?\d+\] [\w ]+|certificate verify failed(?:: [\w ]+)?|timed out|connection closed", re.IGNORECASE
)


def client(config: MongoDBSettings, timeout: float) -> Any:
    """Create the client. Raises StartError for an address that is not valid.

    motor is past its end of life; its successor has the same calls. `return pymongo.AsyncMongoClient(uri, **options)`
    and `await` in `close` are the whole change, and the contract suite runs with both.
    """
    from motor.motor_asyncio import AsyncIOMotorClient  # noqa: PLC0415 - slow to import, and only needed here

    uri, options = client_options(config, timeout)
    try:
        if "@" in uri.partition("://")[2].partition("/")[2]:
            raise ValueError("a password that contains / would move a part of it into the host")
        with warnings.catch_warnings():  # the driver only warns of an option that it ignores, such as tls=yes
            warnings.simplefilter("error", UserWarning)
            warnings.filterwarnings("ignore", "You appear to be connected to", UserWarning)  # judged by the host name
            return AsyncIOMotorClient(uri, **options)
    except (PyMongoError, ValueError, TypeError, OSError, UserWarning):  # the text may repeat a password
        raise StartError(
            "[MongoDB] MongoDBAddr is neither a host nor a URI that MongoDB knows; "
            "in a URI write the special characters of user and password as %40"
        ) from None


async def close(mongo: Any) -> None:
    """Close a client. The driver waits, in a thread, at most CLOSE_SECONDS for MongoDB to end its sessions."""

    def close_in_thread() -> None:
        with pymongo.timeout(CLOSE_SECONDS):
            mongo.close()

    await asyncio.to_thread(close_in_thread)


def client_options(config: MongoDBSettings, timeout: float) -> tuple[str, dict[str, Any]]:
    """Return the address and the options of a client of either driver; `timeout` in seconds."""
    is_uri = config.addr.startswith(("mongodb://", "mongodb+srv://"))
    options: dict[str, Any] = {
        "timeoutMS": int(timeout * 1000),
        "serverSelectionTimeoutMS": int(timeout * 1000),
        "maxPoolSize": POOL,
        "w": "majority",
        "journal": True,
        "retryWrites": True,
        "appname": "chat_server",
    }
    if not is_uri:
        options["port"] = config.port
    if config.user:
        options |= {"username": config.user, "password": config.pwd}
    return config.addr, options


def address(config: MongoDBSettings) -> str:
    """Return MongoDB's address for people, without the user and password of a URI."""
    hosts = re.sub(r"^mongodb(\+srv)?://", "", config.addr).rpartition("@")[2].partition("/")[0].partition("?")[0]
    return f"MongoDB at {hosts}" if "://" in config.addr else f"MongoDB at {hosts}:{config.port}"


async def reach(config: MongoDBSettings, mongo: Any, timeout: float) -> bool:
    """Return whether the database contains our messages, if the server answers and accepts the login.

    Raises StoreUnavailable if waiting may help, and StoreMisconfigured if it does not.
    """
    name = address(config)
    try:
        await call(mongo[config.name].command("ping"), timeout, name)
        return MESSAGES in await call(mongo[config.name].list_collection_names(), timeout, name)
    except (ValueError, TypeError):  # the driver checks the password only now
        raise StoreMisconfigured(f"{name}: MongoDBPwd holds characters that no password can have") from None
    except StoreUnavailable as error:
        servers = mongo.topology_description.server_descriptions().values()
        known = next((server.error for server in servers if server.error), None)
        if known is None or isinstance(error, StoreMisconfigured):
            raise
        raise failure(name, known) from error  # more specific than a timeout


async def call(work: Awaitable[T], timeout: float, name: str) -> T:
    """Await a call of the driver for at most about `timeout` seconds. Raises StoreUnavailable and BulkWriteError."""
    try:
        async with asyncio.timeout(timeout * 1.2):  # the driver's own timeout comes first
            return await work
    except BulkWriteError:
        raise
    except (PyMongoError, OSError) as error:  # TimeoutError is an OSError
        raise failure(name, error) from error


class Calls:
    """The calls of one store: all have the same `timeout` in seconds, `name` of the server, and metrics."""

    def __init__(self, timeout: float, name: str, watch: StoreMetrics = NO_STORE_METRICS) -> None:
        self.timeout = timeout
        self.name = name
        self._watch = watch

    async def __call__(self, work: Awaitable[T]) -> T:
        """As `call`."""
        return await self._watch.time_call(call(work, self.timeout, self.name))

    def one_at_a_time(self) -> ConcurrencyLimiter:
        """Return a lock whose callers wait no longer than for a call, and learn together that MongoDB is away."""
        return ConcurrencyLimiter(1, self.timeout, f"{self.name}: no answer")

    def incomplete(self) -> StoreUnavailable:
        """The error for a bulk write that MongoDB stored only in part."""
        return StoreUnavailable(f"{self.name}: it did not store all")


def failure(name: str, error: Exception) -> StoreUnavailable:
    """Translate an error of the driver."""
    if isinstance(error, OperationFailure):
        if mistake := _MISTAKES.get(error.code or 0):
            return StoreMisconfigured(f"{name}: {mistake}")
        details = error.details or {}
        return StoreUnavailable(f"{name}: {details.get('codeName') or type(error).__name__} (error {error.code})")
    if reason := _REASON.search(str(error)):
        return StoreUnavailable(f"{name}: {(reason[0].partition('] ')[2] or reason[0]).strip().lower()}")
    return StoreUnavailable(f"{name}: {cause(error)}")
