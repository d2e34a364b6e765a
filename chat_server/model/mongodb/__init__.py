"""Messages in MongoDB."""

from chat_server.model.mongodb.chain import ChainedMessages
from chat_server.model.mongodb.connection import POOL, address, call, client, client_options, close, failure, reach
from chat_server.model.mongodb.documents import LATEST
from chat_server.model.mongodb.lease import MongoLease
from chat_server.model.mongodb.messages import MongoMessages
from chat_server.model.mongodb.opening import connect
from chat_server.model.mongodb.probe import probe

__all__ = [
    "LATEST",
    "POOL",
    "ChainedMessages",
    "MongoLease",
    "MongoMessages",
    "address",
    "call",
    "client",
    "client_options",
    "close",
    "connect",
    "failure",
    "probe",
    "reach",
]
