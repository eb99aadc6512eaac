"""A mail server on loopback: STARTTLS and a login are required; what it takes goes to mails.jsonl, one JSON object a line.

smtpd.py DIRECTORY PORT PASSWORD; the directory holds cert.pem and key.pem. The user is `mc`. Recipients that begin with
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
            "tls": session.ssl is not None,
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
controller = Controller(
    Handler(), hostname="127.0.0.1", port=port, tls_context=context,
    require_starttls=True, auth_required=True, auth_require_tls=True, authenticator=authenticate,
)
controller.start()
threading.Event().wait()
