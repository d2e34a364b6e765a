"""Opening the message store, for a server of one process or of several."""

from typing import Any

from chat_server.conf import MongoDBSettings
from chat_server.model.mongodb.chain import ChainedMessages
from chat_server.model.mongodb.connection import address
from chat_server.model.mongodb.messages import MongoMessages
from chat_server.utils.clock import Timeline
from chat_server.utils.lease import Held
from chat_server.utils.metrics import NO_STORE_METRICS, StoreMetrics


async def connect(
    config: MongoDBSettings,
    mongo: Any,
    timeout: float,
    days: float,
    held: Held,
    watch: StoreMetrics = NO_STORE_METRICS,
    timeline: Timeline | None = None,
) -> MongoMessages:
    """Open the message store of a database and create its indexes. Raises StoreUnavailable.

    `timeout` in seconds bounds each call; messages expire after `days`, never if that is 0. With a `timeline`, other
    processes may add messages, too.
    """
    options = (mongo[config.name], timeout, held, watch, address(config))
    messages = ChainedMessages(timeline, *options) if timeline else MongoMessages(*options)
    await messages.prepare(days)
    await messages.ping()
    return messages
