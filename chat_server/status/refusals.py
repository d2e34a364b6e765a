"""The two exceptions that become answers: Refused leaves the socket open, Disconnect closes it."""

from chat_server.status.codes import Reason, Status


class Refused(Exception):  # noqa: N818 - a refusal is an answer, not an error of the program
    """A refused request. The client gets the reason and may continue.

    `status` is the code of the answer, `reason` is for programs, `why` is a sentence for people, `field` names the
    invalid field, and `retry_after` is the number of seconds after which a retry can succeed.
    """

    def __init__(
        self,
        status: Status,
        reason: Reason,
        why: str,
        *,
        field: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(why)
        self.status = status
        self.reason = reason
        self.why = why
        self.field = field
        self.retry_after = retry_after


class Disconnect(Exception):  # noqa: N818 - likewise
    """Close the socket with `code` (docs/protocol.md section 2, Close codes) and the sentence `why`."""

    def __init__(self, code: int, why: str) -> None:
        super().__init__(why)
        self.code = code
        self.why = why
