"""Small tools that know nothing of the rest: batching, the SQLite owner, passwords, clocks, logs."""
