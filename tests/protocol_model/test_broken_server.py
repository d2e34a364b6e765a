"""The model finds a server that is broken on purpose: each function below breaks one rule of groups."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import Phase

from chat_server.model import read_positions
from chat_server.model.groups import Group, GroupLimits, GroupRefusal
from chat_server.model.messages import ConversationKey, Message
from chat_server.model.sqlite.groups import SqliteGroups
from chat_server.model.sqlite.messages import SqliteMessages
from chat_server.service.answers import Answers
from chat_server.service.live_groups import BlocksOf, LiveGroup, LiveGroups
from chat_server.service.marks import Marks
from chat_server.service.notices import Notices
from chat_server.service.registry import Socket
from chat_server.service.sending import Batch, Sending, Sent
from chat_server.status import Refused
from tests.protocol_model.test_protocol_model import run_group_sequences

# Sequences until a fault must be found. They are the same in each run.
SEQUENCES = 30


def removed_members_still_receive(patch: pytest.MonkeyPatch) -> None:
    look_up, deliver, ever = Answers._members, Answers._deliver, defaultdict[int, set[str]](set)

    def members(self: Answers, group: LiveGroup, sender: str) -> tuple[Sequence[Socket], bool]:
        ever[group.key.number].update(group.members)
        return look_up(self, group, sender)

    def deliver_to_all(self: Answers, group: LiveGroup | None, *message: Any) -> None:
        deliver(self, group, *message)
        if group:
            _, frames, deliveries = message
            for former in ever[group.key.number] - group.members.keys():
                for socket in self._registry.sockets(former):
                    socket.deliver(b"".join(frames), deliveries)

    patch.setattr(Answers, "_members", members)
    patch.setattr(Answers, "_deliver", deliver_to_all)


def non_members_read(patch: pytest.MonkeyPatch) -> None:
    original = LiveGroups.find

    async def find(self: LiveGroups, name: str, user: str) -> LiveGroup | None:
        group = await original(self, name, user)
        found = None if group else await self._store.find(name)
        if found:
            return await original(self, name, found.owner) and LiveGroup(
                Group(found.number, name, found.owner, {**found.members, user: 0})
            )
        return group

    patch.setattr(LiveGroups, "find", find)


def history_before_joining_is_shown(patch: pytest.MonkeyPatch) -> None:
    original = SqliteMessages.before

    async def before(
        self: SqliteMessages, key: ConversationKey, time: int, count: int, since: int = 0
    ) -> list[Message]:
        return await original(self, key, time, count)

    patch.setattr(SqliteMessages, "before", before)


def a_position_skips_a_missed_message(patch: pytest.MonkeyPatch) -> None:
    def walk(rows: object, position: int, user: str, confirmed: object, until: int) -> tuple[int, bool]:
        return until, True

    patch.setattr(read_positions, "walk", walk)


def a_position_moves_back(patch: pytest.MonkeyPatch) -> None:
    async def move_position(self: SqliteMessages, number: int, user: str, time: int) -> bool:
        await self.put_positions(number, {user: time})
        return True

    patch.setattr(SqliteMessages, "move_position", move_position)


def a_deleted_group_reappears(patch: pytest.MonkeyPatch) -> None:
    """A new group gets the number of the last one with the same name."""
    original, numbers = SqliteGroups.create, dict[str, int]()

    async def create(
        self: SqliteGroups, number: int, name: str, owner: str, users: Sequence[str], limits: GroupLimits
    ) -> Group | GroupRefusal:
        await self.forget(numbers.get(name, 0))
        free = not await self.find(name)
        return await original(self, numbers.setdefault(name, number) if free else number, name, owner, users, limits)

    patch.setattr(SqliteGroups, "create", create)


def no_member_learns_of_changes(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Notices, "group_changed", lambda *_: None)


def the_removed_user_does_not_learn_of_it(patch: pytest.MonkeyPatch) -> None:
    original = Notices.group_changed

    def group_changed(self: Notices, users: Any, group: str, lines: Sequence[str]) -> None:
        if [f"-{user}" for user in users] != list(lines):
            original(self, users, group, lines)

    patch.setattr(Notices, "group_changed", group_changed)


def the_contact_limit_applies_in_groups(patch: pytest.MonkeyPatch) -> None:
    original = Sending._store_free

    async def store_free(self: Sending, batch: Batch, messages: Sequence[Message]) -> list[Sent | Refused]:
        way = self._store_limited if any(message.group for message in messages) else original.__get__(self)
        return await way(batch, messages)

    patch.setattr(Sending, "_store_free", store_free)


def groups_ignore_blocks(patch: pytest.MonkeyPatch) -> None:
    """Typing passes, and blockers count as online."""

    async def look_up_blocks(self: LiveGroups, group: LiveGroup, user: str) -> BlocksOf:
        return group.blocks.setdefault(user, BlocksOf(frozenset(), frozenset()))

    patch.setattr(LiveGroups, "look_up_blocks", look_up_blocks)


def members_delete_messages_of_others(patch: pytest.MonkeyPatch) -> None:
    original = Marks._delete_in_group

    async def delete(self: Marks, socket: Socket, view: Any, group: LiveGroup, lines: Sequence[str]) -> None:
        owner, group.owner = group.owner, socket.user
        try:
            await original(self, socket, view, group, lines)
        finally:
            group.owner = owner

    patch.setattr(Marks, "_delete_in_group", delete)


FAULTS = [
    removed_members_still_receive,
    non_members_read,
    history_before_joining_is_shown,
    a_position_skips_a_missed_message,
    a_position_moves_back,
    a_deleted_group_reappears,
    no_member_learns_of_changes,
    the_removed_user_does_not_learn_of_it,
    the_contact_limit_applies_in_groups,
    groups_ignore_blocks,
    members_delete_messages_of_others,
]


@pytest.mark.parametrize("break_server", FAULTS)
def test_the_model_finds_a_broken_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, break_server: Callable[[pytest.MonkeyPatch], None]
) -> None:
    break_server(monkeypatch)
    with pytest.raises(AssertionError):
        run_group_sequences(tmp_path, {}, SEQUENCES, Phase.generate)
