/** The users that this user blocks. Does not use the DOM. */

export class Blocked {
  #endpoints;
  #changed;
  #changes = 0;

  /** The names, in the order of the server. */
  names = [];

  /** `endpoints`: `blocked()`, `block(name)` and `unblock(name)` of api.js. `changed()`: called after a change. */
  constructor(endpoints, changed) {
    this.#endpoints = endpoints;
    this.#changed = changed;
  }

  has(name) {
    return this.names.includes(name);
  }

  /** Read the list. The answer to an earlier request may arrive after a change: it does not count. */
  async load() {
    const changes = this.#changes;
    const answer = await this.#endpoints?.blocked();
    if (answer?.ok && changes === this.#changes) this.#set(answer.data);
  }

  /** Block or unblock a user. Resolves with the answer of the endpoint. */
  async change(name, block) {
    const answer = await (block ? this.#endpoints.block(name) : this.#endpoints.unblock(name));
    this.#changes += 1;
    if (answer.ok) this.#set([...this.names.filter((one) => one !== name), ...(block ? [name] : [])]);
    return answer;
  }

  #set(names) {
    this.names = names.sort();
    this.#changed();
  }
}
