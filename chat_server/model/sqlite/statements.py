"""The SQL of the message store."""

_COLUMNS = "time, side, id, text, read"
SENDER = "(SELECT user FROM group_senders AS s WHERE s.conv = messages.conv AND s.side = messages.side)"  # of a group
_NEWEST = "SELECT time FROM messages WHERE conv = {conv} AND deleted = {deleted} ORDER BY time DESC LIMIT 1"

CONVERSATION = "SELECT conv FROM conversations WHERE user = ? AND peer = ?"
BY_ID = "SELECT time, text, read FROM messages WHERE conv = ? AND side = ? AND id = ?"

# --- pages

# `{sender}` is the attribute of PairRows or GroupRows.
_ROW = "time, {sender} AS sender, id, text, read"
PAGE_COLUMNS = "time, sender, id, text, read"
PAGE = f"SELECT {_ROW} FROM messages WHERE conv = ? AND deleted = 0 AND time > ? "  # noqa: S608 - constants only
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

MESSAGES, ON_USED_ID = "messages (time, conv, side, id, text, read)", "(conv, side, id) DO NOTHING"
_TOP = "SELECT peer FROM conversations WHERE user = {user} AND last > 0 ORDER BY last DESC LIMIT 1"
RAISE = f"""INSERT INTO raised (user, peer, conv, side, last)
    SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]'), json_extract(value, '$[2]'),
        json_extract(value, '$[3]'), json_extract(value, '$[4]') FROM json_each(?)
    WHERE json_extract(value, '$[1]') IS NOT ({_TOP.format(user="json_extract(value, '$[0]')")})"""  # noqa: S608
ADD_BATCH = "INSERT INTO batches (messages, conversations) VALUES (?, ?)"

# --- groups

SIDE = "SELECT side FROM group_senders WHERE conv = ? AND user = ?"
NEW_SENDER = """INSERT INTO group_senders (conv, user, side)
    SELECT ?1, ?2, coalesce(max(side) + 1, 0) FROM group_senders WHERE conv = ?1 RETURNING side"""
NEWEST_WITH_ID = f"""SELECT {SENDER}, time FROM messages
    WHERE conv = ? AND conv < 0 AND id = ? ORDER BY time DESC LIMIT 1"""  # noqa: S608
GROUPS_LISTED_COLUMNS = "key, time, sender, id, text, unread"
GROUPS_LISTED = f"""WITH g AS MATERIALIZED (SELECT key, v.conv, v.since, s.side,
            max(v.since, coalesce(p.position, 0)) AS position
        FROM (SELECT key, json_extract(value, '$[0]') AS conv, json_extract(value, '$[1]') AS since
            FROM json_each(?2)) AS v
        LEFT JOIN group_senders AS s ON s.conv = v.conv AND s.user = ?1
        LEFT JOIN group_positions AS p ON p.conv = v.conv AND p.user = ?1)
    SELECT key, time, {SENDER} AS sender, messages.id AS id, text, (SELECT count(*) FROM
            (SELECT side FROM messages WHERE conv = g.conv AND deleted = 0 AND time > g.position ORDER BY time LIMIT ?3)
            WHERE side IS NOT g.side) AS unread
    FROM g LEFT JOIN messages ON time = (SELECT time FROM messages
        WHERE conv = g.conv AND deleted = 0 AND time > g.since ORDER BY time DESC LIMIT 1)"""  # noqa: S608
POSITIONS = "SELECT conv, user, position FROM group_positions WHERE conv IN (SELECT value FROM json_each(?))"
POSITIONS_OF = """SELECT user, position FROM group_positions
    WHERE conv = ? AND user IN (SELECT value FROM json_each(?))"""
PUT_POSITIONS = """INSERT INTO group_positions (conv, user, position)
    SELECT ?1, json_extract(value, '$[0]'), json_extract(value, '$[1]') FROM json_each(?2)
    WHERE true ON CONFLICT (conv, user) DO UPDATE SET position = excluded.position"""
MOVE_POSITIONS = f"{PUT_POSITIONS} WHERE position < excluded.position RETURNING user"
_SENT = "FROM messages WHERE conv = ?1 AND side = (SELECT side FROM group_senders WHERE conv = ?1 AND user = ?2)"
LEFT_BY = f"""SELECT 1 {_SENT}
    UNION ALL SELECT 1 FROM group_positions WHERE conv = ?1 AND user = ?2 LIMIT 1"""  # noqa: S608
ERASE_SENT = f"DELETE FROM messages WHERE time IN (SELECT time {_SENT} LIMIT ?3)"  # noqa: S608
REMOVE_POSITION = "DELETE FROM group_positions WHERE conv = ? AND user = ?"
RANGES_COLUMNS = "json(rows)"
RANGES = f"""SELECT (SELECT json_group_array(json_array(time, sender))
        FROM (SELECT time, {SENDER} AS sender FROM messages
        WHERE conv = ?1 AND deleted = 0 AND time > json_extract(range.value, '$[0]')
            AND time <= json_extract(range.value, '$[1]') ORDER BY time LIMIT ?2)) AS rows
    FROM json_each(?3) AS range LIMIT -1"""  # noqa: S608

# --- migration

_RECORDS = f"""SELECT * FROM (SELECT {_ROW} FROM messages
    WHERE conv = ?1 AND deleted = {{deleted}} AND time > ?2 AND time <= ?3 ORDER BY time LIMIT ?4)"""  # noqa: S608
RECORDS = " UNION ALL ".join(_RECORDS.replace("{deleted}", f"{deleted}") for deleted in (0, 1))
RECORDS += " ORDER BY time LIMIT ?4"
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
