"""Requests about groups, for tests."""

from typing import Any

import httpx

from tests.e2e.http_helpers import check_success, post, send_request
from tests.harness import ServerHandle


async def create(server: ServerHandle, user: str, group: str, *users: str) -> None:
    """Create a group of `user` and `users`."""
    check_success(await post(server, "/group/create", server.tokens[user], group=group, users=users), 42001)


async def add(server: ServerHandle, user: str, group: str, *users: str) -> Any:
    """Add users; return those that were added."""
    return check_success(await post(server, "/group/add", server.tokens[user], group=group, users=users), 42003)


async def remove(server: ServerHandle, user: str, group: str, other: str) -> None:
    """Remove a member."""
    check_success(await post(server, "/group/remove", server.tokens[user], group=group, user_name=other), 42005)


async def delete(server: ServerHandle, user: str, group: str) -> None:
    """Delete a group."""
    check_success(await post(server, "/group/delete", server.tokens[user], group=group), 42007)


async def ask_members(server: ServerHandle, user: str, group: str) -> httpx.Response:
    """Ask for the members of a group."""
    return await ask_members_with(server, server.tokens[user], group)


async def ask_members_with(server: ServerHandle, token: str, group: str) -> httpx.Response:
    """Ask for the members of a group with the session of `token`."""
    headers = {"Authorization": f"Bearer {token}"}
    return await send_request(server, "GET", "/group/members", params={"group": group}, headers=headers)


async def members(server: ServerHandle, user: str, group: str) -> dict[str, Any]:
    """The members of a group as `user` sees them, by name."""
    return {member["user_name"]: member for member in check_success(await ask_members(server, user, group), 42009)}
