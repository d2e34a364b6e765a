"""Writes that prove that messages can be stored: permission, primary, disk space."""

import secrets
from typing import Any

from bson import Int64

from chat_server.conf import MongoDBSettings
from chat_server.model.mongodb.connection import address, call, client, close, reach
from chat_server.model.mongodb.documents import CONVERSATIONS, EARLIEST, LATEST, MESSAGES, PROBE


async def probe_writes(messages: Any, conversations: Any, timeout: float, name: str) -> None:
    """Write to both collections as a new message does, and delete what was written. Raises StoreUnavailable.

    The probe is invisible: messages have a positive time as _id, and keys of conversations begin with a name. If a
    process was killed during its probe, the next probe deletes what it left.
    """
    number = secrets.randbits(62)
    message = {"_id": Int64(-number), "conv": "/", "from": "", "mid": f"{number}", "deleted": True, "read": True}
    inbox = {"$set": {"user": "", "peer": "", "last": EARLIEST}}
    await call(conversations.update_one({"_id": f"/{number}"}, inbox, upsert=True), timeout, name)
    await call(messages.insert_one(message), timeout, name)
    await call(messages.delete_many({"_id": {"$gt": -LATEST, "$lte": EARLIEST}}), timeout, name)
    await call(conversations.delete_many({"_id": {"$gte": "/", "$lt": "0"}}), timeout, name)


async def probe(config: MongoDBSettings, timeout: float) -> str:
    """Try what the server's work needs, and return a sentence for --check. Raises as `reach`."""
    mongo, name = client(config, timeout), address(config)
    database = mongo[config.name]
    try:
        if await reach(config, mongo, timeout):
            await probe_writes(database[MESSAGES], database[CONVERSATIONS], timeout, name)
            return "answers, holds our messages"
        await probe_writes(database[PROBE], database[PROBE], timeout, name)
        await call(database.drop_collection(PROBE), timeout, name)  # the writes have created it
        return "answers, empty yet, the first start makes it"
    finally:
        await close(mongo)
