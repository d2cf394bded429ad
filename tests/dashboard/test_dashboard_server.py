"""The server ends when it is told to, whatever it is answering."""

import contextlib
import threading
import urllib.request

from optuna.storages import InMemoryStorage

from mqasearch.dashboard import dashboard_app, open_server


def test_a_server_that_is_stopped_in_the_middle_of_requests_ends_without_a_fault() -> None:
    """Each thread that has answered wakes the one that is to end."""
    app = dashboard_app(InMemoryStorage())
    for _ in range(25):
        server = open_server(app, port=0)
        running = threading.Thread(target=server.run)
        running.start()
        health = f"{server.url}mqasearch/health"
        asked = threading.Event()

        def ask(health: str = health, asked: threading.Event = asked) -> None:
            with contextlib.suppress(OSError):  # the server ends meanwhile
                for _ in range(10):
                    urllib.request.urlopen(health, timeout=10).close()
                    asked.set()

        clients = [threading.Thread(target=ask) for _ in range(3)]
        for client in clients:
            client.start()
        assert asked.wait(10)
        server.stop()
        running.join(20)
        assert not running.is_alive()
        server.stop()  # again, and after its end
        for client in clients:
            client.join(20)
            assert not client.is_alive()
