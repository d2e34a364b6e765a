// Run once by the image, as root, on an empty volume: an account for the server, which can read and write its own
// database and nothing else. Its password is in /run/secrets/mongodb.
const password = require("fs").readFileSync("/run/secrets/mongodb", "utf8").trim();
if (!password) throw new Error("the secret mongodb is empty: write a password into secrets/mongodb");
db.getSiblingDB("admin").createUser({ user: "chat", pwd: password, roles: [{ role: "readWrite", db: "chat" }] });
