"""Digests on disk never change."""

import hashlib
import io

import pytest

from gpt_jax import digest, files

NONE = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def test_digests_are_those_that_stored_files_hold():
  assert digest.of_bytes(b"") == NONE
  assert digest.of_file(io.BytesIO(b"")) == NONE
  assert digest.of_text("é") == hashlib.sha256("é".encode()).hexdigest()
  text = b'[1, {"a": "\\u00e9", "b": null}]'
  content = [1, {"b": None, "a": "é"}]
  assert digest.of_json(content) == hashlib.sha256(text).hexdigest()
  assert digest.of_json((1, content[1])) == digest.of_json(content)


def test_a_seal_covers_all_but_itself():
  record = {"step": 3, "name": "x"}
  seal = digest.seal_of(record, "seal")
  assert digest.seal_of(record | {"seal": seal}, "seal") == seal
  assert digest.seal_of(record | {"step": 4}, "seal") != seal
  assert files.seal(record)["digest"] == seal[:16]


def test_what_is_not_json_has_no_digest():
  with pytest.raises(TypeError):
    digest.of_json({"a": b"bytes"})
