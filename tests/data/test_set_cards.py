"""The card of a set says where it came from and what was done to it."""

import json
import pathlib

import pytest

from gpt_jax.data import card
from gpt_jax.data import manifest as manifest_lib
from gpt_jax.data.prepare import prepare_data


def quiet(line: str) -> None:
  del line


@pytest.fixture
def cleaned(tmp_path, call_verb) -> pathlib.Path:
  source, out = tmp_path / "raw.jsonl", tmp_path / "clean.jsonl"
  texts = ["write to jo@example.org now", "short", "short", "x {", *"abcdefgh"]
  source.write_text("\n".join(json.dumps({"text": t}) for t in texts))
  result = call_verb(
    *("data.__main__", "clean", f"--source=jsonl:{source}", f"--out={out}"),
    *("--rules=mail", "--filters=c4_braces", "--copies=exact"),
    "--licence=CC BY 4.0 | <b>",
  )
  assert result.returncode == 0, result.stderr
  return out


def test_a_set_of_cleaned_text_says_how_it_was_cleaned(
  corpus, cleaned, tmp_path, call_verb
):
  made = prepare_data(corpus([], source=f"jsonl:{cleaned}"), quiet)
  (folder,) = made.folders
  (record,) = manifest_lib.read(folder)["records"]
  assert record["documents read"] == 12 and record["documents written"] == 10
  assert record["left out"] == {"c4_braces": 1, "copy": 1}
  assert record["replaced"] == {"mail": 1}
  assert record["versions"]["gpt_jax"] == card.versions()["gpt_jax"]
  result = call_verb("data.__main__", "card", f"--folder={folder}")
  assert result.returncode == 0, result.stderr
  text = result.stdout
  for line in (
    "| filters | c4\\_braces |",
    "| licence | CC BY 4.0 \\| \\<b\\> |",
    "| left out | c4\\_braces 1, copy 1 |",
    "| replaced | mail 1 |",
    f"| text | text\\_sha256: {manifest_lib.read(folder)['text_sha256']} |",
  ):
    assert line in text, text
  counts = [s.num_documents for s in (made.train[0][1], made.valid["valid"])]
  for split, count in zip(("train", "valid"), counts, strict=True):
    assert f"| {split} | {count} |" in text
  out = tmp_path / "card.md"
  words = ("data.__main__", "card", f"--folder={folder}", f"--out={out}")
  assert call_verb(*words).returncode == 0 and out.read_text() == text
  again = call_verb(*words)
  assert again.returncode == 2 and "exists" in again.stderr


def test_a_run_on_two_sets_has_the_cards_of_both(corpus, cleaned, tmp_path):
  other = tmp_path / "other.jsonl"
  other.write_text(json.dumps({"text": "more of it " * 9}) + "\n")
  mixture = f"0.5*jsonl:{cleaned},0.5*jsonl:{other}"
  made = prepare_data(corpus([], source=mixture), quiet)
  assert len(made.folders) == 2
  text = card.describe_all(made.folders)
  assert text == "\n".join(map(card.describe, made.folders))
  assert text.count("\n# ") == 1 and text.startswith("# jsonl-")


def test_a_record_of_another_text_is_not_told(corpus, cleaned):
  with open(cleaned, "a") as file:
    file.write('{"name": "new", "text": "one more"}\n')
  made = prepare_data(corpus([], source=f"jsonl:{cleaned}"), quiet)
  assert "records" not in manifest_lib.read(made.folders[0])
  assert "No record of cleaning" in card.describe(made.folders[0])


def test_a_record_can_be_written_whatever_its_file_is_called(cleaned):
  (record,) = card.read_records([("\udcff.jsonl", str(cleaned))])
  assert record["file"] == "\\udcff.jsonl"


def test_what_is_no_prepared_set_is_one_sentence(call_verb, tmp_path):
  result = call_verb("data.__main__", "card", f"--folder={tmp_path}")
  assert result.returncode == 2 and "is not a prepared set" in result.stderr
  assert "give one of the folders" in result.stderr  # it may be any folder
  assert "remove" not in result.stderr
