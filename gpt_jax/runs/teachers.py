"""Checks that a teacher's run, or its stored logits, suit a student."""

from typing import Any

from gpt_jax import config as config_lib
from gpt_jax.config import Config, InputError, ModelConfig
from gpt_jax.data import logits
from gpt_jax.data.prepare import PreparedData
from gpt_jax.machine import processes
from gpt_jax.runs import bases, restore
from gpt_jax.runs import workdir as workdir_lib


def read_model(config: Config) -> ModelConfig | None:
  """Returns the teacher's model section; None if no teacher model is run.

  Raises:
    InputError: distill.teacher is no run of a decoder that suits this student.
  """
  source, d = config.distill.teacher, config.distill
  if source is None or d.top_k is not None:
    return None
  values = processes.share(lambda: _read_values(source, config))
  return config_lib.freeze(values).model


def _read_values(source: str, config: Config) -> dict:
  """Returns the teacher's config, as JSON so that processes can share it."""
  asked = f"distill.teacher is {source!r}"
  if not restore.list_steps(restore.checkpoints_of(source)):
    raise InputError(
      f"{asked}, which holds no checkpoint; give the workdir of a run that has "
      "saved one"
    )
  run = workdir_lib.read_config(source)
  m = run.model
  if m.family != "decoder" or config_lib.has_classes(m):
    what = f"family {m.family}"
    if config_lib.has_classes(m):
      what = f"head {m.head}, which scores classes"
    raise InputError(
      f"{asked}, a model of {what}; it must be a decoder that scores tokens"
    )
  if run.adapter.rank.parts:
    raise InputError(
      f"{asked}, a run of adapters alone; make it one model first, by python "
      "-m gpt_jax.deploy.merge"
    )
  if m.max_len < config.data.seq_len:
    raise InputError(
      f"{asked}, whose model.max_len is {m.max_len}, and data.seq_len here is "
      f"{config.data.seq_len}; take shorter sequences"
    )
  return workdir_lib.read_values(source)


def check(config: Config, tokenizer: Any) -> None:
  """Raises InputError unless distill.teacher suits a student's run.

  Args:
    config, tokenizer: of the student.
  """
  source = config.distill.teacher
  model = read_model(config)
  if source is None or model is None:
    return
  processes.share(lambda: _check_tokenizer(source, tokenizer))
  if model.vocab_size != config.model.vocab_size:
    raise InputError(
      f"distill.teacher is {source!r}, whose model.vocab_size is "
      f"{model.vocab_size}, and here it is {config.model.vocab_size}; both "
      "must score the same tokens"
    )


def find_stored(
  config: Config, prepared: PreparedData, recorded: bases.Base | None
) -> bases.Base:
  """Returns the entry for stored logits in the record of a run that reads them.

  Args:
    recorded: the entry that the record has already, or None.

  Raises:
    InputError: the logits do not suit this run, or have changed since it began.
  """
  find = lambda: logits.open_logits(config, prepared).digest
  found = bases.Base(0, processes.share(find))
  if recorded is not None and recorded != found:
    raise InputError(
      f"distill.teacher is {config.distill.teacher!r}, whose stored logits "
      f"have changed since the run was begun ({recorded.fingerprint} then, "
      f"{found.fingerprint} now); put those back"
    )
  return found


def _check_tokenizer(source: str, tokenizer) -> None:
  there = workdir_lib.read_tokenizer(source)
  if there.fingerprint() != tokenizer.fingerprint():
    raise InputError(
      f"distill.teacher is {source!r}, which was trained with another "
      f"tokenizer ({there.name}, {there.vocab_size} tokens there; "
      f"{tokenizer.name}, {tokenizer.vocab_size} here); set "
      f"data.tokenizer=hf:{source}/tokenizer.json to have the same vocabulary"
    )
