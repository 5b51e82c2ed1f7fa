"""WARC and WET: records of plain text, whole, in bounded memory."""

import gzip

import pytest

from gpt_jax.config import InputError
from gpt_jax.data import sources
from gpt_jax.data.sources import document, warc


def read(spec: str) -> dict[str, str]:
  found = sources.open_source(spec).documents()
  return {d.name: "".join(d.pieces) for d in found}


def record(body, kind="conversion", mime="text/plain", length=None) -> bytes:
  data = body.encode() if isinstance(body, str) else body
  lines = [
    "WARC/1.0",
    f"WARC-Type: {kind}",
    "WARC-Target-URI: http://a.b/c",
    f"content-type: {mime}",
    f"Content-Length: {len(data) if length is None else length}",
  ]
  return "\r\n".join([*lines, "", ""]).encode() + data + b"\r\n\r\n"


TEXT = "first\r\n\r\nWARC/1.0\r\n國\n"
INFO = record("robots: classic\r\n", "warcinfo", "application/warc-fields")
RECORDS = [INFO, record(TEXT), record(" \n"), record("two", "resource")]


@pytest.mark.parametrize("block", [1, 7, 1 << 20])
@pytest.mark.parametrize("is_packed", [False, True])
def test_pages_are_read_as_they_are(tmp_path, monkeypatch, block, is_packed):
  monkeypatch.setattr(document, "BLOCK", block)
  path = tmp_path / "a.warc.wet.gz"
  # Each record is a member of its own, as in Common Crawl.
  pack = gzip.compress if is_packed else lambda data: data
  name = "a.warc.wet.gz" if is_packed else "a.wet"
  path = tmp_path / name
  path.write_bytes(b"".join(map(pack, RECORDS)))
  assert read(f"warc:{path}") == {f"{name}:2": TEXT, f"{name}:4": "two"}
  assert read(f"warc:{tmp_path}") == read(f"warc:{path}")


BAD = {
  "text": (b"plain text\n", "record 1 begins with b'plain text"),
  "between": (
    record("a") + b"x" + record("b"),
    "record 2 begins with b'xWARC/1.0",
  ),
  "short": (record("abc", length=2), "record 2 begins with b'c"),
  "cut": (record("abc")[:-6], "record 1 is cut: it has 1 of 3 bytes"),
  "header": (record("abc")[:30], "record 1 has a header that is cut"),
  "length": (record("a", length="x"), "Content-Length 'x'; it must be"),
  "negative": (record("a", length=-1), "Content-Length '-1'; it must be"),
  "huge": (record("a", length=10**12), "record 1 has 1,000,000,000,000 bytes"),
  "bytes": (INFO + record(b"a\xff"), "record 2 is not UTF-8: byte 0xff"),
  "responses": (
    record("<p>", "response", "application/http; msgtype=response") * 3,
    "holds 3 responses of servers and no plain text; give the WET files",
  ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_no_crawl_of_text_is_one_sentence(tmp_path, case):
  data, said = BAD[case]
  (tmp_path / "a.wet").write_bytes(data)
  with pytest.raises(InputError, match=f"a.wet.*{said}"):
    read(f"warc:{tmp_path}/a.wet")


def test_headers_and_records_are_bounded(tmp_path, monkeypatch):
  monkeypatch.setattr(warc, "MAX_HEADER_BYTES", 1000)
  monkeypatch.setattr(document, "BLOCK", 100)
  path = tmp_path / "a.wet"
  path.write_bytes(b"WARC/1.0\r\n" + b"A: b\r\n" * 1000)
  with pytest.raises(InputError, match="header that is longer than 1,000"):
    read(f"warc:{path}")
  path.write_bytes(b"WARC/1.0\r\n" + b"A" * 9000)
  with pytest.raises(InputError, match="header that is longer than 1,000"):
    read(f"warc:{path}")
  path.write_bytes(b"x" * 9000)
  with pytest.raises(InputError, match="record 1 begins with b'xxxx"):
    read(f"warc:{path}")
