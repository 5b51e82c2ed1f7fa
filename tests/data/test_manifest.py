"""A manifest is what was written, or it is refused by a field."""

import json
import pathlib
import random

import pytest

from gpt_jax.config import InputError
from gpt_jax.data import folders
from gpt_jax.data import manifest as manifest_lib
from gpt_jax.data.prepare import prepare_data

TEXTS = [f"document {i} says {'é' * i}\n" for i in range(40)]


def quiet(line: str) -> None:
  del line


@pytest.fixture
def folder(corpus) -> pathlib.Path:
  data = corpus(TEXTS, tokenizer="bpe:300")
  return pathlib.Path(prepare_data(data, say=quiet).folders[0])


def edit(folder, change) -> None:
  path = pathlib.Path(folder, "manifest.json")
  content = json.loads(path.read_text())
  change(content)
  path.write_text(json.dumps(content))


def test_an_edited_manifest_is_refused_by_its_seal(folder):
  text = (folder / "manifest.json").read_text()
  changes = [
    lambda m: m["splits"]["valid"].update(num_bytes=2 * 10**6),
    lambda m: m.update(source="text:other"),
    lambda m: m["tokenizer"]["notes"].update(more=1),
    lambda m: m.update(valid_frac=0.2),
  ]
  for change in changes:
    edit(folder, change)
    with pytest.raises(InputError, match="manifest.json is damaged: its seal"):
      folders.open_prepared(str(folder))
    (folder / "manifest.json").write_text(text)
  folders.open_prepared(str(folder))


WRONG = {
  "splits 5": lambda m: m.update(splits=5),
  "tokenizer null": lambda m: m.update(tokenizer=None),
  "vocab_size text": lambda m: m["tokenizer"].update(vocab_size="300"),
  "vocab_size 10^12": lambda m: m["tokenizer"].update(vocab_size=10**12),
  "separator outside": lambda m: m["tokenizer"].update(separator_id=300),
  "file 7": lambda m: m["splits"]["train"]["shards"][0].update(file=7),
  "file outside": lambda m: m["splits"]["train"]["shards"][0].update(
    file="../../x"
  ),
  "absolute file": lambda m: m["splits"]["valid"]["offsets"].update(
    file="/etc/passwd"
  ),
  "one file twice": lambda m: m["splits"]["valid"]["offsets"].update(
    file="train-00000.bin"
  ),
  "dtype x": lambda m: m.update(dtype="x"),
  "dtype V2": lambda m: m.update(dtype="V2"),
  "dtype float16": lambda m: m.update(dtype="float16"),
  "dtype of four bytes": lambda m: m.update(dtype="uint32"),
  "tokens below 0": lambda m: m["splits"]["train"].update(num_tokens=-(10**9)),
  "tokens true": lambda m: m["splits"]["train"].update(num_tokens=True),
  "tokens 10^9": lambda m: m["splits"]["train"].update(num_tokens=10**9),
  "no bytes": lambda m: m["splits"]["train"].update(num_bytes=0),
  "shards a dict": lambda m: m["splits"]["train"].update(shards={}),
  "hash short": lambda m: m["splits"]["train"]["shards"][0].update(sha256="a"),
  "format text": lambda m: m.update(format="1"),
  "role": lambda m: m.update(role="test"),
  "key unknown": lambda m: m.update(sale=m.pop("seal")),
  "split missing": lambda m: m["splits"].pop("valid"),
}


@pytest.mark.parametrize("name", WRONG)
def test_every_field_of_a_manifest_is_looked_at(folder, name):
  def change(content):
    WRONG[name](content)
    if "seal" in content:
      content["seal"] = manifest_lib.find_seal(content)

  edit(folder, change)
  with pytest.raises(InputError, match="manifest.json is damaged: .*; remove"):
    folders.open_prepared(str(folder))


def test_mutations_of_a_manifest_end_in_a_sentence_or_change_nothing(folder):
  text = (folder / "manifest.json").read_text()
  content = json.loads(text)
  parts = ["[", "]", "{", "}", ",", "null", "-1", "9" * 5000, "1e400", "NaN"]
  parts += ['"../x"', "true", "[" * 9000, "\x00", "\ud800", "0.5", '"']
  dice = random.Random(0)
  for _ in range(400):
    at = dice.randrange(len(text))
    changed = text[:at] + dice.choice(parts) + text[at + dice.randrange(9) :]
    try:
      data = changed.encode("utf-8", "surrogatepass")
      (folder / "manifest.json").write_bytes(data)
      found = manifest_lib.read(str(folder))
    except InputError:
      continue
    assert found == content
