"""The server of a study: gives the page and its pictures, and keeps answers as they come."""

import socket
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Self

from cascade.eval.study.answers import MOST_BYTES, AnswerStore, answers_of
from cascade.eval.study.design import PICTURES, Study
from cascade.eval.study.page import study_page


class StudyServer:
    """Serves the study in a folder, at `url`, from when it is made; for use in a `with` statement, which ends it.

    Args:
        folder: Of the study.
        host, port: Where it listens; port 0 = a free one.

    Raises:
        ValueError: if the folder holds no study, another server runs it, its answers are to another study, or the port is in use.
    """

    def __init__(self, folder: Path, host: str, port: int) -> None:
        self.study = Study.read(folder)
        page = study_page(self.study, folder, served=True).encode()
        self.answers = AnswerStore(self.study, folder)
        names = {name for pair in self.study.pairs for name in (pair.real, pair.made, pair.small)}
        files = {f"/pictures/{name}": folder / PICTURES / name for name in names if name is not None}
        try:
            self._server = _Server(host, port, self.study, self.answers, page, files)
        except OSError as error:
            self.answers.close()
            raise ValueError(f"port {port} of {host} can't be used ({error.strerror}); choose another port") from error
        shown = f"[{host}]" if ":" in host else host
        self.url = f"http://{shown}:{self._server.server_address[1]}/"

    def run(self) -> None:
        """Answer until `KeyboardInterrupt`, or `stop` in another thread."""
        self._server.serve_forever()

    def stop(self) -> None:
        """End `run`."""
        self._server.shutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.server_close()
        self.answers.close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, host: str, port: int, study: Study, answers: AnswerStore, page: bytes, files: dict[str, Path]) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.study, self.answers, self.page, self.files = study, answers, page, files
        super().__init__((host, port), _Handler)


class _Handler(BaseHTTPRequestHandler):
    server: _Server  # type: ignore[assignment]  # the only one that it is made for
    timeout = 60
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/":
            self._reply(HTTPStatus.OK, self.server.page, "text/html; charset=utf-8")
        elif path in self.server.files:
            self._reply(HTTPStatus.OK, self.server.files[path].read_bytes(), "image/png")
        else:
            self._reply(HTTPStatus.NOT_FOUND, b"There is nothing here.")

    def do_POST(self) -> None:
        """Answers, as JSON alone, which no other site's page can send unasked; the reply comes when they are on the disk."""
        length = self.headers.get("Content-Length", "")
        if self.path != "/answers" or self.headers.get_content_type() != "application/json":
            self.close_connection = True
            self._reply(HTTPStatus.NOT_FOUND, b"There is nothing here.")
        elif not length.isdecimal() or int(length) > MOST_BYTES:
            self.close_connection = True
            self._reply(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, b"These are too many answers.")
        else:
            try:
                self.server.answers.add(answers_of(self.server.study, self.rfile.read(int(length))))
            except ValueError as error:
                self._reply(HTTPStatus.CONFLICT, f"The study was changed; reload this page. ({error})".encode())
            else:
                self._reply(HTTPStatus.OK, b"stored")

    def _reply(self, status: HTTPStatus, content: bytes, kind: str = "text/plain; charset=utf-8") -> None:
        self.send_response(status)
        headers = {"Content-Type": kind, "Content-Length": str(len(content)), "Cache-Control": "no-store"}
        for name, value in (headers | {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: the program's output is not the server's diary."""
