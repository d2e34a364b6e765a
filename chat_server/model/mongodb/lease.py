"""The lease that lets only one server use the messages."""

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
        taking = self._leases.find_one_and_update(
            {"_id": "server"}, [{"$set": lease}], upsert=True, return_document=pymongo.ReturnDocument.AFTER
        )
        if (
            taken := await call(taking, self._timeout, self._name)
        ) is None:  # of processes that start together, one wins
            raise StoreUnavailable(f"{self._name}: another process has just taken the lease")
        return bytes(taken["holder"])

    async def release(self, holder: bytes) -> None:
        await call(self._leases.delete_one({"_id": "server", "holder": holder}), self._timeout, self._name)
