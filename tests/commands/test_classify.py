"""A classifier from its file of texts to predictions, as its user runs it."""

import json
import shutil

import numpy as np
import pytest
from harness import logged
from labelled import rows, write
from refusals import assert_refused, content_of

from gpt_jax import sharding, tree
from gpt_jax.exits import InputError
from gpt_jax.machine import processes
from gpt_jax.models import build_model
from gpt_jax.runs import metrics, restore, workdir

SIZES = {
  "data.tokenizer": "bytes",
  "data.seq_len": 64,
  "model.max_len": 64,
  "model.num_layers": 1,
  "model.model_dim": 32,
  "model.num_heads": 2,
  "model.mlp_dim": 64,
  "optim.warmup_steps": 2,
  "optim.learning_rate": 3e-3,
  "train.num_steps": 12,
  "train.global_batch_size": 16,
  "train.log_every_steps": 1,
  "checkpoint.every_steps": 6,
  "eval.every_steps": 6,
  "eval.num_batches": 2,
}


def flags_of(folder, source: str, **more) -> list[str]:
  values = SIZES | {"data.source": source, "data.dir": folder / "prepared"}
  values |= {key.replace("__", "."): value for key, value in more.items()}
  flags = [f"--config.{key}={value}" for key, value in values.items()]
  return ["--config=configs/classify.py", *flags]


@pytest.fixture(scope="module")
def made(tmp_path_factory, call_verb):
  """Returns (folder, flags, workdir of a finished run, what it printed)."""
  folder = tmp_path_factory.mktemp("classify")
  path = write(folder / "reviews.jsonl", rows(200))
  flags = flags_of(folder, f"labelled:{path}")
  done = call_verb("train", *flags, f"--workdir={folder / 'run'}")
  assert done.returncode == 0, done.stderr
  return folder, flags, folder / "run", done.stdout


def leaves(path, step: int | None = None) -> dict[str, np.ndarray]:
  """Returns the parameters of a run by name."""
  config = workdir.read_config(str(path), {"mesh.data": "1"})
  import jax

  mesh = sharding.make_mesh(config.mesh, jax.devices()[:1])
  shapes, specs = build_model(config.model).abstract_params()
  placed = sharding.shardings_of(shapes, specs, "standard", mesh)
  abstract = jax.tree.map(
    lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s),
    shapes,
    placed,
  )
  params = restore.restore_params(str(path), abstract, step=step)
  return {k: np.asarray(v) for k, v in tree.flatten_with_names(params).items()}


def test_a_run_reports_its_figures_beside_the_majoritys(made):
  folder, _, run, printed = made
  assert "texts of 3 classes to train on, vocabulary 257, rows of 64" in printed
  count = sum(x.size for x in leaves(run).values()) - 32 * (384 - 257)
  size = f"{4 * (count + 32 * (384 - 257)) / 1024:.1f} KiB"
  row = f"parameters  {count:,} ({size} float32, vocabulary padded to 384)"
  assert row in printed
  assert "by the commonest class" in printed
  row = metrics.read_rows(str(run / "metrics.jsonl"))[-1]
  names = {k.rpartition("/")[2] for k in row if k.startswith("eval/valid/")}
  assert names == {
    *("loss", "accuracy", "f1_macro", "f1_micro", "matthews", "majority"),
    "num_tokens",
  }
  # On the way too, on some batches.
  early = logged(run, "eval/valid/f1_macro")
  assert list(early) == [6, 12]
  assert json.loads((run / "config.json").read_text())["labels"] == {
    "kind": "single",
    "classes": ["bad", "good", "mixed"],
  }


def test_evaluate_gives_the_figures_that_training_ended_with(made, call_verb):
  _, _, run, _ = made
  done = call_verb("evaluate", f"--workdir={run}", "--json")
  assert done.returncode == 0, done.stderr
  result = json.loads(done.stdout)
  assert result.pop("set") == "valid"
  for name, value in result.items():
    (*_, there) = logged(run, f"eval/valid/{name}").values()
    assert value == pytest.approx(there, rel=1e-6), name
  shown = call_verb("evaluate", f"--workdir={run}").stdout
  assert f"matthews {result['matthews']:.4f}, majority" in shown
  assert shown.rstrip().endswith(f"over {result['num_tokens']} labels")


@pytest.mark.wide
def test_predictions_of_a_file_give_its_figures(made, call_verb, tmp_path):
  _, _, run, _ = made
  records = rows(37, seed=1)
  held = write(tmp_path / "held.jsonl", records)
  out = tmp_path / "out.jsonl"
  words = [f"--workdir={run}", f"--data={held}", f"--predict={out}"]
  done = call_verb("evaluate", *words, "--json")
  assert done.returncode == 0, done.stderr
  assert f"37 labels are in {out}" in done.stderr
  called = [json.loads(line)["label"] for line in out.open()]
  hits = [a == b["label"] for a, b in zip(called, records, strict=True)]
  assert json.loads(done.stdout)["accuracy"] == np.mean(hits)
  blind = [{"text": row["text"]} for row in records]
  words[1] = f"--data={write(tmp_path / 'blind.jsonl', blind)}"
  before = out.read_text()
  done = call_verb("evaluate", *words)
  assert (done.returncode, done.stdout) == (0, "")
  assert out.read_text() == before
  # The run's own held-out texts too.
  own = call_verb("evaluate", words[0], f"--predict={tmp_path / 'own.jsonl'}")
  assert own.returncode == 0
  (*_, count) = logged(run, "eval/valid/num_tokens").values()
  assert len((tmp_path / "own.jsonl").read_text().splitlines()) == count


@pytest.mark.wide
def test_a_run_that_was_cut_short_ends_as_it_would_have(
  made, call_verb, tmp_path
):
  _, flags, run, _ = made
  cut = tmp_path / "cut"
  shutil.copytree(run, cut)
  shutil.rmtree(cut / "checkpoints" / "12")
  shutil.rmtree(cut / "plots")
  done = call_verb("train", *flags, f"--workdir={cut}")
  assert done.returncode == 0 and "going on from step 6" in done.stdout
  a, b = leaves(run), leaves(cut)
  assert a.keys() == b.keys() and "classifier/dense" in a
  for name in a:
    np.testing.assert_array_equal(a[name], b[name], name)
  assert logged(run) == logged(cut)
  early = leaves(run, step=6)
  assert (early["classifier/out"] != a["classifier/out"]).any()  # the control


@pytest.mark.wide
def test_a_classifier_starts_from_a_pretrained_trunk(
  made, call_verb, tmp_path, monkeypatch
):
  folder, flags, run, _ = made
  # What processes share is JSON, which knows no Labels.
  as_json = lambda make: json.loads(json.dumps(make()))
  monkeypatch.setattr(processes, "share", as_json)
  first = tmp_path / "pretrained"
  words = [
    "--config.data.objective=masked_lm",
    "--config.model.head=transform",
    "--config.train.num_steps=3",
  ]
  done = call_verb("train", *flags, *words, f"--workdir={first}")
  assert done.returncode == 0, done.stderr
  begin = [*flags, "--config.train.num_steps=3", "--config.eval.every_steps=0"]
  still = [*begin, "--config.optim.learning_rate=0"]
  there = leaves(first)

  second = tmp_path / "second"
  source = f"--config.train.init_from={first}"
  done = call_verb("train", *still, source, f"--workdir={second}")
  assert done.returncode == 0, done.stderr
  assert (
    f"the trunk is that of {first}; the head starts fresh: classifier/dense, "
    "classifier/dense_bias, classifier/out, classifier/out_bias"
  ) in " ".join(done.stdout.split())
  here = leaves(second)
  shared = here.keys() & there.keys()
  assert here.keys() - shared == {
    f"classifier/{name}" for name in ("dense", "dense_bias", "out", "out_bias")
  }
  for name in shared:
    np.testing.assert_array_equal(here[name], there[name], name)
  fresh = tmp_path / "fresh"
  done = call_verb("train", *still, f"--workdir={fresh}")
  other = leaves(fresh)
  assert (other["embed/tokens"] != here["embed/tokens"]).any()  # the control
  np.testing.assert_array_equal(other["classifier/out"], here["classifier/out"])

  # Another run with the same labels gives its head as well.
  third = tmp_path / "third"
  words = [*still, f"--config.train.init_from={run}", f"--workdir={third}"]
  done = call_verb("train", *words)
  assert done.returncode == 0 and "starts fresh" not in done.stdout
  for name, value in leaves(run).items():
    np.testing.assert_array_equal(leaves(third)[name], value, name)

  # What is missing beside the head is refused.
  wide = ["--config.model.mlp_dim=128", source, f"--workdir={tmp_path / 'w'}"]
  done = call_verb("train", *begin, *wide)
  assert done.returncode == 2
  assert "blocks/mlp/in is float32[1,32,64] there" in done.stderr
  assert "classifier/" not in done.stderr
  rows_of = ["--config.model.vocab_size=500", source]
  done = call_verb("train", *begin, *rows_of, f"--workdir={tmp_path / 'v'}")
  assert done.returncode == 2
  assert "give --config.model.vocab_size=258" in done.stderr


@pytest.mark.wide
def test_a_decoder_learns_words_and_a_mesh_has_its_losses(call_verb, tmp_path):
  path = write(tmp_path / "words.jsonl", rows(60, kind="word"))
  words = [
    *flags_of(tmp_path, f"labelled:{path}", train__num_steps=4),
    "--config.model.family=decoder",
    "--config.model.head=each",
    "--config.data.label=word",
    "--config.train.num_microbatches=2",
    "--config.train.telemetry_every_steps=2",
    "--config.train.spike_factor=100",
  ]
  one = call_verb("train", *words, f"--workdir={tmp_path / 'one'}")
  assert one.returncode == 0, one.stderr
  four = call_verb(
    "train",
    *words,
    "--config.mesh.data=2",
    "--config.mesh.fsdp=2",
    "--config.mesh.tensor=2",
    f"--workdir={tmp_path / 'four'}",
  )
  assert four.returncode == 0, four.stderr
  losses = [list(logged(tmp_path / n).values()) for n in ("one", "four")]
  np.testing.assert_allclose(*losses, rtol=1e-5)
  assert losses[0][0] == pytest.approx(np.log(3), rel=0.1)
  assert list(logged(tmp_path / "one", "telemetry/logit_max")) == [1, 2, 4]


@pytest.mark.parametrize(
  "words, said",
  [
    (["--config.model.head=transform"], "classification, and model.head is tr"),
    (
      ["--config.data.objective=masked_lm"],
      "masked_lm, and model.head is first",
    ),
    (["--config.model.family=decoder"], "whose first token sees no other"),
    (["--config.model.head=each"], "each is for labels of words"),
    (
      [
        "--config.model.family=encoder_decoder",
        "--config.model.num_token_types=None",
        "--config.model.head=each",
        "--config.data.label=word",
      ],
      "whose decoder reads no word of the text",
    ),
    (["--config.model.num_classes=1"], "model.num_classes is 1; it must be 2"),
    (["--config.model.num_classes=4"], "model.num_classes is 4, and labelled:"),
    (["--config.data.split=tail"], "data.split is tail, which holds back"),
    (["--config.data.packing=documents"], "whose rows hold one text"),
    (["--config.mesh.seq=2"], "whose texts are whole, and mesh.seq is 2"),
    (["--config.model.attention=cudnn"], "model.attention is cudnn, which"),
    (["--config.data.source=interpreter"], "needs labels, and 'interpreter'"),
    (["--config.data.label=number"], "line 1 has the label"),
    (
      ["--config.data.label=multi", "--config.train.label_smoothing=0.1"],
      "whose loss has no softmax, and train.label_smoothing is 0.1",
    ),
    (
      ["--config.data.label=number", "--config.model.num_classes=2"],
      "data.label number, and model.num_classes is 2; it must be 1",
    ),
    (
      [
        "--config.data.objective=masked_lm",
        "--config.model.head=linear",
        "--config.model.num_classes=2",
      ],
      "num_classes is 2, and model.head is linear, which scores tokens",
    ),
  ],
)
def test_what_does_not_go_together_is_one_sentence(
  words, said, made, call_verb, tmp_path
):
  _, flags, _, _ = made
  done = call_verb("train", *flags, *words, f"--workdir={tmp_path / 'run'}")
  assert_refused(done, said)
  assert content_of(tmp_path) == {}


@pytest.mark.battery
@pytest.mark.parametrize(
  "record, said",
  [
    ('{"text": "a", "label": "superb"}', "which is not one of the 3 classes"),
    ('{"text": "a"}', "has no field 'label'; it has 'text': name the text"),
    ('{"text": "a", "label": null}', "have no labels to compare with; write"),
    ('{"text": "a", "label": "bad"}\n{"text": "b"}', "line 2 has no label and"),
    ('{"body": "a"}', "line 1 has no field 'text'"),
    ("", "holds no text"),
  ],
)
def test_a_file_that_cannot_be_scored_is_one_sentence(
  record, said, made, call_verb, tmp_path
):
  _, _, run, _ = made
  path = tmp_path / "a.jsonl"
  path.write_text(record)
  done = call_verb("evaluate", f"--workdir={run}", f"--data={path}")
  assert_refused(done, said)


def test_a_label_that_is_named_and_missing_is_not_left_out(
  made, call_verb, tmp_path
):
  _, _, run, _ = made
  (tmp_path / "a.csv").write_text("text,label\na,bad\n")
  words = [f"--data={tmp_path}/a.csv#text#lable", f"--predict={tmp_path}/b"]
  done = call_verb("evaluate", f"--workdir={run}", *words)
  assert_refused(
    done, "no column 'lable'; it has 'text', 'label': did you mean"
  )
  assert not (tmp_path / "b").exists()


@pytest.mark.wide
def test_what_a_classifier_cannot_do_is_one_sentence(
  made, trained, call_verb, tmp_path
):
  _, _, run, _ = made
  done = call_verb("generate", f"--workdir={run}", "--prompt=the plot")
  assert_refused(done, "model.head is first, which cannot continue a text")
  out = f"--predict={tmp_path / 'missing' / 'out.jsonl'}"
  done = call_verb("evaluate", f"--workdir={run}", out)
  assert_refused(done, "it must be a file, in a folder that exists")
  done = call_verb("evaluate", f"--workdir={trained}", "--predict=out.jsonl")
  assert_refused(done, "--predict is for classifiers, and this run's")
  done = call_verb("evaluate", f"--workdir={run}", "--data=README.md")
  assert_refused(done, "README.md is not known to hold labelled texts")
  done = call_verb("evaluate", f"--workdir={run}", "--data=interpreter")
  assert_refused(done, "give a file of texts and labels, or labelled:FILE")


@pytest.mark.wide
def test_a_server_labels_texts_as_evaluation_does(made, call_verb, tmp_path):
  from gpt_jax.deploy.serve import tasks

  _, _, run, _ = made
  held, out = (
    write(tmp_path / "held.jsonl", rows(11, 5)),
    tmp_path / "out.jsonl",
  )
  words = [f"--workdir={run}", f"--data={held}", f"--predict={out}"]
  assert call_verb("evaluate", *words).returncode == 0
  wanted = [json.loads(line) for line in out.read_text().splitlines()]
  inputs = [json.loads(line)["text"] for line in held.read_text().splitlines()]
  opened = workdir.open_run(str(run), None, lambda line: None)
  own = tasks.build(*opened, workdir.read_labels(str(run)))
  assert own.translate is None and own.embed is not None
  for found, each in zip(own.classify(inputs), wanted, strict=True):
    assert found["label"] == each["label"]
    assert found["scores"] == pytest.approx(each["scores"], abs=2e-6)
  with pytest.raises(InputError, match="1 of 2 inputs have more tokens than"):
    own.classify([inputs[0], "plot " * 1000])
