"""Reads the data of the Go server: users in MySQL, messages in MongoDB. Nothing is written to them."""

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
# The messages of one user to another are in the collection p<sender>SEP<receiver>p.
SEPARATOR = "SEP"


class GoUser(msgspec.Struct, frozen=True):
    """A row of the table of users that is not marked as deleted."""

    number: int
    name: str
    password: str


class GoDocument(msgspec.Struct, frozen=True):
    """A document of a collection. `created` in seconds since the epoch; None if it is missing or not a number.

    `position` sorts like the _id in MongoDB. `invalid` says why the document is not a message. A ghost has no content:
    the Go server created it when an unknown message was marked as read.
    """

    id: str
    position: bytes
    created: float | None
    content: str
    read: bool
    ghost: bool = False
    invalid: str = ""


class GoSource:
    """Both databases of the Go server. Methods raise StoreUnavailable, and StartError if a retry cannot help."""

    def __init__(self, settings: Settings) -> None:
        self._timeout = max(settings.stores.store_timeout, settings.stores.start_timeout)
        self._mysql = settings.mysql
        self._mongodb = settings.mongodb
        self._pool: aiomysql.Pool = mysql.make_pool(settings.mysql)
        self._client = mongodb.client(settings.mongodb, self._timeout)
        # Replace bytes that are not UTF-8, rather than skip the message.
        lenient: CodecOptions[dict[str, Any]] = CodecOptions(unicode_decode_error_handler="replace")
        self._database = self._client.get_database(settings.mongodb.name, codec_options=lenient)

    async def close(self) -> None:
        """Close all connections."""
        await mongodb.close(self._client)
        await mysql.close_pool(self._pool)

    async def count_deleted_users(self) -> int:
        """The number of users that are marked as deleted."""
        [[count]] = await self._rows(f"SELECT count(*) FROM {TABLE} WHERE deleted_at IS NOT NULL")  # noqa: S608
        return int(count)

    async def users(self, count: int) -> AsyncIterator[list[GoUser]]:
        """Yield the users that are not deleted, the oldest first, at most `count` at a time."""
        query = f"""SELECT id, user_name, password FROM {TABLE}
            WHERE deleted_at IS NULL AND id > %s ORDER BY id LIMIT %s"""  # noqa: S608
        after = -1
        while page := [
            GoUser(number, _text(name), _text(hashed)) for number, name, hashed in await self._rows(query, after, count)
        ]:
            yield page
            after = page[-1].number

    async def collections(self) -> list[str]:
        """The names of the collections that may contain messages, in order."""
        await mongodb.reach(self._mongodb, self._client, self._timeout)
        names = await self._call(self._database.list_collection_names())
        return sorted(name for name in names if name[:1] == name[-1:] == "p" and SEPARATOR in name[1:-1])

    async def count_documents(self, collection: str) -> int:
        """The estimated number of documents in a collection."""
        return int(await self._call(self._database[collection].estimated_document_count()))

    async def documents(self, collection: str, count: int) -> AsyncIterator[list[GoDocument]]:
        """Yield all documents in any order, at most `count` at a time."""
        cursor = self._database[collection].find({}, batch_size=count)
        while found := await self._call(cursor.to_list(count)):
            yield [_to_document(document) for document in found]

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
                raise StartError(
                    f"[mysql] DbName {self._mysql.db_name} has no table {TABLE}; name the database of the Go server"
                ) from error
            raise

    async def _call(self, work: Any) -> Any:
        return await mongodb.call(work, self._timeout, mongodb.address(self._mongodb))


def _text(value: str | bytes | None) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value or ""


def _to_document(document: Mapping[str, Any]) -> GoDocument:
    id, position = _sort_key(document["_id"])
    content, created = document.get("content"), document.get("created")
    if isinstance(created, bool) or not isinstance(created, int | float):
        created = None
    invalid = ""
    if position == b"":
        invalid = f"its _id is a {type(document['_id']).__name__}"
    elif content is not None and not isinstance(content, str):
        invalid = f"its content is a {type(content).__name__}"
    return GoDocument(
        id=id,
        position=position,
        created=None if created is None else float(created),
        content=content if isinstance(content, str) else "",
        read=document.get("read") == 1,
        ghost=content is None,
        invalid=invalid,
    )


def _sort_key(id: object) -> tuple[str, bytes]:
    """The text of an _id and its sort key: strings before ObjectIds, each by its bytes; empty for other types."""
    if isinstance(id, str):
        return id, b"\x01" + id.encode("utf-8", "replace")
    if isinstance(id, ObjectId):
        return str(id), b"\x02" + id.binary
    return repr(id)[:80], b""
