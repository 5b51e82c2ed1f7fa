"""Labelled texts are prepared, and become rows, as their file has them."""

import dataclasses
import json
import os

import numpy as np
import pytest
from labelled import rows, write

from configs import base
from gpt_jax import config as config_lib
from gpt_jax.config import InputError
from gpt_jax.data import batches, examples, folders, objectives
from gpt_jax.data import manifest as manifest_lib
from gpt_jax.data.labels import Labels
from gpt_jax.data.prepare import prepare_data, verify_text
from gpt_jax.data.sources.labelled import Example, LabelledSource
from gpt_jax.data.tokenizers.plain import ByteTokenizer, CharTokenizer

T = 16


def quiet(line: str) -> None:
  del line


def build(path, label: str = "single", **changes):
  """Returns the config of a classifier on a file."""
  config = base.get_config()
  config.data.objective = "classification"
  config.data.source = f"labelled:{path}"
  config.data.dir = str(path.parent / "prepared")
  config.data.label = label
  config.data.seq_len = T
  config.data.update(changes)
  config.model.head = "each" if label == "word" else "last"
  return config_lib.freeze(config)


def sides(prepared):
  return prepared.train[0][1], prepared.valid["valid"]


@pytest.mark.parametrize("kind", config_lib.LABELS)
def test_every_text_keeps_its_label_on_the_side_where_it_lies(kind, tmp_path):
  records = rows(60, kind=kind)
  path = write(tmp_path / "a.jsonl", records)
  config = build(path, kind, seq_len=100)
  config = dataclasses.replace(
    config, model=dataclasses.replace(config.model, max_len=100)
  )
  lines = []
  prepared = prepare_data(config.data, lines.append)
  names = prepared.labels.classes
  assert list(names) == sorted(names) and len(names) == {
    "single": 3,
    "multi": 2,
    "number": 0,
    "word": 3,
  }.get(kind)
  task = objectives.build_task(config, ByteTokenizer)
  found = []
  for side in sides(prepared):
    part = examples.open_rows(side, task.pairs)
    batch = part.read(np.arange(part.num_rows + 2))
    assert not batch["mask"][part.num_rows :].any()
    for i in range(part.num_rows):
      ids = batch["tokens"][i][batch["segments"][i] == 0]
      assert ids[0] == 256
      text = bytes(ids[1:].tolist()).decode()
      value = batch["targets"][i]
      if kind == "single":
        label = names[value[0]]
      elif kind == "multi":
        label = [n for n, x in zip(names, value, strict=True) if x]
      elif kind == "number":
        label = value[0]
      else:
        ends = np.flatnonzero(batch["mask"][i])
        label = [names[value[end]] for end in ends]
        starts = np.append(1, ends[:-1] + 2)
        cut = [text[a - 1 : b] for a, b in zip(starts, ends, strict=True)]
        assert cut == text.split()
      found.append((text, label))
  assert sorted(found) == sorted((r["text"], r["label"]) for r in records)
  assert len(lines) == 1 or "repeat a text" in lines[1]


def test_the_same_text_with_two_labels_is_on_one_side(tmp_path):
  records = [
    {"text": f"text {i // 2}", "label": "xy"[i % 2]} for i in range(40)
  ]
  prepared = prepare_data(
    build(write(tmp_path / "a.jsonl", records)).data, quiet
  )
  for side in sides(prepared):
    values = side.read_labels()[:, 0]
    assert (values == 0).sum() == (values == 1).sum() > 0


def test_a_pair_has_a_separator_between_and_types(tmp_path):
  path = tmp_path / "a.jsonl"
  path.write_text(
    "".join(
      json.dumps({"p": "ab" * i, "h": "xyz" * i, "y": i % 2}) + "\n"
      for i in range(1, 20)
    )
  )
  config = build(path)
  source = f"labelled:{path}#p#h#y"
  config = dataclasses.replace(
    config, data=dataclasses.replace(config.data, source=source, valid_frac=0.0)
  )
  prepared = prepare_data(config.data, quiet)
  task = objectives.build_task(config, ByteTokenizer)
  part = examples.open_rows(prepared.train[0][1], task.pairs)
  batch = part.read(np.arange(2))
  assert bytes(batch["tokens"][0, 1:3].tolist()) == b"ab"
  assert batch["tokens"][0, [0, 3]].tolist() == [256, 256]
  assert bytes(batch["tokens"][0, 4:7].tolist()) == b"xyz"
  assert batch["types"][0].tolist() == [0] * 4 + [1] * 3 + [0] * 9
  assert batch["segments"][0].tolist() == [0] * 7 + [1] * 9
  # 6 and 6 letters, two separators: 14 of 16 places.
  assert batch["types"][1].tolist() == [0] * 6 + [1] * 6 + [0] * 4


@pytest.mark.parametrize(
  "first, second, kept",
  [(3, 3, (3, 3)), (20, 3, (11, 3)), (3, 20, (3, 11)), (20, 20, (7, 7))],
)
def test_of_a_pair_the_longer_text_is_cut_first(first, second, kept):
  one = Example("a:1", "a, line 1", ("a" * first, "b" * second), "x")
  labels = Labels("single", ("x", "y"))
  token_set = examples.read_whole("a", [one], ByteTokenizer(), labels)
  part = examples.Rows(token_set, examples.Layout(T, "single"))
  batch = part.read(np.arange(1))
  text = batch["tokens"][0, : sum(kept) + 2].tolist()
  wanted = [256, *[ord("a")] * kept[0], 256, *[ord("b")] * kept[1]]
  assert text == wanted
  types = batch["types"][0, : sum(kept) + 2].tolist()
  assert types == [0] * (kept[0] + 2) + [1] * kept[1]
  assert part.num_cut == (first + second + 2 > T)


def test_a_text_is_cut_at_its_end_and_counted(tmp_path):
  records = [{"text": "x" * n, "label": n % 2} for n in range(5, 25)]
  config = build(write(tmp_path / "a.jsonl", records), valid_frac=0.0)
  prepared = prepare_data(config.data, quiet)
  layout = objectives.find_layout(config, ByteTokenizer)
  said = batches.check_set(prepared.train[0][1], T, layout)
  assert "9 of 20 texts of labelled-" in said
  assert "longer than data.seq_len 16 and cut at their end" in said
  batch = examples.open_rows(prepared.train[0][1], layout).read(np.arange(20))
  assert (
    (batch["tokens"] == ord("x")).sum(1) == [*range(5, 15)] + [15] * 10
  ).all()


def test_an_epoch_has_each_text_once_and_a_batch_follows_from_seed_and_step(
  tmp_path,
):
  path = write(tmp_path / "a.jsonl", rows(23, kind="number"))
  config = build(path, "number", valid_frac=0.0)
  prepared = prepare_data(config.data, quiet)
  task = objectives.build_task(config, ByteTokenizer)
  sets = [prepared.train[0][1]]
  at = lambda step, which, seed=0: batches.batch_at(
    sets, [1.0], seed, step, np.array(which), T, "stream", 8, task=task
  )
  seen = np.concatenate([at(s, range(8))["targets"] for s in range(3)])[:23]
  stored = sets[0].read_labels()
  assert sorted(seen[:, 0]) == sorted(stored[:, 0])
  assert seen.tolist() != stored.tolist()
  np.testing.assert_array_equal(
    at(1, range(8))["tokens"][3:5], at(1, [3, 4])["tokens"]
  )
  assert (at(0, range(8), 1)["tokens"] != at(0, range(8))["tokens"]).any()


def with_source(config):
  model = dataclasses.replace(config.model, family="encoder_decoder")
  return dataclasses.replace(config, model=model)


def test_an_encoder_reads_texts_with_an_end_and_the_decoder_a_start(tmp_path):
  records = [{"text": "x" * n, "label": n % 2} for n in range(5, 25)]
  config = build(write(tmp_path / "a.jsonl", records), valid_frac=0.0)
  config = with_source(config)
  prepared = prepare_data(config.data, quiet)
  assert prepared.resolve_vocab(config).model.vocab_size == 257 + 2
  layout = objectives.find_layout(config, ByteTokenizer)
  said = batches.check_set(prepared.train[0][1], T, layout)
  assert "10 of 20 texts" in said and "data.seq_len 16, an end incl" in said
  part = examples.open_rows(prepared.train[0][1], layout)
  batch = part.read(np.arange(21))
  assert batch["tokens"].tolist() == [[257]] * 21
  assert not batch["segments"].any() and not batch["mask"][20].any()
  for i, n in enumerate([*range(5, 14)] + [14] * 11):
    want = [256, *[ord("x")] * n, 258, *[0] * (14 - n)]
    assert batch["sources"][i].tolist() == want
    segments = [0] * (n + 2) + [1] * (14 - n)
    assert batch["source_segments"][i].tolist() == segments
  plain = examples.Rows(prepared.train[0][1], examples.Layout(T, "single"))
  np.testing.assert_array_equal(
    batch["targets"], plain.read(np.arange(21))["targets"]
  )


@pytest.mark.parametrize("family", ["decoder", "encoder_decoder"])
@pytest.mark.parametrize("kind", config_lib.LABELS)
def test_a_batch_has_the_fields_that_a_step_is_compiled_for(
  kind, family, tmp_path
):
  path = write(tmp_path / "a.jsonl", rows(30, kind=kind))
  config = build(path, kind)
  if family == "encoder_decoder":
    if kind == "word":
      return  # refused
    config = with_source(config)
  prepared = prepare_data(config.data, quiet)
  config = prepared.resolve_vocab(config)
  task = objectives.build_task(config, ByteTokenizer)
  (batch,) = batches.eval_batches(
    prepared.train[0][1], T, 40, "stream", np.arange(40), task=task
  )
  found = {k: (v.dtype, v.shape) for k, v in batch.items()}
  wanted = objectives.fields(config)
  assert found == {k: (f.dtype, (40, f.length)) for k, f in wanted.items()}


def test_classes_of_validation_are_those_of_training(tmp_path):
  write(tmp_path / "v.jsonl", [{"text": "t", "label": "mixed"}])
  path = write(tmp_path / "a.jsonl", rows(30))
  held = f"labelled:{tmp_path}/v.jsonl"
  prepared = prepare_data(build(path, valid_source=held).data, quiet)
  train, valid = sides(prepared)
  assert train.labels == valid.labels
  assert valid.read_labels().tolist() == [[2]]
  write(tmp_path / "v.jsonl", [{"text": "t", "label": "superb"}])
  with pytest.raises(
    InputError,
    match="v.jsonl, line 1 has the label 'superb', which is not one of the 3 "
    "classes bad, good, mixed",
  ):
    prepare_data(build(path, valid_source=held).data, quiet)
  assert not [f for f in os.listdir(tmp_path / "prepared") if "tmp" in f]


def test_sources_of_a_mixture_share_their_classes(tmp_path):
  a = write(
    tmp_path / "a.jsonl", [{"text": f"a{i}", "label": "x"} for i in (1, 2)]
  )
  b = write(
    tmp_path / "b.jsonl", [{"text": f"b{i}", "label": "y"} for i in (1, 2)]
  )
  config = build(a, source=f"labelled:{a},labelled:{b}", valid_frac=0.0)
  prepared = prepare_data(config.data, quiet)
  assert prepared.labels == Labels("single", ("x", "y"))
  values = [s.read_labels().tolist() for _, s in prepared.train]
  assert values == [[[0], [0]], [[1], [1]]]
  assert prepared.resolve_vocab(config).model.num_classes == 2


@pytest.mark.parametrize(
  "records, said",
  [
    ([{"text": "a", "label": "x"}] * 3, "has one class only, 'x'"),
    (
      [{"text": "a", "label": "x"}, {"text": "a", "label": "y"}],
      "holds one text only, of which none can be held out",
    ),
    (
      [{"text": "a", "label": "x"}, {"text": "b"}],
      "line 2 has no field 'label'; it has 'text': name the text and",
    ),
  ],
)
def test_what_cannot_be_learned_is_refused_before_anything_is_written(
  records, said, tmp_path
):
  path = write(tmp_path / "a.jsonl", records)
  with pytest.raises(InputError, match=said):
    prepare_data(build(path).data, quiet)
  prepared = tmp_path / "prepared"
  assert not prepared.exists() or not [
    name for name in os.listdir(prepared) if not name.startswith(".")
  ]


def test_texts_without_labels_cannot_be_learned(tmp_path):
  config = build(tmp_path / "a.jsonl")
  objectives.check_sources(config.data)  # the control
  data = dataclasses.replace(config.data, valid_source="text:a.txt")
  with pytest.raises(InputError, match="which needs labels, and 'text:a.txt'"):
    objectives.check_sources(data)
  texts = [Example("a:1", "a, line 1", ("t", "u"), "x")]
  labels = Labels("single", ("x", "y"))
  with pytest.raises(InputError, match="a, line 1 is a pair of texts, and the"):
    examples.read_whole("a", texts, CharTokenizer("tu"), labels)
  with pytest.raises(InputError, match="a, line 1 is a pair .* data.label is"):
    examples.read_whole("a", texts, ByteTokenizer(), Labels("word", ("x", "y")))
  alone = [Example("a:2", "a, line 2", ("t",), None)]
  with pytest.raises(InputError, match="a, line 2 has no label and a, line 1"):
    examples.read_whole("a", texts + alone, ByteTokenizer(), labels)
  with pytest.raises(InputError, match="a holds no text"):
    examples.read_whole("a", [], ByteTokenizer(), labels)


def test_a_damaged_label_is_never_read(tmp_path):
  config = build(write(tmp_path / "a.jsonl", rows(30)))
  prepared = prepare_data(config.data, quiet)
  folder = prepared.folders[0]
  manifest = manifest_lib.read(folder)
  path = os.path.join(folder, manifest["splits"]["train"]["labels"]["file"])
  with open(path, "r+b") as file:
    file.write(b"\x01\x02")
  with pytest.raises(InputError, match="train.labels.bin"):
    folders.open_prepared(folder)["train"].read_labels()
  held = folders.open_prepared(folder, "never")["train"]
  with pytest.raises(InputError, match="holds labels that are not of the set"):
    held.read_labels()
  with open(path, "ab") as file:
    file.write(b"\0")
  with pytest.raises(InputError, match="train.labels.bin"):
    folders.open_prepared(folder)


def test_a_changed_label_changes_the_fingerprint_and_is_found(tmp_path):
  records = rows(30)
  path = write(tmp_path / "a.jsonl", records)
  config = build(path)
  first = prepare_data(config.data, quiet)
  verify_text(config.data, first, quiet)
  stamp = os.stat(path)
  # Another class of the same length, and the same date.
  text = path.read_text()
  path.write_text(text.replace('"good"}', '"fair"}', 1))
  os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
  with pytest.raises(InputError, match="does not hold the text that"):
    verify_text(config.data, first, quiet)
  os.utime(path)
  again = prepare_data(config.data, quiet)
  assert again.fingerprint != first.fingerprint
  # Another name of a class leaves all numbers of classes as they are.
  path.write_text(text.replace('"good"}', '"fine"}'))
  renamed = prepare_data(config.data, quiet)
  same = [s.read_labels().tolist() for s in sides(renamed)]
  assert same == [s.read_labels().tolist() for s in sides(first)]
  assert renamed.fingerprint != first.fingerprint


def test_other_objectives_read_the_texts_alone(tmp_path):
  path = write(tmp_path / "a.jsonl", rows(30))
  data = dataclasses.replace(build(path).data, objective="causal")
  prepared = prepare_data(data, quiet)
  assert prepared.labels is None and sides(prepared)[0].labels is None
  verify_text(data, prepared, quiet)
  source = LabelledSource(f"labelled:{path}", str(path))
  assert sum(s.num_documents for s in sides(prepared)) == len(
    list(source.documents())
  )
