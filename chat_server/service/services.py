"""The services of a server, connected to each other and to its stores."""

from chat_server.conf import Settings
from chat_server.service.accounts import DAY, Accounts
from chat_server.service.additions import Additions
from chat_server.service.answers import Answers
from chat_server.service.blocking import Blocking
from chat_server.service.blocks import Blocks
from chat_server.service.broadcast import Broadcasts
from chat_server.service.cluster import Cluster
from chat_server.service.cluster_receiver import ClusterReceiver
from chat_server.service.confirmations import Confirmations
from chat_server.service.contact_limit import ContactCache, ContactLimit
from chat_server.service.conversations import ConversationList
from chat_server.service.coordinator import Coordinator, SingleProcess
from chat_server.service.erasure import DeletedGroups
from chat_server.service.frames import Frames
from chat_server.service.groups import Groups
from chat_server.service.live_groups import LiveGroups
from chat_server.service.marks import Marks
from chat_server.service.notices import Notices
from chat_server.service.page_stream import PageStream
from chat_server.service.pages import Pages
from chat_server.service.peers import Peers
from chat_server.service.presence import Presence
from chat_server.service.references import References
from chat_server.service.registry import Registry
from chat_server.service.sending import Sending
from chat_server.service.stores import Stores
from chat_server.service.typing_indicator import TypingIndicator
from chat_server.utils.clock import MICROSECONDS, Clock, Timeline
from chat_server.utils.completion import Completion
from chat_server.utils.metrics import Metrics
from chat_server.utils.passwords import Passwords

# Pairs of users that are cached as free of the contact limit: about 20 MiB.
CACHED_PAIRS = 65536


class Services:
    """Creates all services. The attributes are those that handlers, sockets and periodic tasks use."""

    def __init__(
        self,
        settings: Settings,
        stores: Stores,
        passwords: Passwords,
        clock: Clock,
        timeline: Timeline,
        metrics: Metrics,
    ) -> None:
        users, messages = stores.users, stores.messages
        self.registry = registry = Registry()
        self.frames = frames = Frames(settings.server.language)
        self.blocks = blocks = Blocks(users.blocks)
        live_groups = LiveGroups(users.groups, blocks)
        blocks.changed = live_groups.blocks_changed
        self.presence = presence = Presence(messages, blocks, registry, frames, clock)
        registry.changed = self._changed
        shared = stores.shared
        self.cluster = Cluster(shared.backplane, shared.log, registry) if shared else None
        coordinator: Coordinator = self.cluster or SingleProcess(timeline)
        if self.cluster:
            presence.tell = self.cluster.tell_presence
        self.completion = Completion()
        self.accounts = Accounts(
            settings.accounts,
            users,
            stores.sessions,
            stores.rates,
            passwords,
            registry,
            coordinator,
            self.completion,
        )
        self.peers = peers = Peers(self.accounts, live_groups)
        cache = ContactCache(int(settings.chat.stranger_window * DAY * MICROSECONDS), CACHED_PAIRS)
        self.limit = ContactLimit(messages, stores.sending, cache)

        references, notices = References(messages), Notices(blocks, registry, frames)
        stream = PageStream(self.cluster.lease_check if self.cluster else None)
        self.confirmations = confirmations = Confirmations(messages, notices, out_of_order=bool(shared))
        self.sending = Sending(settings.chat, peers, live_groups, blocks, messages, self.limit, timeline)
        self.answers = Answers(registry, frames, metrics)
        self.pages = Pages(peers, references, messages, confirmations, stream, frames, coordinator)
        self.conversations = ConversationList(peers, live_groups, messages, confirmations, presence, stream, frames)
        self.marks = Marks(peers, references, messages, notices, coordinator)
        self.broadcasts = Broadcasts(settings.chat, stores.rates, registry, frames, timeline, self.cluster)
        self.typing = TypingIndicator(peers, live_groups, self.limit, blocks, registry, frames, clock)

        self.blocking = Blocking(blocks, self.sending.settle, presence, coordinator)
        additions = Additions(settings.chat, self.accounts, messages)
        self.groups = Groups(
            users.groups,
            live_groups,
            additions,
            peers,
            self.sending.settle_group,
            presence,
            notices,
            timeline,
            coordinator,
        )
        self.deleted_groups = DeletedGroups(users.groups, messages)
        self.receiver: ClusterReceiver | None = None  # with several processes
        if shared:
            self.receiver = ClusterReceiver(
                shared.log, registry, self.answers, frames, self.sending, blocks, self.groups, presence, timeline
            )
            self.receiver.refresh = self.refresh

    def _changed(self, user: str) -> None:
        """A socket of a user opened or closed."""
        self.presence.changed(user)
        if self.cluster:
            self.cluster.sockets_changed(user)

    async def refresh(self) -> None:
        """Find what a command has changed: disabled and removed users, and their blocks and groups."""
        await self.accounts.refresh()
        await self.limit.refresh(self.accounts.not_enabled)
        await self.blocks.refresh()
        await self.groups.refresh()
