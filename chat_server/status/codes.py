"""Status codes and reasons, for programs. They are part of the contract: their meaning never changes."""

from enum import IntEnum, StrEnum


class Status(IntEnum):
    """The status codes (docs/protocol.md section 4), the same for HTTP and WebSocket."""

    OK = 200
    BAD_REQUEST = 400
    NOT_FOUND = 404

    FRAME_BAD = 40000
    FRAME_OK = 40001
    CONNECT_FAILED = 40002
    CONNECTED = 40003
    HISTORY_FAILED = 40004
    HISTORY = 40005
    MARK_READ_FAILED = 40006
    MARKED_READ = 40007
    SEND_FAILED = 40008
    SENT = 40009
    RECEIVE_FAILED = 40010
    RECEIVED = 40011
    DELETE_FAILED = 40012
    DELETED = 40013
    SOCKET_FAILED = 40014
    SOCKET_CREATED = 40015
    DISCONNECT_FAILED = 40016
    DISCONNECTED = 40017
    RECEIVER_ONLINE = 40018
    RECEIVER_OFFLINE = 40019
    REFUSED_BY_LIMIT = 40020
    ALLOWED_AGAIN = 40021
    CONVERSATIONS_FAILED = 40022
    CONVERSATIONS = 40023
    TYPING_FAILED = 40024
    TYPING = 40025
    PRESENCE = 40027

    UNKNOWN = 44444

    REGISTER_FAILED = 41000
    REGISTERED = 41001
    LOGIN_FAILED = 41002
    LOGGED_IN = 41003
    SET_PASSWORD_FAILED = 41004
    PASSWORD_SET = 41005
    NO_SUCH_USER = 41006
    USER_EXISTS = 41007
    SESSION_NOT_STORED = 41008
    SESSION_STORED = 41009
    WRONG_PASSWORD = 41010
    RIGHT_PASSWORD = 41011
    NOT_LOGGED_IN = 41012
    ALREADY_LOGGED_IN = 41013
    LOGOUT_FAILED = 41014
    LOGGED_OUT = 41015

    GROUP_CREATE_FAILED = 42000
    GROUP_CREATED = 42001
    GROUP_ADD_FAILED = 42002
    GROUP_ADDED = 42003
    GROUP_REMOVE_FAILED = 42004
    GROUP_REMOVED = 42005
    GROUP_DELETE_FAILED = 42006
    GROUP_DELETED = 42007
    GROUP_MEMBERS_FAILED = 42008
    GROUP_MEMBERS = 42009
    GROUP_CHANGED = 42011

    BLOCK_FAILED = 43000
    BLOCKED = 43001
    UNBLOCK_FAILED = 43002
    UNBLOCKED = 43003
    BLOCKED_USERS_FAILED = 43004
    BLOCKED_USERS = 43005


class Reason(StrEnum):
    """The reasons of refusals, a closed list (docs/protocol.md section 4)."""

    BAD_JSON = "bad_json"
    BAD_FRAME = "bad_frame"
    BAD_REQUEST = "bad_request"
    UNKNOWN_OP = "unknown_op"
    WRONG_FROM = "wrong_from"
    NO_SUCH_USER = "no_such_user"
    TO_YOURSELF = "to_yourself"
    BAD_ID = "bad_id"
    ID_USED = "id_used"
    NO_SUCH_MESSAGE = "no_such_message"
    EMPTY = "empty"
    TOO_LONG = "too_long"
    BAD_PAGE = "bad_page"
    REFUSED_BY_LIMIT = "refused_by_limit"
    YOU_BLOCKED = "you_blocked"
    TOO_MANY = "too_many"
    STORE_AWAY = "store_away"
    BAD_NAME = "bad_name"
    BAD_PASSWORD = "bad_password"  # noqa: S105 - a reason, not a secret
    USER_EXISTS = "user_exists"
    GROUP_EXISTS = "group_exists"
    NO_SUCH_GROUP = "no_such_group"
    GROUP_FULL = "group_full"
    WRONG_PASSWORD = "wrong_password"  # noqa: S105 - a reason, not a secret
    NOT_LOGGED_IN = "not_logged_in"
    NOT_YOURS = "not_yours"
    FOREIGN_ORIGIN = "foreign_origin"
    REGISTRATION_CLOSED = "registration_closed"
    NO_UPGRADE = "no_upgrade"
    NOT_FOUND = "not_found"
    METHOD_NOT_ALLOWED = "method_not_allowed"
    TOO_LARGE = "too_large"
    BAD_CONTENT_TYPE = "bad_content_type"
    INTERNAL = "internal"
