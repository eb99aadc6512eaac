"""How gunicorn serves: on loopback, at the port that the recipe gave this instance."""

import os

bind = f"127.0.0.1:{os.environ.get('PORT', '8000')}"
accesslog = "-"
graceful_timeout = 20
