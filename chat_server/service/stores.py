"""The stores that the services use, whatever their backends."""

from collections.abc import Awaitable, Callable

import msgspec

from chat_server.cache.backplane import Backplane
from chat_server.cache.rates import RateStore
from chat_server.cache.sessions import SessionStore
from chat_server.model.messages import MessageStore
from chat_server.model.users import UserStore
from chat_server.service.contact_limit import SendStrategy


class Stores(msgspec.Struct, frozen=True):
    """The stores of a server. `delete_expired` deletes all expired data, and is called again and again."""

    users: UserStore
    messages: MessageStore
    sessions: SessionStore
    rates: RateStore
    sending: SendStrategy
    backplane: Backplane
    delete_expired: Callable[[], Awaitable[None]]
