"""A guest book: GET / shows it, POST / with `name` and `text` signs it, GET /healthz says which version answers."""

import os
import pathlib
import sqlite3

import bottle
import waitress

HERE = pathlib.Path(__file__).resolve().parent
app = bottle.Bottle()


def database_path():
    return os.path.join(os.environ["MC_DATA"], "guestbook.sqlite3")


def database():
    # Opened for each request: the file may be exchanged by a restore while no request is under way.
    return sqlite3.connect(database_path(), timeout=10)


# Read once, at the start: /healthz must tell what runs, not what lies on the disk by now.
VERSION = (HERE / "VERSION").read_text().strip() if (HERE / "VERSION").exists() else "unbuilt"


# {{…}} escapes: what visitors write is shown, never obeyed.
PAGE = """<!doctype html>
<title>Guest book</title>
<h1>Guest book</h1>
<ul>
% for name, text in rows:
<li><b>{{name}}</b>: {{text}}</li>
% end
</ul>
"""


@app.get("/")
def show():
    with database() as db:
        rows = db.execute("SELECT name, text FROM entry ORDER BY id DESC LIMIT 100").fetchall()
    return bottle.template(PAGE, rows=rows)


@app.post("/")
def sign():
    name, text = bottle.request.forms.name, bottle.request.forms.text
    if not name or not text:
        bottle.abort(400, "name and text are needed")
    with database() as db:
        db.execute("INSERT INTO entry (name, text) VALUES (?, ?)", (name[:100], text[:1000]))
    bottle.redirect("/", 303)


@app.get("/healthz")
def health():
    with database() as db:
        entries = db.execute("SELECT count(*) FROM entry").fetchone()[0]
        schema = db.execute("PRAGMA user_version").fetchone()[0]
    return {"version": VERSION, "schema": schema, "entries": entries}


if __name__ == "__main__":
    waitress.serve(app, host="127.0.0.1", port=int(os.environ.get("PORT", "8000")), threads=4)
