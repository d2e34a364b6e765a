"""Tools that import no other package of the server: batching, SQLite, passwords, clocks, logs, metrics."""
