"""From requests to answers: the table of ops, and batches of sends from all sockets."""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

from chat_server.api.connection import Connection
from chat_server.api.inbox import BAD_FRAME
from chat_server.api.limits import ANSWERS_AT_ONCE, LARGE_AT_ONCE, LARGE_BYTES, LARGE_TIMEOUT, SHARED_BATCHES
from chat_server.service import frames
from chat_server.service.answers import INTERNAL, SENDING_FAILED, Answer
from chat_server.service.cluster import Cluster
from chat_server.service.frames import SEND, Request
from chat_server.service.sending import Batch
from chat_server.service.services import Services
from chat_server.status import Reason, Refused, Status
from chat_server.utils.errors import StoreUnavailable
from chat_server.utils.locks import ConcurrencyLimiter

log = logging.getLogger(__name__)

Sends = tuple[Connection, Batch]  # a batch, and the connection that it came from


class Op(NamedTuple):
    """What an op does, and the code of its failure."""

    do: Callable[[Connection, Request], Awaitable[Answer]]
    failed: Status


class Dispatcher:
    """Works on the requests of all sockets and has them answered, those of each socket in order."""

    def __init__(self, services: Services) -> None:
        self._sending = services.sending
        self._answers = services.answers
        self._ops = {
            frames.HISTORY: Op(services.pages.history, Status.HISTORY_FAILED),
            frames.UNREAD: Op(services.pages.unread, Status.HISTORY_FAILED),
            frames.MARK_READ: Op(services.marks.mark_read, Status.MARK_READ_FAILED),
            frames.DELETE: Op(services.marks.delete, Status.DELETE_FAILED),
            frames.BROADCAST: Op(services.broadcasts.broadcast, Status.SEND_FAILED),
            frames.CONVERSATIONS: Op(services.conversations.conversations, Status.CONVERSATIONS_FAILED),
            frames.TYPING: Op(services.typing.typing, Status.TYPING_FAILED),
        }
        self._cluster = services.cluster
        self._loop = asyncio.get_running_loop()
        self._large = ConcurrencyLimiter(LARGE_AT_ONCE, LARGE_TIMEOUT)
        self._ready: list[Connection] = []
        self._scheduled = False  # the next loop iteration begins with the requests of _ready
        self._due: deque[Sends] = deque()  # stored, but not answered yet
        self._answering = False  # a call of _answer is scheduled
        self._tasks: set[asyncio.Task[None]] = set()

    def add(self, connection: Connection) -> None:
        """Work on the requests of a connection whose inbox is active."""
        self._ready.append(connection)
        if not self._scheduled:
            # A task begins with the next loop iteration: by then all frames that arrived with this one are in inboxes.
            self._begin(self._work())  # if this fails without memory, the next call tries again
            self._scheduled = True

    async def finish(self) -> None:
        """Wait until no request is in work."""
        while self._tasks or self._due:
            await asyncio.wait(self._tasks) if self._tasks else await asyncio.sleep(0)

    async def _work(self) -> None:
        """Begin with the requests of all ready connections, and send together what can be sent together."""
        self._scheduled = False
        connections, self._ready = self._ready, []
        batches = self._take(connections)
        while len(batches) > SHARED_BATCHES:
            self._begin(self._send(batches[:SHARED_BATCHES]))
            batches = batches[SHARED_BATCHES:]
        await self._send(batches)

    def _take(self, connections: Sequence[Connection]) -> list[Sends]:
        """Begin with what each connection asks for next. Returns the sends that may share one call to the store."""
        shared = []
        lapsed = self._cluster and self._cluster.lapsed()  # then this process may do nothing
        check = self._cluster.lease_check() if self._cluster else None
        for connection in connections:
            items, size = connection.inbox.take()
            first = items[0] if items else None
            if first is None:  # dropped by a close
                self._done(connection)
            elif isinstance(first, Refused):
                self._answers.refused(connection, BAD_FRAME, first)
                self._done(connection)
            elif first.op_type != SEND:
                if lapsed:
                    self._answers.refused(connection, first.op_type, _lapsed(self._ops[first.op_type].failed))
                    self._done(connection)
                else:
                    self._begin(self._do(connection, first))
            else:
                batch = self._sending.batch(connection, items)
                batch.check = check
                if lapsed:
                    batch.results = [_lapsed(Status.SEND_FAILED)] * len(items)
                    self._due.append((connection, batch))  # behind those that are stored already
                    self._schedule_answers()
                elif batch.direct and size <= LARGE_BYTES:
                    shared.append((connection, batch))
                else:
                    batch.direct = False  # it waits: by then, a block may exist
                    self._begin(self._send([(connection, batch)], large=size > LARGE_BYTES))
        return shared

    async def _send(self, batches: list[Sends], *, large: bool = False) -> None:
        """Store these batches together and have them answered; then go on with the next sends of their connections."""
        while batches:
            await self._store([batch for _, batch in batches], large)
            # Pipelining: the next sends go to the store at once. From the next loop iteration on, while the store works
            # on them, these are answered. Other requests wait until the sends before them are answered.
            if self._cluster:
                batches = self._forward(self._cluster, batches)
            self._due.extend(batches)
            self._schedule_answers()
            batches = self._take([one for one, _ in batches if one.inbox.next_is_send()])
            large = False  # `_take` begins large batches in tasks of their own

    def _forward(self, cluster: Cluster, batches: Sequence[Sends]) -> list[Sends]:
        """Publish the messages to other processes. Returns the batches that can be answered without waiting for these.

        The others are answered later, and before the next requests of their connections, so the order stays.
        """
        ready, waiting, results = list[Sends](), list[Sends](), list[Awaitable[None]]()
        for connection, batch in batches:
            _refuse_after_lapse(batch)
            if result := cluster.forward(batch):
                waiting.append((connection, batch))
                results.append(result)
            else:
                ready.append((connection, batch))
        if waiting:
            self._begin(self._answer_later(waiting, results))
        return ready

    async def _answer_later(self, batches: list[Sends], results: Sequence[Awaitable[None]]) -> None:
        await asyncio.gather(*results, return_exceptions=True)
        self._due.extend(batches)
        self._schedule_answers()
        await self._send(self._take([one for one, _ in batches if one.inbox.next_is_send()]))

    async def _store(self, batches: list[Batch], large: bool) -> None:
        try:
            async with self._large.hold(batches[0].socket.user) if large else nullcontext():
                await self._sending.send(batches)
        except StoreUnavailable:
            refused = Refused(Status.SEND_FAILED, Reason.STORE_AWAY, "the store is busy, send it again")
        except Exception:
            if len(batches) > 1:  # one is at fault: each alone, so that the others are stored
                for batch in batches:
                    batch.direct = False
                    await self._store([batch], large)
                return
            log.exception("frame failed", extra={"op": SEND})
            refused = SENDING_FAILED
        else:
            return
        for batch in batches:
            batch.results = [refused] * len(batch.requests)

    def _schedule_answers(self) -> None:
        if self._due and not self._answering:
            self._loop.call_soon(self._answer)
            self._answering = True

    def _answer(self) -> None:
        """Answer stored batches in order, with a bounded amount of work in one loop iteration."""
        self._answering = False
        work = 0
        while self._due and work < ANSWERS_AT_ONCE:
            connection, batch = self._due.popleft()
            _refuse_after_lapse(batch)
            try:
                work += self._answers.sent(batch)
            except Exception:  # without memory for the answers: the client must not wait for them
                connection.disconnect()
                log.exception("frame failed", extra={"op": SEND})
            finally:
                self._sending.finish(batch)
                self._done(connection)
        self._schedule_answers()

    async def _do(self, connection: Connection, request: Request) -> None:
        """Do what a request asks for that is no send, and answer it."""
        op, failed = request.op_type, self._ops[request.op_type].failed
        try:
            self._answers.answered(connection, op, await self._ops[op].do(connection, request))
        except Refused as refused:
            self._answers.refused(connection, op, refused)
        except StoreUnavailable as error:
            log.warning("store unavailable", extra={"op": op, "error": str(error)})
            self._answers.refused(connection, op, Refused(failed, Reason.STORE_AWAY, "a store is away, try again"))
        except ConnectionError:
            connection.inbox.clear()  # the peer has disconnected
        except Exception:
            log.exception("frame failed", extra={"op": op})
            self._answers.refused(connection, op, Refused(failed, Reason.INTERNAL, INTERNAL))
        finally:
            self._done(connection)

    def _done(self, connection: Connection) -> None:
        if connection.inbox.done():
            self.add(connection)

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _refuse_after_lapse(batch: Batch) -> None:
    """Acknowledge, publish and deliver nothing that was checked before a lapse of the lease: blocks may exist now."""
    try:
        if batch.check:
            batch.check()
    except StoreUnavailable:
        batch.results = [_lapsed(Status.SEND_FAILED)] * len(batch.requests)


def _lapsed(failed: Status) -> Refused:
    return Refused(failed, Reason.STORE_AWAY, "this server cannot reach the others, send it again")
