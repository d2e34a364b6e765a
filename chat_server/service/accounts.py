"""Users and sessions: register, log in, change the password, log out, authenticate (protocol section 1)."""

import asyncio
import hashlib
import logging
import secrets
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager

import msgspec

from chat_server.cache.rates import Rate, RateStore
from chat_server.cache.sessions import SessionStore
from chat_server.conf import AccountSettings
from chat_server.model.users import State, User, UserStore
from chat_server.service.coordinator import Coordinator
from chat_server.service.names import RULES, is_available, is_name, normal
from chat_server.service.packets import SessionsEnded
from chat_server.service.registry import Registry
from chat_server.status import Reason, Refused, Status
from chat_server.utils.completion import Completion
from chat_server.utils.errors import Duplicate, StoreUnavailable
from chat_server.utils.passwords import Passwords, TooBusy, bad_password

log = logging.getLogger(__name__)

# Names of existing users that are cached, so that sending to them needs no query. About 10 MiB.
KNOWN_NAMES = 65536
# Cached names per query when the cache is refreshed.
PAGE = 1000
# A changed password must end the other sessions. If the store is unavailable, this is tried once a second, so often.
ENDING_TRIES = 5
# Days for which an address is known after a login of the user from there (protocol section 1, Guessing).
KNOWN_DAYS = 365
DAY, HOUR, MINUTE = 86400, 3600, 60


class Session(msgspec.Struct, frozen=True):
    """An existing session: its user, and the digest of its token."""

    user: str
    digest: bytes


class Login(msgspec.Struct, frozen=True):
    """What a successful login returns; `expires_in` in seconds."""

    user_name: str
    token: str
    expires_in: int


class Accounts:
    """The users and their sessions. All methods raise StoreUnavailable if a store fails."""

    def __init__(
        self,
        config: AccountSettings,
        users: UserStore,
        sessions: SessionStore,
        rates: RateStore,
        passwords: Passwords,
        registry: Registry,
        coordinator: Coordinator,
        completion: Completion,
    ) -> None:
        self._config = config
        self._users = users
        self._sessions = sessions
        self._rates = rates
        self._passwords = passwords
        self._registry = registry
        self._coordinator = coordinator
        self._window = config.login_window * MINUTE
        self._known: dict[str, None] = {}
        self._completion = completion

    async def register(self, name: str, password: str, address: str) -> None:
        """Create a user. Raises Refused."""
        failed = Status.REGISTER_FAILED
        if self._config.registration == "closed":
            raise Refused(failed, Reason.REGISTRATION_CLOSED, "registration is closed here")
        name = normal(name)
        if not is_available(name):
            raise Refused(failed, Reason.BAD_NAME, f"user_name: {RULES}", field="user_name")
        self._check_new_password(failed, "password", password)
        with _busy_is_refused(failed):
            self._passwords.check_wait(address)
        if self._config.registrations_per_hour:
            rate = Rate(("register", address), self._config.registrations_per_hour, HOUR)
            await self._take(failed, [rate], "too many registrations from this address")
        taken = Refused(Status.USER_EXISTS, Reason.USER_EXISTS, f"{name} exists already", field="user_name")
        if await self._users.get(name):
            raise taken
        with _busy_is_refused(failed):
            hashed = await self._passwords.hash(password, address)
        try:
            await self._users.add(User(name, hashed))
        except Duplicate:
            raise taken from None
        log.info("user registered", extra={"user": name, "address": address})

    async def login(self, name: str, password: str, address: str) -> Login:
        """Create a session. Raises the same Refused for a wrong name and for a wrong password."""
        name = normal(name)
        user = await self._check_login(name, password, address)
        token = secrets.token_urlsafe(32)
        digest = _digest(token)
        await self._sessions.add(digest, user.name)
        # The password may have changed while it was checked. Then its sessions have ended, and this one must, too.
        if await self._users.get(name) != user:
            await self._sessions.end(digest)
            raise _wrong_password()
        log.info("user logged in", extra={"user": name, "address": address})
        return Login(user.name, token, int(self._config.session_days * DAY))

    async def set_password(self, session: Session, name: str, old: str, new: str, address: str) -> None:
        """Change the password and end every other session of the user. Raises Refused."""
        failed = Status.SET_PASSWORD_FAILED
        _require_own(failed, session, name)
        self._check_new_password(failed, "new_password", new)
        with _busy_is_refused(failed):
            self._passwords.check_wait(address)
        rate = Rate(("old password", session.digest.hex()), self._config.login_failures, self._window)
        user = await self._authenticate(failed, [rate], session.user, old, address)
        with _busy_is_refused(failed):
            hashed = await self._passwords.hash(new, address)
        await self._completion.run(self._change_password(session, user, hashed))

    async def logout(self, session: Session, name: str) -> None:
        """End this session and close its sockets. Raises Refused."""
        _require_own(Status.LOGOUT_FAILED, session, name)
        await self._completion.run(self._end_session(session))
        log.info("user logged out", extra={"user": session.user})

    async def session(self, tokens: Sequence[str]) -> Session:
        """The session of the first valid token, which this use renews. Raises Refused if no token is valid."""
        digests = [_digest(token) for token in tokens]
        users = await self._sessions.use(digests) if digests else {}
        for digest in digests:
            if user := users.get(digest):
                return Session(user, digest)
        raise Refused(Status.NOT_LOGGED_IN, Reason.NOT_LOGGED_IN, "no session, or it has ended: log in")

    def is_cached(self, name: str) -> bool:
        """Whether the cache has this user."""
        return name in self._known

    async def exists(self, name: str, *, removed: bool = False) -> bool:
        """Whether a user has this (normal) name. With `removed`, also a removed user, whose messages remain."""
        if name in self._known:
            return True
        user = await self._users.get(name) if is_name(name) else None
        if user is None or user.state is State.REMOVED:
            return user is not None and removed
        if len(self._known) >= KNOWN_NAMES:
            del self._known[next(iter(self._known))]
        self._known[name] = None
        return True

    async def refresh(self) -> None:
        """Drop from the cache the users whom another process has disabled or removed."""
        names = list(self._known)
        for start in range(0, len(names), PAGE):
            for name in await self.not_enabled(names[start : start + PAGE]):
                self._known.pop(name, None)

    async def not_enabled(self, names: Collection[str]) -> set[str]:
        """The names, of at most PAGE, whose users may not log in or do not exist."""
        return set(names) - await self._users.enabled(list(names))

    async def _end_session(self, session: Session) -> None:
        await self._sessions.end(session.digest)
        await self._registry.end(session.user, only=session.digest)
        await self._coordinator.confirm(SessionsEnded(session.user, session.digest, None))

    async def _change_password(self, session: Session, user: User, hashed: str) -> None:
        # Checked again, because hashing took time. An unavailable store fails here, before anything has changed.
        if not await self._sessions.use([session.digest]):
            raise Refused(Status.NOT_LOGGED_IN, Reason.NOT_LOGGED_IN, "the session has ended: log in")
        try:
            if not await self._users.set_password(user.name, user.password, hashed):
                raise _wrong_password()
        except StoreUnavailable:  # the password may have changed nevertheless
            await self._end_others(session)
            raise
        await self._end_others(session)
        log.info("password changed", extra={"user": user.name})

    async def _end_others(self, session: Session) -> None:
        for _ in range(ENDING_TRIES - 1):
            try:
                return await self._end_others_once(session)
            except StoreUnavailable as error:
                log.warning("sessions not ended", extra={"user": session.user, "why": str(error)})
                await asyncio.sleep(1)
        return await self._end_others_once(session)

    async def _end_others_once(self, session: Session) -> None:
        await self._sessions.end_others(session.user, session.digest)
        await self._registry.end(session.user, keep=session.digest)
        await self._coordinator.confirm(SessionsEnded(session.user, None, session.digest))

    async def _check_login(self, name: str, password: str, address: str) -> User:
        """Check the rates and the password of a login. Raises Refused."""
        config, failed = self._config, Status.LOGIN_FAILED
        with _busy_is_refused(failed):
            self._passwords.check_wait(address)
        # A digest, so that no list of a user's addresses is stored.
        place = hashlib.sha256(f"{address}\0{name}".encode()).hexdigest()
        known = Rate(("logged in", place), 1, KNOWN_DAYS * DAY)
        rates = [
            Rate(("login", name, address), config.login_failures, self._window),
            Rate(("login by address", address), config.login_failures_per_address, self._window),
        ]
        # Guesses from other addresses do not lock users out of an address where they have logged in before.
        if not await self._rates.count(known):
            rates.append(Rate(("login by name", name), 10 * config.login_failures, self._window))
        user = await self._authenticate(failed, rates, name, password, address)
        await self._completion.run(self._renew(known))
        return user

    async def _authenticate(self, failed: Status, rates: list[Rate], name: str, password: str, address: str) -> User:
        """Return the user if the password is right. A failure counts for all rates; a success resets the first rate.

        Failures are counted before hashing, so parallel guesses count too. Raises Refused.
        """
        await self._take(failed, rates, "too many wrong passwords")
        taken = time.monotonic()
        try:
            user = await self._users.get(name) if is_name(name) else None
            with _busy_is_refused(failed):
                right = await self._passwords.check(password, user.password if user else None, address)
        except BaseException:  # the client learned nothing about the password
            await self._completion.run(self._give_back(rates, taken))
            raise
        if not user or not right or user.state is not State.ENABLED:
            # Other input than a name is not logged: it may be a password in the wrong field.
            log.info("password rejected", extra={"user": name if is_name(name) else "", "address": address})
            raise _wrong_password()
        await self._rates.forget(rates[0])
        await self._give_back(rates[1:], taken)
        return user

    async def _renew(self, rate: Rate) -> None:
        await self._rates.forget(rate)
        await self._rates.take([rate])

    async def _take(self, failed: Status, rates: list[Rate], why: str) -> None:
        if wait := await self._rates.take(rates):
            why = f"{why}; try again in {wait:.0f} s"
            raise Refused(failed, Reason.TOO_MANY, why, retry_after=wait)

    async def _give_back(self, rates: list[Rate], taken: float) -> None:
        await self._rates.give_back(rates, time.monotonic() - taken)

    def _check_new_password(self, failed: Status, field: str, password: str) -> None:
        if why := bad_password(password, self._config.min_password_length):
            raise Refused(failed, Reason.BAD_PASSWORD, f"{field}: {why}", field=field)


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()  # as a header may hold any byte


def _require_own(failed: Status, session: Session, name: str) -> None:
    if normal(name) != session.user:
        raise Refused(failed, Reason.NOT_YOURS, "user_name is not the user who is logged in", field="user_name")


def _wrong_password() -> Refused:
    return Refused(Status.WRONG_PASSWORD, Reason.WRONG_PASSWORD, "wrong user name or password")


@contextmanager
def _busy_is_refused(failed: Status) -> Iterator[None]:
    try:
        yield
    except TooBusy as error:
        why = f"too many passwords wait to be checked; try again in {error.retry_after:.0f} s"
        raise Refused(failed, Reason.TOO_MANY, why, retry_after=error.retry_after) from None
