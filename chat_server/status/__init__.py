"""The status codes, reasons and their texts, and the errors that carry one (protocol section 4)."""

from chat_server.status.codes import Reason, Status
from chat_server.status.refusals import Disconnect, Refused
from chat_server.status.texts import LANGUAGES, text

__all__ = ["LANGUAGES", "Disconnect", "Reason", "Refused", "Status", "text"]
