"""Chromium for pages that people click on; tests are skipped where there is none."""

import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

_AUDIT = """
import sys
def told(event, details):
    if event == "socket.connect" and not str(details[1][0]).startswith(("127.", "::1", "/", "localhost")):
        print("REACHED OUT TO", details[1], file=sys.stderr, flush=True)
    if event == "socket.getaddrinfo" and details[0] not in (None, "localhost", "127.0.0.1"):
        print("REACHED OUT TO", details[0], file=sys.stderr, flush=True)
sys.addaudithook(told)
from cascade.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="session")
def chromium():
    """A headless browser."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        pytest.skip("there is no Chromium on this machine (Debian: apt-get install chromium)")
    with playwright.sync_playwright() as engine:
        browser = engine.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture
def opened(chromium):
    """Opens an address in a window of this width; afterwards no script has failed, and nothing but this machine was asked."""
    contexts, wrong = [], []

    def open_page(url, width=1280):
        context = chromium.new_context(viewport={"width": width, "height": 800}, accept_downloads=True)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.on("pageerror", lambda error: wrong.append(f"a script failed: {error}"))

        def asked(request):
            if not re.match(r"(http://127\.0\.0\.1:\d+/|data:|blob:|file:)", request.url):
                wrong.append(f"asked for {request.url}")

        page.on("request", asked)
        page.goto(url)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not wrong


class Server:
    """A command of the command line that serves a page, and that tells if it asks anything of another machine."""

    def __init__(self, *words):
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
        command = [sys.executable, "-c", _AUDIT, *map(str, words)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
        self.lines: queue.Queue[str] = queue.Queue()
        self.said: list[str] = []
        threading.Thread(target=self._read, daemon=True).start()
        while True:
            line = self.lines.get(timeout=120)
            if found := re.search(r"http://127\.0\.0\.1:(\d+)/", line):
                self.url, self.port = found[0], int(found[1])
                break
            assert line, self.said

    def _read(self):
        for line in self.process.stderr:
            self.said.append(line)
            self.lines.put(line)
        self.lines.put("")

    def kill(self):
        self.process.kill()
        self.process.wait()

    def interrupt(self):
        """Ctrl-C; the exit code and what it printed."""
        self.process.send_signal(signal.SIGINT)
        printed = self.process.stdout.read()
        return self.process.wait(timeout=30), printed


@pytest.fixture
def served():
    """Starts commands that serve a page; they end with the test, and must not have reached out."""
    servers = []

    def start(*words):
        servers.append(Server(*words))
        return servers[-1]

    yield start
    for server in servers:
        server.kill()
        assert "REACHED OUT" not in "".join(server.said)
