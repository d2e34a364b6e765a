"""The tables of users and messages. A released step never changes."""

from chat_server.utils.sqlite import Schema

# groups: `name` is NULL once the group is deleted
# members: of the groups that are not deleted; `since` is the time of joining
USERS_SCHEMA = Schema(
    "users",
    (
        "CREATE TABLE users (name TEXT PRIMARY KEY, password TEXT NOT NULL) STRICT, WITHOUT ROWID",
        "ALTER TABLE users ADD COLUMN state INTEGER NOT NULL DEFAULT 0",
        """CREATE TABLE blocks (user TEXT NOT NULL, blocked TEXT NOT NULL, PRIMARY KEY (user, blocked))
            STRICT, WITHOUT ROWID""",
        "CREATE INDEX blocks_by_blocked ON blocks (blocked)",
        "CREATE TABLE groups (number INTEGER PRIMARY KEY, name TEXT UNIQUE, owner TEXT NOT NULL) STRICT",
        """CREATE TABLE members (number INTEGER NOT NULL, user TEXT NOT NULL, since INTEGER NOT NULL,
            PRIMARY KEY (number, user)) STRICT, WITHOUT ROWID""",
        "CREATE INDEX members_by_user ON members (user)",
        "CREATE INDEX members_by_since ON members (since)",
    ),
)

# messages:
#   time   the key: unique and increasing, so that a page is a range of an index
#   conv   the number of the conversation: the time of its first message; for a group its number, negative
#   side   the sender: 0 for the lesser name of the pair, 1 for the greater; in a group its number in group_senders
#   text   the text; for a deleted message its salted digest, a blob
#   read   always 1 in a group, so that messages_unread contains no message of a group
# conversations: one row per user and peer
#   last   the time of the newest message; negative once all messages are deleted, so that op 7 does not read the row.
#          In the first row of a user's list it may be earlier, but it stays the greatest of the list: op 7 needs only
#          the order, so a new message of the first conversation does not write this row
# batches: inserting the rows of both tables here, as JSON, stores a whole batch with one statement
# raised: inserting rows of `conversations` here moves them to the time of a new message. The row that was first until
#         then gets its exact time, so that all rows but the first are always exact
# group_senders: the number of each user who has written in a group, also after leaving it
# group_positions: the time up to which a member has read a group
MESSAGES_SCHEMA = Schema(
    "messages",
    (
        """CREATE TABLE messages (
            time INTEGER PRIMARY KEY,
            conv INTEGER NOT NULL,
            side INTEGER NOT NULL,
            id TEXT NOT NULL,
            text ANY NOT NULL,
            read INTEGER NOT NULL DEFAULT 0,
            deleted INTEGER NOT NULL DEFAULT 0
        ) STRICT""",
        "CREATE UNIQUE INDEX messages_by_id ON messages (conv, side, id)",
        "CREATE INDEX messages_by_time ON messages (conv, deleted, time)",
        "CREATE INDEX messages_unread ON messages (conv, side, time) WHERE read = 0",
        """CREATE TABLE conversations (
            user TEXT NOT NULL,
            peer TEXT NOT NULL,
            conv INTEGER NOT NULL,
            side INTEGER NOT NULL,
            last INTEGER NOT NULL,
            PRIMARY KEY (user, peer)
        ) STRICT, WITHOUT ROWID""",
        "CREATE INDEX conversations_by_time ON conversations (user, last)",
        "CREATE INDEX conversations_by_number ON conversations (conv)",
        "CREATE VIEW batches (messages, conversations) AS SELECT NULL, NULL",
        """CREATE TRIGGER batches_stored INSTEAD OF INSERT ON batches BEGIN
            INSERT INTO messages (time, conv, side, id, text)
                SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]'), json_extract(value, '$[2]'),
                    json_extract(value, '$[3]'), json_extract(value, '$[4]') FROM json_each(new.messages);
            INSERT INTO conversations (user, peer, conv, side, last)
                SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]'), json_extract(value, '$[2]'),
                    json_extract(value, '$[3]'), json_extract(value, '$[4]') FROM json_each(new.conversations)
                WHERE true ON CONFLICT (user, peer) DO UPDATE SET last = max(last, excluded.last);
        END""",
        """UPDATE conversations SET last = -last WHERE last > 0
            AND NOT EXISTS (SELECT 1 FROM messages WHERE conv = conversations.conv AND deleted = 0)""",
        "CREATE VIEW raised (user, peer, conv, side, last) AS SELECT NULL, NULL, NULL, NULL, NULL",
        """CREATE TRIGGER raised_written INSTEAD OF INSERT ON raised BEGIN
            UPDATE conversations SET last = max(last, coalesce(
                    (SELECT time FROM messages WHERE conv = conversations.conv AND deleted = 0
                        ORDER BY time DESC LIMIT 1), 0))
                WHERE user = new.user AND peer =
                    (SELECT peer FROM conversations WHERE user = new.user AND last > 0 ORDER BY last DESC LIMIT 1);
            INSERT INTO conversations (user, peer, conv, side, last)
                VALUES (new.user, new.peer, new.conv, new.side, new.last)
                ON CONFLICT (user, peer) DO UPDATE SET last = max(last, excluded.last);
        END""",
        "DROP TRIGGER batches_stored",
        """CREATE TRIGGER batches_stored INSTEAD OF INSERT ON batches BEGIN
            INSERT INTO messages (time, conv, side, id, text)
                SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]'), json_extract(value, '$[2]'),
                    json_extract(value, '$[3]'), json_extract(value, '$[4]') FROM json_each(new.messages);
            INSERT INTO raised (user, peer, conv, side, last)
                SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]'), json_extract(value, '$[2]'),
                    json_extract(value, '$[3]'), json_extract(value, '$[4]') FROM json_each(new.conversations)
                WHERE json_extract(value, '$[1]') IS NOT (SELECT peer FROM conversations
                    WHERE user = json_extract(value, '$[0]') AND last > 0 ORDER BY last DESC LIMIT 1);
        END""",
        """CREATE TABLE group_senders (
            conv INTEGER NOT NULL,
            user TEXT NOT NULL,
            side INTEGER NOT NULL,
            PRIMARY KEY (conv, user)
        ) STRICT, WITHOUT ROWID""",
        "CREATE UNIQUE INDEX group_senders_by_side ON group_senders (conv, side)",
        """CREATE TABLE group_positions (
            conv INTEGER NOT NULL,
            user TEXT NOT NULL,
            position INTEGER NOT NULL,
            PRIMARY KEY (conv, user)
        ) STRICT, WITHOUT ROWID""",
        "CREATE INDEX messages_of_groups ON messages (conv, id) WHERE conv < 0",
        "DROP TRIGGER batches_stored",
        """CREATE TRIGGER batches_stored INSTEAD OF INSERT ON batches BEGIN
            INSERT INTO messages (time, conv, side, id, text, read)
                SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]'), json_extract(value, '$[2]'),
                    json_extract(value, '$[3]'), json_extract(value, '$[4]'), json_extract(value, '$[1]') < 0
                    FROM json_each(new.messages);
            INSERT INTO raised (user, peer, conv, side, last)
                SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]'), json_extract(value, '$[2]'),
                    json_extract(value, '$[3]'), json_extract(value, '$[4]') FROM json_each(new.conversations)
                WHERE json_extract(value, '$[1]') IS NOT (SELECT peer FROM conversations
                    WHERE user = json_extract(value, '$[0]') AND last > 0 ORDER BY last DESC LIMIT 1);
        END""",
    ),
)
