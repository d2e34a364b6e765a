"""Reading whole conversations in pages."""

import itertools
from collections.abc import AsyncIterator, Sequence

from chat_server.model.messages import ConversationKey, ExportableMessages, Record

# Records in memory at a time, for each conversation that is being read.
PAGE_SIZE = 1000
MAX_TIME = 2**62  # later than every message, in microseconds


async def read_pages(
    messages: ExportableMessages, key: ConversationKey, bounds: Sequence[int] = (0, MAX_TIME)
) -> AsyncIterator[list[Record]]:
    """Yield the records of a conversation after the first time in `bounds` up to the last one, in order of time.

    A page has at most PAGE_SIZE records and ends at the next bound. The target of a copy is read with the times at
    which the pages of the source ended: a range with two ends costs no store more than the records in it.
    """
    for after, until in itertools.pairwise(bounds):
        start = after
        while page := await messages.records(key, start, until, PAGE_SIZE):
            yield page
            start = page[-1].time
            if len(page) < PAGE_SIZE:
                break
