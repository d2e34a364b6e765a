"""The data of the Go original: users in MySQL, messages in MongoDB. It is only read, never written."""

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import aiomysql
import msgspec
import pymysql
from bson import CodecOptions, ObjectId
from pymysql.constants import ER

from chat_server.conf import Settings
from chat_server.model import mongodb, mysql
from chat_server.utils.errors import StartError, StoreUnavailable

TABLE = "chat_demo_user"
# A collection holds the messages from one user to another: p, sender, SEP, receiver, p.
SEPARATOR = "SEP"


class GoUser(msgspec.Struct, frozen=True):
    """A user that is not marked as deleted."""

    number: int
    name: str
    password: str


class GoMessage(msgspec.Struct, frozen=True):
    """A document of a collection. `created` is in seconds, None if the document has no such number.

    `order` sorts like the _id in MongoDB. `wrong` says why the document cannot be a message. A ghost has no content:
    the Go server created it when it marked an unknown message as read.
    """

    id: str
    order: bytes
    created: float | None
    content: str
    read: bool
    ghost: bool = False
    wrong: str = ""


class GoSource:
    """Both databases of the Go original. Raises StoreUnavailable, and StartError if waiting does not help."""

    def __init__(self, settings: Settings) -> None:
        self._timeout = max(settings.stores.store_timeout, settings.stores.start_timeout)
        self._mysql = settings.mysql
        self._mongodb = settings.mongodb
        self._pool: aiomysql.Pool = mysql.make_pool(settings.mysql)
        self._client = mongodb.client(settings.mongodb, self._timeout)
        # Keep the readable part of a text that is not UTF-8.
        lenient: CodecOptions[dict[str, Any]] = CodecOptions(unicode_decode_error_handler="replace")
        self._database = self._client.get_database(settings.mongodb.name, codec_options=lenient)

    async def close(self) -> None:
        """Close all connections."""
        self._client.close()
        self._pool.terminate()
        await self._pool.wait_closed()

    async def deleted(self) -> int:
        """Return how many users are marked as deleted."""
        [[count]] = await self._rows(f"SELECT count(*) FROM {TABLE} WHERE deleted_at IS NOT NULL")  # noqa: S608
        return int(count)

    async def users(self, count: int) -> AsyncIterator[list[GoUser]]:
        """Iterate over the users that are not deleted, the oldest first, at most `count` at a time."""
        query = f"""SELECT id, user_name, password FROM {TABLE}
            WHERE deleted_at IS NULL AND id > %s ORDER BY id LIMIT %s"""  # noqa: S608
        after = -1
        while page := [
            GoUser(number, _text(name), _text(hashed)) for number, name, hashed in await self._rows(query, after, count)
        ]:
            yield page
            after = page[-1].number

    async def collections(self) -> list[str]:
        """Return the names of the collections that may hold messages."""
        await mongodb.reach(self._mongodb, self._client, self._timeout)
        names = await self._call(self._database.list_collection_names())
        return sorted(name for name in names if name[:1] == name[-1:] == "p" and SEPARATOR in name[1:-1])

    async def count(self, collection: str) -> int:
        """Return an estimate of the number of documents."""
        return int(await self._call(self._database[collection].estimated_document_count()))

    async def documents(self, collection: str, count: int) -> AsyncIterator[list[GoMessage]]:
        """Iterate over all documents, in no particular order, `count` at a time."""
        cursor = self._database[collection].find({}, batch_size=count)
        while found := await self._call(cursor.to_list(count)):
            yield [_message(document) for document in found]

    async def _rows(self, query: str, *values: int) -> Sequence[Sequence[Any]]:
        try:
            async with (
                mysql.opening(self._mysql, self._timeout),
                mysql.borrowed(self._pool) as connection,
                connection.cursor() as cursor,
            ):
                await cursor.execute(query, values)
                return list(await cursor.fetchall())
        except StoreUnavailable as error:
            cause = error.__cause__
            if isinstance(cause, pymysql.err.MySQLError) and cause.args[:1] == (ER.NO_SUCH_TABLE,):
                raise StartError(f"[mysql] DbName {self._mysql.db_name} has no table {TABLE}") from error
            raise

    async def _call(self, work: Any) -> Any:
        return await mongodb.call(work, self._timeout, mongodb.address(self._mongodb))


def _text(value: str | bytes | None) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value or ""


def _message(document: Mapping[str, Any]) -> GoMessage:
    id, order = _sort_key(document["_id"])
    content, created = document.get("content"), document.get("created")
    if isinstance(created, bool) or not isinstance(created, int | float):
        created = None
    wrong = ""
    if order == b"":
        wrong = f"its _id is a {type(document['_id']).__name__}"
    elif content is not None and not isinstance(content, str):
        wrong = f"its content is a {type(content).__name__}"
    return GoMessage(
        id=id,
        order=order,
        created=None if created is None else float(created),
        content=content if isinstance(content, str) else "",
        read=document.get("read") == 1,
        ghost=content is None,
        wrong=wrong,
    )


def _sort_key(id: object) -> tuple[str, bytes]:
    """Return an _id as text and as a sort key: texts before ObjectIds, each by its bytes; empty for other types."""
    if isinstance(id, str):
        return id, b"\x01" + id.encode("utf-8", "replace")
    if isinstance(id, ObjectId):
        return str(id), b"\x02" + id.binary
    return repr(id)[:80], b""
