"""The lease that lets only one server use the messages."""

import secrets
from typing import Any

import pymongo

from chat_server.model.mongodb.connection import call
from chat_server.model.mongodb.documents import LEASES
from chat_server.utils.errors import StoreUnavailable


class MongoLease:
    """LeaseStore on MongoDB. It uses MongoDB's clock, so the clocks of the hosts may differ."""

    def __init__(self, database: Any, timeout: float, name: str = "MongoDB") -> None:
        self._leases = database[LEASES]
        self._timeout = timeout
        self._name = name

    async def take(self, holder: bytes, seconds: float, instead_of: bytes | None) -> bytes:
        now = {"$divide": [{"$toLong": "$$NOW"}, 1000]}
        mine = [holder] if instead_of is None else [holder, instead_of]
        free = {"$or": [{"$in": ["$holder", mine]}, {"$lt": [{"$ifNull": ["$until", 0]}, now]}]}
        lease = {
            "holder": {"$cond": [free, {"$literal": holder}, "$holder"]},
            "until": {"$cond": [free, {"$add": [now, seconds]}, "$until"]},
        }
        return bytes((await self._upsert("server", [{"$set": lease}]))["holder"])

    async def release(self, holder: bytes) -> None:
        await call(self._leases.delete_one({"_id": "server", "holder": holder}), self._timeout, self._name)

    async def number(self) -> str:
        """Return the random number of this database, which the first call stores."""
        return str((await self._upsert("number", {"$setOnInsert": {"number": secrets.token_hex(4)}}))["number"])

    async def _upsert(self, id: str, update: Any) -> Any:
        for _ in range(2):  # of processes that start together, one inserts, and the others find its document then
            updating = self._leases.find_one_and_update(
                {"_id": id}, update, upsert=True, return_document=pymongo.ReturnDocument.AFTER
            )
            if (updated := await call(updating, self._timeout, self._name)) is not None:
                return updated
        raise StoreUnavailable(f"{self._name}: another process has just taken the lease")
