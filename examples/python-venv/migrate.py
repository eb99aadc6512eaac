"""Brings the database to the newest schema: each migration runs once, in order, all in one transaction."""

import sqlite3

from guestbook import database_path

# Append only. The database remembers in `user_version` how many of these it has seen.
MIGRATIONS = [
    "CREATE TABLE entry (id INTEGER PRIMARY KEY, name TEXT NOT NULL, text TEXT NOT NULL)",
    "ALTER TABLE entry ADD COLUMN signed_at TEXT",
]


def main():
    db = sqlite3.connect(database_path(), timeout=10, isolation_level=None)
    done = db.execute("PRAGMA user_version").fetchone()[0]
    if done > len(MIGRATIONS):
        raise SystemExit(f"the database has schema {done}, this version knows only {len(MIGRATIONS)}")
    db.execute("BEGIN IMMEDIATE")
    for statement in MIGRATIONS[done:]:
        db.execute(statement)
    db.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")
    db.execute("COMMIT")
    db.close()
    print(f"schema {done} -> {len(MIGRATIONS)}")


if __name__ == "__main__":
    main()
