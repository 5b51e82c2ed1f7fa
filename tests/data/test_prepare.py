"""Preparation: exact in counts, and found again at once."""

import dataclasses
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from configs import base
from gpt_jax import config as config_lib
from gpt_jax.config import InputError
from gpt_jax.data import (
  batches,
  objectives,
  order,
  sources,
  tokenizers,
  vocabulary,
  writing,
)
from gpt_jax.data.prepare import prepare_data, prepare_text, verify_text
from gpt_jax.data.tokenizers.plain import ByteTokenizer, CharTokenizer

ROOT = pathlib.Path(__file__).parents[2]
TEXTS = [f"document {i} says {'é' * i}\n" for i in range(40)]


def quiet(line: str) -> None:
  del line


def stream(token_set) -> np.ndarray:
  return token_set.read(0, token_set.num_ids)


def test_documents_go_whole_to_one_side_behind_separators(corpus):
  lines = []
  data = corpus(TEXTS)
  prepared = prepare_data(data, say=lines.append)
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
  first = prepare_data(data, say=quiet)
  monkeypatch.setattr(writing, "write_folder", None)
  lines = []
  again = prepare_data(data, say=lines.append)
  assert not lines and again.fingerprint == first.fingerprint
  assert np.array_equal(stream(again.train[0][1]), stream(first.train[0][1]))
  (pathlib.Path(data.source[5:]).parent / "new.txt").write_text("new")
  with pytest.raises(TypeError):
    prepare_data(data, say=quiet)


def test_finding_a_set_imports_no_heavy_library(corpus):
  data = corpus(TEXTS, tokenizer="bpe:300")
  prepare_data(data, say=quiet)
  code = (
    "import sys\nfrom gpt_jax.config import DataConfig\n"
    "from gpt_jax.data.prepare import prepare_data\n"
    f"prepare_data({data!r})\n"
    "heavy = {'tokenizers', 'tensorflow_datasets', 'grain', 'jax'}\n"
    "print(heavy & set(sys.modules))"
  )
  assert _python(code).stdout == "set()\n"


def test_poems_survive_the_store(corpus):
  folder = os.environ.get("GPT_JAX_TEST_DATA")
  if not folder:
    pytest.skip("GPT_JAX_TEST_DATA is not set")
  spec = f"jsonl:{folder}/tang_poetry/*.json#paragraphs"
  poems = {
    d.name: "".join(d.pieces) for d in sources.open_source(spec).documents()
  }
  for kind in ("chars", "bytes", "bpe:600"):
    prepared = prepare_data(corpus([], source=spec, tokenizer=kind), say=quiet)
    sides = [prepared.train[0][1], prepared.valid["valid"]]
    back = []
    for side in sides:
      ends = [*side.document_starts[1:], side.num_ids]
      for a, b in zip(side.document_starts, ends, strict=True):
        back.append(prepared.tokenizer.decode(side.read(a, b)))
    assert sorted(back) == sorted(poems.values())
    assert sum(s.num_bytes for s in sides) == len("".join(back).encode())


def test_changed_text_of_the_same_size_and_date_is_found_by_verify(corpus):
  data = corpus(TEXTS)
  prepared = prepare_data(data, say=quiet)
  verify_text(data, prepared, quiet)
  path = pathlib.Path(data.source[5:]).parent / "007.txt"
  before = path.stat()
  path.write_bytes(path.read_bytes().replace(b"says", b"sayz"))
  os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
  assert prepare_data(data, say=quiet).folders == prepared.folders
  with pytest.raises(InputError, match="does not hold the text that .* was"):
    verify_text(data, prepared, quiet)


def test_validation_may_be_none_or_another_source(corpus, tmp_path):
  prepared = prepare_data(corpus(TEXTS, valid_frac=0.0), say=quiet)
  assert prepared.valid == {}
  assert prepared.train[0][1].num_documents == 40
  (tmp_path / "other.txt").write_text("other £")
  other = f"text:{tmp_path}/other.txt"
  for kind in ("bytes", "chars", "bpe:300"):
    data = corpus([], valid_source=other, tokenizer=kind)
    prepared = prepare_data(data, say=quiet)
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
    prepared = prepare_data(data, say=quiet)
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
      patch.setattr(vocabulary, "train_tokenizer", None)
      assert prepare_data(data, say=quiet).fingerprint == before


def test_any_text_is_prepared_for_a_given_tokenizer(tmp_path):
  path = tmp_path / "a[1].txt"
  path.write_text("some text")
  encoder = ByteTokenizer()
  folder = str(tmp_path / "prepared")
  found = prepare_text(str(path), encoder, folder, say=quiet)
  assert stream(found).tolist() == [256, *b"some text"]
  same = prepare_text(f"text:{path}", encoder, folder, say=quiet)
  assert same.fingerprint == found.fingerprint
  plain = prepare_text(str(path), encoder, folder, "tail", say=quiet)
  assert stream(plain).tolist() == [*b"some text"]
  chars = CharTokenizer("abc")
  with pytest.raises(InputError, match="'s' at position 0"):
    prepare_text(str(path), chars, folder, say=quiet)
  with pytest.raises(InputError, match="no file matches"):
    prepare_text(str(tmp_path / "no.txt"), encoder, folder, say=quiet)


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


def _remove(folder: pathlib.Path) -> None:
  for path in sorted(folder.rglob("*"), reverse=True):
    path.rmdir() if path.is_dir() else path.unlink()
  folder.rmdir()


def _python(code: str) -> subprocess.CompletedProcess:
  return subprocess.run(
    [sys.executable, "-c", code],
    capture_output=True,
    text=True,
    cwd=ROOT,
    check=True,
  )


def test_weights_are_shares_or_epochs_or_between_by_temperature(
  corpus, tmp_path
):
  for name, count in (("small", 40), ("large", 160)):
    text = "".join(f"line {i} of {name}\n" for i in range(count))
    (tmp_path / f"{name}.txt").write_text(text)
  spec = f"3*text:{tmp_path}/small.txt,1*text:{tmp_path}/large.txt"
  weights, sizes = {}, []
  for temperature in (None, 1.0, 2.0, 1e6):
    data = corpus([], source=spec, split="tail", temperature=temperature)
    made = prepare_data(data, quiet)
    weights[temperature] = [weight for weight, _ in made.train]
    sizes = [one.num_ids for _, one in made.train]
  small, large = sizes
  assert large > 3 * small
  assert weights[None] == [0.75, 0.25]
  wanted = {1.0: 3 * small / large, 2.0: 3 * (small / large) ** 0.5, 1e6: 3}
  for temperature, ratio in wanted.items():
    one, other = weights[temperature]
    assert one + other == pytest.approx(1)
    assert one / other == pytest.approx(ratio, rel=1e-4)


def test_a_curriculum_has_a_weight_for_each_source(corpus, tmp_path):
  for name in ("one", "two"):
    (tmp_path / f"{name}.txt").write_text("some text " * 40)
  spec = f"text:{tmp_path}/one.txt,3*text:{tmp_path}/two.txt"
  config = config_lib.freeze(base.get_config())
  data = corpus([], source=spec, split="tail", curriculum="3,1@5+1,1@9")
  made = prepare_data(data, quiet)
  config = dataclasses.replace(config, data=data)
  size = config.train.global_batch_size
  assert batches.read_weights(made, config) == order.Curriculum(
    (0, 5 * size, 9 * size), ((0.25, 0.75), (0.75, 0.25), (0.5, 0.5))
  )
  objectives.check_sources(data)  # the control
  short = dataclasses.replace(data, curriculum="3,1@5+1@9")
  with pytest.raises(InputError, match="has 2 sources; give a weight for each"):
    objectives.check_sources(short)
  for wrong in ("1,0@5", "1,2", "1,2@0", "1,2@5+2,1@5", "a,1@5", ""):
    with pytest.raises(InputError, match="it must be none or WEIGHT"):
      dataclasses.replace(data, curriculum=wrong)
