"""The stores that the services use, whatever their backends."""

from collections.abc import Awaitable, Callable

import msgspec

from chat_server.cache.backplane import Backplane
from chat_server.cache.rates import RateStore
from chat_server.cache.sessions import SessionStore
from chat_server.model.messages import MessageLog, MessageStore
from chat_server.model.users import UserStore
from chat_server.service.contact_limit import SendStrategy


class ClusterStores(msgspec.Struct, frozen=True):
    """What the processes of a cluster share: the backplane that notifies them, and the log of all messages."""

    backplane: Backplane
    log: MessageLog


class Stores(msgspec.Struct, frozen=True):
    """The stores of a server. `delete_expired` deletes all expired data, and is called again and again.

    `shared` is None if this is the only process.
    """

    users: UserStore
    messages: MessageStore
    sessions: SessionStore
    rates: RateStore
    sending: SendStrategy
    delete_expired: Callable[[], Awaitable[None]]
    shared: ClusterStores | None = None
