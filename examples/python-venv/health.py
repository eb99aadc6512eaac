"""Asks the running application until it answers as the version of this tree; gives up after 20 seconds."""

import json
import os
import pathlib
import time
import urllib.request

url = f"http://127.0.0.1:{os.environ.get('PORT', '8000')}/healthz"
wanted = pathlib.Path("VERSION").read_text().strip()
deadline = time.monotonic() + 20
while True:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            seen = json.load(answer)
        if seen["version"] == wanted:
            print(f"{url} answers: {seen}")
            break
        problem = f"version {seen['version']} answers, not {wanted}"
    except (OSError, ValueError) as error:
        problem = str(error)
    if time.monotonic() > deadline:
        raise SystemExit(f"{url}: {problem}")
    time.sleep(0.2)
