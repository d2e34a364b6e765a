/** The HTTP endpoints. */

const JSON_BODY = { method: "POST", headers: { "Content-Type": "application/json" } };

/** POST JSON. Resolves as `request` does. */
const post = (path, body) => request(path, { ...JSON_BODY, body: JSON.stringify(body) });

/** Always resolves with `{ok, code, reason, wait, data}`; `wait`: seconds until a retry may succeed. */
async function request(path, options = {}) {
  try {
    const response = await fetch(path, options);
    const { data } = await response.json();
    const wait = Number(response.headers.get("Retry-After"));
    return { ok: response.ok, code: response.status, reason: data?.reason, wait, data };
  } catch {
    return { ok: false, code: 0, reason: "unreachable", wait: 0 };
  }
}

export const register = (user_name, password) => post("/user/register", { user_name, password });
export const login = (user_name, password) => post("/user/login", { user_name, password });
export const logout = (user_name) => post("/user/logout", { user_name });
export const setPassword = (user_name, old_password, new_password) =>
  post("/user/set_password", { user_name, old_password, new_password });
export const block = (user_name) => post("/user/block", { user_name });
export const unblock = (user_name) => post("/user/unblock", { user_name });
export const blocked = () => request("/user/blocked");
export const createGroup = (group, users) => post("/group/create", { group, users });
export const addMembers = (group, users) => post("/group/add", { group, users });
export const removeMember = (group, user_name) => post("/group/remove", { group, user_name });
export const deleteGroup = (group) => post("/group/delete", { group });
export const members = (group) => request(`/group/members?${new URLSearchParams({ group })}`);

/**
 * Whether the session of `user_name` exists; null if unknown. Scripts cannot read the cookie, so this requests an empty
 * new password: the server checks the session first, and then refuses the password without changing anything.
 */
export async function alive(user_name) {
  const { code } = await setPassword(user_name, "", "");
  return { 400: true, 401: false, 403: false }[code] ?? null;
}

/** The server's time in milliseconds (null if unknown), and whether the server has a newer version of this page. */
export async function serverState() {
  const response = await fetch("/", { cache: "no-cache" }).catch(() => null);
  const [address] = (await response?.text())?.match(/\/web\/\w+\//) ?? [];
  const time = Date.parse(response?.headers.get("Date")) || null;
  return { time, outdated: Boolean(address) && !import.meta.url.includes(address) };
}
