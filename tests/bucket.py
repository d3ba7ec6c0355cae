"""Object storage on this machine: what of Google's JSON API the clients of a run use.

gcsfs (paths, data), google-cloud-storage (orbax asks what kind a bucket is) and
tensorstore (arrays) all talk HTTP to it, as they would to storage.googleapis.com. There
are no folders, nothing is renamed or appended to, and an object is there when it is
there whole.
"""

import base64
import functools
import hashlib
import json
import os
import re
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

gcsfs = pytest.importorskip("gcsfs", reason="pip install -e '.[test]'")

OBJECT = re.compile(r"(?:/download)?/storage/v1/b/([^/]+)/o/([^/]+)")
MOVE = re.compile(OBJECT.pattern + r"/moveTo/o/([^/]+)")
COPY = re.compile(OBJECT.pattern + r"/rewriteTo/b/([^/]+)/o/([^/]+)")
LIST = re.compile(r"/storage/v1/b/([^/]+)/o/?")
UPLOAD = re.compile(r"/(?:resumable/)?upload/storage/v1/b/([^/]+)/o")
BUCKET = re.compile(r"/storage/v1/b/([^/]+)")


class Store(ThreadingHTTPServer):
    """The objects of all buckets, and how often each kind of request came."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.objects = {}  # (bucket, name) -> (generation, bytes)
        self.parts, self.asked = {}, Counter()
        self.lock, self._generations = threading.Lock(), 0
        self.url = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def handle_error(self, request, client):
        """A client that goes away is none."""

    def names(self, bucket):
        return sorted(name for place, name in list(self.objects) if place == bucket)

    def clear(self):
        self.objects.clear()
        self.changed()

    def changed(self):
        """Not by a client of this process: they are not to trust what they listed."""
        for client in gcsfs.GCSFileSystem._cache.values():
            client.invalidate_cache()

    def put(self, key, data: bytes):
        self._generations += 1
        self.objects[key] = self._generations, bytes(data)
        return self.describe(key)

    def describe(self, key) -> dict:
        generation, data = self.objects[key]
        md5 = base64.b64encode(hashlib.md5(data).digest()).decode()
        when = "2026-01-01T00:00:00.000Z"
        return {
            **{"kind": "storage#object", "bucket": key[0], "name": key[1]},
            **{"id": "/".join(key), "size": str(len(data)), "metageneration": "1"},
            **{"generation": str(generation), "etag": str(generation)},
            **{"timeCreated": when, "updated": when, "storageClass": "STANDARD"},
            "md5Hash": md5,
        }


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # connections stay open

    def do_GET(self):
        if found := self._at(OBJECT):
            with self.server.lock:
                if not self._as_expected(found):
                    return
                meta = self.server.describe(found)
                data = self.server.objects[found][1]
            if self.asked.get("alt") == "media":
                self._send_bytes(data, meta)
            else:
                self._send(200, meta)
        elif found := self._at(LIST):
            self._list(*found)
        elif found := self._at(BUCKET):
            flat = {"hierarchicalNamespace": {"enabled": False}}
            self._send(200, {"name": found[0], "location": "US", **flat})
        else:
            self._send(404, {"error": {"code": 404, "message": self.path}})

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if found := self._at(COPY):
            self._copy(found[:2], found[2:])
        elif found := self._at(MOVE):
            self._copy(found[:2], (found[0], found[2]), move=True)
        elif found := self._at(UPLOAD):
            self._upload(*found, body)
        else:
            self._send(404, {"error": {"code": 404, "message": self.path}})

    do_PUT = do_POST

    def do_DELETE(self):
        found = self._at(OBJECT)
        with self.server.lock:
            if self._as_expected(found):
                del self.server.objects[found]
                self._send(204)

    def _copy(self, key, other, move=False):
        with self.server.lock:
            if self._as_expected(key):
                made = self.server.put(other, self.server.objects[key][1])
                if move:
                    del self.server.objects[key]
                self._send(200, made if move else {"done": True, "resource": made})

    def _at(self, pattern):
        """The parts of the path, if it is one of these."""
        split = urlsplit(self.path)
        self.asked = {k: v[0] for k, v in parse_qs(split.query).items()}
        found = pattern.fullmatch(split.path)
        if found is None:
            return None
        self.server.asked[self.command, self._client(), pattern.pattern] += 1
        return tuple(map(unquote, found.groups()))

    def _client(self):
        agent = self.headers.get("User-Agent", "")
        names = ("gcloud-python", "gcsfs", "tensorstore")
        return next((name for name in names if name in agent), agent)

    def _as_expected(self, key, required=True) -> bool:
        """That the object is there, and in the generation that was asked for."""
        there = self.server.objects.get(key)
        have = there[0] if there else 0
        wanted, known = (
            self.asked.get(f"ifGeneration{name}") for name in ("Match", "NotMatch")
        )
        if wanted is not None and int(wanted) != have:
            self._send(412, {"error": {"code": 412, "message": "generation"}})
        elif there is None and required:
            self._send(404, {"error": {"code": 404, "message": "No such object"}})
        elif known is not None and int(known) == have:
            self._send(304)
        else:
            return True
        return False

    def _list(self, bucket):
        get = self.asked.get
        prefix, delimiter = get("prefix", ""), get("delimiter")
        start, end = get("startOffset", ""), get("endOffset")
        items, prefixes = [], []
        with self.server.lock:
            for name in self.server.names(bucket):
                outside = name < start or (end is not None and name >= end)
                if outside or not name.startswith(prefix):
                    continue
                rest = name[len(prefix) :]
                if delimiter and delimiter in rest:
                    folder = prefix + rest.split(delimiter)[0] + delimiter
                    if folder not in prefixes:
                        prefixes.append(folder)
                else:
                    items.append(self.server.describe((bucket, name)))
        found = {"kind": "storage#objects"}
        found |= {"items": items} if items else {}
        self._send(200, found | ({"prefixes": prefixes} if prefixes else {}))

    def _upload(self, bucket, body):
        """At once, with the description before it, or in parts."""
        kind, name = self.asked.get("uploadType"), self.asked.get("name")
        if kind == "multipart":
            mark = re.search('boundary="?([^";]+)', self.headers["Content-Type"])[1]
            _, described, content, _ = body.split(b"--" + mark.encode(), 3)
            payload = lambda part: re.split(rb"\r?\n\r?\n", part, maxsplit=1)[1]
            name = json.loads(payload(described))["name"]
            body = re.sub(rb"\r?\n$", b"", payload(content))
        elif kind == "resumable" and "upload_id" not in self.asked:
            with self.server.lock:
                number = str(len(self.server.parts))
                described = json.loads(body or b"{}")
                self.server.parts[number] = name or described["name"], bytearray()
            query = f"uploadType=resumable&upload_id={number}"
            place = f"{self.server.url}/upload/storage/v1/b/{bucket}/o?{query}"
            self._send(200, {}, Location=place)
            return
        elif kind == "resumable":
            name, parts = self.server.parts[self.asked["upload_id"]]
            parts += body
            total = self.headers.get("Content-Range", "/*").split("/")[1]
            if total == "*" or int(total) > len(parts):
                self._send(308, Range=f"bytes=0-{len(parts) - 1}")
                return
            body = parts
        with self.server.lock:
            if self._as_expected((bucket, name), required=False):
                self._send(200, self.server.put((bucket, name), body))

    def _send_bytes(self, data, meta):
        wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        headers = {
            "x-goog-generation": meta["generation"],
            "x-goog-hash": f"md5={meta['md5Hash']}",
        }
        if not wanted:
            self._send(200, data, **headers)
            return
        first, last = wanted.groups()
        first = int(first) if first else len(data) - int(last)
        last = int(last) if last and wanted[1] else len(data) - 1
        if first >= len(data):
            self._send(416, {"error": {"code": 416, "message": "no such range"}})
            return
        part = data[first : last + 1]
        place = f"bytes {first}-{first + len(part) - 1}/{len(data)}"
        self._send(206, part, **headers, **{"Content-Range": place})

    def _send(self, code, body=b"", **headers):
        if isinstance(body, dict):
            body = json.dumps(body).encode()
            headers["Content-Type"] = "application/json; charset=UTF-8"
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@functools.cache
def store() -> Store:
    """Where the clients of this process talk to, from now on."""
    made = Store()
    os.environ |= {
        "STORAGE_EMULATOR_HOST": made.url,
        "TENSORSTORE_GCS_HTTP_URL": made.url,
        "GOOGLE_AUTH_TOKEN_FOR_TESTING": "nobody",
        "GOOGLE_CLOUD_PROJECT": "nothing",
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # which asks by gRPC
    }
    return made
