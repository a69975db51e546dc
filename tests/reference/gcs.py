"""Buckets of Google Cloud Storage on this machine, for the clients that users have.

    with Storage("bucket") as storage:
        os.environ.update(storage.environment)
        epath.Path("gs://bucket/file").write_text("text")
        assert storage.read("gs://bucket/file") == b"text"

Three clients reach it, each in its own way, by environment variables:

    TensorFlow      has the addresses of Google built in. It goes through `https_proxy`, which is this server, to what
                    it takes for Google by a certificate that CURL_CA_BUNDLE vouches for.
    TensorStore     TENSORSTORE_GCS_HTTP_URL; plain HTTP
    google-cloud-cpp, inside of array_record, and google-cloud-storage for Python
                    CLOUD_STORAGE_EMULATOR_ENDPOINT and STORAGE_EMULATOR_HOST; plain HTTP

The server is a process of its own: some acts of TensorFlow hold the lock of the interpreter while they wait for it.
Served are the JSON API (list, get, ranges, uploads of all three kinds, delete, copy, rewrite, compose, generations and
their preconditions) and reads by the XML API. Only the loopback interface is listened on.
"""

import base64
import contextlib
import dataclasses
import hashlib
import json
import os
import re
import shutil
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable
from email.parser import BytesHeaderParser
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlsplit

HOSTS = ("www.googleapis.com", "storage.googleapis.com")
_THREADS = 64  # at most so many connections at a time; the others wait
_IDLE_SECONDS = 20  # after which a connection is closed
_CONTROL = "/_control/"
_PAGE = 1000  # names in an answer to a listing


@dataclasses.dataclass(frozen=True)
class Blob:
    """An object: its content, and the number that changes whenever it is written."""

    content: bytes
    generation: int
    metadata: dict[str, str]


@dataclasses.dataclass(frozen=True)
class Asked:
    """A request as rules of trouble see it; `path` begins with a slash and is not decoded."""

    method: str
    path: str
    parameters: dict[str, str]
    headers: dict[str, str]

    @property
    def decoded(self) -> str:
        """The path as people read it."""
        return unquote(self.path)


class _Unanswered(Exception):
    """A connection that is held for some seconds, and closed."""

    def __init__(self, seconds: float):
        super().__init__(seconds)
        self.seconds = seconds


class _Refused(Exception):
    """An answer that is an error."""

    def __init__(self, status: int, reason: str):
        super().__init__(reason)
        self.status, self.reason = status, reason


@dataclasses.dataclass(frozen=True)
class Trouble:
    """Every n-th request whose method and decoded path match the pattern is answered by a status.

    Status 0 is no answer: the connection is held for some seconds, and closed.
    """

    pattern: str
    status: int
    every: int
    seconds: float = 0.0


class _Buckets:
    """What the server keeps."""

    def __init__(self, names: list[str]):
        self.buckets: dict[str, dict[str, Blob]] = {name: {} for name in names}
        self.requests: list[str] = []
        self.sent = 0
        self.trouble: dict[bool, Trouble] = {}  # by whether there is an answer
        self.matched = {True: 0, False: 0}
        self.lock = threading.RLock()
        self.uploads: dict[str, tuple[str, str, dict[str, str], bytearray]] = {}
        self._generation = 1_700_000_000_000_000

    def note(self, asked: Asked) -> None:
        """Notes a request; refuses it where the rule of trouble says so."""
        with self.lock:
            line = f"{asked.method} {asked.decoded}"
            self.requests.append(line)
            for answered, trouble in self.trouble.items():
                if not re.search(trouble.pattern, line):
                    continue
                self.matched[answered] += 1
                if self.matched[answered] % trouble.every == 0:
                    if not answered:
                        raise _Unanswered(trouble.seconds)
                    raise _Refused(trouble.status, "trouble that the test asked for")

    def control(self, act: str, value: dict[str, Any]) -> Any:
        """What a test asks for beside the protocol of the clients; JSON to JSON."""
        with self.lock:
            if act == "write":
                bucket, name = _split(value["path"])
                return self.put(bucket, name, base64.b64decode(value["content"]), {}, {})
            if act == "read":
                bucket, name = _split(value["path"])
                return base64.b64encode(self.find(bucket, name).content).decode()
            if act == "names":
                bucket, prefix = _split(value["path"])
                return sorted(name[len(prefix) :] for name in self.buckets[bucket] if name.startswith(prefix))
            if act == "requests":
                return self.requests
            if act == "sent":
                return self.sent
            if act == "trouble":
                trouble = Trouble(**value) if value else None
                self.trouble = {} if trouble is None else self.trouble | {trouble.status > 0: trouble}
                self.matched = {True: 0, False: 0}
                return None
            assert act == "clear", act
            self.trouble, self.requests, self.sent = {}, [], 0
            for blobs in self.buckets.values():
                blobs.clear()
            return None

    # --- What the requests do --------------------------------------------------------------------------------

    def find(self, bucket: str, name: str) -> Blob:
        """An object; refused with 404 where it is not there."""
        if bucket not in self.buckets:
            raise _Refused(404, f"The specified bucket does not exist: {bucket}")
        if name not in self.buckets[bucket]:
            raise _Refused(404, f"No such object: {bucket}/{name}")
        return self.buckets[bucket][name]

    def check(self, bucket: str, name: str, parameters: dict[str, str]) -> None:
        """Refuses with 412 where a precondition on the generation of an object does not hold."""
        found = self.buckets.get(bucket, {}).get(name)
        generation = 0 if found is None else found.generation
        wanted, unwanted = (parameters.get(f"ifGeneration{kind}Match") for kind in ("", "Not"))
        if (wanted is not None and int(wanted) != generation) or (unwanted is not None and int(unwanted) == generation):
            raise _Refused(412, "At least one of the pre-conditions you specified did not hold.")

    def put(
        self, bucket: str, name: str, content: bytes, parameters: dict[str, str], metadata: dict[str, str]
    ) -> dict[str, Any]:
        """Writes an object; its description."""
        with self.lock:
            if bucket not in self.buckets:
                raise _Refused(404, f"The specified bucket does not exist: {bucket}")
            self.check(bucket, name, parameters)
            self._generation += 1
            self.buckets[bucket][name] = Blob(bytes(content), self._generation, metadata)
            return self.describe(bucket, name)

    def remove(self, bucket: str, name: str, parameters: dict[str, str]) -> None:
        """Deletes an object."""
        with self.lock:
            self.find(bucket, name)
            self.check(bucket, name, parameters)
            del self.buckets[bucket][name]

    def describe(self, bucket: str, name: str) -> dict[str, Any]:
        """An object as the JSON API describes it."""
        blob = self.find(bucket, name)
        where = f"{bucket}/o/{quote(name, safe='')}"
        return {
            "kind": "storage#object",
            "id": f"{bucket}/{name}/{blob.generation}",
            "name": name,
            "bucket": bucket,
            "generation": str(blob.generation),
            "metageneration": "1",
            "contentType": "application/octet-stream",
            "storageClass": "STANDARD",
            "size": str(len(blob.content)),
            "md5Hash": base64.b64encode(hashlib.md5(blob.content, usedforsecurity=False).digest()).decode(),
            "etag": str(blob.generation),
            "timeCreated": "2026-01-01T00:00:00.000Z",
            "updated": "2026-01-01T00:00:00.000Z",
            "metadata": blob.metadata,
            "selfLink": f"/storage/v1/b/{where}",
            "mediaLink": f"/download/storage/v1/b/{where}?alt=media",
        }

    def listing(self, bucket: str, parameters: dict[str, str]) -> dict[str, Any]:
        """A page of the names in a bucket."""
        if bucket not in self.buckets:
            raise _Refused(404, f"The specified bucket does not exist: {bucket}")
        prefix, delimiter = parameters.get("prefix", ""), parameters.get("delimiter", "")
        start, end = parameters.get("startOffset", ""), parameters.get("endOffset", "")
        after, most = parameters.get("pageToken", ""), min(int(parameters.get("maxResults") or _PAGE), _PAGE)
        items: list[dict[str, Any]] = []
        prefixes: list[str] = []
        last = ""
        with self.lock:
            for name in sorted(self.buckets[bucket]):
                if not name.startswith(prefix) or name < start or (end and name >= end):
                    continue
                found = name[len(prefix) :].find(delimiter) if delimiter else -1
                entry = name if found < 0 else name[: len(prefix) + found + len(delimiter)]
                if (after and entry <= after) or entry in prefixes:
                    continue
                if len(items) + len(prefixes) == most:
                    return {"kind": "storage#objects", "items": items, "prefixes": prefixes, "nextPageToken": last}
                last = entry
                if found < 0:
                    items.append(self.describe(bucket, name))
                else:
                    prefixes.append(entry)
        return {"kind": "storage#objects", "items": items, "prefixes": prefixes}

    def compose(self, bucket: str, name: str, body: bytes, parameters: dict[str, str]) -> dict[str, Any]:
        """Writes an object that is several others, one after the other."""
        with self.lock:
            parts = [self.find(bucket, part["name"]).content for part in json.loads(body)["sourceObjects"]]
            return self.put(bucket, name, b"".join(parts), parameters, {})

    def copy(self, source: tuple[str, str], target: tuple[str, str], parameters: dict[str, str]) -> dict[str, Any]:
        """Copies an object; its description."""
        with self.lock:
            blob = self.find(*source)
            return self.put(*target, blob.content, parameters, blob.metadata)


def _split(path: str) -> tuple[str, str]:
    bucket, _, name = path.removeprefix("gs://").partition("/")
    return bucket, name


def make_certificate(folder: Path) -> None:
    """Writes an authority of its own, and a certificate by which this server is Google, to a folder."""
    openssl = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    openssl += ["-days", "2", "-subj", "/CN=an emulator of buckets for tests"]
    names = ",".join(f"DNS:{host}" for host in HOSTS)
    own = ["-addext", f"subjectAltName={names}", "-keyout", folder / "server.key", "-out", folder / "server.pem"]
    subprocess.run([*openssl, *own], check=True, capture_output=True)
    # A certificate that signs itself is its own authority.
    shutil.copy(folder / "server.pem", folder / "authority.pem")


class _Server(HTTPServer):
    """A thread for each connection, up to a limit."""

    request_queue_size = 128

    def __init__(self, storage: _Buckets, tls: ssl.SSLContext):
        self.storage, self.tls = storage, tls
        self.slots = threading.BoundedSemaphore(_THREADS)
        super().__init__(("127.0.0.1", 0), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        self.slots.acquire()
        threading.Thread(target=self._serve, args=(request, client_address), daemon=True).start()

    def _serve(self, request: Any, client_address: Any) -> None:
        try:
            # A client that goes away in the middle is nobody's mistake.
            with contextlib.suppress(OSError):
                self.finish_request(request, client_address)
        finally:
            self.shutdown_request(request)
            self.slots.release()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = _IDLE_SECONDS
    # An answer in two pieces would wait 40 ms for its second one.
    wbufsize, disable_nagle_algorithm = -1, True
    server: _Server

    def log_message(self, *arguments: Any) -> None:
        """Nothing is printed."""

    def do_CONNECT(self) -> None:
        """A client that wants to reach Google through a proxy finds Google here."""
        host = self.path.partition(":")[0]
        if host not in HOSTS:
            self.send_error(403)
            return
        self.send_response(200)
        self.end_headers()
        self.wfile.flush()
        self.connection = self.server.tls.wrap_socket(self.connection, server_side=True)
        self.rfile = self.connection.makefile("rb", -1)
        self.wfile = self.connection.makefile("wb", -1)
        self.close_connection = False

    def do_GET(self) -> None:
        """Every method is answered in one place."""
        self._answer()

    do_POST = do_PUT = do_DELETE = do_PATCH = do_HEAD = do_GET  # noqa: N815  # names that http.server asks for

    def _answer(self) -> None:
        storage = self.server.storage
        body = self._body()
        url = urlsplit(self.path)
        parameters = dict(parse_qsl(url.query, keep_blank_values=True))
        asked = Asked(self.command, url.path, parameters, {key.lower(): value for key, value in self.headers.items()})
        try:
            if asked.path.startswith(_CONTROL):
                self._json(storage.control(asked.path.removeprefix(_CONTROL), json.loads(body)))
                return
            storage.note(asked)
            self._route(asked, body)
        except _Unanswered as silence:
            time.sleep(silence.seconds)
            self.close_connection = True
        except _Refused as refused:
            content = json.dumps({"error": {"code": refused.status, "message": refused.reason}}).encode()
            self._send(refused.status, content)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        return b"".join(parts)

    def _send(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in ({"Content-Type": "application/json"} | (headers or {})).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode())

    def _route(self, asked: Asked, body: bytes) -> None:
        for pattern, act in _ROUTES:
            found = pattern.fullmatch(asked.path)
            if found:
                act(self, asked, body, *map(unquote, found.groups()))
                return
        raise _Refused(404, f"the emulator does not know {asked.method} {asked.decoded}")

    def _bucket(self, asked: Asked, body: bytes, bucket: str) -> None:
        if bucket not in self.server.storage.buckets:
            raise _Refused(404, f"The specified bucket does not exist: {bucket}")
        self._json({"kind": "storage#bucket", "id": bucket, "name": bucket, "location": "US"})

    def _list(self, asked: Asked, body: bytes, bucket: str) -> None:
        self._json(self.server.storage.listing(bucket, asked.parameters))

    def _object(self, asked: Asked, body: bytes, bucket: str, name: str) -> None:
        storage = self.server.storage
        if asked.method == "DELETE":
            storage.remove(bucket, name, asked.parameters)
            self._send(204, b"")
        elif asked.method == "GET" and asked.parameters.get("alt") == "media":
            self._media(asked, body, bucket, name)
        elif asked.method in ("GET", "PATCH"):
            storage.check(bucket, name, asked.parameters)
            self._json(storage.describe(bucket, name))
        else:
            raise _Refused(405, f"the emulator does not know {asked.method} {asked.decoded}")

    def _media(self, asked: Asked, body: bytes, bucket: str, name: str) -> None:
        storage = self.server.storage
        with storage.lock:
            blob = storage.find(bucket, name)
            storage.check(bucket, name, asked.parameters)
        checksum = base64.b64encode(hashlib.md5(blob.content, usedforsecurity=False).digest()).decode()
        headers = {"Content-Type": "application/octet-stream", "x-goog-generation": str(blob.generation)}
        headers |= {"x-goog-hash": f"md5={checksum}", "x-goog-stored-content-length": str(len(blob.content))}
        size = len(blob.content)
        found = re.fullmatch(r"bytes=(\d*)-(\d*)", asked.headers.get("range", ""))
        if found is None or found.groups() == ("", ""):
            storage.sent += size
            self._send(200, blob.content, headers)
            return
        first, last = found.groups()
        start = max(0, size - int(last)) if not first else int(first)
        stop = size if not last or not first else min(size, int(last) + 1)
        if start >= size:
            raise _Refused(416, "The requested range cannot be satisfied.")
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
        storage.sent += stop - start
        self._send(206, blob.content[start:stop], headers)

    def _rewrite(
        self, asked: Asked, body: bytes, bucket: str, name: str, act: str, target_bucket: str, target: str
    ) -> None:
        done = self.server.storage.copy((bucket, name), (target_bucket, target), asked.parameters)
        rewritten = {"kind": "storage#rewriteResponse", "done": True, "resource": done}
        rewritten |= {"totalBytesRewritten": done["size"], "objectSize": done["size"]}
        self._json(rewritten if act == "rewriteTo" else done)

    def _compose(self, asked: Asked, body: bytes, bucket: str, name: str) -> None:
        self._json(self.server.storage.compose(bucket, name, body, asked.parameters))

    def _upload(self, asked: Asked, body: bytes, bucket: str) -> None:
        storage, kind = self.server.storage, asked.parameters.get("uploadType")
        if bucket not in storage.buckets:
            raise _Refused(404, f"The specified bucket does not exist: {bucket}")
        session = asked.parameters.get("upload_id")
        if session is not None:
            self._continue(session, asked, body)
            return
        name, metadata = asked.parameters.get("name", ""), {}
        if kind == "multipart":
            described, body = _parts(asked.headers["content-type"], body)
        else:
            described = json.loads(body) if kind == "resumable" and body else {}
        name, metadata = described.get("name", name), described.get("metadata", {})
        if kind == "resumable":
            storage.check(bucket, name, asked.parameters)
            session = os.urandom(8).hex()
            storage.uploads[session] = (bucket, name, asked.parameters, bytearray())
            host, scheme = self.headers["Host"], "https" if isinstance(self.connection, ssl.SSLSocket) else "http"
            location = f"{scheme}://{host}{asked.path}?uploadType=resumable&upload_id={session}"
            self._send(200, b"", {"Location": location})
        else:
            self._json(storage.put(bucket, name, body, asked.parameters, metadata))

    def _continue(self, session: str, asked: Asked, body: bytes) -> None:
        """A part of a resumable upload, or the question how far it is."""
        storage = self.server.storage
        if session not in storage.uploads:
            raise _Refused(404, "No such upload.")
        bucket, name, parameters, content = storage.uploads[session]
        found = re.fullmatch(r"bytes (?:(\d+)-(\d+)|\*)/(\d+|\*)", asked.headers.get("content-range", "bytes */*"))
        if "content-range" not in asked.headers:
            content[:] = body
            total: int | None = len(body)
        else:
            assert found is not None, asked.headers
            if found[1] is not None:
                content[int(found[1]) :] = body
            total = None if found[3] == "*" else int(found[3])
        if total is not None and len(content) == total:
            done = storage.put(bucket, name, bytes(content), parameters, {})
            del storage.uploads[session]
            self._json(done)
            return
        self._send(308, b"", {"Range": f"bytes=0-{len(content) - 1}"} if content else {})


def _parts(kind: str, body: bytes) -> tuple[dict[str, Any], bytes]:
    """The description and the content in a multipart upload."""
    boundary = re.search(r"boundary=[\"']?([^\"';]+)", kind)
    assert boundary is not None, kind
    pieces = body.split(b"--" + boundary[1].encode())[1:3]
    contents = []
    for piece in pieces:
        _, _, content = piece.partition(b"\r\n\r\n")
        assert BytesHeaderParser().parsebytes(piece.lstrip()).keys(), piece[:100]
        contents.append(content.removesuffix(b"\r\n"))
    return json.loads(contents[0]), contents[1]


_HOST = r"(?:/download)?/storage/v1"
_ROUTES: tuple[tuple[re.Pattern[str], Callable[..., None]], ...] = (
    (re.compile(rf"{_HOST}/b/([^/]+)"), _Handler._bucket),
    (re.compile(rf"{_HOST}/b/([^/]+)/o"), _Handler._list),
    (re.compile(rf"{_HOST}/b/([^/]+)/o/([^/]+)"), _Handler._object),
    (re.compile(rf"{_HOST}/b/([^/]+)/o/([^/]+)/(rewriteTo|copyTo)/b/([^/]+)/o/([^/]+)"), _Handler._rewrite),
    (re.compile(rf"{_HOST}/b/([^/]+)/o/([^/]+)/compose"), _Handler._compose),
    (re.compile(r"(?:/upload|/resumable/upload)/storage/v1/b/([^/]+)/o"), _Handler._upload),
    (re.compile(r"/([^/]+)/(.+)"), _Handler._media),
)


def _serve(folder: Path, names: list[str]) -> None:
    """The process of the server; it ends with the one that started it, which then closes its standard input."""
    make_certificate(folder)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(folder / "server.pem", folder / "server.key")
    tls.set_alpn_protocols(["http/1.1"])
    server = _Server(_Buckets(names), tls)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    sys.stdout.write(f"http://127.0.0.1:{server.server_address[1]}\n")
    sys.stdout.flush()
    sys.stdin.read()


# --- What tests hold --------------------------------------------------------------------------------------------------


class Storage:
    """A server with buckets, while the `with` block lasts."""

    def __init__(self, *buckets: str):
        """Makes empty buckets; nothing is served before `__enter__`."""
        self._folder = Path(tempfile.mkdtemp(prefix="gcs-"))
        self._command = [sys.executable, __file__, str(self._folder), *buckets]

    def __enter__(self) -> "Storage":
        self._process = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.address = self._process.stdout.readline().strip()
        assert self.address, "the emulator did not start"
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.communicate(timeout=10)
        shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def environment(self) -> dict[str, str]:
        """The variables that lead all clients here."""
        return {
            "https_proxy": self.address,
            "no_proxy": "localhost,127.0.0.1",
            "CURL_CA_BUNDLE": str(self._folder / "authority.pem"),
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "nobody",
            "NO_GCE_CHECK": "true",
            "TENSORSTORE_GCS_HTTP_URL": self.address,
            "CLOUD_STORAGE_EMULATOR_ENDPOINT": self.address,
            "STORAGE_EMULATOR_HOST": self.address,
        }

    def _control(self, act: str, **value: Any) -> Any:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        request = urllib.request.Request(f"{self.address}{_CONTROL}{act}", json.dumps(value).encode())
        with opener.open(request, timeout=30) as answer:
            return json.loads(answer.read())

    def clear(self) -> None:
        """Empties all buckets, forgets the requests, and makes no more trouble."""
        self._control("clear")

    def fail(self, pattern: str = "", *, every: int = 1, status: int = 503) -> None:
        """Answers every n-th request whose method and decoded path match a pattern by a status."""
        self._control("trouble", pattern=pattern, every=every, status=status)

    def hang(self, pattern: str = "", *, every: int = 1, seconds: float = 1.0) -> None:
        """Answers every n-th such request not at all: it holds the connection for some seconds, and closes it."""
        self._control("trouble", pattern=pattern, every=every, status=0, seconds=seconds)

    def work(self) -> None:
        """Makes no more trouble."""
        self._control("trouble")

    @property
    def requests(self) -> list[str]:
        """Every request since the last `clear`: method and decoded path."""
        return self._control("requests")

    @property
    def sent(self) -> int:
        """Bytes of objects in all answers since the last `clear`."""
        return self._control("sent")

    def write(self, path: str, content: bytes) -> None:
        """Puts an object there without a client; `path` is gs://BUCKET/NAME."""
        self._control("write", path=path, content=base64.b64encode(content).decode())

    def read(self, path: str) -> bytes:
        """The content of an object."""
        return base64.b64decode(self._control("read", path=path))

    def names(self, path: str) -> list[str]:
        """The names of all objects that begin with gs://BUCKET/PREFIX, without that prefix and without folders."""
        return [name for name in self._control("names", path=path) if name and not name.endswith("/")]

    def upload_folder(self, folder: Path, path: str) -> None:
        """Puts all files of a local folder below gs://BUCKET/PREFIX."""
        for file in sorted(Path(folder).rglob("*")):
            if file.is_file():
                self.write(f"{path}/{file.relative_to(folder)}", file.read_bytes())

    def download_folder(self, path: str, folder: Path) -> Path:
        """Writes all objects below gs://BUCKET/PREFIX to a local folder; returns it."""
        for name in self.names(f"{path}/"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(self.read(f"{path}/{name}"))
        return folder


if __name__ == "__main__":
    _serve(Path(sys.argv[1]), sys.argv[2:])
