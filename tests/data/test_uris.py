"""Reading through pyarrow: S3 from a small server on this machine, and what happens without."""

import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

import numpy as np
import pytest

from tensorlite.data import DataError, cifar10, write_cifar10


class BucketHandler(BaseHTTPRequestHandler):
    """As much of S3 as reading takes: HEAD and ranged GET of an object, and ListObjectsV2."""

    objects: dict[str, bytes]
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        query = parse_qs(url.query, keep_blank_values=True)
        if "list-type" in query:
            return self.answer(200, self.listing(query), "application/xml")
        content = self.objects.get(unquote(url.path).lstrip("/"))
        if content is None:
            return self.answer(404, b"<Error><Code>NoSuchKey</Code></Error>", "application/xml")
        if "Range" in self.headers:
            first, last = self.headers["Range"].removeprefix("bytes=").split("-")
            return self.answer(206, content[int(first) : int(last) + 1], "binary/octet-stream")
        return self.answer(200, content, "binary/octet-stream")

    def listing(self, query: dict[str, list[str]]) -> bytes:
        prefix = "bucket/" + query.get("prefix", [""])[0]
        keys = sorted(key for key in self.objects if key.startswith(prefix))
        entries = "".join(
            f"<Contents><Key>{escape(key.removeprefix('bucket/'))}</Key>"
            f"<Size>{len(self.objects[key])}</Size>"
            "<LastModified>2024-01-01T00:00:00.000Z</LastModified></Contents>"
            for key in keys
        )
        return (
            '<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>bucket</Name>'
            f"<KeyCount>{len(keys)}</KeyCount><IsTruncated>false</IsTruncated>{entries}"
            "</ListBucketResult>"
        ).encode()

    def answer(self, status: int, body: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Type", kind)
        self.send_header("Last-Modified", "Mon, 01 Jan 2024 00:00:00 GMT")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, dict[str, bytes]]]:
    """A URI with `PATH` where the path in the bucket goes, and the objects that it serves."""
    pytest.importorskip("pyarrow")
    local = tmp_path_factory.mktemp("local") / "some.bin"
    objects = {}
    for i in range(5):
        write_cifar10(local, np.full((2, 32, 32, 3), i, np.uint8), [i, i])
        objects[f"bucket/cifar/data_batch_{i + 1}.bin"] = local.read_bytes()
    handler = type("Handler", (BucketHandler,), {"objects": objects})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    port = server.server_address[1]
    where = f"?endpoint_override=127.0.0.1:{port}&scheme=http&region=us-east-1"
    yield f"s3://reader:secret@bucket/PATH{where}", objects
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize("scheme", ["s3", "s3a"])
def test_a_folder_a_file_and_a_pattern_in_s3(
    bucket: tuple[str, dict[str, bytes]], scheme: str
) -> None:
    uri = bucket[0].replace("s3://", f"{scheme}://")
    images, labels = cifar10(uri.replace("PATH", "cifar")).arrays
    assert labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert (images == labels[:, None, None, None]).all()
    assert cifar10(uri.replace("PATH", "cifar/data_batch_3.bin")).arrays[1].tolist() == [2, 2]
    assert len(cifar10(uri.replace("PATH", "cifar/data*.bin"))) == 10


def test_errors_in_s3_name_the_object_and_keep_the_secret(
    bucket: tuple[str, dict[str, bytes]],
) -> None:
    uri, objects = bucket
    objects["bucket/torn/data.bin"] = bytes(100)
    with pytest.raises(DataError, match=r"s3://bucket/torn/data.bin has 100 bytes") as torn:
        cifar10(uri.replace("PATH", "torn/data.bin"))
    with pytest.raises(
        FileNotFoundError,
        match=r"s3://bucket/torn lacks test_batch.bin .*; s3://bucket/torn holds data.bin",
    ) as missing:
        cifar10(uri.replace("PATH", "torn"), train=False)
    with pytest.raises(FileNotFoundError, match=r"s3://bucket/none/x.bin does not exist") as none:
        cifar10(uri.replace("PATH", "none/x.bin"))
    for caught in (torn, missing, none):
        assert "secret" not in str(caught.value)


def test_a_uri_that_arrow_cannot_open() -> None:
    pytest.importorskip("pyarrow")
    with pytest.raises(ValueError, match="cannot open tape://host: ") as caught:
        cifar10("tape://reader:secret@host/cifar")
    assert "secret" not in str(caught.value)
    with pytest.raises(ValueError, match="cifar10: the URI is malformed"):
        cifar10("s3://[bucket/cifar")


def test_hdfs_without_a_hadoop_client_says_what_to_set(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("pyarrow")
    for name in ("JAVA_HOME", "HADOOP_HOME", "ARROW_LIBHDFS_DIR"):
        monkeypatch.setenv(name, "/nonexistent")
    with pytest.raises(OSError, match=r"cannot open hdfs://127.0.0.1:1: .*CLASSPATH") as caught:
        cifar10("hdfs://127.0.0.1:1/cifar")
    assert "\n" not in str(caught.value)


def test_without_pyarrow_the_extra_is_named_and_local_files_still_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r"hdfs:// needs pyarrow; pip install 'tensorlite\[spark"):
        cifar10("hdfs://namenode/cifar")
    file = tmp_path / "a.bin"
    write_cifar10(file, np.zeros((1, 32, 32, 3), np.uint8), [3])
    assert cifar10(f"file://{file}").arrays[1].tolist() == [3]
