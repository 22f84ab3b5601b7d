"""Stands in for `serve run`: a dashboard that tells scripted states, an endpoint, and a daemon that leaves the group.

    python stand_in_serve.py PORT STATES

STATES is a JSON list of what `GET /api/serve/applications/` answers, one after another; the last one stays.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def main() -> None:
    port, states = int(sys.argv[1]), json.loads(sys.argv[2])

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # the base class's name
            body: object = {}
            if self.path.startswith("/api/"):
                body = states.pop(0) if len(states) > 1 else states[0]
            elif self.path == "/v1/models":
                body = {"data": [{"id": "the-model"}]}
            content = json.dumps(body).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        allow_reuse_address = True

    # As Ray's daemons do: a session of its own, deaf to the polite signal.
    daemon = (
        "import signal, sys; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); signal.pause()"
    )
    held = subprocess.Popen([sys.executable, "-c", daemon], stdout=subprocess.PIPE, start_new_session=True)
    held.stdout and held.stdout.readline()
    server = Server(("127.0.0.1", port), Answers)
    signal.signal(signal.SIGINT, lambda *_: threading.Thread(target=server.shutdown).start())
    print(f"daemon {held.pid}", flush=True)
    print(
        '(ServeReplica:app:engine pid=7) INFO serve_app.engine.replica: starting {"phase":"loading weights (3 s)"}',
        flush=True,
    )
    print(f"View the dashboard at \x1b[1m\x1b[32mhttp://127.0.0.1:{port}\x1b[39m\x1b[22m", flush=True)
    if states == ["dies"]:
        sys.exit("no room at the inn")
    server.serve_forever()


if __name__ == "__main__":
    main()
