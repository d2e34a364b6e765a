"""Status codes, reasons, their texts, and the exceptions that carry them (docs/protocol.md section 4)."""

from chat_server.status.codes import Reason, Status
from chat_server.status.refusals import Disconnect, Refused
from chat_server.status.texts import LANGUAGES, text

__all__ = ["LANGUAGES", "Disconnect", "Reason", "Refused", "Status", "text"]
