"""Vectors of texts, as their user asks for them."""

import json

import numpy as np
import pytest
from refusals import assert_refused

TEXTS = ["def f(x):", "class Some:", "  import re", "x " * 200]


def test_each_text_has_a_vector_in_the_order_of_the_file(
  trained, call_verb, tmp_path
):
  lines, records = tmp_path / "texts.txt", tmp_path / "texts.jsonl"
  lines.write_text("\n".join(TEXTS) + "\n")
  stripped = [{"text": text.strip()} for text in TEXTS]
  records.write_text("\n".join(map(json.dumps, stripped)))
  found = []
  for path in (lines, records):
    out = tmp_path / "out.npy"
    done = call_verb(
      "embed", f"--workdir={trained}", f"--texts={path}", f"--out={out}"
    )
    assert done.returncode == 0, done
    assert "holds 4 vectors of" in done.stdout
    assert "1 of 4 texts fill" in done.stderr
    found.append(np.load(out))
  np.testing.assert_array_equal(*found)
  assert found[0].dtype == np.float32 and len(found[0]) == 4
  np.testing.assert_allclose(np.square(found[0]).sum(1), 1, rtol=1e-5)
  (tmp_path / "one.txt").write_text(TEXTS[1])
  out = tmp_path / "one.npy"
  call_verb(
    "embed",
    f"--workdir={trained}",
    f"--texts={tmp_path / 'one.txt'}",
    f"--out={out}",
  )
  np.testing.assert_allclose(np.load(out)[0], found[0][1], rtol=0, atol=2e-6)


@pytest.mark.parametrize(
  "name,content,sentence",
  [
    ("a.txt", "one\n\ntwo\n", "an empty text, its number 2"),
    ("a.txt", "\n\n", "holds no text"),
    ("a.jsonl", '{"body": "x"}', "has no field 'text'"),
    ("a.txt", b"\xff", "is not UTF-8"),
    ("missing/a.txt", None, "missing"),
  ],
)
def test_a_file_without_texts_is_one_sentence(
  name, content, sentence, trained, call_verb, tmp_path
):
  path = tmp_path / name
  if content is not None:
    path.write_bytes(
      content if isinstance(content, bytes) else content.encode()
    )
  out = tmp_path / "out.npy"
  done = call_verb(
    "embed", f"--workdir={trained}", f"--texts={path}", f"--out={out}"
  )
  assert_refused(done, sentence)
  assert not out.exists()
