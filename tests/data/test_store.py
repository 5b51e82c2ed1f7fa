"""The store: complete or absent, found again at once, and exact in counts."""

import contextlib
import errno
import json
import os
import pathlib
import pickle
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from gpt_jax.config import InputError
from gpt_jax.data import sources, splitting, store, tokenizers
from gpt_jax.data.sources import document
from gpt_jax.data.sources.interpreter import InterpreterSource
from gpt_jax.data.tokenizers.plain import ByteTokenizer, CharTokenizer

ROOT = pathlib.Path(__file__).parents[2]


def quiet(line: str) -> None:
  del line


def stream(token_set) -> np.ndarray:
  return token_set.read(0, token_set.num_ids)


TEXTS = [f"document {i} says {'é' * i}\n" for i in range(40)]


def test_documents_go_whole_to_one_side_behind_separators(corpus):
  lines = []
  data = corpus(TEXTS)
  prepared = store.prepare(data, say=lines.append)
  sides = prepared.train[0][1], prepared.valid["valid"]
  found = []
  for side in sides:
    ids = stream(side)
    assert ids.dtype == np.int32
    assert (ids[side.document_starts] == 256).all()
    assert side.num_documents == (ids == 256).sum()
    ends = [*side.document_starts[1:], side.num_ids]
    texts = [
      prepared.tokenizer.decode(ids[a:b])
      for a, b in zip(side.document_starts, ends, strict=True)
    ]
    assert side.num_tokens == side.num_bytes == len("".join(texts).encode())
    found += texts
    assert texts == [t for t in TEXTS if t in texts]
  assert sorted(found) == sorted(TEXTS)
  assert 1 <= sides[1].num_documents <= 12
  assert len(lines) == 1 and len(lines[0]) < 300
  assert lines[0].startswith(f"prepared {sides[0].num_tokens:,} train + ")


def test_a_prepared_set_is_found_again_in_silence(corpus, monkeypatch):
  data = corpus(TEXTS, tokenizer="bpe:300")
  first = store.prepare(data, say=quiet)
  monkeypatch.setattr(store, "_make", None)
  lines = []
  again = store.prepare(data, say=lines.append)
  assert not lines and again.fingerprint == first.fingerprint
  assert np.array_equal(stream(again.train[0][1]), stream(first.train[0][1]))
  (pathlib.Path(data.source[5:]).parent / "new.txt").write_text("new")
  with pytest.raises(TypeError):
    store.prepare(data, say=quiet)


def test_finding_a_set_imports_no_heavy_library(corpus):
  data = corpus(TEXTS, tokenizer="bpe:300")
  store.prepare(data, say=quiet)
  code = (
    "import sys\nfrom gpt_jax.config import DataConfig\n"
    "from gpt_jax.data import store\n"
    f"store.prepare({data!r})\n"
    "heavy = {'tokenizers', 'tensorflow_datasets', 'grain', 'jax'}\n"
    "print(heavy & set(sys.modules))"
  )
  assert _python(code).stdout == "set()\n"


def test_what_changes_ids_changes_the_folder(corpus):
  base = corpus(TEXTS)
  folders = set()
  for changes in (
    {},
    {"split": "tail"},
    {"valid_frac": 0.2},
    {"tokenizer": "chars"},
    {"tokenizer": "bpe:300"},
    {"valid_source": base.source},
  ):
    folders.update(store.prepare(corpus([], **changes), say=quiet).folders)
  assert len(folders) == 7  # a source for validation has its own
  same = store.prepare(corpus([], seq_len=99, num_workers=3), say=quiet)
  assert set(same.folders) < folders


def test_a_tail_is_cut_as_nanogpt_cuts_it(corpus):
  folder = os.environ.get("GPT_JAX_TEST_DATA")
  if not folder:
    pytest.skip("GPT_JAX_TEST_DATA is not set")
  path = f"{folder}/tinyshakespeare/input.txt"
  spec = {"source": f"text:{path}", "split": "tail"}
  prepared = store.prepare(corpus([], tokenizer="chars", **spec), say=quiet)
  train, valid = prepared.train[0][1], prepared.valid["valid"]
  assert (train.num_ids, valid.num_ids) == (1_003_854, 111_540)
  assert prepared.vocab_size == 65 and prepared.tokenizer.vocab_size == 65
  with open(path, encoding="utf-8") as file:
    text = file.read()
  assert (
    prepared.tokenizer.decode(stream(train)) == text[: int(len(text) * 0.9)]
  )
  gpt2 = f"gpt2:{folder}/gpt2_bpe"
  prepared = store.prepare(corpus([], tokenizer=gpt2, **spec), say=quiet)
  train, valid = prepared.train[0][1], prepared.valid["valid"]
  assert (train.num_tokens, valid.num_tokens) == (301_966, 36_059)
  assert train.num_ids == train.num_tokens
  assert train.num_bytes + valid.num_bytes == os.path.getsize(path)


@pytest.mark.parametrize("frac, kept", [(0.1, 9), (0.9, 1), (0.3, 7), (0.7, 3)])
def test_a_tail_is_not_lost_to_rounding(corpus, monkeypatch, frac, kept):
  monkeypatch.setattr(document, "BLOCK", 3)
  data = corpus(["0123456789"] * 2, split="tail", valid_frac=frac)
  prepared = store.prepare(data, say=quiet)
  train, valid = prepared.train[0][1], prepared.valid["valid"]
  decode = prepared.tokenizer.decode
  assert decode(stream(train)) == "0123456789"[:kept] * 2
  assert decode(stream(valid)) == "0123456789"[kept:] * 2
  assert train.document_starts.tolist() == [0, kept]


def test_poems_survive_the_store(corpus):
  folder = os.environ.get("GPT_JAX_TEST_DATA")
  if not folder:
    pytest.skip("GPT_JAX_TEST_DATA is not set")
  spec = f"jsonl:{folder}/tang_poetry/*.json#paragraphs"
  poems = {
    d.name: "".join(d.pieces) for d in sources.open_source(spec).documents()
  }
  for kind in ("chars", "bytes", "bpe:600"):
    prepared = store.prepare(corpus([], source=spec, tokenizer=kind), say=quiet)
    sides = [prepared.train[0][1], prepared.valid["valid"]]
    back = []
    for side in sides:
      ends = [*side.document_starts[1:], side.num_ids]
      for a, b in zip(side.document_starts, ends, strict=True):
        back.append(prepared.tokenizer.decode(side.read(a, b)))
    assert sorted(back) == sorted(poems.values())
    assert sum(s.num_bytes for s in sides) == len("".join(back).encode())


def test_both_sides_hold_a_document_where_there_are_two(corpus):
  for count in (2, 3):
    for frac in (0.01, 0.99):
      data = corpus(TEXTS[:count], valid_frac=frac)
      prepared = store.prepare(data, say=quiet)
      sizes = [prepared.train[0][1], prepared.valid["valid"]]
      assert sum(s.num_documents for s in sizes) == count
      assert min(s.num_documents for s in sizes) >= 1


def test_one_document_is_divided_by_its_tail_and_said(corpus):
  lines = []
  one = store.prepare(corpus(["only one"]), say=lines.append)
  assert len(lines) == 2 and "is one document: the last 0.1 of it" in lines[1]
  decode = one.tokenizer.decode
  assert decode(stream(one.valid["valid"])) == "e"
  tail = store.prepare(corpus([], split="tail"), say=quiet)
  assert one.fingerprint == tail.fingerprint
  equal = store.prepare(corpus(["x" * 20] * 3), say=quiet)
  assert equal.valid["valid"].num_tokens == 6


def test_equal_texts_are_never_on_both_sides(corpus):
  lines = []
  texts = [t for text in TEXTS for t in (text, text, text)]
  data = corpus(texts, valid_frac=0.5)
  prepared = store.prepare(data, say=lines.append)
  sides = prepared.train[0][1], prepared.valid["valid"]
  assert store.overlap.count([sides[0]], [sides[1]])[0] == 0
  assert sum(side.num_documents for side in sides) == 120
  assert min(side.num_documents for side in sides) > 20
  assert "documents repeat a text of the other side" in lines[1]
  assert prepared.folders[0].endswith("-apart")
  lines.clear()
  again = store.prepare(data, say=lines.append)
  assert again.folders == prepared.folders and not lines
  assert all(n % 3 == 0 for n in (side.num_documents for side in sides))


def test_a_split_of_different_texts_is_as_it_was(corpus):
  prepared = store.prepare(corpus(TEXTS, valid_frac=0.3), say=quiet)
  names = [f"{i:03d}.txt" for i in range(40)]
  # The default corpus is divided by name alone, whatever repeats.
  assert not InterpreterSource.is_divided_by_text
  held = [n for n in names if splitting.unit_hash(n) < 0.3]
  assert prepared.valid["valid"].num_documents == len(held)
  assert not prepared.folders[0].endswith("-apart")


def test_text_on_both_sides_of_a_mixture_is_told(corpus, tmp_path):
  data = corpus(TEXTS, valid_frac=0.3)
  both = f"{data.source},text:{tmp_path}/te*/00*.txt"
  for changes in (
    {"source": both},
    {"valid_source": f"text:{tmp_path}/text/01*.txt"},
  ):
    for _ in range(2):
      lines = []
      store.prepare(corpus([], **changes), say=lines.append)
      assert "held-out documents are also in the text to train" in lines[-1]


def test_a_split_far_from_its_fraction_is_told(corpus, run_verb):
  lines = []
  data = corpus(["a" * 3000, *TEXTS[:9]], valid_frac=0.1)
  prepared = store.prepare(data, say=lines.append)
  note = store.share_note(prepared.folders[0])
  assert "of the text is held back for data.valid_frac 0.1" in lines[0]
  assert note and lines[0].endswith(note)
  even = store.prepare(corpus([], valid_frac=0.0), say=quiet)
  assert store.share_note(even.folders[0]) == ""


def test_changed_text_of_the_same_size_and_date_is_found_by_verify(corpus):
  data = corpus(TEXTS)
  prepared = store.prepare(data, say=quiet)
  store.verify_text(data, prepared, quiet)
  path = pathlib.Path(data.source[5:]).parent / "007.txt"
  before = path.stat()
  path.write_bytes(path.read_bytes().replace(b"says", b"sayz"))
  os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
  assert store.prepare(data, say=quiet).folders == prepared.folders
  with pytest.raises(InputError, match="does not hold the text that .* was"):
    store.verify_text(data, prepared, quiet)


@pytest.mark.parametrize("number", [37, 95, 38, 524, 5, 22])
def test_a_disk_without_locks_is_told_and_used(corpus, monkeypatch, number):
  def refuse(*_):
    raise OSError(number, "refused")

  monkeypatch.setattr(store.fcntl, "flock", refuse)
  lines = []
  data = corpus(TEXTS)
  os.makedirs(f"{data.dir}/.tmp-x.{store.socket.gethostname()}.{'9' * 30}")
  assert store.prepare(data, say=lines.append).train
  assert "has no locks (refused)" in lines[0]
  assert not [n for n in os.listdir(data.dir) if n.startswith(".tmp")]


@pytest.mark.parametrize(
  "folder, said",
  [
    ("gs://b/prep", "data.dir is 'gs://b/prep'"),
    (" ", "data.dir is empty"),
    ("/proc/x", "cannot write in /proc/x"),
    ("a" * 300, "cannot write in aaa"),
  ],
)
def test_a_folder_that_cannot_be_is_one_sentence(corpus, folder, said):
  with pytest.raises(InputError, match=said):
    store.prepare(corpus(TEXTS, dir=folder), say=quiet)


def test_validation_may_be_none_or_another_source(corpus, tmp_path):
  prepared = store.prepare(corpus(TEXTS, valid_frac=0.0), say=quiet)
  assert prepared.valid == {}
  assert prepared.train[0][1].num_documents == 40
  (tmp_path / "other.txt").write_text("other £")
  other = f"text:{tmp_path}/other.txt"
  for kind in ("bytes", "chars", "bpe:300"):
    data = corpus([], valid_source=other, tokenizer=kind)
    prepared = store.prepare(data, say=quiet)
    valid = prepared.valid["valid"]
    assert prepared.train[0][1].num_documents == 40
    assert prepared.tokenizer.decode(stream(valid)) == "other £"
    assert valid.vocab_size == prepared.vocab_size


def test_a_mixture_shares_one_tokenizer(corpus, tmp_path, monkeypatch):
  (tmp_path / "b").mkdir()
  for i in range(10):
    (tmp_path / "b" / f"{i}.txt").write_text("ßßßß " * 20)
  own = corpus(TEXTS).source
  spec = f"3*{own},1*text:{tmp_path}/b/*.txt"
  for kind in ("chars", "bpe:300"):
    data = corpus([], source=spec, tokenizer=kind)
    prepared = store.prepare(data, say=quiet)
    assert [weight for weight, _ in prepared.train] == [0.75, 0.25]
    assert len(prepared.valid) == 2
    for folder in prepared.folders:
      loaded = tokenizers.load(f"{folder}/tokenizer.json")
      assert loaded.fingerprint() == prepared.tokenizer.fingerprint()
    assert "ß" in prepared.tokenizer.decode(stream(prepared.train[1][1]))
    # A set that is lost is made again with the vocabulary that is there.
    lost = pathlib.Path(prepared.folders[1])
    before = prepared.fingerprint
    _remove(lost)
    with monkeypatch.context() as patch:
      patch.setattr(store, "train_tokenizer", None)
      assert store.prepare(data, say=quiet).fingerprint == before


def test_shards_are_read_across_their_borders(corpus, monkeypatch):
  whole = stream(store.prepare(corpus(TEXTS), say=quiet).train[0][1])
  _remove(pathlib.Path(corpus([]).dir))
  monkeypatch.setattr(store, "SHARD_IDS", 64)
  prepared = store.prepare(corpus([]), say=quiet)
  token_set = prepared.train[0][1]
  files = list(pathlib.Path(token_set.folder).glob("train-*.bin"))
  assert len(files) == -(-len(whole) // 64)
  assert np.array_equal(stream(token_set), whole)
  for start in range(0, len(whole) - 150, 13):
    found = token_set.read(start, start + 150)
    assert np.array_equal(found, whole[start : start + 150])
  again = pickle.loads(pickle.dumps(token_set))
  assert np.array_equal(again.read(60, 70), whole[60:70])
  with pytest.raises(IndexError):
    token_set.read(0, len(whole) + 1)
  with pytest.raises(IndexError):
    token_set.read(-1, 3)


def test_large_vocabularies_take_four_bytes(corpus, monkeypatch):
  class Wide(ByteTokenizer):
    def __init__(self):
      super().__init__()
      self.vocab_size = 1 << 17

    def encode(self, text):
      return super().encode(text) + 100_000

  monkeypatch.setattr(tokenizers, "build_tokenizer", lambda spec: Wide())
  prepared = store.prepare(corpus(TEXTS), say=quiet)
  token_set = prepared.train[0][1]
  manifest = json.loads(
    (pathlib.Path(prepared.folders[0]) / "manifest.json").read_text()
  )
  assert manifest["dtype"] == "uint32"
  assert stream(token_set).max() > 100_000


def test_a_file_cut_short_is_named_with_its_sizes(corpus):
  (folder,) = store.prepare(corpus(TEXTS), say=quiet).folders
  for name in ("train-00000.bin", "valid.offsets.bin"):
    path = pathlib.Path(folder, name)
    data = path.read_bytes()
    path.write_bytes(data[:-2])
    said = f"{name} has {len(data) - 2} bytes .* says {len(data)}"
    with pytest.raises(InputError, match=said):
      store.prepare(corpus([]), say=quiet)
    path.unlink()
    with pytest.raises(InputError, match=f"{name} is missing"):
      store.open_prepared(folder)
    path.write_bytes(data)
  store.open_prepared(folder)


def test_a_changed_file_is_found_by_verify_and_by_reading(corpus):
  prepared = store.prepare(corpus(TEXTS), say=quiet)
  (folder,) = prepared.folders
  store.verify(folder)
  path = pathlib.Path(folder, "train-00000.bin")
  data = bytearray(path.read_bytes())
  data[10] ^= 1
  path.write_bytes(data)
  for look in (store.verify, store.open_prepared):
    with pytest.raises(InputError, match="train-00000.bin has sha256"):
      look(folder)
  stream(store.open_prepared(folder, "never")["train"])
  data[10:12] = b"\xff\xff"
  path.write_bytes(data)
  with pytest.raises(InputError, match="train-00000.bin holds id 65535 at 5,"):
    store.open_prepared(folder, "never")["train"].read(2, 9)


@pytest.mark.parametrize(
  "text, said",
  [
    ("{", "is damaged"),
    ("[]", "is damaged"),
    ('{"format": 99}', "format 99; this version reads format 1"),
    ('{"format": 1}', "has no 'splits'"),
  ],
)
def test_damaged_manifests_are_refused(corpus, text, said):
  (folder,) = store.prepare(corpus(TEXTS), say=quiet).folders
  pathlib.Path(folder, "manifest.json").write_text(text)
  with pytest.raises(InputError, match=said):
    store.prepare(corpus([]), say=quiet)


def test_a_folder_that_is_no_prepared_set_is_refused(tmp_path):
  with pytest.raises(InputError, match="no manifest.json"):
    store.open_prepared(str(tmp_path))


@pytest.mark.parametrize("kind", ["bytes", "chars", "bpe:300"])
def test_a_corpus_of_empty_files_is_refused(corpus, kind):
  for split in ("document", "tail"):
    data = corpus(["", ""], tokenizer=kind, split=split)
    with pytest.raises(InputError, match="is empty: no document"):
      store.prepare(data, say=quiet)
    assert _is_clean(data.dir)


def test_nothing_to_train_on_is_refused(corpus):
  with pytest.raises(InputError, match="no text to train on"):
    store.prepare(corpus(["a"], split="tail", valid_frac=0.9), say=quiet)
  with pytest.raises(InputError, match="below 1"):
    store.prepare(corpus([], valid_frac=1.0), say=quiet)


def test_bad_text_leaves_nothing_behind(corpus):
  data = corpus(TEXTS)
  path = pathlib.Path(data.source[5:]).parent / "bad.txt"
  path.write_bytes(b"ab\xff")
  for kind in ("bytes", "chars", "bpe:300"):
    with pytest.raises(InputError, match="bad.txt is not UTF-8"):
      store.prepare(corpus([], tokenizer=kind), say=quiet)
    assert _is_clean(data.dir)
  path.unlink()
  assert store.prepare(data, say=quiet).train


@pytest.mark.parametrize("method", ["write", "finish"])
def test_a_full_disk_is_one_sentence_and_leaves_nothing(
  corpus, monkeypatch, method
):
  def full(*_):
    raise OSError(errno.ENOSPC, "No space left on device")

  data = corpus(TEXTS)
  with monkeypatch.context() as patch:
    patch.setattr(store._SplitWriter, method, full)
    with pytest.raises(InputError, match="no space is left in .*data.dir"):
      store.prepare(data, say=quiet)
  assert _is_clean(data.dir)
  assert store.prepare(data, say=quiet).train


def test_a_folder_that_cannot_be_written_is_named(corpus, tmp_path):
  (tmp_path / "file").write_text("")
  for folder in (tmp_path / "file", tmp_path / "file" / "below"):
    with pytest.raises(InputError, match="cannot write in .*data.dir"):
      store.prepare(corpus(TEXTS, dir=str(folder)), say=quiet)


def test_text_that_changes_while_it_is_read_is_refused(corpus, monkeypatch):
  data = corpus(TEXTS)
  path = pathlib.Path(data.source[5:]).parent / "000.txt"
  finish = store._SplitWriter.finish

  def late(writer):
    path.write_text("later")
    return finish(writer)

  with monkeypatch.context() as patch:
    patch.setattr(store._SplitWriter, "finish", late)
    with pytest.raises(InputError, match="changed while it was read"):
      store.prepare(data, say=quiet)
  assert _is_clean(data.dir)


def test_four_processes_at_once_prepare_one_set(corpus):
  data = corpus(TEXTS * 50, tokenizer="bpe:500")
  code = (
    "from gpt_jax.config import DataConfig\nfrom gpt_jax.data import store\n"
    f"print(store.prepare({data!r}).fingerprint)"
  )
  running = [_start(code) for _ in range(4)]
  outputs = [process.communicate(timeout=60) for process in running]
  assert all(process.returncode == 0 for process in running), outputs
  assert len({out.splitlines()[-1] for out, _ in outputs}) == 1
  made = [out for out, _ in outputs if "prepared " in out]
  assert len(made) == 1
  assert len(os.listdir(data.dir)) == 1


def test_whoever_renames_second_takes_what_is_there(corpus, monkeypatch):
  data = corpus(TEXTS)
  rename = os.rename

  def raced(source, target):
    if not os.path.exists(target):
      monkeypatch.setattr(os, "rename", rename)
      with monkeypatch.context() as patch:
        patch.setattr(store, "_lock", lambda *_: contextlib.nullcontext())
        patch.setattr(store, "_remove_stale", lambda *_: None)
        patch.setattr(store.os, "getpid", lambda: 1)
        store.prepare(data, say=quiet)
    rename(source, target)

  monkeypatch.setattr(os, "rename", raced)
  assert store.prepare(data, say=quiet).train
  assert len(os.listdir(data.dir)) == 1


def test_a_killed_preparation_leaves_nothing_that_counts(corpus):
  data = corpus(TEXTS)
  code = (
    "import time\nfrom gpt_jax.config import DataConfig\n"
    "from gpt_jax.data import store\n"
    "finish = store._SplitWriter.finish\n"
    "def slow(writer):\n"
    "  result = finish(writer)\n  print('half', flush=True)\n"
    "  time.sleep(60)\n  return result\n"
    "store._SplitWriter.finish = slow\n"
    f"store.prepare({data!r})"
  )
  process = _start(code)
  assert process.stdout.readline() == "half\n"
  process.send_signal(signal.SIGKILL)
  process.wait()
  left = [n for n in os.listdir(data.dir) if n.startswith(".tmp-")]
  assert len(left) == 1
  started = time.monotonic()
  prepared = store.prepare(data, say=quiet)
  assert time.monotonic() - started < 10
  assert os.listdir(data.dir) == [os.path.basename(prepared.folders[0])]
  store.verify(prepared.folders[0])


def test_a_kill_at_any_moment_leaves_a_whole_set_or_none(corpus):
  data = corpus(TEXTS * 20)
  code = (
    "from gpt_jax.config import DataConfig\nfrom gpt_jax.data import store\n"
    f"print('go', flush=True)\nstore.prepare({data!r})"
  )
  for delay in (0.0, 0.003, 0.01, 0.03):
    process = _start(code)
    process.stdout.readline()
    time.sleep(delay)
    process.kill()
    process.wait()
    if os.path.isdir(data.dir):
      for name in os.listdir(data.dir):
        if not name.startswith("."):
          store.verify(os.path.join(data.dir, name))
  store.verify(store.prepare(data, say=quiet).folders[0])
  assert len(os.listdir(data.dir)) == 1


def test_any_text_is_prepared_for_a_given_tokenizer(tmp_path):
  path = tmp_path / "a[1].txt"
  path.write_text("some text")
  encoder = ByteTokenizer()
  folder = str(tmp_path / "prepared")
  found = store.prepare_text(str(path), encoder, folder, say=quiet)
  assert stream(found).tolist() == [256, *b"some text"]
  same = store.prepare_text(f"text:{path}", encoder, folder, say=quiet)
  assert same.fingerprint == found.fingerprint
  plain = store.prepare_text(str(path), encoder, folder, "tail", say=quiet)
  assert stream(plain).tolist() == [*b"some text"]
  chars = CharTokenizer("abc")
  with pytest.raises(InputError, match="'s' at position 0"):
    store.prepare_text(str(path), chars, folder, say=quiet)
  with pytest.raises(InputError, match="no file matches"):
    store.prepare_text(str(tmp_path / "no.txt"), encoder, folder, say=quiet)


def test_a_set_of_another_vocabulary_is_refused(corpus):
  prepared = store.prepare(corpus(TEXTS), say=quiet)
  token_set = prepared.train[0][1]
  store.check_vocab(token_set, prepared.tokenizer)
  with pytest.raises(InputError, match="257 tokens.* than chars .of 2"):
    store.check_vocab(token_set, CharTokenizer("ab"))


def test_a_sample_for_training_is_bounded_and_spread(monkeypatch):
  monkeypatch.setattr(store, "SAMPLE_BYTES", 1000)
  pieces = [f"{i:04d}" + "x" * 96 for i in range(100)]
  kept, notes = store._sample(iter(pieces))
  assert notes["trained_on_bytes"] == sum(map(len, kept)) <= 1000
  assert notes["of_bytes"] == 10_000
  numbers = [int(text[:4]) for text in kept]
  assert np.diff(numbers).tolist() == [notes["every_nth_piece"]] * (
    len(numbers) - 1
  )
  assert numbers[0] == 0 and numbers[-1] >= 80
  kept, notes = store._sample(iter(pieces[:5]))
  assert kept == pieces[:5] and notes["every_nth_piece"] == 1


def test_progress_is_a_short_line_where_there_is_no_terminal(
  corpus, monkeypatch
):
  monkeypatch.setattr(store, "REPORT_SECONDS", 0.0)
  lines = []
  store.prepare(corpus(TEXTS, tokenizer="chars"), say=lines.append)
  assert len(lines) > 3
  assert all(len(line) < 100 for line in lines[:-1])


def test_the_verb_prepares_verifies_and_prints_a_table(corpus, run_verb):
  data = corpus(TEXTS * 3)
  words = [
    "gpt_jax.data",
    f"--config.data.source={data.source}",
    f"--config.data.dir={data.dir}",
    "--config.data.tokenizer=bytes",
    "--verify",
  ]
  result = run_verb(*words, check=0)
  assert result.stdout.startswith("prepared ")
  assert "bytes/token" in result.stdout and not result.stderr
  again = run_verb(*words, check=0)
  assert not again.stdout.startswith("prepared ")
  words[1] = "--config.data.source=text:nowhere/*.txt"
  result = run_verb(*words, check=2)
  assert result.stderr.startswith("gpt_jax: no file matches")
  assert len(result.stderr.splitlines()) == 1


def _is_clean(folder: str) -> bool:
  return not [n for n in os.listdir(folder) if not n.startswith(".lock-")]


def _remove(folder: pathlib.Path) -> None:
  for path in sorted(folder.rglob("*"), reverse=True):
    path.rmdir() if path.is_dir() else path.unlink()
  folder.rmdir()


def _start(code: str) -> subprocess.Popen:
  return subprocess.Popen(
    [sys.executable, "-c", code],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    cwd=ROOT,
  )


def _python(code: str) -> subprocess.CompletedProcess:
  return subprocess.run(
    [sys.executable, "-c", code],
    capture_output=True,
    text=True,
    cwd=ROOT,
    check=True,
  )
