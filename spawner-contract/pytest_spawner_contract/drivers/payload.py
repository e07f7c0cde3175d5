"""What runs in place of a notebook server: it answers everything with 200, until SIGUSR1 closes its port."""

import os
import signal
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlparse


class Answer(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


# before any thread is there, so that none is interrupted by it
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
for argument in sys.argv[1:]:
    if argument == "--fail":
        sys.exit(1)
    if argument.startswith("--wait="):
        time.sleep(float(argument.partition("=")[2]))
address = urlparse(os.environ["JUPYTERHUB_SERVICE_URL"])
server = ThreadingHTTPServer((address.hostname or "127.0.0.1", address.port or 8888), Answer)
threading.Thread(target=server.serve_forever, daemon=True).start()
signal.sigwait({signal.SIGUSR1})
server.shutdown()
server.server_close()
while True:
    signal.pause()
