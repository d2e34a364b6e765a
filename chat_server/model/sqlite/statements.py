"""The SQL of the message store."""

_COLUMNS = "time, side, id, text, read"
_NEWEST = "SELECT time FROM messages WHERE conv = {conv} AND deleted = {deleted} ORDER BY time DESC LIMIT 1"

CONVERSATION = "SELECT conv FROM conversations WHERE user = ? AND peer = ?"
BY_ID = "SELECT time, text, read FROM messages WHERE conv = ? AND side = ? AND id = ?"

# --- pages

PAGE_COLUMNS = _COLUMNS
PAGE = f"SELECT {_COLUMNS} FROM messages WHERE conv = ? AND deleted = 0 AND time > ? "  # noqa: S608 - constants only
UNREAD = """SELECT time, id, text FROM messages
    WHERE conv = ? AND side = ? AND read = 0 AND time > ? ORDER BY time LIMIT ?"""
RECENT = "SELECT time, side FROM messages WHERE conv = ? AND deleted = ? ORDER BY time DESC LIMIT ?"
HAVE_WRITTEN = """SELECT sender.value FROM json_each(?1) AS sender
    WHERE EXISTS (SELECT 1 FROM conversations AS c CROSS JOIN messages AS m
        WHERE c.user = ?2 AND c.peer = sender.value AND m.conv = c.conv AND m.side = 1 - c.side)"""
LISTED_COLUMNS = f"peer, {_COLUMNS}, unread"
LISTED = f"""SELECT peer, m.time, m.side, m.id, m.text, m.read, (SELECT count(*) FROM
            (SELECT 1 FROM messages WHERE conv = c.conv AND side = 1 - c.side AND read = 0 LIMIT ?1)) AS unread
    FROM conversations c CROSS JOIN messages m
    WHERE user = ?2 AND last > 0 AND last < ?3 AND m.time < ?3
        AND m.time = ({_NEWEST.format(conv="c.conv", deleted=0)})
    ORDER BY last DESC LIMIT ?4"""  # noqa: S608

# --- marks and deletions

BY_KEYS_COLUMNS = "time, side, id, read, deleted"
BY_KEYS = """SELECT time, side, m.id AS id, read, deleted FROM json_each(?) AS n CROSS JOIN messages AS m
    WHERE conv = ? AND side = json_extract(n.value, '$[0]') AND m.id = json_extract(n.value, '$[1]') LIMIT 1000"""
UNREAD_TIMES = """SELECT json_group_array(time) FROM messages
    WHERE time IN (SELECT value FROM json_each(?)) AND read = 0"""
MARK = "UPDATE messages SET read = 1 WHERE time IN (SELECT value FROM json_each(?))"
# After a deletion, list a conversation at its newest message if that is older than `last`. Without messages, hide it.
LOWER = f"""UPDATE conversations SET last = coalesce(({_NEWEST.format(conv="?1", deleted=0)}), -last)
    WHERE conv = ?1 AND last > coalesce(({_NEWEST.format(conv="?1", deleted=0)}), 0)"""  # noqa: S608
PURGE = """DELETE FROM messages WHERE time IN
    (SELECT time FROM messages WHERE time < ? ORDER BY time LIMIT ?) RETURNING conv"""
REMOVE_IF_EMPTY = """DELETE FROM conversations
    WHERE conv = ?1 AND NOT EXISTS (SELECT 1 FROM messages WHERE conv = ?1)"""

# --- adding

MESSAGES, ON_USED_ID = "messages (time, conv, side, id, text)", "(conv, side, id) DO NOTHING"
_TOP = "SELECT peer FROM conversations WHERE user = {user} AND last > 0 ORDER BY last DESC LIMIT 1"
RAISE = f"""INSERT INTO raised (user, peer, conv, side, last)
    SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]'), json_extract(value, '$[2]'),
        json_extract(value, '$[3]'), json_extract(value, '$[4]') FROM json_each(?)
    WHERE json_extract(value, '$[1]') IS NOT ({_TOP.format(user="json_extract(value, '$[0]')")})"""  # noqa: S608
ADD_BATCH = "INSERT INTO batches (messages, conversations) VALUES (?, ?)"

# --- migration

_RANGE = f"""SELECT * FROM (SELECT {_COLUMNS} FROM messages
    WHERE conv = ?1 AND deleted = {{}} AND time > ?2 AND time <= ?3 ORDER BY time LIMIT ?4)"""  # noqa: S608
RECORDS = " UNION ALL ".join(_RANGE.format(deleted) for deleted in (0, 1)) + " ORDER BY time LIMIT ?4"
PAIRS = """SELECT user, peer FROM conversations
    WHERE (user, peer) > (?, ?) AND user < peer ORDER BY user, peer LIMIT ?"""
PUT = """INSERT INTO messages (time, conv, side, id, text, read, deleted) VALUES (?, ?, ?, ?, ?, ?, ?)
    ON CONFLICT (time) DO UPDATE SET text = excluded.text, read = excluded.read, deleted = excluded.deleted
        WHERE conv = excluded.conv AND side = excluded.side AND id = excluded.id"""
OTHER_PAIR = "SELECT 1 FROM conversations WHERE conv = ? AND user < peer AND (user, peer) != (?, ?)"
NEW_PAIR = "INSERT INTO conversations (user, peer, conv, side, last) VALUES (?, ?, ?, ?, ?) ON CONFLICT DO NOTHING"
# `last` of the first conversation of a user may be too early (see schema); this makes it exact.
EXACT_TOP = f"""UPDATE conversations SET
    last = max(last, coalesce(({_NEWEST.format(conv="conversations.conv", deleted=0)}), 0))
    WHERE user = ?1 AND peer = ({_TOP.format(user="?1")})"""  # noqa: S608
UPDATE_LAST = f"""UPDATE conversations SET last = coalesce(
    ({_NEWEST.format(conv="?1", deleted=0)}), -({_NEWEST.format(conv="?1", deleted=1)}), last)
    WHERE conv = ?1"""  # noqa: S608
# The number of a conversation is the time of a message that may no longer exist.
USED_TIME = "SELECT 1 FROM messages WHERE time = ?1 UNION ALL SELECT 1 FROM conversations WHERE conv = ?1"
