/** Every text that a person reads, in both languages. A function is given what varies. */
import { isolated } from "./plain.js";

const zh = {
  title: "聊天",
  tagline: "简单、快速、可靠的聊天",
  logIn: "登录",
  register: "注册",
  name: "用户名",
  password: "密码",
  toLogIn: "登录",
  toRegister: "注册并登录",
  loggedInAs: (name) => `已登录为 ${isolated(name)}`,
  sessionEnded: "登录已失效，请重新输入密码。还没发出的消息都保留着。",
  everybody: "所有在线的人",
  everybodyHint: "发给此刻在线的每个人，不保存记录",
  conversations: "会话",
  conversation: "会话",
  find: "查找或输入用户名开始聊天",
  start: (name) => `与 ${isolated(name)} 聊天`,
  looking: (name) => `正在查找 ${isolated(name)}…`,
  none: "还没有会话",
  noneHint: "在上方输入对方的用户名，就可以开始聊天。",
  choose: "选择一个会话，或者开始新的聊天",
  draft: "草稿",
  online: "在线",
  offline: "离线",
  unread: (count) => `${count} 条未读`,
  back: "返回会话列表",
  messages: "消息",
  hello: (name) => `这里是你和 ${isolated(name)} 的会话的开头`,
  write: (name) => `发消息给 ${isolated(name)}`,
  writeAll: "发消息给所有在线的人",
  send: "发送",
  waiting: "等待发送",
  sent: "已发送",
  read: "已读",
  reached: (count) => `${count} 人收到`,
  notSent: (why) => `未发送：${why}`,
  again: "重试",
  discard: "放弃",
  newMessages: (count) => `${count} 条新消息`,
  toEnd: "回到最新消息",
  actions: "操作",
  copy: "复制",
  copied: "已复制",
  remove: "删除",
  removeTitle: "为双方删除这条消息？",
  removeHint: "对方也将看不到它。",
  removed: "消息已删除",
  undo: "撤销",
  cancel: "取消",
  close: "关闭",
  you: "我",
  settings: "设置",
  language: "语言",
  scheme: "外观",
  schemes: { auto: "跟随系统", light: "浅色", dark: "深色" },
  sound: "提示音",
  notify: "桌面通知",
  notifyDenied: "浏览器没有允许通知",
  changePassword: "修改密码",
  oldPassword: "当前密码",
  newPassword: "新密码",
  change: "修改",
  changed: "密码已修改，其他设备已退出登录",
  logOut: "退出登录",
  unsentTitle: "还有消息没有发出",
  unsentHint: (count) => `退出登录会删除这 ${count} 条消息。`,
  away: "未连接。可以继续写，恢复后会自动发送。",
  broken: "服务器不再接受此页面的连接，请重新加载。",
  reload: "重新加载",
  limited: (name) => `${isolated(name)} 回复之前不能再发。多写的消息会等着，对方回复后自动发送。`,
  today: "今天",
  yesterday: "昨天",
  said: (name, text) => `${isolated(name)}：${text}`,
  tooLong: (size, most) => `太长：${size} 字节，最多 ${most} 字节`,
  reasons: {
    refused_by_limit: "等待对方回复",
    lost: "连接中断，不确定对方是否收到",
    no_such_user: "没有这个用户",
    to_yourself: "不能给自己发消息",
    too_long: "太长",
    empty: "不能为空",
    too_many: "太频繁，请稍后再试",
    store_away: "服务器暂时无法保存，请稍后再试",
    internal: "服务器出错，请稍后再试",
    bad_name: "1 到 64 个字符：文字、数字和 _ - . @",
    bad_password: "密码太短或太长（最多 72 字节）",
    user_exists: "这个名字已被使用",
    wrong_password: "用户名或密码错误",
    wrong_old_password: "密码错误",
    registration_closed: "此服务器不开放注册",
    foreign_origin: "此页面的地址不被服务器接受",
    not_logged_in: "登录已失效",
    unreachable: "连不上服务器，请检查网络",
    other: "服务器拒绝了请求",
  },
};

const en = {
  title: "Chat",
  tagline: "Chat that is simple, quick and loses nothing",
  logIn: "Log in",
  register: "Register",
  name: "User name",
  password: "Password",
  toLogIn: "Log in",
  toRegister: "Register and log in",
  loggedInAs: (name) => `Logged in as ${isolated(name)}`,
  sessionEnded: "Your session has ended. Enter your password to go on: everything unsent is kept.",
  everybody: "Everybody online",
  everybodyHint: "Goes to everybody who is online now, and is not kept",
  conversations: "Conversations",
  conversation: "Conversation",
  find: "Find, or start with a user name",
  start: (name) => `Chat with ${isolated(name)}`,
  looking: (name) => `Looking for ${isolated(name)} …`,
  none: "No conversations yet",
  noneHint: "Enter somebody’s user name above to begin.",
  choose: "Choose a conversation, or start a new one",
  draft: "Draft",
  online: "online",
  offline: "offline",
  unread: (count) => `${count} unread`,
  back: "Back to the conversations",
  messages: "Messages",
  hello: (name) => `This is the beginning of your conversation with ${isolated(name)}`,
  write: (name) => `Message to ${isolated(name)}`,
  writeAll: "Message to everybody online",
  send: "Send",
  waiting: "waiting",
  sent: "sent",
  read: "read",
  reached: (count) => `reached ${count}`,
  notSent: (why) => `Not sent: ${why}`,
  again: "Try again",
  discard: "Discard",
  newMessages: (count) => (count === 1 ? "1 new message" : `${count} new messages`),
  toEnd: "To the newest message",
  actions: "Actions",
  copy: "Copy",
  copied: "Copied",
  remove: "Delete",
  removeTitle: "Delete this message for both of you?",
  removeHint: "The other side will not see it any more either.",
  removed: "Message deleted",
  undo: "Undo",
  cancel: "Cancel",
  close: "Close",
  you: "You",
  settings: "Settings",
  language: "Language",
  scheme: "Appearance",
  schemes: { auto: "System", light: "Light", dark: "Dark" },
  sound: "Sound",
  notify: "Notifications",
  notifyDenied: "The browser does not allow notifications",
  changePassword: "Change password",
  oldPassword: "Current password",
  newPassword: "New password",
  change: "Change",
  changed: "Password changed. Your other devices are logged out.",
  logOut: "Log out",
  unsentTitle: "Some messages are not sent yet",
  unsentHint: (count) => `Logging out deletes ${count === 1 ? "this message" : `these ${count} messages`}.`,
  away: "Not connected. Keep writing: it will be sent as soon as you are back.",
  broken: "The server does not accept this page any more. Please reload it.",
  reload: "Reload",
  limited: (name) => `${isolated(name)} has to answer first. What you write now waits, and is sent when they do.`,
  today: "Today",
  yesterday: "Yesterday",
  said: (name, text) => `${isolated(name)}: ${text}`,
  tooLong: (size, most) => `Too long: ${size} bytes, and ${most} is the most`,
  reasons: {
    refused_by_limit: "waits for an answer",
    lost: "the connection broke, so it may or may not have arrived",
    no_such_user: "there is no such user",
    to_yourself: "you cannot write to yourself",
    too_long: "too long",
    empty: "it cannot be empty",
    too_many: "too many, try again in a while",
    store_away: "the server cannot store it now, try again in a while",
    internal: "something went wrong at the server, try again",
    bad_name: "1 to 64 characters: letters, digits and _ - . @",
    bad_password: "too short, or too long (72 bytes at most)",
    user_exists: "this name is taken",
    wrong_password: "wrong user name or password",
    wrong_old_password: "wrong password",
    registration_closed: "this server takes no new users",
    foreign_origin: "the server does not accept this page’s address",
    not_logged_in: "your session has ended",
    unreachable: "the server cannot be reached; check your network",
    other: "the server refused it",
  },
};

export const LANGUAGES = { zh: "中文", en: "English" };
const ALL = { zh, en };

/** The texts in the language chosen; `choose` changes them. */
export let t = en;
export let language = "en";

export function choose(chosen) {
  language = Object.hasOwn(ALL, chosen) ? chosen : "en";
  t = ALL[language];
  document.documentElement.lang = language === "zh" ? "zh-CN" : "en";
}

/** The language that the browser asks for first among ours. */
export function preferred() {
  const wanted = navigator.languages.map((tag) => tag.split("-")[0]);
  return wanted.find((tag) => tag in ALL) ?? "en";
}

/** What a person is told for a reason of the protocol. */
export function reason(name) {
  return t.reasons[name] ?? t.reasons.other;
}

/** Time of day. */
export function clock(time) {
  return format(time, { hour: "2-digit", minute: "2-digit", hour12: false });
}

/** The day, as far as it is needed to know which one is meant. */
export function day(time) {
  const days = Math.round((midnight(Date.now()) - midnight(time)) / 86_400_000);
  if (days <= 0) return t.today;
  if (days === 1) return t.yesterday;
  if (days < 7) return format(time, { weekday: "long" });
  const year = new Date(time).getFullYear() === new Date().getFullYear() ? undefined : "numeric";
  return format(time, { day: "numeric", month: "long", year });
}

/** For the list: the time today, else the day. */
export function moment(time) {
  return midnight(time) === midnight(Date.now()) ? clock(time) : day(time);
}

export function midnight(time) {
  return new Date(time).setHours(0, 0, 0, 0);
}

function format(time, options) {
  return new Intl.DateTimeFormat(document.documentElement.lang, options).format(time);
}
