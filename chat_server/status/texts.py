"""The text of each status code, in Chinese and English."""

from chat_server.status.codes import Status

LANGUAGES = ("zh", "en")

_TEXTS: dict[Status, tuple[str, str]] = {
    Status.OK: ("成功", "ok"),
    Status.BAD_REQUEST: ("请求有误", "bad request"),
    Status.NOT_FOUND: ("没有这个地址", "not found"),
    Status.FRAME_BAD: ("无法理解的消息帧", "frame not understood"),
    Status.FRAME_OK: ("消息帧已理解", "frame understood"),
    Status.CONNECT_FAILED: ("连接失败", "connecting failed"),
    Status.CONNECTED: ("连接成功", "connected"),
    Status.HISTORY_FAILED: ("获取聊天记录失败", "history failed"),
    Status.HISTORY: ("聊天记录", "history"),
    Status.MARK_READ_FAILED: ("标记已读失败", "marking as read failed"),
    Status.MARKED_READ: ("已标记为已读", "marked as read"),
    Status.SEND_FAILED: ("发送失败", "sending failed"),
    Status.SENT: ("已发送", "sent"),
    Status.RECEIVE_FAILED: ("接收失败", "receiving failed"),
    Status.RECEIVED: ("收到新消息", "message received"),
    Status.DELETE_FAILED: ("删除失败", "deleting failed"),
    Status.DELETED: ("已删除", "deleted"),
    Status.SOCKET_FAILED: ("无法建立 WebSocket 连接", "socket not created"),
    Status.SOCKET_CREATED: ("WebSocket 连接已建立", "socket created"),
    Status.DISCONNECT_FAILED: ("断开连接失败", "disconnecting failed"),
    Status.DISCONNECTED: ("连接已断开", "disconnected"),
    Status.RECEIVER_ONLINE: ("已发送，对方在线", "sent, the receiver is online"),
    Status.RECEIVER_OFFLINE: ("已发送，对方不在线", "sent, the receiver is offline"),
    Status.REFUSED_BY_LIMIT: (
        "对方回复之前不能再发送消息",
        "refused until the receiver has answered",
    ),
    Status.ALLOWED_AGAIN: ("对方已回复，可以继续发送", "the receiver has answered, go on"),
    Status.CONVERSATIONS_FAILED: ("获取会话列表失败", "conversations failed"),
    Status.CONVERSATIONS: ("会话列表", "conversations"),
    Status.TYPING_FAILED: ("发送输入状态失败", "typing failed"),
    Status.TYPING: ("输入状态", "typing"),
    Status.PRESENCE: ("在线状态", "presence"),
    Status.UNKNOWN: ("服务暂时不可用", "the service cannot answer now"),
    Status.REGISTER_FAILED: ("注册失败", "registering failed"),
    Status.REGISTERED: ("注册成功", "registered"),
    Status.LOGIN_FAILED: ("登录失败", "login failed"),
    Status.LOGGED_IN: ("登录成功", "logged in"),
    Status.SET_PASSWORD_FAILED: ("修改密码失败", "setting the password failed"),
    Status.PASSWORD_SET: ("密码已修改", "password set"),
    Status.NO_SUCH_USER: ("用户不存在", "no such user"),
    Status.USER_EXISTS: ("用户已存在", "user exists"),
    Status.SESSION_NOT_STORED: ("会话保存失败", "session not stored"),
    Status.SESSION_STORED: ("会话已保存", "session stored"),
    Status.WRONG_PASSWORD: ("用户名或密码错误", "wrong user name or password"),
    Status.RIGHT_PASSWORD: ("密码正确", "right password"),
    Status.NOT_LOGGED_IN: ("未登录", "not logged in"),
    Status.ALREADY_LOGGED_IN: ("已登录", "already logged in"),
    Status.LOGOUT_FAILED: ("退出登录失败", "logout failed"),
    Status.LOGGED_OUT: ("已退出登录", "logged out"),
    Status.BLOCK_FAILED: ("屏蔽失败", "blocking failed"),
    Status.BLOCKED: ("已屏蔽", "blocked"),
    Status.UNBLOCK_FAILED: ("取消屏蔽失败", "unblocking failed"),
    Status.UNBLOCKED: ("已取消屏蔽", "unblocked"),
    Status.BLOCKED_USERS_FAILED: ("获取屏蔽名单失败", "blocked users failed"),
    Status.BLOCKED_USERS: ("屏蔽名单", "blocked users"),
}


def text(status: Status, language: str) -> str:
    """The text of `status` in `language`, one of LANGUAGES."""
    return _TEXTS[status][LANGUAGES.index(language)]
