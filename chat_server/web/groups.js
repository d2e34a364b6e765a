/** The members of groups. Does not use the DOM. */

export class Groups {
  #read;
  #changed;
  #members = new Map(); // by group
  #requests = new Map(); // group -> the newest request

  /** `read(group)`: `members` of api.js. `changed(group)`: called after a change. */
  constructor(read, changed) {
    this.#read = read;
    this.#changed = changed;
  }

  /** The members `{user_name, owner, online, since}`, the longest-standing first; empty if unknown. */
  members(group) {
    return this.#members.get(group) ?? [];
  }

  /** Whether `name` owns the group; false if unknown. */
  owns(name, group) {
    return this.members(group).some((member) => member.owner && member.user_name === name);
  }

  /** Read the members. Only the answer to the newest request counts. */
  async load(group) {
    const request = this.#read?.(group);
    this.#requests.set(group, request);
    const answer = await request;
    if (!answer?.ok || this.#requests.get(group) !== request) return;
    this.#members.set(group, answer.data);
    this.#changed(group);
  }

  /** This user is no longer a member. */
  forget(group) {
    this.#requests.delete(group);
    this.#members.delete(group);
  }

  /** Apply the lines of a presence frame: `+NAME` is online, `-NAME` is offline. */
  setPresence(lines) {
    for (const line of lines) {
      for (const members of this.#members.values()) {
        const member = members.find((one) => one.user_name === line.slice(1));
        if (member) member.online = line.startsWith("+");
      }
    }
  }
}
