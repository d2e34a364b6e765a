// The image runs this once, as root, on an empty volume. It creates the server's account, which can read and write
// only its own database. The password is in /run/secrets/mongodb.
const password = require("fs").readFileSync("/run/secrets/mongodb", "utf8").trim();
if (!password) throw new Error("the secret mongodb is empty: write a password into secrets/mongodb");
db.getSiblingDB("admin").createUser({ user: "chat", pwd: password, roles: [{ role: "readWrite", db: "chat" }] });
