"""A bucket in memory behind the JSON interface of Google Cloud Storage, for tests without network.

It serves only the requests of gcsfs (etils), tensorstore (orbax) and array_record: objects,
listings, ranges, three kinds of upload, copies, and generations. Every bucket name exists. After
`Fake.failing(n)` the next n requests get 503, as from an overloaded service.

    with serve() as fake: run(environment=fake.environment)

python tests/fake_gcs.py prints the variables to export, and serves until it is stopped.
"""

import base64
import json
import re
import threading
import zlib
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, quote, unquote, urlsplit

OBJECT = re.compile(r"(?:/download)?/storage/v1/b/([^/]+)/o/([^/]+)")
COPY = re.compile(r"/storage/v1/b/([^/]+)/o/([^/]+)/(?:copyTo|rewriteTo)/b/([^/]+)/o/([^/]+)")
MOVE = re.compile(r"/storage/v1/b/([^/]+)/o/([^/]+)/moveTo/o/([^/]+)")
LIST = re.compile(r"(/upload)?/storage/v1/b/([^/]+)/o")
BUCKET = re.compile(r"/storage/v1/b/([^/]+)")


class Fake:
    """The content of the buckets: objects[bucket, name] is (generation, bytes)."""

    def __init__(self):
        self.objects, self.uploads, self.requests = {}, {}, []
        self.generation, self.refused, self.lock = 1, 0, threading.Lock()

    def store(self, bucket, name, content):
        with self.lock:
            self.generation += 1
            self.objects[bucket, name] = (self.generation, bytes(content))

    def failing(self, requests):
        """Makes the next requests fail with 503."""
        self.refused = requests


class Handler(BaseHTTPRequestHandler):
    """Handles one request; self.server.fake holds the buckets."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1  # headers and body in one packet

    def log_message(self, *arguments):
        pass

    def respond(self, status, content=b"", headers=()):
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in dict(headers).items():
            self.send_header(name, value)
        media = "application/octet-stream" if isinstance(content, bytes) else "application/json"
        self.send_header("Content-Type", media)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
        self.wfile.flush()

    def refuse(self, status, message):
        self.respond(status, {"error": {"code": status, "message": message}})

    def body(self):
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def metadata(self, bucket, name):
        generation, content = self.server.fake.objects[bucket, name]
        checksum = base64.b64encode(zlib.crc32(content).to_bytes(4, "big")).decode()
        return {
            "kind": "storage#object",
            "bucket": bucket,
            "name": name,
            "size": str(len(content)),
            "generation": str(generation),
            "metageneration": "1",
            "etag": checksum,
            "updated": "2020-01-01T00:00:00.000Z",
            "timeCreated": "2020-01-01T00:00:00.000Z",
            "storageClass": "STANDARD",
        }

    def unmet(self, bucket, name, query):
        """Whether a condition on the generation fails; then the response has been sent."""
        generation = self.server.fake.objects.get((bucket, name), (0, b""))[0]
        if query.get("ifGenerationMatch", str(generation)) != str(generation):
            self.refuse(412, "conditionNotMet")
        elif query.get("ifGenerationNotMatch") == str(generation):
            self.respond(304)
        else:
            return False
        return True

    def handle_one(self):
        fake, address = self.server.fake, urlsplit(self.path)
        path = address.path
        query = {key: values[0] for key, values in parse_qs(address.query).items()}
        body = self.body()
        fake.requests.append((self.command, unquote(self.path)))
        with fake.lock:
            fake.refused, refused = max(fake.refused - 1, 0), fake.refused
        if refused:
            return self.refuse(503, "try again")
        if match := COPY.fullmatch(path):
            return self.copy(*map(unquote, match.groups()))
        if match := MOVE.fullmatch(path):
            bucket, name, to_name = map(unquote, match.groups())
            self.copy(bucket, name, bucket, to_name)
            return fake.objects.pop((bucket, name), None)
        if match := LIST.fullmatch(path):
            bucket = unquote(match[2])
            if match[1]:
                return self.upload(bucket, query, body)
            return self.listing(bucket, query)
        if match := OBJECT.fullmatch(path):
            return self.one(*map(unquote, match.groups()), query)
        if match := BUCKET.fullmatch(path):
            return self.respond(200, {"kind": "storage#bucket", "name": unquote(match[1])})
        return self.refuse(404, f"the fake does not know {self.command} {self.path}")

    do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = do_PATCH = handle_one

    def one(self, bucket, name, query):
        if self.unmet(bucket, name, query):
            return None
        if (bucket, name) not in self.server.fake.objects:
            return self.refuse(404, f"No such object: {bucket}/{name}")
        if self.command == "DELETE":
            self.server.fake.objects.pop((bucket, name), None)
            return self.respond(204)
        if query.get("alt") != "media":
            return self.respond(200, self.metadata(bucket, name))
        generation, content = self.server.fake.objects[bucket, name]
        headers = {"x-goog-generation": generation, "x-goog-storage-class": "STANDARD"}
        headers |= {"x-goog-stored-content-length": len(content), "ETag": str(generation)}
        match = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if not match:
            return self.respond(200, content, headers)
        first, last = match.groups()
        start = int(first) if first else max(0, len(content) - int(last))
        stop = min(int(last) + 1 if first and last else len(content), len(content))
        if start >= len(content):
            return self.respond(416, b"", {"Content-Range": f"bytes */{len(content)}"})
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(content)}"
        return self.respond(206, content[start:stop], headers)

    def listing(self, bucket, query):
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        names, folders = [], set()
        for owner, name in sorted(self.server.fake.objects):
            if owner != bucket or not name.startswith(prefix):
                continue
            if name < query.get("startOffset", "") or name >= query.get("endOffset", "\uffff"):
                continue
            below, slash, _ = name[len(prefix) :].partition(delimiter or "\0")
            if slash:
                folders.add(prefix + below + delimiter)
            else:
                names.append(name)
        count = int(query.get("maxResults", 1000))
        start = int(query.get("pageToken", 0))
        listing = {
            "kind": "storage#objects",
            "items": [self.metadata(bucket, name) for name in names[start : start + count]],
            "prefixes": sorted(folders) if start == 0 else [],
        }
        if start + count < len(names):
            listing["nextPageToken"] = str(start + count)
        return self.respond(200, listing)

    def upload(self, bucket, query, body):
        fake, kind = self.server.fake, query.get("uploadType")
        if kind == "multipart":
            boundary = re.search(r'boundary="?([^";]+)"?', self.headers["Content-Type"])[1]
            _, header, rest = body.split(b"--" + boundary.encode(), 2)
            name = json.loads(re.split(rb"\r?\n\r?\n", header, maxsplit=1)[1])["name"]
            content = re.split(rb"\r?\n\r?\n", rest, maxsplit=1)[1]
            content = content[: content.rindex(b"\n--" + boundary.encode())].removesuffix(b"\r")
        elif kind == "media":
            name, content = query["name"], body
        elif "upload_id" in query:
            return self.append(query["upload_id"], body)
        else:
            name = query.get("name") or json.loads(body)["name"]
            key = str(len(fake.uploads))
            fake.uploads[key] = (bucket, name, query, bytearray())
            host, where = self.headers["Host"], quote(bucket)
            address = f"http://{host}/upload/storage/v1/b/{where}/o?upload_id={key}"
            return self.respond(200, b"", {"Location": f"{address}&uploadType=resumable"})
        return self.done(bucket, name, query, content)

    def append(self, key, body):
        bucket, name, query, content = self.server.fake.uploads[key]
        match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", self.headers.get("Content-Range", ""))
        if match:
            content[int(match[1]) :] = body
        if match and match[2] == "*":
            return self.respond(308, b"", {"Range": f"bytes=0-{len(content) - 1}"})
        return self.done(bucket, name, query, content if match else content + body)

    def done(self, bucket, name, query, content):
        if self.unmet(bucket, name, query):
            return None
        self.server.fake.store(bucket, name, content)
        return self.respond(200, self.metadata(bucket, name))

    def copy(self, bucket, name, to_bucket, to_name):
        if (bucket, name) not in self.server.fake.objects:
            return self.refuse(404, f"No such object: {bucket}/{name}")
        self.server.fake.store(to_bucket, to_name, self.server.fake.objects[bucket, name][1])
        metadata = self.metadata(to_bucket, to_name)
        rewritten = {"kind": "storage#rewriteResponse", "done": True, "resource": metadata}
        return self.respond(200, rewritten if "rewriteTo" in self.path else metadata)


class Server(ThreadingHTTPServer):
    """Serves concurrent connections, which tensorstore opens."""

    request_queue_size = 128
    daemon_threads = True

    def handle_error(self, request, client_address):
        """Prints nothing: clients may close a connection early."""


@contextmanager
def serve():
    """`with serve() as fake`: a running Fake; fake.environment has the variables that locate it."""
    with Server(("127.0.0.1", 0), Handler) as server:
        server.fake = fake = Fake()
        address = f"http://127.0.0.1:{server.server_port}"
        fake.environment = {
            "STORAGE_EMULATOR_HOST": address,  # gcsfs
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # otherwise it also uses gRPC
            "TENSORSTORE_GCS_HTTP_URL": address,  # tensorstore, hence orbax
            "CLOUD_STORAGE_EMULATOR_ENDPOINT": address,  # array_record
            "FSSPEC_GCS_TOKEN": "anon",
            "GCE_METADATA_ROOT": "127.0.0.1:1",  # no listener: credentials are not searched
            "NO_GCE_CHECK": "true",
        }
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        try:
            yield fake
        finally:
            server.shutdown()


if __name__ == "__main__":
    with serve() as running:
        for name, value in running.environment.items():
            print(f"export {name}={value}", flush=True)
        threading.Event().wait()
