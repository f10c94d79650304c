"""The peer ``nchan``: nginx with Nchan, which sends each message to all subscribers.

Run as ``python -m bench.backends.nchan_server fan-out DIRECTORY PREFIX``: the directory gets the
configuration and the logs, and PREFIX is the root below which Debian's packages of nginx and
Nchan are unpacked.  It prints the port on which nginx listens.

The clients are publishers and subscribers of one channel.  nginx has one worker, as every peer has
one process that serves.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

from apachews_tools.httpd.private_apache import free_port

from ..limits import BACKLOG, MAX_MESSAGE_BYTES

START_TIMEOUT_S: Final = 8.0
CONFIGURATION: Final = """
load_module "{prefix}/usr/lib/nginx/modules/ngx_nchan_module.so";
daemon off;
worker_processes 1;
worker_rlimit_nofile {descriptors};
pid "{directory}/nginx.pid";
error_log stderr warn;
events {{ worker_connections {descriptors}; }}
http {{
    access_log off;
    client_body_temp_path "{directory}/body";
    proxy_temp_path "{directory}/proxy";
    fastcgi_temp_path "{directory}/fastcgi";
    uwsgi_temp_path "{directory}/uwsgi";
    scgi_temp_path "{directory}/scgi";
    nchan_shared_memory_size 64m;
    server {{
        listen 127.0.0.1:{port} backlog={backlog};
        client_max_body_size {most};
        location / {{
            nchan_pubsub websocket;
            nchan_channel_id all;
            nchan_subscriber_first_message newest;
            nchan_websocket_ping_interval 0;
        }}
    }}
}}
"""
# Enough for every case; the limit of descriptors is raised before nginx starts.
DESCRIPTORS: Final = 16_000


def main() -> None:
    """Run nginx until killed."""
    _, _, directory, prefix = sys.argv
    port = free_port()
    configuration = Path(directory) / "nginx.conf"
    configuration.write_text(
        CONFIGURATION.format(
            prefix=prefix,
            directory=directory,
            port=port,
            backlog=BACKLOG,
            most=MAX_MESSAGE_BYTES,
            descriptors=DESCRIPTORS,
        )
    )
    # Its processes stay in the session of this one, which the benchmark ends as a whole.
    nginx = subprocess.Popen(
        [f"{prefix}/usr/sbin/nginx", "-p", directory, "-c", str(configuration)]
    )
    wait_until_it_accepts(nginx, port)
    print("listening", port, flush=True)
    sys.exit(nginx.wait())


def wait_until_it_accepts(nginx: subprocess.Popen[bytes], port: int) -> None:
    """Return when the port accepts a connection; exit if nginx ends before, or takes too long."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline and nginx.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            time.sleep(0.02)
        else:
            return
    sys.exit("nginx does not accept connections")


main()
