"""Score a trained model on text: python -m gpt_jax.evaluate --help."""

import json
import math
import os
import sys

from gpt_jax import cli, files
from gpt_jax.config import InputError
from gpt_jax.machine import cache, processes, runtime

# Options of data.objective whose runs write the texts that --generate scores.
WRITTEN = ("sequence_to_sequence", "chat", "grpo")


def _build_parser():
  parser = cli.build_parser(
    "evaluate",
    "Loss, perplexity and bits per byte of a trained model over all of a text.",
    needs_config=False,
  )
  cli.add_run(parser)
  parser.add_argument(
    "--data",
    metavar="SOURCE",
    help="a text file, a file of JSON lines, a prepared folder, or a source "
    "such as text:GLOB; the default is the run's own validation set",
  )
  parser.add_argument(
    "--json", action="store_true", help="print one JSON object per set"
  )
  parser.add_argument(
    "--pseudo",
    metavar="N",
    type=int,
    help="also the pseudo-perplexity of a masked language model over the first "
    "N batches: one pass for each place of a sequence",
  )
  parser.add_argument(
    "--generate",
    metavar="N",
    type=int,
    help="also write the targets of the first N pairs, or the last answers of "
    "chats: exact match, and BLEU where sacrebleu is installed",
  )
  parser.add_argument(
    "--beams",
    metavar="N",
    type=int,
    help="with --generate: search for the likeliest target with N beams",
  )
  parser.add_argument(
    "--predict",
    metavar="FILE",
    help="also write the labels that a classifier predicts, a line of JSON for "
    "each text; the texts of --data need no labels then",
  )
  parser.add_argument(
    "--shots",
    metavar="K:FILE",
    help="classify the labelled texts of --data by a prompt that shows the "
    "model K labelled texts of FILE: the likeliest class of FILE follows",
  )
  cli.add_weights(parser)
  return parser


def main(argv: list[str]) -> int:
  args, overrides = cli.parse(_build_parser(), argv)
  runtime.start(args.devices)
  processes.join({"the arguments": argv})

  from gpt_jax import sharding
  from gpt_jax.data.batches import check_set
  from gpt_jax.data.objectives import build_task, prompting
  from gpt_jax.inference import predicting, references, scoring
  from gpt_jax.runs import workdir

  args.workdir = files.user_path("--workdir", args.workdir, True)
  note, is_speaking = processes.note, processes.index() == 0
  config, model, params, tokenizer, mesh = workdir.open_run(
    args.workdir, overrides, note, args.weights, args.average, args.step
  )
  task = build_task(config, lambda: tokenizer)
  if args.shots is not None:
    run = config, model, model.round_weights(params), tokenizer, mesh
    _show("few shots", _few_shot(args, *run), args.json, is_speaking)
    return 0
  if args.pseudo is not None:
    _check_pseudo(args.pseudo, config.data.objective)
  _check_generate(args, task)
  if args.predict is not None:
    args.predict = _check_predict(args.predict, config.data.objective)
  params = model.round_weights(params)
  sets = _find_sets(args, config, tokenizer, overrides, note)
  table = sharding.RULES[config.mesh.rules]
  shards = math.prod(mesh.shape[axis] for axis in table["batch"])
  if args.predict is not None and len(sets) > 1:
    raise InputError(
      f"--predict writes the labels of one set, and there are {len(sets)}: "
      f"{', '.join(sets)}; name one with --data"
    )
  found = {name: tokens.fingerprint for name, tokens in sets.items()}
  processes.agree("the prepared text", found)
  labels = workdir.read_labels(args.workdir)
  if references.is_needed(config):
    base = references.find_of_run(args.workdir, config)
    references.attach([*sets.values()], config, base, mesh, note)
  for name, tokens in sets.items():
    _check_set(name, tokens, tokenizer, labels)
    if task.pairs is not None:
      remark = check_set(tokens, config.data.seq_len, task.pairs)
      if remark:
        note(remark)
    how = dict(
      seq_len=config.data.seq_len,
      # Rounded up to a multiple of the shards here.
      batch_size=-(-config.train.global_batch_size // shards) * shards,
      packing=config.data.packing,
      num_loss_chunks=config.train.num_loss_chunks,
      mesh=mesh,
    )
    if args.predict is not None:
      lines = predicting.predict(model, params, tokens, task=task, **how)
      if is_speaking:
        files.write_text(args.predict, lines)
        note(f"{lines.count(chr(10)):,} labels are in {args.predict}")
      if not tokens.has_labels:
        continue
    result = scoring.score(model, params, tokens, task=task, **how)
    if args.pseudo:
      result["pseudo_perplexity"] = scoring.pseudo_perplexity(
        model, params, tokens, tokenizer, max_batches=args.pseudo, **how
      )
    if args.generate and task.pairs is not None:
      run = model, params, tokens, prompting(config, tokenizer), task.pairs
      result |= _generate(args, run, how, task.word == "chat")
    _show(name, result, args.json, is_speaking)
  return 0


def _show(name: str, result: dict, is_json: bool, is_speaking: bool) -> None:
  from gpt_jax.inference import scoring

  if is_speaking and is_json:
    print(json.dumps({"set": name, **result}))
  elif is_speaking:
    print(f"{name}: {scoring.describe(result)}")


def _few_shot(args, config, model, params, tokenizer, mesh) -> dict:
  """Returns the metrics of few-shot classification (--shots)."""
  import jax

  from gpt_jax.data import sources
  from gpt_jax.inference import few_shot

  count, colon, path = args.shots.partition(":")
  is_count = count.isascii() and count.isdecimal() and len(count) < 7
  if not colon or not is_count or not path:
    raise InputError(
      f"--shots is {args.shots!r}; it must be K:FILE, a whole number and a "
      "file of labelled texts, as in 8:train.jsonl"
    )
  if config.data.objective != "causal":
    raise InputError(
      f"--shots is for models that continue text, and this run's "
      f"data.objective is {config.data.objective}; it must be causal"
    )
  if args.data is None:
    raise InputError(
      "--shots needs texts to classify; name a file of labelled texts with "
      "--data"
    )

  def read(spec):
    source = sources.open_source(sources.labelled_spec(spec, "labelled:x"))
    if not isinstance(source, sources.LabelledSource):
      raise InputError(f"{spec!r} has no labels; give labelled:FILE")
    return list(source.examples())

  shown, asked = read(path), read(args.data)
  for name, found in ((path, shown), (args.data, asked)):
    if not found:
      raise InputError(f"{name} holds no text; it must hold some")
  classes, truth = few_shot.find_classes(shown, asked)
  shots = few_shot.pick_shots(shown, int(count))
  with jax.set_mesh(mesh):
    called = few_shot.classify(
      model,
      params,
      tokenizer,
      shots,
      classes,
      asked,
      config.train.global_batch_size,
    )
  return few_shot.measure(called, truth)


def _check_set(name: str, tokens, tokenizer, labels) -> None:
  from gpt_jax.data.shards import TokenSet, check_vocab

  if isinstance(tokens, TokenSet):
    check_vocab(tokens, tokenizer)
  if labels is not None:
    if tokens.labels != labels:
      raise InputError(
        f"{name} was prepared with other labels than the run has learned; give "
        "the file of its texts and labels"
      )
  elif tokens.num_ids < 2:
    raise InputError(
      f"{name} has {tokens.num_ids} token; it must have 2 or more, as the "
      "first is never predicted"
    )


def _check_predict(path: str, objective: str) -> str:
  """Returns the path of --predict."""
  if objective != "classification":
    raise InputError(
      f"--predict is for classifiers, and this run's data.objective is "
      f"{objective}; gpt_jax.generate shows what it says"
    )
  return files.output_path("--predict", path)


def _read_labelled(args, config, tokenizer):
  """Returns the set of labelled texts, or texts to label, that --data names."""
  from gpt_jax.data import examples, sources
  from gpt_jax.data.sources import fields
  from gpt_jax.runs import workdir

  (_, first), *_ = sources.parse_mixture(config.data.source)
  source = sources.open_source(sources.labelled_spec(args.data, first))
  labels = workdir.read_labels(args.workdir)
  if not isinstance(source, sources.LabelledSource) or labels is None:
    raise InputError(
      f"--data is {args.data!r}, and this run's data.objective is "
      "classification; give a file of texts and labels, or labelled:FILE"
    )
  found = examples.read_whole(args.data, source.examples(), tokenizer, labels)
  is_named = bool(fields.split_names(args.data)[1])
  if not found.has_labels and (args.predict is None or is_named) and found.lack:
    raise InputError(f"{found.lack}; --predict=FILE needs no labels")
  if not found.has_labels and args.predict is None:
    raise InputError(
      f"the texts of {args.data} have no labels to compare with; write what is "
      "predicted with --predict=FILE"
    )
  return found


def _check_pseudo(num_batches: int, objective: str) -> None:
  if num_batches < 1:
    raise InputError(f"--pseudo is {num_batches}; it must be 1 batch or more")
  if objective != "masked_lm":
    raise InputError(
      f"--pseudo is for masked language models, and this run's data.objective "
      f"is {objective}; its perplexity needs no other"
    )


def _check_generate(args, task) -> None:
  for name in ("generate", "beams"):
    value = getattr(args, name)
    if value is not None and value < 1:
      raise InputError(f"--{name} is {value}; it must be 1 or more")
  if args.beams is not None and args.generate is None:
    raise InputError(
      "--beams does nothing without --generate; add --generate=N"
    )
  if args.generate is not None and task.word not in WRITTEN:
    raise InputError(
      f"--generate is for pairs, and this run's data.objective is {task.word}; "
      f"only a run of {' or '.join(WRITTEN)} writes targets"
    )
  if args.beams is not None and task.word == "chat":
    raise InputError(
      "--beams is for pairs, and this run answers chats, greedily; leave it out"
    )


def _generate(args, run, how: dict, is_chat: bool) -> dict[str, float]:
  """Returns exact match, and BLEU with sacrebleu, of generated texts."""
  import importlib.util

  import jax

  from gpt_jax.inference import targets

  size = min(how["batch_size"], args.generate)
  with jax.set_mesh(how["mesh"]):
    if is_chat:
      found = targets.write_answers(
        *run, num_chats=args.generate, batch_size=size
      )
    else:
      found = targets.write_targets(
        *run,
        num_pairs=args.generate,
        batch_size=size,
        num_beams=args.beams or 1,
      )
  result = {
    "num_chats" if is_chat else "num_pairs": len(found),
    "exact_match": targets.exact_match(found),
  }
  if importlib.util.find_spec("sacrebleu") is not None:
    result["bleu"] = targets.bleu(found)
  return result


def _find_sets(args, config, tokenizer, overrides: dict, note) -> dict:
  """Returns {name: set} to score."""
  from gpt_jax.data import folders, prepare, sources, stores

  path = args.data
  if path is not None and not sources.is_spec(path):
    path = files.user_path("--data", path, may_be_address=True)
    if files.is_address(path) and stores.is_prepared(path):
      path = cache.local_folder(path)
  is_prepared = os.path.lexists(os.path.join(path or "", "manifest.json"))
  if args.data is None:
    sets = processes.in_turn(
      lambda: _own_sets(args.workdir, config.data, overrides, note)
    )
    if not sets:
      raise InputError(
        f"the run in {args.workdir} has no validation set; name a text with "
        "--data"
      )
  elif config.data.objective == "classification" and not is_prepared:
    sets = {args.data: _read_labelled(args, config, tokenizer)}
  elif is_prepared:
    sets = folders.open_prepared(path, config.data.verify)
    sets = {name: tokens for name, tokens in sets.items() if tokens.num_ids}
  else:
    tokens = processes.in_turn(
      lambda: prepare.prepare_text(
        path,
        tokenizer,
        config.data.dir,
        config.data.split,
        note,
        config.data.verify,
        *_records(config),
      )
    )
    sets = {args.data: tokens}
  return sets


def _records(config) -> tuple:
  """Returns (data.template, the kind of its records); () for other runs."""
  from gpt_jax.config import OBJECTIVES

  word = config.data.objective
  if OBJECTIVES[word].is_preference:
    return config.data.template, "preference"
  return (config.data.template, "chat") if word == "chat" else ()


def _own_sets(workdir: str, data, overrides: dict, note) -> dict:
  """Returns {name: set} of a run's validation sets.

  A run may come from someone else, and its config.json names files to read
  and a folder to write to. So text is prepared again only if the user gives
  the folder (data.dir), or if the text is the interpreter's and the folder is
  below the current one; otherwise prepared sets are only opened.

  Raises:
    InputError: the sets do not exist, or the text has changed since.
  """
  from gpt_jax.data.prepare import prepare_data
  from gpt_jax.runs import workdir as workdir_lib

  inside = os.path.normpath(data.dir)
  is_inside = not os.path.isabs(inside) and not inside.startswith(("..", "~"))
  is_inside = is_inside and not files.is_address(data.dir)
  texts = {data.source, data.valid_source or "interpreter"}
  is_own = is_inside and texts == {"interpreter"}
  may_make = is_own or "data.dir" in overrides
  prepared = prepare_data(data, note, ("valid",), may_make)
  expected = workdir_lib.read_record(workdir)["data_fingerprint"]
  if prepared.fingerprint != expected:
    raise InputError(
      f"the text that {data.source} gives here (prepared set "
      f"{prepared.fingerprint[:12]}, in {prepared.folders[0]}) is not the one "
      f"that {workdir} was trained on ({expected[:12]}); name the text to "
      "score with --data"
    )
  return prepared.valid


if __name__ == "__main__":
  cli.run(main, sys.argv[1:])
