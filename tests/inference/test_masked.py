"""An encoder is trained, scored and refused as it should be."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from harness import init_params

from configs import base
from gpt_jax import config as config_lib
from gpt_jax import metric_names, objective, sharding
from gpt_jax.data.tokenizers.plain import ByteTokenizer
from gpt_jax.inference import scoring
from gpt_jax.models import build_model
from gpt_jax.training import preflight

ENCODER = (
  "--config.model.family=encoder",
  "--config.data.objective=masked_lm",
  "--config.model.head=transform",
  "--config.sample.every_steps=5",  # of which nothing comes
)


def encoder(vocab_size: int):
  return build_model(
    dataclasses.replace(
      config_lib.freeze(base.get_config()).model,
      num_layers=1,
      model_dim=32,
      mlp_dim=64,
      max_len=16,
      vocab_size=vocab_size,
      family="encoder",
      head="transform",
      bias=True,
    )
  )


@pytest.mark.wide
def test_an_encoder_trains_and_reports_its_accuracy_beside_the_baseline(
  call_verb, small_run, tmp_path
):
  workdir = tmp_path / "run"
  done = call_verb("train", *small_run, *ENCODER, f"--workdir={workdir}")
  assert done.returncode == 0, done.stderr
  assert "by the commonest token" in done.stdout
  assert done.stdout.count("no samples will be written: sample.every") == 1
  assert "sample of" not in done.stdout and "generated" not in done.stdout
  assert not (workdir / "samples").exists()
  rows = [
    json.loads(line)
    for line in (workdir / "metrics.jsonl").read_text().splitlines()
  ]
  last = [row for row in rows if "eval/valid/accuracy" in row][-1]
  assert "eval/valid/bits_per_byte" not in last
  plain = call_verb("evaluate", f"--workdir={workdir}", "--json", "--pseudo=1")
  assert plain.returncode == 0, plain.stderr
  scored = json.loads(plain.stdout)
  assert scored["accuracy"] == last["eval/valid/accuracy"]
  assert 1 < scored["pseudo_perplexity"] < 257
  none = call_verb("evaluate", f"--workdir={workdir}", "--pseudo=0")
  assert none.returncode == 2 and "--pseudo is 0" in none.stderr
  refused = call_verb("generate", f"--workdir={workdir}", "--prompt=The")
  assert refused.returncode == 2
  assert "encoder, which cannot continue a text" in refused.stderr


def test_a_model_that_continues_no_text_says_so_before_training():
  keys = {
    "decoder": {},
    "family is encoder": {
      "model.family": "encoder",
      "data.objective": "masked_lm",
    },
    "head is mean": {
      "model.head": "mean",
      "data.objective": "classification",
    },
  }
  for what, values in keys.items():
    said, text = [], base.get_config()
    text.update_from_flattened_dict(values | {"sample.every_steps": 5})
    config = config_lib.freeze(text)
    preflight.check_prompt(config, ByteTokenizer(), said.append)
    if what == "decoder":
      assert config_lib.sample_steps(config) == 5 and not said
      continue
    assert config_lib.sample_steps(config) == 0
    assert said == [
      "no samples will be written: sample.every_steps is 5, and model."
      f"{what}, which continues no text; set it to 0"
    ]


@pytest.mark.parametrize(
  ("keys", "sentence"),
  [
    (("--config.data.objective=masked_lm",), "model.family is decoder"),
    (("--config.model.family=encoder",), "model.family is encoder"),
  ],
)
def test_an_objective_that_the_family_cannot_carry_is_refused(
  keys, sentence, call_verb, small_run, tmp_path
):
  done = call_verb("train", *small_run, *keys, f"--workdir={tmp_path / 'run'}")
  assert done.returncode == 2
  assert sentence in done.stderr and "which can be trained with" in done.stderr


def test_the_commonest_share_leaves_separators_out():
  class Set:
    num_ids, separator_id, is_paired = 8, 9, False

    def read(self, start, stop):
      return np.array([9, 1, 1, 9, 2, 1, 9, 3])[start:stop]

    def read_mask(self):
      return None

  class Chats(Set):
    def read_mask(self):
      return np.array([0, 1, 0, 0, 1, 0, 0, 1])

  assert scoring.commonest_share(Set()) == 3 / 5
  assert scoring.commonest_share(Chats()) == 1 / 3


class Few:
  """Two windows of bytes and a separator, as a TokenSet."""

  ids = np.array([256, *range(60, 92), 256, *range(5, 18)], np.int32)
  num_ids = num_tokens = len(ids)
  num_bytes, vocab_size, separator_id = 45, 257, 256

  def read_windows(self, starts, length):
    return np.stack([self.ids[s : s + length] for s in starts])


def test_pseudo_perplexity_hides_each_token_alone():
  model = encoder(vocab_size=258)
  params = init_params(model, 0)
  config = base.get_config()
  config.mesh.data = 1
  mesh = sharding.make_mesh(config_lib.freeze(config).mesh, jax.devices()[:1])
  how = dict(
    seq_len=16, batch_size=2, packing="stream", num_loss_chunks=1, mesh=mesh
  )
  found = scoring.pseudo_perplexity(
    model, params, Few(), ByteTokenizer(), **how
  )
  nats, apply = [], jax.jit(model.apply)
  for start, length in ((0, 16), (16, 16), (32, 14)):
    row = np.zeros((1, 16), np.int32)
    row[0, :length] = Few.ids[start : start + length]
    for place in range(length):
      if row[0, place] != 256:
        hidden = row.copy()
        hidden[0, place] = 257
        logits = np.asarray(apply(params, hidden))[0, place]
        nats.append(jax.nn.logsumexp(logits) - logits[row[0, place]])
  assert len(nats) == 44  # all but the two separators
  assert found == pytest.approx(np.exp(np.mean(nats)), rel=1e-5)


def test_parts_of_the_logits_give_the_loss_and_accuracy_of_the_whole():
  model = encoder(vocab_size=100)
  params = init_params(model, 0)
  rng = np.random.default_rng(0)
  params["head"]["bias"] = jnp.asarray(rng.normal(0, 3, 128), jnp.float32)
  ids = rng.integers(0, 100, (4, 16), np.int32)
  batch = {"tokens": ids, "targets": ids, "mask": np.ones((4, 16), np.float32)}

  def run(num_chunks, others=(metric_names.ACCURACY,)):
    loss = objective.make_loss(model, num_chunks, others)
    total = lambda p: (loss(p, batch)[metric_names.LOSS], loss(p, batch))
    return jax.jit(jax.value_and_grad(total, has_aux=True))(params)

  ((_, one), grad), ((_, two), grad_parts) = run(1), run(4)
  assert one[metric_names.ACCURACY] == two[metric_names.ACCURACY]
  assert 0 < one[metric_names.ACCURACY] < 64
  np.testing.assert_allclose(
    one[metric_names.LOSS], two[metric_names.LOSS], rtol=1e-5
  )
  for a, b in zip(
    jax.tree.leaves(grad), jax.tree.leaves(grad_parts), strict=True
  ):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
