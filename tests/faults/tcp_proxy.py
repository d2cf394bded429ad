"""A TCP proxy between workers and their database, that misbehaves when told to."""

import contextlib
import select
import socket
import threading
import time
from collections.abc import Iterator


class Proxy:
    """Passes bytes both ways.

    Attributes:
        port: on 127.0.0.1, where it listens.
        delay: seconds for which each piece is held back.
        frozen: whether nothing passes and neither end is told, so that connections are half-open.
        refusing: whether new connections are closed at once.
    """

    def __init__(self, target: int) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._lock = threading.Lock()
        self._closing = False
        self.port = int(self._listener.getsockname()[1])
        self.delay = 0.0
        self.frozen = False
        self.refusing = False
        self.n_connections = 0
        threading.Thread(target=self._listen, daemon=True).start()

    def cut(self) -> None:
        """Reset every connection, even in the middle of an exchange."""
        with self._lock:
            pairs, self._pairs = self._pairs, []
        for pair in pairs:
            for end in pair:
                _reset(end)

    def close(self) -> None:
        self._closing = True
        self._listener.close()
        self.cut()

    def _listen(self) -> None:
        while not self._closing:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self.refusing:
                _reset(client)
                continue
            try:
                server = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                _reset(client)
                continue
            self.n_connections += 1
            with self._lock:
                self._pairs.append((client, server))
            threading.Thread(target=self._pass, args=(client, server), daemon=True).start()

    def _pass(self, client: socket.socket, server: socket.socket) -> None:
        other = {client: server, server: client}
        try:
            while True:
                if self.frozen:
                    time.sleep(0.05)
                    continue
                for end in select.select(list(other), [], [], 0.2)[0]:
                    data = end.recv(65536)
                    if not data:
                        return
                    time.sleep(self.delay)
                    if self.frozen:
                        break  # what was under way is lost as well
                    other[end].sendall(data)
        except (OSError, ValueError):
            return
        finally:
            _reset(client)
            _reset(server)


def _reset(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
    end.close()


@contextlib.contextmanager
def proxy_to(port: int) -> Iterator[Proxy]:
    """A proxy that goes away with the block."""
    proxy = Proxy(port)
    try:
        yield proxy
    finally:
        proxy.close()
