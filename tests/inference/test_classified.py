"""Scores and predictions of a classifier, over a whole set in one pass."""

import dataclasses
import functools
import json

import jax
import numpy as np
import pytest
from harness import init_params
from labelled import rows
from scipy import stats

from configs import base
from gpt_jax import config as config_lib
from gpt_jax import sharding
from gpt_jax.data import examples, objectives
from gpt_jax.data.labels import Labels
from gpt_jax.data.sources.labelled import Example
from gpt_jax.data.tokenizers.plain import ByteTokenizer
from gpt_jax.inference import predicting, scoring
from gpt_jax.models import build_model

CLASSES = {
  "single": ("bad", "good", "mixed"),
  "multi": ("bad", "good"),
  "number": (),
  "word": ("bad", "good", "other"),
}
MESHES = {
  "1": {},
  "2x2": dict(data=2, fsdp=2),
  "2x2 tensor": dict(fsdp=2, tensor=2),
}
T, B, N = 48, 8, 43


@functools.cache
def made(kind: str, family: str = "encoder"):
  """Returns (config, model, params) of a classifier, as it starts."""
  config = base.get_config()
  config.data.objective, config.data.label = "classification", kind
  config.data.seq_len = config.model.max_len = T
  config.model.update(
    num_layers=2, model_dim=32, num_heads=4, mlp_dim=64, family=family
  )
  config.model.update(vocab_size=259, head="each" if kind == "word" else "mean")
  config.model.update(num_classes=len(CLASSES[kind]) or 1, init_std=0.3)
  config = config_lib.freeze(config)
  model = build_model(config.model)
  return config, model, init_params(model, 0)


def texts(kind: str, has_labels: bool = True) -> examples.Labelled:
  found = [
    Example(f"a:{i}", f"a, line {i}", (r["text"],), r["label"])
    for i, r in enumerate(rows(N, kind=kind))
  ]
  if not has_labels:
    found = [one._replace(label=None) for one in found]
  labels = Labels(kind, CLASSES[kind])
  return examples.read_whole("a", found, ByteTokenizer(), labels)


def on_mesh(kind: str, mesh: str, function, has_labels=True, family="encoder"):
  config, model, params = made(kind, family)
  sizes = dict.fromkeys(sharding.AXES, 1) | MESHES[mesh]
  devices = jax.devices()[: int(np.prod(list(sizes.values())))]
  mesh_config = dataclasses.replace(config.mesh, **sizes)
  return function(
    model,
    params,
    texts(kind, has_labels),
    seq_len=T,
    batch_size=B,  # so that the last of six batches has three texts
    packing="stream",
    num_loss_chunks=1,
    mesh=sharding.make_mesh(mesh_config, devices),
    task=objectives.build_task(config, ByteTokenizer),
  )


@functools.cache
def outputs(kind: str):
  """Returns (logits, targets) of all texts or words, one text at a time."""
  _, model, params = made(kind)
  layout = examples.Layout(T, kind)
  part, logits, targets = examples.Rows(texts(kind), layout), [], []
  apply = jax.jit(model.apply)
  for i in range(N):
    row = part.read(np.array([i]))
    out = apply(params, row["tokens"], segments_BT=row["segments"])
    if kind == "word":
      at = row["mask"][0] > 0
      logits.append(out[0, at])
      targets.append(row["targets"][0, at, None])
    else:
      logits.append(out[:, 0])
      targets.append(row["targets"])
  return np.concatenate(logits), np.concatenate(targets)


def plain_figures(kind: str) -> dict[str, float]:
  """Returns figures by numpy and scipy, from all outputs at once."""
  logits_NK, targets = outputs(kind)
  if kind == "number":
    error = np.square(logits_NK - targets).mean()
    rank = stats.spearmanr(logits_NK[:, 0], targets[:, 0]).statistic
    found = {"loss": error, "spearman": rank, "variance": targets.var()}
    return found | {"num_tokens": N}
  if kind == "multi":
    p = 1 / (1 + np.exp(-logits_NK.astype(np.float64)))
    loss = -(targets * np.log(p) + (1 - targets) * np.log(1 - p)).mean()
    labels, called = targets > 0.5, p > 0.5
    found = {"accuracy": (labels == called).all(1).mean()}
  else:
    K = logits_NK.shape[1]
    log_p = logits_NK - np.log(np.exp(logits_NK).sum(1, keepdims=True))
    loss = -np.take_along_axis(log_p, targets, 1).mean()
    labels, called = (
      np.eye(K, dtype=bool)[x] for x in (targets[:, 0], logits_NK.argmax(1))
    )
    covariance = lambda a, b: sum(
      np.cov(a[:, k], b[:, k])[0, 1] for k in range(K)
    )
    own = covariance(labels, labels) * covariance(called, called)
    found = {
      "accuracy": (labels & called).any(1).mean(),
      "matthews": covariance(labels, called) / np.sqrt(own),
      "majority": labels.mean(0).max(),
    }
  hits, all_of = (labels & called).sum(0), labels.sum(0) + called.sum(0)
  found["f1_micro"] = 2 * hits.sum() / all_of.sum()
  found["f1_macro"] = (2 * hits / all_of)[all_of > 0].mean()
  return found | {"loss": loss, "num_tokens": len(labels)}


@pytest.mark.parametrize("kind", CLASSES)
def test_figures_are_those_of_numpy_and_scipy_on_any_mesh(kind):
  plain = plain_figures(kind)
  assert plain["num_tokens"] == (N if kind != "word" else 333)
  one = on_mesh(kind, "1", scoring.score)
  assert one.keys() == plain.keys()
  for name, value in plain.items():
    assert one[name] == pytest.approx(value, rel=1e-5), name
  for mesh in list(MESHES)[1:]:
    many = on_mesh(kind, mesh, scoring.score)
    assert many.pop("loss") == pytest.approx(one["loss"], rel=1e-5)
    # Counts, and ranks of numbers that rounding does not make equal.
    assert many == {k: v for k, v in one.items() if k != "loss"}


def test_a_figure_of_half_a_set_is_another():
  plain, (logits, targets) = plain_figures("number"), outputs("number")
  half = stats.spearmanr(logits[: N // 2, 0], targets[: N // 2, 0]).statistic
  assert half != pytest.approx(plain["spearman"], abs=1e-3)


@pytest.mark.parametrize("has_labels", [True, False])
@pytest.mark.parametrize("kind", CLASSES)
def test_predictions_are_the_models_in_the_order_of_texts(kind, has_labels):
  logits, _ = outputs(kind)
  names, at = np.array(CLASSES[kind]), 0
  for mesh in ("1", "2x2"):
    text, at = on_mesh(kind, mesh, predicting.predict, has_labels), 0
    found = [json.loads(line) for line in text.splitlines()]
    assert len(found) == N
    for i, (one, record) in enumerate(zip(found, rows(N), strict=True)):
      if kind == "number":
        assert one["label"] == pytest.approx(float(logits[i, 0]), rel=1e-4)
      elif kind == "multi":
        assert one["label"] == names[logits[i] > 0].tolist()
        p = 1 / (1 + np.exp(-logits[i]))
        assert list(one["scores"]) == list(names)
        assert list(one["scores"].values()) == pytest.approx(p, abs=1e-5)
      elif kind == "single":
        assert one["label"] == names[logits[i].argmax()]
        p = np.exp(logits[i]) / np.exp(logits[i]).sum()
        assert list(one["scores"].values()) == pytest.approx(p, abs=1e-5)
      else:
        called = [name for name in one["label"] if name is not None]
        wanted = names[logits[at : at + len(called)].argmax(1)]
        at += len(called)
        assert called == wanted.tolist()
        words = record["text"].split()
        assert len(one["label"]) == len(words)
        # A row has room for 47 letters: the words that end there.
        room = sum(np.cumsum([len(w) + 1 for w in words]) <= T)
        assert len(called) == room


@pytest.mark.parametrize("mesh", MESHES)
def test_an_encoder_decoder_predicts_from_a_start_beside_the_text(mesh):
  _, model, params = made("single", "encoder_decoder")
  text = on_mesh("single", mesh, predicting.predict, family="encoder_decoder")
  found = [json.loads(line) for line in text.splitlines()]
  assert len(found) == N
  part, apply = texts("single"), jax.jit(model.apply)
  borders = np.append(part.document_starts, part.num_ids)
  for i in range(0, N, 7):
    ids = part.read(*borders[i : i + 2])[: T - 1]
    source = np.append(ids, 258)[None].astype(np.int32)
    logits = apply(params, np.full((1, 1), 257), sources_BS=source)[0, 0]
    p = np.exp(logits) / np.exp(logits).sum()
    assert list(found[i]["scores"].values()) == pytest.approx(p, abs=1e-5)
