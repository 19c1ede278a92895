"""A real S3 server as a process of its own on loopback, and a proxy in front of it that cuts, stalls and lies.

The server is ministack (tests/requirements-servers.txt), kept in memory or, to survive kill -9, in a folder.
"""

import contextlib
import os
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, HTTPServer, ThreadingHTTPServer
from pathlib import Path
from urllib.error import URLError
from urllib.request import Request, urlopen

SERVER = Path(__file__).parents[1] / ".venv/servers/bin/ministack"
BUCKET = "search"
KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_REGION": "us-east-1"}


def free_port(host: str = "127.0.0.1") -> int:
    """A port that nobody listens on."""
    with socket.socket() as taken:
        taken.bind((host, 0))
        return int(taken.getsockname()[1])


class S3Server:
    """Start, kill, start again on the same port. `folder`: objects are kept there; None: in memory."""

    def __init__(self, folder: Path | None = None, host: str = "127.0.0.1") -> None:
        self.folder, self.host, self.port = folder, host, free_port(host)
        self.url = f"http://{host}:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Return when it answers and has the bucket."""
        environment = {
            "PATH": os.environ["PATH"],
            "SERVICES": "s3",
            "BIND_HOST": self.host,
            "GATEWAY_PORT": str(self.port),
            "SFTP_ENABLED": "0",
            "IOT_MTLS_ENABLED": "0",
            "LOG_LEVEL": "WARNING",
        }
        if self.folder is not None:
            environment |= {"S3_PERSIST": "1", "S3_DATA_DIR": str(self.folder)}
        self._process = subprocess.Popen([SERVER], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until = time.monotonic() + 60
        while True:
            try:
                urlopen(Request(f"{self.url}/{BUCKET}", method="PUT"), timeout=5).close()  # makes the bucket, or finds it there
                return
            except (URLError, OSError) as error:
                if getattr(error, "code", None) == 409:
                    return
                if time.monotonic() > until or self._process.poll() is not None:
                    raise RuntimeError(f"the S3 server did not start: {error}") from error
                time.sleep(0.05)

    def kill(self) -> None:
        """SIGKILL: nothing is tidied up."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def stop(self) -> None:
        """Whatever runs for it, at once."""
        self.kill()


@contextlib.contextmanager
def environment(url: str) -> Iterator[None]:
    """What AWS's libraries read, pointed at a server; whatever this machine has is set aside."""
    before = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith("AWS_")}
    os.environ.update(
        {"AWS_ENDPOINT_URL": url, "AWS_CONFIG_FILE": os.devnull, "AWS_SHARED_CREDENTIALS_FILE": os.devnull, "AWS_EC2_METADATA_DISABLED": "true"} | KEYS
    )
    try:
        yield
    finally:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            del os.environ[name]
        os.environ.update(before)


Fault = Callable[["Exchange"], None]


class Exchange:
    """One request on its way through the proxy. A fault may change `status` or `cut`, before or after it reached the server."""

    def __init__(self, method: str, path: str, headers: Mapping[str, str]) -> None:
        self.method, self.path, self.headers = method, path, headers
        self.drop: tuple[str, ...] = ()
        """Headers that the server does not see."""
        self.reach = True
        """Whether the server sees the request."""
        self.answer: int | None = None
        """Answer with this status instead of the server's."""
        self.code = "InternalError"
        self.cut: int | None = None
        """Reset the connection after so many bytes of the server's answer."""
        self.stall = 0.0
        """Seconds before the answer."""


class Listener:
    """A server that answers in a thread of its own until it is closed."""

    def __init__(self, server: HTTPServer, scheme: str = "http") -> None:
        self._server = server
        self.url = f"{scheme}://{server.server_address[0]}:{server.server_port}"
        self._thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class Proxy:
    """Passes requests to a server, each changed by `fault`. `tls`: its clients speak HTTPS."""

    def __init__(self, server: S3Server, fault: Fault = lambda _: None, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None) -> None:
        self.fault, self.seen, self.connections = fault, 0, 0
        """`seen`: requests; `connections`: how many were accepted, closed ones too."""
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _pass(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                exchange = Exchange(self.command, self.path, dict(self.headers.items()))
                proxy.seen += 1
                proxy.fault(exchange)
                status, headers, answer = (
                    0,
                    [("Content-Type", "application/xml")],
                    b"" if exchange.answer == 200 else f"<Error><Code>{exchange.code}</Code></Error>".encode(),
                )
                if exchange.reach:
                    connection = HTTPConnection(server.host, server.port, timeout=30)
                    try:
                        connection.request(self.command, self.path, body, {name: value for name, value in self.headers.items() if name not in exchange.drop})
                        response = connection.getresponse()
                        real = response.read()
                    except OSError:
                        exchange.cut = 0  # the server is down
                    else:
                        if exchange.answer is None:
                            hop = ("connection", "transfer-encoding", "content-length", "keep-alive")
                            status, answer = response.status, real
                            headers = [(name, value) for name, value in response.getheaders() if name.lower() not in hop]
                    finally:
                        connection.close()
                time.sleep(exchange.stall)
                with contextlib.suppress(OSError):
                    if exchange.cut == 0:
                        self._reset()
                        return
                    self.send_response(exchange.answer or status)
                    for name, value in headers:
                        self.send_header(name, value)
                    self.send_header("Content-Length", str(len(answer)))
                    self.end_headers()
                    self.wfile.write(answer if exchange.cut is None else answer[: exchange.cut])
                    if exchange.cut is not None:
                        self._reset()

            def _reset(self) -> None:
                self.close_connection = True
                self.wfile.flush()
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # a reset, not an orderly end
                self.connection.close()

            do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = _pass

            def log_message(self, format: str, *args: object) -> None:
                """Quiet."""

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128  # no connection is lost, and so counted twice

            def process_request(self, request: socket.socket | tuple[bytes, socket.socket], client_address: object) -> None:
                proxy.connections += 1  # in the one thread that accepts
                super().process_request(request, client_address)

            def handle_error(self, request: object, client_address: object) -> None:
                """Connections that we reset ourselves."""

        own = Server((host, 0), Handler)
        if tls is not None:  # the handshake is the connection's own thread's: none holds up the others
            own.socket = tls.wrap_socket(own.socket, server_side=True, do_handshake_on_connect=False)
        listener = Listener(own, "http" if tls is None else "https")
        self.url, self.close = listener.url, listener.close
