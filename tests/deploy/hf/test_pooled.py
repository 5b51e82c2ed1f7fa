"""BERT's pooler and classifiers: in, out, and in again."""

import dataclasses
import json
import pathlib

import jax
import numpy as np
import pytest
from test_hf import (
  draw,
  letters,
  read_arrays,
  tokens_of,
  types_of,
  write_tensors,
)

from gpt_jax.config import InputError
from gpt_jax.deploy.hf import exporting, importing
from gpt_jax.runs import workdir

HERE = pathlib.Path(__file__).parent
wide = pytest.mark.wide
POOLED = json.loads((HERE / "pooled.json").read_text())


def bring_in(tmp_path, case: str, drop=(), **changes) -> str:
  """Imports a case, without some of its tensors; returns the workdir."""
  golden, source = POOLED[case], tmp_path / "source"
  source.mkdir()
  config = golden["config"] | changes
  (source / "config.json").write_text(json.dumps(config))
  arrays = draw(golden["shapes"])
  write_tensors(source, {k: v for k, v in arrays.items() if k not in drop})
  run = str(tmp_path / "run")
  importing.import_model(str(source), run, letters(tmp_path))
  return run


def values_of(run: str, config: dict) -> np.ndarray:
  """Returns the scores of classes, or what the pooler gives."""
  _, model, params, _, mesh = workdir.open_run(run)
  types, kw = types_of(config), {}
  if types is not None:
    kw["types_BT"] = types.astype(np.int32)
  with jax.set_mesh(mesh):
    ids = tokens_of(61).astype(np.int32)
    out, taps = jax.jit(model.apply_tapped)(params, ids, **kw)
  is_classifier = model.config.head == "first"
  return np.asarray((out if is_classifier else taps["pooled"])[0, 0])


@pytest.mark.parametrize(
  "case",
  [
    case if case == "bert_classes" else pytest.param(case, marks=wide)
    for case in POOLED
  ],
)
def test_a_pooler_is_kept_both_ways_and_computes_what_theirs_does(
  case, tmp_path
):
  golden = POOLED[case]
  run, expected = bring_in(tmp_path, case), np.array(golden["values"])
  found = values_of(run, golden["config"])
  most = np.abs(expected).max()
  np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * most)

  _, model, params, tokenizer, _ = workdir.open_run(run)
  labels, out = workdir.read_labels(run), tmp_path / "out"
  exporting.export_model(model, params, tokenizer, str(out), labels=labels)
  made, given = read_arrays(str(out)), draw(golden["shapes"])
  # A RoBERTa is written as a BERT; a next sentence's score is left out.
  name_of = {
    "classifier.out_proj": "classifier",
    "classifier.dense": "bert.pooler.dense",
    "roberta": "bert",
  }
  theirs = {}
  for name, array in given.items():
    for old, new in name_of.items():
      if name.startswith(old):
        name = new + name.removeprefix(old)
        break
    if "seq_relationship" not in name:
      is_padded = "position" in name and "pad_token_id" in golden["config"]
      is_padded &= golden["config"]["model_type"] == "roberta"
      theirs[name] = array[2:] if is_padded else array
  assert made.keys() == theirs.keys()
  for name, array in theirs.items():
    np.testing.assert_array_equal(made[name], array, err_msg=name)
  config = json.loads((out / "config.json").read_text())
  if labels is not None:
    names = golden["config"]["id2label"]
    assert config["id2label"] == names
    assert config["label2id"] == {name: int(i) for i, name in names.items()}
    assert labels.kind == ("single" if len(names) > 1 else "number")
  importing.import_model(str(out), str(tmp_path / "again"))
  again = values_of(str(tmp_path / "again"), golden["config"])
  np.testing.assert_array_equal(again, found)
  assert workdir.read_labels(str(tmp_path / "again")) == labels


def test_a_model_without_a_pooler_has_none(tmp_path):
  drop = ("pooler.dense.weight", "pooler.dense.bias")
  run = bring_in(tmp_path, "bert_bare", drop)
  config, _, params, _, _ = workdir.open_run(run)
  assert not config.model.pooler and "pooler" not in params


@pytest.mark.parametrize(
  "case,drop,changes,sentence",
  [
    ("bert_bare", ["pooler.dense.bias"], {}, "lacks pooler.dense.bias"),
    ("bert_bare", ["pooler.dense.weight"], {}, "holds pooler.dense.bias"),
    ("bert_classes", ["classifier.bias"], {}, "lacks classifier.bias"),
    (
      "bert_classes",
      ["bert.pooler.dense.weight", "bert.pooler.dense.bias"],
      {},
      "lacks bert.pooler.dense.weight",
    ),
    ("bert_classes", [], {"id2label": None}, "has id2label None"),
    ("bert_classes", [], {"id2label": {}}, "has id2label {}"),
    ("bert_classes", [], {"id2label": {"0": "a", "2": "b"}}, "of its own"),
    ("bert_classes", [], {"id2label": {"0": "a", "1": "a"}}, "of its own"),
    ("bert_classes", [], {"id2label": {"0": "a", "1": 7}}, "of its own"),
    (
      "bert_classes",
      [],
      {"id2label": {"0": "a", "1": "b"}},
      "classifier.weight of (3, 32) where config.json needs (2, 32)",
    ),
    ("bert_classes", [], {"problem_type": "x"}, "has problem_type 'x'"),
    ("bert_classes", [], {"problem_type": "regression"}, "and 3 labels"),
    (
      "bert_number",
      [],
      {"problem_type": "multi_label_classification"},
      "and 1 labels",
    ),
  ],
)
def test_a_pooler_or_labels_that_do_not_fit_are_one_sentence(
  case, drop, changes, sentence, tmp_path
):
  with pytest.raises(InputError) as caught:
    bring_in(tmp_path, case, drop, **changes)
  assert sentence in str(caught.value) and "\n" not in str(caught.value)
  assert not (tmp_path / "run").exists()


@wide
def test_a_classifier_starts_from_a_published_pooler(tmp_path, call_verb):
  run, out = bring_in(tmp_path, "bert"), tmp_path / "tuned"
  config, _, params, _, _ = workdir.open_run(run)
  chosen = dataclasses.asdict(config.model)
  chosen |= dict(head="first", vocab_multiple=config.model.vocab_multiple)
  chosen = {k: str(v) if isinstance(v, str) else v for k, v in chosen.items()}
  text = "from configs import base\n\n\ndef get_config():\n"
  text += "  config = base.get_config()\n"
  text += f"  config.model.update({chosen!r})\n  return config\n"
  (tmp_path / "tune.py").write_text(text)
  rows = [{"text": "ABCD" * i, "label": "ab"[i % 2]} for i in range(1, 40)]
  lines = "".join(json.dumps(row) + "\n" for row in rows)
  (tmp_path / "texts.jsonl").write_text(lines)
  done = call_verb(
    "train",
    f"--config={tmp_path}/tune.py",
    f"--config.data.source=labelled:{tmp_path}/texts.jsonl",
    "--config.data.objective=classification",
    f"--config.data.tokenizer=hf:{run}/tokenizer.json",
    f"--config.data.dir={tmp_path}/data",
    "--config.data.seq_len=16",
    "--config.data.split=document",
    "--config.train.global_batch_size=8",
    "--config.train.num_steps=1",
    "--config.optim.learning_rate=0",
    "--config.optim.warmup_steps=0",
    "--config.eval.every_steps=0",
    "--config.sample.every_steps=0",
    f"--config.train.init_from={run}",
    f"--workdir={out}",
  )
  assert done.returncode == 0, done.stderr
  said = " ".join(done.stdout.split())
  assert "starts fresh: classifier/out, classifier/out_bias" in said
  _, _, tuned, _, _ = workdir.open_run(str(out))
  assert tuned.keys() == params.keys() - {"head"} | {"classifier"}
  for name in tuned.keys() & params.keys():
    jax.tree.map(np.testing.assert_array_equal, tuned[name], params[name])
