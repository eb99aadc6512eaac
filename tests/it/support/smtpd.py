"""A mail server on loopback: TLS and a login are required; what it takes goes to mails.jsonl, one JSON object a line.

smtpd.py DIRECTORY PORT PASSWORD starttls|tls; with tls it speaks TLS from the first byte. The directory holds cert.pem and key.pem. The user is `mc`. Recipients that begin with
`nobody` are refused.
"""

import json
import os
import ssl
import sys
import threading

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult, LoginPassword

directory, port, password = sys.argv[1], int(sys.argv[2]), sys.argv[3].encode()


class Handler:
    async def handle_RCPT(self, server, session, envelope, address, options):
        if address.startswith("nobody"):
            return "550 5.1.1 no such user"
        envelope.rcpt_tos.append(address)
        return "250 ok"

    async def handle_DATA(self, server, session, envelope):
        line = json.dumps({
            "from": envelope.mail_from,
            "to": envelope.rcpt_tos,
            "tls": session.ssl is not None or sys.argv[4] == "tls",
            "data": envelope.content.decode("utf-8", "replace"),
        })
        with open(os.path.join(directory, "mails.jsonl"), "a", encoding="utf-8") as out:
            out.write(line + "\n")
        return "250 ok"


def authenticate(server, session, envelope, mechanism, data):
    good = isinstance(data, LoginPassword) and (data.login, data.password) == (b"mc", password)
    return AuthResult(success=good, handled=False)


context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
context.load_cert_chain(os.path.join(directory, "cert.pem"), os.path.join(directory, "key.pem"))
common = {"hostname": "127.0.0.1", "port": port, "auth_required": True, "authenticator": authenticate}
if sys.argv[4] == "tls":
    # The login comes over TLS, of which the protocol above knows nothing.
    controller = Controller(Handler(), ssl_context=context, auth_require_tls=False, **common)
else:
    controller = Controller(Handler(), tls_context=context, require_starttls=True, auth_require_tls=True, **common)
controller.start()
threading.Event().wait()
