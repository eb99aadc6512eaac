"""A web server on loopback that takes webhooks, and checks their signature by itself.

webhookd.py DIRECTORY PORT SECRET http|https; each request becomes a line of hooks.jsonl. If the directory has a file
`answer`, its text is the status and, after a blank, where a redirection leads to. With https it takes cert.pem and key.pem.
"""

import hashlib
import hmac
import json
import os
import ssl
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer

directory, port, secret = sys.argv[1], int(sys.argv[2]), sys.argv[3].encode()


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        given = self.headers.get("X-Mc-Project-Signature-256")
        right = "sha256=" + hmac.new(secret, body, hashlib.sha256).hexdigest()
        line = json.dumps({
            "path": self.path,
            "signed": given is not None,
            "verified": given is not None and hmac.compare_digest(given, right),
            "event": self.headers.get("X-Mc-Project-Event"),
            "delivery": self.headers.get("X-Mc-Project-Delivery"),
            "type": self.headers.get("Content-Type"),
            "body": json.loads(body),
        })
        with open(os.path.join(directory, "hooks.jsonl"), "a", encoding="utf-8") as out:
            out.write(line + "\n")
        status, location = "200", None
        answer = os.path.join(directory, "answer")
        if os.path.exists(answer):
            status, _, location = open(answer, encoding="utf-8").read().partition(" ")
        self.send_response(int(status))
        if location:
            self.send_header("Location", location)
        self.send_header("Content-Length", "0")
        self.end_headers()


server = HTTPServer(("127.0.0.1", port), Handler)
if sys.argv[4] == "https":
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(os.path.join(directory, "cert.pem"), os.path.join(directory, "key.pem"))
    server.socket = context.wrap_socket(server.socket, server_side=True)
server.serve_forever()
