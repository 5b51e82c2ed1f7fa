"""Which losses may be compared, and in what unit.

Nats per token are comparable only if both runs predict the same tokens of the
same text, from contexts of the same length. If only the text is the same, bits
per byte are comparable; if it is not, no losses are.
"""

from gpt_jax import metric_names
from gpt_jax.config import DataConfig, InputError
from gpt_jax.data import sources, tokenizers
from gpt_jax.lab.sweep.folder import State
from gpt_jax.runs import workdir

NATS, BITS = "nats per token", "bits per byte"


def find_unit(states: list[State]) -> tuple[str, str]:
  """Returns (NATS or BITS, "") for runs that have ended with a loss.

  ("", why) where no unit makes their losses comparable; `why` is a clause.
  """
  names = sorted({s.the_final()[0] for s in states})
  if len(names) > 1:
    return "", f"they end with different losses, {' and '.join(names)}"
  data = [s.the_config().data for s in states]
  marks = [s.record.get("text") for s in states]
  texts = set(marks) if all(marks) else set(map(text_key, data))
  if len(texts) > 1:
    keys = ("source", "valid_source", "split", "valid_frac")
    return "", f"their validation texts differ{_differing(data, keys)}"
  prepared: dict = {}
  for state, one in zip(states, data, strict=True):
    if one.valid_source is None or names == [metric_names.LOSS]:
      found = prepared.setdefault(_tokenizer_key(one), set())
      found.add(workdir.read_record(state.path)["data_fingerprint"])
  if any(len(found) > 1 for found in prepared.values()):
    return "", "their prepared sets differ: the text was changed in between"
  contexts = {(_tokenizer_key(d), d.seq_len, d.packing) for d in data}
  if len(contexts) == 1:
    return NATS, ""
  if any(s.bits is None for s in states):
    keys = ("tokenizer", "seq_len", "packing")
    why = f"their tokens or contexts differ{_differing(data, keys)}"
    return "", f"{why}, and not all have {BITS}"
  return BITS, ""


def value(state: State, unit: str) -> float:
  """Returns a run's final loss in a unit of find_unit."""
  if unit != BITS:
    return state.the_final()[1]
  assert state.bits is not None  # find_unit has checked it
  return state.bits


def text_key(data: DataConfig) -> tuple:
  """Returns the config's values that say which text validates a run.

  Weights of a mixture are left out: they change the training data alone.
  """
  if data.valid_source is not None:
    return (_specs(data.valid_source),)
  return _specs(data.source), data.split, data.valid_frac


def _tokenizer_key(data: DataConfig) -> tuple:
  trained_on = data.source if tokenizers.is_trained(data.tokenizer) else ""
  return data.tokenizer, trained_on


def _specs(mixture: str) -> tuple[str, ...]:
  try:
    return tuple(spec for _, spec in sources.parse_mixture(mixture))
  except InputError:  # a value of another version
    return (mixture,)


def _differing(data: list[DataConfig], keys) -> str:
  found = [k for k in keys if len({getattr(d, k) for d in data}) > 1]
  return f" ({', '.join(f'data.{k}' for k in found)})" if found else ""
