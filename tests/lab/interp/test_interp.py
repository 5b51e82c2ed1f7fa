"""A look inside: every number agrees with what the model itself computes."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gpt_jax
from configs import base
from gpt_jax import config as config_lib
from gpt_jax import tree
from gpt_jax.data.tokenizers import build_tokenizer
from gpt_jax.deploy.hf.folders import write_run
from gpt_jax.exits import InputError
from gpt_jax.lab.interp import (
  attribution,
  heads,
  lens,
  passes,
  patching,
  sae,
  steps,
)
from gpt_jax.models import build_model

TEXT, OTHER = "What is it", "Here's she"
L, D, N = 2, 32, 2


def make(objective="causal", **changes):
  """Returns the config of a run, frozen."""
  values = base.get_config()
  values.data.objective = objective
  values.data.tokenizer = "bytes"
  values.data.seq_len = values.model.max_len = 32
  values.model.vocab_size, values.model.num_layers = 257, L
  values.model.num_heads, values.model.model_dim = N, D
  values.model.mlp_dim, values.mesh.data = 48, 1
  values.model.update(changes)
  return config_lib.freeze(values)


def write(folder, **changes):
  """Writes a run whose parameters are drawn; returns it, opened."""
  config = make(**changes)
  model = build_model(config.model)

  def draw(name, leaf):
    noise = 0.3 * jax.random.normal(
      tree.key_for(jax.random.key(0), name), leaf.shape
    )
    return noise + (1.0 if "scale" in name else 0.0)

  params = tree.map_with_names(draw, model.abstract_params()[0])
  folder.mkdir()
  tokenizer = build_tokenizer("bytes")
  write_run(str(folder), config, lambda: params, tokenizer, "none")
  return gpt_jax.load(str(folder))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """A run with LayerNorm, biases, an untied matrix and learned positions."""
  folder = tmp_path_factory.mktemp("interp") / "run"
  return write(folder, bias=True, tied_embeddings=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp("interp") / "grouped"


@pytest.fixture(scope="module")
def grouped(folder):
  """A run with RMSNorm, rotation and key heads that two heads share each."""
  return write(
    folder,
    norm="rmsnorm",
    position="rope",
    num_heads=2 * N,
    num_kv_heads=N,
    mlp="swiglu",
    bias=False,
  )


@pytest.fixture(scope="module", params=["run", "grouped"])
def either(request):
  return request.getfixturevalue(request.param)


def close(a, b, tolerance=1e-4):
  a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
  assert a.shape == b.shape
  assert np.abs(a - b).max() <= tolerance * np.abs(b).max()


def differs(a, b):
  assert np.abs(a - b).max() > 0.01 * np.abs(b).max()


def test_what_is_recorded_is_what_the_model_computes(either):
  found = passes.record(either, TEXT)
  close(found.logits_TV, either.logits(TEXT))
  taps = either.activations(TEXT)
  close(found.residual_XTD[0], taps["embed"])
  close(found.residual_XTD[-1], taps["residual"])
  close(found.attn_LTD, taps["attn"])
  close(found.mlp_LTD, taps["mlp"])
  total = found.residual_XTD[0] + found.attn_LTD.sum(0) + found.mlp_LTD.sum(0)
  close(total, found.residual_XTD[-1])
  assert "".join(found.tokens) == TEXT


def test_a_token_keeps_the_space_before_it():
  pieces = ["<s>", " a", "b", " c"]
  decode = lambda ids: "".join(pieces[i] for i in ids).removeprefix(" ")
  run = types.SimpleNamespace(decode=decode)
  assert passes.token_texts(run, [1, 2, 0, 3]) == [" a", "b", "<s>", " c"]


def test_heads_are_the_weighted_sums_of_their_values(either):
  found = passes.record(either, TEXT)
  sums = np.einsum("LNTS,LSNH->LTNH", found.weights_LNTS, found.v_LTNH)
  close(sums, found.heads_LTNH)
  heads = either.model.config.num_heads
  close(found.weights_LNTS.sum(-1), np.ones((L, heads, len(found.ids))))
  # The weights are the softmax of queries times keys, of no later token.
  scores = np.einsum("LTNH,LSNH->LNTS", found.q_LTNH, found.k_LTNH)
  scores /= np.sqrt(D // heads)
  later = np.triu(np.ones(scores.shape[-2:]), 1).astype(bool)
  own = np.exp(np.where(later, -np.inf, scores))
  close(own / own.sum(-1, keepdims=True), found.weights_LNTS)


def test_the_logit_lens_ends_at_the_logits(either):
  found = passes.record(either, TEXT)
  logits = lens.logit_lens(either, found)
  assert len(logits) == L + 1
  close(logits[-1], found.logits_TV, 1e-5)
  differs(logits[-2], found.logits_TV)


@pytest.mark.wide
def test_a_tuned_lens_is_nearer_than_the_logit_lens(run):
  rows = np.random.default_rng(0).integers(0, 256, (16, 8))
  learned = lens.train_lens(run, rows, num_steps=60)
  assert learned.losses[-1][1] < 0.7 * learned.losses[0][1]
  # On text that it has not seen.
  found = passes.record(run, TEXT)

  def away(logits):
    want = jax.nn.log_softmax(found.logits_TV)
    own = jax.nn.log_softmax(jnp.asarray(logits[:-1]))
    return float((jnp.exp(want)[None] * (want[None] - own)).sum(-1).mean())

  tuned = lens.tuned_lens(run, found, learned)
  assert away(tuned) < away(lens.logit_lens(run, found))
  close(tuned[-1], found.logits_TV, 1e-5)


def test_a_tuned_lens_reads_each_stream_through_its_own_map(run):
  found = passes.record(run, TEXT)
  rng = np.random.default_rng(0)
  w_LDD = 0.1 * rng.normal(size=(L, D, D)).astype(np.float32)
  b_LD = rng.normal(size=(L, D)).astype(np.float32)
  tuned = lens.tuned_lens(run, found, lens.Translators(w_LDD, b_LD, []))
  x_D = found.residual_XTD[1, 4]
  moved_D = x_D + x_D @ w_LDD[1] + b_LD[1]
  close(tuned[1, 4], passes.read_out(run, moved_D[None, None])[0, 0])


@pytest.mark.wide
def test_integrated_gradients_are_complete(either):
  found = passes.record(either, TEXT)
  token = int(found.logits_TV[-1].argmax())
  score_T, rise = attribution.integrated_gradients(either, found, token)
  assert abs(score_T.sum() - rise) < 1e-3 * abs(rise)
  # The rise is from the baseline to the text.
  base_TD = np.broadcast_to(
    found.residual_XTD[0].mean(0), found.residual_XTD[0].shape
  )
  edits = {"embed": (base_TD[None], np.ones((1, len(found.ids)), bool))}
  low = passes.edited(either, [found.ids], edits)[0, -1, token]
  assert rise == pytest.approx(found.logits_TV[-1, token] - low, rel=1e-4)
  rough, _ = attribution.integrated_gradients(either, found, token, -1, 1)
  assert abs(rough.sum() - rise) > 1e-2 * abs(rise)


def test_gradient_times_input_is_the_slope_of_the_logit(run):
  found = passes.record(run, TEXT)
  token, at, step = 65, -3, 1e-3
  score_T = attribution.gradient_times_input(run, found, token, at)
  everywhere = np.ones((1, len(found.ids)), bool)
  x_TD = found.residual_XTD[0]
  for place in (0, 4):
    ends = []
    for sign in (1, -1):
      moved = x_TD.copy()
      moved[place] *= 1 + sign * step
      edits = {"embed": (moved[None], everywhere)}
      ends.append(passes.edited(run, [found.ids], edits)[0, at, token])
    slope = (ends[0] - ends[1]) / (2 * step)
    assert score_T[place] == pytest.approx(slope, rel=0.02, abs=2e-3)
  assert (score_T[-2:] == 0).all()  # what comes later has no part in it


def test_direct_logits_add_up_to_the_logit(either):
  found = passes.record(either, TEXT)
  given = attribution.direct_logits(either, found, 70, 5)
  parts = ("embed", "attn", "mlp", "rest")
  total = sum(float(given[name].sum()) for name in parts)
  assert total == pytest.approx(found.logits_TV[5, 70], rel=1e-4)
  if either.model.config.bias:
    bias_D = either.params["final_norm"]["bias"]
    want = float(bias_D @ either.params["unembed"][70])
    assert given["rest"] == pytest.approx(want, abs=1e-3) and abs(want) > 0.01
  else:
    assert abs(given["rest"]) < 1e-3
    close(given["heads"].sum(1), given["attn"])


@pytest.mark.wide
def test_patching_all_of_a_layer_gives_the_other_run(either):
  source = passes.record(either, OTHER)
  into = either.encode(TEXT)
  for point in ("blocks_0", "blocks_1"):
    close(patching.patch(either, into, source, point), source.logits_TV)
  differs(
    patching.patch(either, into, source, "blocks_0/attn"), source.logits_TV
  )
  own = passes.record(either, TEXT)
  for point in ("blocks_1", "blocks_0/mlp", "blocks_1/attn/heads"):
    close(patching.patch(either, into, own, point), own.logits_TV)


def test_a_patched_place_changes_nothing_before_it(run):
  source, own = passes.record(run, OTHER), passes.record(run, TEXT)
  got = patching.patch(run, own.ids, source, "blocks_0", [6])
  close(got[:6], own.logits_TV[:6])
  differs(got[6:], own.logits_TV[6:])
  with pytest.raises(InputError, match="give its ids, as `encode`"):
    patching.patch(run, TEXT, source, "blocks_0")


@pytest.mark.wide
def test_the_last_place_of_the_last_layer_brings_all_of_the_answer(run):
  clean = passes.record(run, TEXT)
  ids = run.encode(OTHER)
  answer = int(clean.logits_TV[-1].argmax())
  away = int(passes.record(run, ids).logits_TV[-1].argmax())
  share = patching.sweep(run, clean, ids, "residual", answer, away)
  assert share.shape == (L, len(ids))
  assert share[-1, -1] == pytest.approx(1, abs=1e-3)
  assert np.abs(share[-1, :-1]).max() < 1e-3
  by_head = patching.sweep(run, clean, ids, "heads", answer, away)
  assert by_head.shape == (L, N)
  # One head, by the door of the Python API.
  z = clean.heads_LTNH[1]
  logits = run.logits(
    ids, edit={"blocks_1/attn/heads": lambda x: x.at[:, 1].set(z[:, 1])}
  )
  margin = lambda row: row[answer] - row[away]
  low, high = margin(run.logits(ids)[-1]), margin(clean.logits_TV[-1])
  want = (margin(logits[-1]) - low) / (high - low)
  assert by_head[1, 1] == pytest.approx(want, abs=1e-3)


@pytest.mark.wide
def test_an_ablated_head_is_one_whose_rows_of_the_matrix_are_zero(run):
  found = passes.record(run, TEXT)
  rise_LN = patching.ablate(run, found, "heads", 65)
  o = run.params["blocks"]["attn"]["o"].at[1, 0].set(0)
  params = run.params | {"blocks": run.params["blocks"] | {}}
  params["blocks"]["attn"] = params["blocks"]["attn"] | {"o": o}
  tokens = jnp.asarray([found.ids])
  with jax.set_mesh(run.mesh):
    logits = run.model.apply(params, tokens)[0, -1, :257]
  loss = lambda logits: float(-jax.nn.log_softmax(jnp.asarray(logits))[65])
  want = loss(logits) - loss(found.logits_TV[-1])
  assert rise_LN[1, 0] == pytest.approx(want, abs=1e-3)
  assert patching.ablate(run, found, "mlp", 65).shape == (L,)


def test_scores_of_heads_are_those_of_known_maps():
  T = 8
  weights = np.zeros((1, 4, T, T))
  for t in range(T):
    weights[0, 0, t, t] = weights[0, 1, t, max(0, t - 1)] = 1
    weights[0, 2, t, 0] = 1
    weights[0, 3, t, : t + 1] = 1 / (t + 1)
  stats = heads.describe(weights)
  close(stats.own_LN[0, :3], [1, 1 / T, 1 / T])
  close(stats.previous_LN[0, :3], [0, 1, 1 / 7], 1e-9)
  close(stats.first_LN[0, 2:], [1, np.mean(1 / np.arange(1, T + 1))])
  close(stats.distance_LN[0], [0, 7 / 8, 3.5, 1.75])
  close(stats.entropy_LN[0, 3], np.log(np.arange(1, T + 1)).mean())


def test_the_induction_score_is_the_weight_of_what_followed(run, monkeypatch):
  rows = heads.repeated(run, 6, 3, seed=0, ids=[65, 66, 67])
  assert rows.shape == (3, 12) and (rows[:, :6] == rows[:, 6:]).all()
  weights = np.zeros((1, 2, 12, 12))
  for t in range(6, 12):
    weights[0, 0, t, t - 6 + 1] = 1  # what followed
    weights[0, 1, t, t - 6] = 1  # the same letter
  found = passes.record(run, TEXT)._replace(weights_LNTS=weights)
  monkeypatch.setattr(passes, "record", lambda run, ids: found)
  score = heads.induction_scores(run, rows)
  # The last place has no successor within the first half: five of six.
  close(score, [[1, 0]])


def test_a_head_that_is_taken_away_gives_its_mean(run):
  rows = heads.repeated(run, 5, 2, seed=0, ids=[65, 66, 67])
  plain = heads.losses_by_place(run, rows)
  close(plain, [run.losses(row.tolist()) for row in rows])
  z = [passes.record(run, row.tolist()).heads_LTNH[1, :, 1] for row in rows]
  edit = {
    "blocks_1/attn/heads": lambda x: x.at[:, 1].set(np.mean(z, (0, 1))),
  }
  logits = run.logits(rows[0].tolist(), edit)[:-1]
  want = -jax.nn.log_softmax(jnp.asarray(logits))[np.arange(9), rows[0, 1:]]
  found = heads.losses_by_place(run, rows, [(1, 1)])
  close(found[0], want)
  differs(found, plain)


def test_an_autoencoder_finds_the_directions_that_data_is_made_of():
  rng = np.random.default_rng(0)
  true_FD = rng.normal(size=(12, 16))
  true_FD /= np.linalg.norm(true_FD, axis=1, keepdims=True)
  on = (rng.random((6000, 12)) < 0.08) * rng.uniform(1, 2, (6000, 12))
  x_XD = (on @ true_FD).astype(np.float32)
  own = sae.train(x_XD, 0, 24)
  found = sae.quality(own, x_XD)
  # One direction is on in a token, on average.
  assert found["explained"] > 0.95 and found["on_per_token"] < 3, found
  likeness = np.abs(own.decode_FD @ true_FD.T).max(0)
  assert likeness.min() > 0.9, likeness
  # Directions that were not learned are half as like.
  other_FD = rng.normal(size=own.decode_FD.shape)
  other_FD /= np.linalg.norm(other_FD, axis=1, keepdims=True)
  assert np.abs(other_FD @ true_FD.T).max(0).min() < 0.6


def test_steps_show_the_numbers_of_the_head(grouped):
  found = passes.record(grouped, "abcd")
  shown = steps.show(found, 1, 0)
  for array in (found.q_LTNH, found.v_LTNH, found.heads_LTNH):
    for value in array[1, :, 0].ravel():
      assert f">{value:.2f}<" in shown
  weights = found.weights_LNTS[1, 0]
  assert all(f">{w:.3f}<" in shown for w in weights[-1])
  assert shown.count(">1.000<") >= len(weights)  # each row's sum


def test_what_cannot_be_looked_into_is_named():
  changes = {
    "an encoder": dict(family="encoder", objective="masked_lm"),
    "a decoder that scores classes": dict(
      objective="classification", head="last", num_classes=3
    ),
    "one with experts": dict(num_experts=4),
  }
  for said, more in changes.items():
    other = types.SimpleNamespace(model=build_model(make(**more).model))
    with pytest.raises(InputError, match=f"this run is {said}; give another"):
      passes.open_model(other)


def test_texts_of_unlike_lengths_and_unknown_points_are_refused(run):
  source = passes.record(run, TEXT)
  with pytest.raises(InputError, match="10 tokens and the other 3"):
    patching.patch(run, [1, 2, 3], source, "blocks_0")
  with pytest.raises(InputError, match="no point 'blocks_7'"):
    patching.patch(run, source.ids, source, "blocks_7")


def test_a_token_or_a_place_that_is_not_there_is_refused(run):
  found = passes.record(run, TEXT)
  V = found.logits_TV.shape[1]
  asked = [
    lambda token, at: attribution.gradient_times_input(run, found, token, at),
    lambda token, at: attribution.integrated_gradients(run, found, token, at),
    lambda token, at: attribution.direct_logits(run, found, token, at),
    lambda token, at: patching.ablate(run, found, "heads", token, at),
  ]
  for ask in asked:
    for token in (V, -1):
      with pytest.raises(InputError, match=f"it must be from 0 to {V - 1}"):
        ask(token, -1)
    for at in (10, -11):
      with pytest.raises(InputError, match="a place of a text of 10 tokens"):
        ask(0, at)
  with pytest.raises(InputError, match="one of residual, attn, mlp, heads"):
    patching.ablate(run, found, "head", 0)
  with pytest.raises(InputError, match="the token is -1; it must be from"):
    patching.sweep(run, found, found.ids, "heads", 0, -1)


@pytest.mark.wide
def test_the_command_writes_a_page(grouped, folder, call_verb, tmp_path):
  text = tmp_path / "text.txt"
  text.write_text("A line of text, and <b>another</b>.\n" * 40)
  out = tmp_path / "page.html"
  words = [f"--workdir={folder}", f"--text={TEXT}", f"--out={out}"]
  done = call_verb(
    "lab.interp.__main__", *words, f"--other={OTHER}", f"--corpus={text}"
  )
  assert done.returncode == 0, done.stderr
  page = out.read_text()
  for name in ("Attention", "Logit lens", "Patching", "Features"):
    assert f"<h2>{name}</h2>" in page
  assert page.count("<figure>") == L * 2 * N
  assert "prefers-color-scheme: dark" in page
  # A byte is a token, so that a tag would be a lone sign.
  assert "&lt;" in page and "<<" not in page and "http" not in page
  assert "Step by step" not in page
  short = call_verb("lab.interp.__main__", *words, "--text=abcd")
  assert short.returncode == 0 and "Step by step" in out.read_text()
  for more, said in {
    ("--other=short",): "10 tokens and the other 5",
    (f"--other={TEXT}",): "the same next token",
    ("--text=a",): "1 token; a page shows 2 to 64",
    ("--layer=1",): "does nothing without --corpus",
    (f"--corpus={text}", "--layer=9"): "layers 0 to 1",
    (f"--out={tmp_path}/no/a.html",): "in a folder that exists",
    ("--corpus=/nowhere",): "name a text file",
  }.items():
    done = call_verb("lab.interp.__main__", *words, *more)
    assert done.returncode == 2 and said in done.stderr, (more, done.stderr)
