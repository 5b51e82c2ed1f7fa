"""Text or disks that are bad leave one sentence and nothing behind."""

import errno
import os
import pathlib

import pytest

from gpt_jax.config import InputError
from gpt_jax.data.prepare import prepare_data
from gpt_jax.data.shards import SplitWriter
from gpt_jax.data.splitting import Part

TEXTS = [f"document {i} says {'é' * i}\n" for i in range(40)]


def quiet(line: str) -> None:
  del line


@pytest.mark.parametrize(
  "folder, said",
  [
    ("odd://b/prep", "odd:// is no address that can be opened here"),
    (" ", "data.dir is empty"),
    ("/proc/x", "cannot write in /proc/x"),
    ("a" * 300, "cannot write in aaa"),
  ],
)
def test_a_folder_that_cannot_be_is_one_sentence(corpus, folder, said):
  with pytest.raises(InputError, match=said):
    prepare_data(corpus(TEXTS, dir=folder), say=quiet)


@pytest.mark.parametrize("kind", ["bytes", "chars", "bpe:300"])
def test_a_corpus_of_empty_files_is_refused(corpus, kind):
  for split in ("document", "tail"):
    data = corpus(["", ""], tokenizer=kind, split=split)
    with pytest.raises(InputError, match="is empty: no document"):
      prepare_data(data, say=quiet)
    assert _is_clean(data.dir)


def test_nothing_to_train_on_is_refused(corpus):
  with pytest.raises(InputError, match="no text to train on"):
    prepare_data(corpus(["a"], split="tail", valid_frac=0.9), say=quiet)
  with pytest.raises(InputError, match="below 1"):
    prepare_data(corpus([], valid_frac=1.0), say=quiet)


def test_bad_text_leaves_nothing_behind(corpus):
  data = corpus(TEXTS)
  path = pathlib.Path(data.source[5:]).parent / "bad.txt"
  path.write_bytes(b"ab\xff")
  for kind in ("bytes", "chars", "bpe:300"):
    with pytest.raises(InputError, match="bad.txt is not UTF-8"):
      prepare_data(corpus([], tokenizer=kind), say=quiet)
    assert _is_clean(data.dir)
  path.unlink()
  assert prepare_data(data, say=quiet).train


@pytest.mark.parametrize("method", ["write", "finish"])
def test_a_full_disk_is_one_sentence_and_leaves_nothing(
  corpus, monkeypatch, method
):
  def full(*_):
    raise OSError(errno.ENOSPC, "No space left on device")

  data = corpus(TEXTS)
  with monkeypatch.context() as patch:
    patch.setattr(SplitWriter, method, full)
    with pytest.raises(InputError, match="no space is left in .*data.dir"):
      prepare_data(data, say=quiet)
  assert _is_clean(data.dir)
  assert prepare_data(data, say=quiet).train


def test_a_folder_that_cannot_be_written_is_named(corpus, tmp_path):
  (tmp_path / "file").write_text("")
  for folder in (tmp_path / "file", tmp_path / "file" / "below"):
    with pytest.raises(InputError, match="cannot write in .*data.dir"):
      prepare_data(corpus(TEXTS, dir=str(folder)), say=quiet)


def test_text_that_changes_while_it_is_read_is_refused(corpus, monkeypatch):
  data = corpus(TEXTS)
  path = pathlib.Path(data.source[5:]).parent / "000.txt"
  finish = SplitWriter.finish

  def late(writer):
    path.write_text("later")
    return finish(writer)

  with monkeypatch.context() as patch:
    patch.setattr(SplitWriter, "finish", late)
    with pytest.raises(InputError, match="changed while it was read"):
      prepare_data(data, say=quiet)
  assert _is_clean(data.dir)


@pytest.mark.parametrize("split", ["document", "tail"])
def test_text_that_grows_between_two_readings_is_refused(
  corpus, monkeypatch, tmp_path, split
):
  path = tmp_path / "in.jsonl"
  rows = [f'{{"text": "{text * 9}"}}\n' for text in ("one", "two", "three")]
  path.write_text("".join(rows[:2]))
  survey = Part.survey

  def then_grow(part, add):
    survey(part, add)
    path.write_text("".join(rows))

  monkeypatch.setattr(Part, "survey", then_grow)
  data = corpus([], source=f"jsonl:{path}", split=split)
  with pytest.raises(InputError, match="changed while it was read"):
    prepare_data(data, say=quiet)
  assert _is_clean(data.dir)


def _is_clean(folder: str) -> bool:
  return not [n for n in os.listdir(folder) if not n.startswith(".lock-")]
