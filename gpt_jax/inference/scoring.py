"""Evaluation: mean loss, perplexity and bits per byte over a prepared set."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from gpt_jax import config as config_lib
from gpt_jax import judging, sharding
from gpt_jax import objective as objective_lib
from gpt_jax.config import InputError
from gpt_jax.data import objectives
from gpt_jax.data.batches import eval_batches, num_eval_batches
from gpt_jax.data.pairs import target_ids
from gpt_jax.data.shards import TokenSet
from gpt_jax.data.tokenizers.protocol import Tokenizer
from gpt_jax.inference.measures import GATHERED, MEASURES, find_figures
from gpt_jax.machine import cores, processes, runtime
from gpt_jax.metric_names import ACCURACY, LOSS, NUM_TARGETS
from gpt_jax.models import Model

# The largest text that is compressed for comparison.
COMPARED_BYTES = 64 << 20
# Metrics of score's result that only a report shows; the others are also logged
# during training.
DERIVED = ("perplexity", "num_tokens", "bits_per_byte", "majority", "variance")


def check_memory(model: Model, tokens: int, mesh: jax.sharding.Mesh) -> None:
  """Raises InputError where a batch cannot fit, before it is allocated.

  Args:
    model: the model that reads the batch.
    tokens: number of tokens in the batch, over all devices.
    mesh: the devices.
  """
  there, devices = runtime.memory_bytes(mesh)
  # Ids, targets and mask, and one layer's input.
  width = 4 * model.config.model_dim
  needed = tokens * (12 + width) // mesh.size * devices
  if there is not None and needed > there:
    raise InputError(
      f"a batch of {tokens:,} tokens needs {needed / 2**30:,.1f} GiB or more, "
      f"and {there / 2**30:,.1f} are available; take a smaller "
      "train.global_batch_size or data.seq_len"
    )


def score(
  model: Model,
  params: Any,
  tokens: TokenSet,
  *,
  seq_len: int,
  batch_size: int,
  packing: str,
  num_loss_chunks: int,
  mesh: jax.sharding.Mesh,
  max_batches: int | None = None,
  show: Callable[[int, int], None] | None = None,
  task: objectives.Task = objectives.CAUSAL,
) -> dict[str, float]:
  """Returns {"loss", "perplexity", "num_tokens", "bits_per_byte"}.

  If a task does not predict every token of a text, bits_per_byte is replaced by
  accuracy: the fraction of targets that are the model's first choice.

  For labels, the result is loss, what measures.find_figures finds, and the
  number of targets as num_tokens. For preferences, it is loss, the means of
  judging.build_preference, and the number of preferences as num_tokens.

  Other sums of objective.make_loss are returned too, as means over targets and
  without "train/" in their names.

  Every id but the first is predicted once, from those before it in its
  sequence. bits_per_byte counts the whole text: a token that is not predicted
  costs as much as a uniform guess, log2 of the vocabulary size.

  Args:
    model: the model.
    params: its parameters, as trained.
    tokens: the set to score.
    seq_len: T.
    batch_size: rows of the global batch.
    packing: option of data.packing.
    num_loss_chunks: as in objective.make_loss.
    mesh: the devices.
    max_batches: stop after this number of batches; if that is before the end,
      bits_per_byte is left out.
    show: called with (batches done, batches in all) every 20 batches.
    task: makes the batches of the set. If it does not predict every token (only
      those after a prefix, for instance), bits_per_byte is left out.
  """
  check_memory(model, batch_size * seq_len, mesh)
  how = config_lib.OBJECTIVES[task.word]
  is_counted = not (how.predicts_all or how.has_labels or how.is_preference)
  others = (ACCURACY,) if is_counted else ()
  measure = MEASURES[task.label] if task.label else None
  prefer = judging.build_preference(task.word, task.beta)
  evaluate = compile_eval_step(model, num_loss_chunks, others, measure, prefer)
  totals: dict = {LOSS: 0.0, NUM_TARGETS: 0.0}
  total = num_eval_batches(tokens, seq_len, batch_size, task=task)
  total = min(total, max_batches or total)
  run_batches(
    lambda batch: evaluate(params, batch),
    functools.partial(_add, totals),
    tokens,
    seq_len=seq_len,
    batch_size=batch_size,
    packing=packing,
    mesh=mesh,
    rules=model.rules,
    max_batches=max_batches,
    task=task,
    show=None if show is None else lambda index: show(index, total),
  )
  count = totals.pop(NUM_TARGETS)
  if task.label:
    loss = totals.pop(LOSS) / max(count, 1.0)
    figures = find_figures(task.label, totals, int(count))
    return {"loss": loss, **figures, "num_tokens": int(count)}
  result = _means(totals, count)
  is_whole = max_batches is None or total < max_batches
  if is_whole and how.predicts_all:
    blind = max(0.0, tokens.num_tokens - count) * math.log(tokens.vocab_size)
    bits = (totals[LOSS] + blind) / math.log(2)
    result["bits_per_byte"] = bits / max(tokens.num_bytes, 1)
  return result


def run_batches(
  evaluate: Callable,
  take: Callable,
  tokens: Any,
  *,
  seq_len: int,
  batch_size: int,
  packing: str,
  mesh: jax.sharding.Mesh,
  rules: str,
  task: objectives.Task,
  max_batches: int | None = None,
  show: Callable[[int], None] | None = None,
) -> None:
  """Calls take(evaluate(batch)) for each batch of a set, in order.

  A result is taken only once the next batch has been dispatched, so that the
  devices do not wait for the host.

  Args:
    evaluate: a compiled function of the global batch.
    tokens, seq_len, batch_size, packing, mesh, max_batches, task: as in score.
    rules: option of sharding.RULES.
    show: called with the number of batches done every 20 batches.
  """
  placement, pending = sharding.batch_sharding(mesh, rules), None
  rows = sharding.local_rows(placement, (batch_size, seq_len))
  batches = eval_batches(
    tokens, seq_len, batch_size, packing, rows, max_batches, task
  )
  must_wait = cores.are_simulated(mesh.local_devices)
  with jax.set_mesh(mesh):
    for index, batch in enumerate(batches):
      batch = sharding.place_batch(batch, placement, rows, batch_size)
      new = evaluate(batch)
      if must_wait:
        jax.block_until_ready(new)
      if pending is not None:
        take(pending)
        processes.mark()
      pending = new
      if show is not None and index % 20 == 0:
        show(index)
  if pending is not None:
    take(pending)


def pseudo_perplexity(
  model: Model, params: Any, tokens: TokenSet, tokenizer: Tokenizer, **how
) -> float:
  """Returns exp of the mean loss of each token masked alone, given all others.

  Salazar et al. 2020. One pass over the set for each position of a sequence.

  Args:
    how: as in score, without task.
  """
  vocabulary = objectives.describe_vocabulary(tokenizer, False)
  nats = count = 0.0
  for place in range(how["seq_len"]):
    make = functools.partial(
      objectives.mask_one, vocabulary=vocabulary, place=place
    )
    task = objectives.Task(make, "masked_lm")
    found = score(model, params, tokens, task=task, **how)
    nats += found["loss"] * found["num_tokens"]
    count += found["num_tokens"]
  return math.exp(min(nats / max(count, 1.0), 700.0))


def describe(result: dict) -> str:
  """Returns the metrics of a result as one line of text."""
  words = {"loss": 4, "perplexity": 2, "bits_per_byte": 4, "accuracy": 4}
  words |= {"f1_macro": 4, "f1_micro": 4, "matthews": 4, "spearman": 4}
  words |= {"majority": 4, "variance": 4, "pseudo_perplexity": 2}
  words |= {"exact_match": 4, "bleu": 2}
  words |= {"reward_margin": 4, "reward_accuracy": 4}
  figures = [
    f"{name.replace('_', ' ')} {result[name]:.{digits}f}"
    for name, digits in words.items()
    if name in result
  ]
  what = "tokens" if "perplexity" in result else "labels"
  what = "preferences" if "reward_margin" in result else what
  figures.append(f"over {result['num_tokens']:,} {what}")
  if "num_pairs" in result:
    figures.append(f"{result['num_pairs']:,} targets written")
  if "num_chats" in result:
    figures.append(f"{result['num_chats']:,} answers written")
  return ", ".join(figures)


def _means(totals: dict[str, Any], count: float) -> dict[str, float]:
  sides = totals.pop(judging.SIDES, None)
  by_side = judging.average_sides(totals, sides)
  means = {
    name.removeprefix("train/"): total / max(count, 1.0)
    for name, total in totals.items()
  }
  means |= {k.removeprefix("train/"): float(v) for k, v in by_side.items()}
  if by_side:
    return means | {"num_tokens": int(count)}
  perplexity = math.exp(min(means["loss"], 700.0))
  return means | {"perplexity": perplexity, "num_tokens": int(count)}


@functools.cache
def compile_eval_step(
  model: Model,
  num_chunks: int,
  others: tuple[str, ...] = (),
  measure: Callable | None = None,
  prefer: Callable | None = None,
) -> Callable:
  """Returns jitted step(params, batch) -> sums, cached by its arguments."""
  loss = objective_lib.make_loss(
    model, num_chunks, others, None, measure, prefer
  )
  return jax.jit(loss)


def _add(totals: dict[str, Any], sums: dict[str, jax.Array]) -> None:
  """Adds the sums of a batch to totals; gathered arrays are concatenated."""
  for name, value in sums.items():
    if name in GATHERED:
      found = [totals[name]] if name in totals else []
      totals[name] = np.concatenate([*found, np.asarray(value)])
    elif value.ndim:
      totals[name] = totals.get(name, 0) + np.asarray(value, np.int64)
    else:
      totals[name] = totals.get(name, 0.0) + float(value)


def compare(result: dict, tokens: TokenSet, tokenizer) -> list[tuple[str, str]]:
  """Returns rows that compare a result with baselines that need no model.

  The baseline of bits per byte is compressors; of an accuracy, always guessing
  the commonest token or class; of a squared error, always guessing the mean.
  """
  if "majority" in result:
    text = f"{result['accuracy']:.3f}; {result['majority']:.3f} by the "
    return [("accuracy", text + "commonest class")]
  if "variance" in result:
    text = f"{result['loss']:.4f}; {result['variance']:.4f} by the mean"
    return [("squared error", text)]
  if tokens.labels is not None:
    return []
  if "accuracy" in result:
    often = commonest_share(tokens)
    text = f"{result['accuracy']:.3f}; {often:.3f} by the commonest token"
    return [("accuracy", text)]
  if "bits_per_byte" not in result:
    return []
  rows = [("bits per byte", f"{result['bits_per_byte']:.3f}")]
  if tokens.num_bytes <= COMPARED_BYTES:
    ids = tokens.read(0, tokens.num_ids)
    text = tokenizer.decode_bytes(ids[ids != tokenizer.separator_id])
    for name, bits in compressed_bits_per_byte(text).items():
      rows.append((name, f"{bits:.3f} on the same text"))
  return rows


def commonest_share(tokens: TokenSet) -> float:
  """Returns the share of a set's commonest token, separators left out.

  This is the accuracy of always guessing that token. Of pairs only the targets
  are counted, and of dialogues only the answers.
  """
  if tokens.is_paired:
    ids = target_ids(tokens)
  else:
    ids, mask = tokens.read(0, tokens.num_ids), tokens.read_mask()
    ids = ids if mask is None else ids[mask > 0]
  counts = np.bincount(ids[ids != tokens.separator_id])
  return int(np.max(counts)) / max(int(counts.sum()), 1)


def compressed_bits_per_byte(text: bytes) -> dict[str, float]:
  """Returns the bits per byte of a text compressed by zlib -9 and xz -9."""
  import lzma
  import zlib

  # A dictionary as long as the text finds every match that the preset's 64 MiB
  # would. xz needs ten times the dictionary in memory.
  window = min(max(len(text), 1 << 12), 64 << 20)
  best = [{"id": lzma.FILTER_LZMA2, "preset": 9, "dict_size": window}]
  sizes = {
    "zlib -9": len(zlib.compress(text, 9)),
    "xz -9": len(lzma.compress(text, filters=best)),
  }
  return {name: 8 * size / len(text) for name, size in sizes.items()}
