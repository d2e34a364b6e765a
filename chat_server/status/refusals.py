"""The two errors that are answers: one leaves the socket open, the other closes it."""

from chat_server.status.codes import Reason, Status


class Refused(Exception):  # noqa: N818 - a refusal is an answer, not an error of the program
    """A request that cannot be done as asked; whoever asked is told why and may go on.

    `status` is the code of the answer, `reason` the word for programs, `why` the sentence for people,
    `field` the name of the field that was wrong, `retry_after` the seconds after which trying again helps.
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
    """A socket that must be closed, with `code` (protocol section 2, Close codes) and the sentence `why`."""

    def __init__(self, code: int, why: str) -> None:
        super().__init__(why)
        self.code = code
        self.why = why
