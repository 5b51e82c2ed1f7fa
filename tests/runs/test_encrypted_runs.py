"""Encrypted runs: the same losses, and nothing readable without the key."""

import pathlib
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
from harness import logged
from states import abstract_of, assert_same, keeper_of

from gpt_jax import encryption
from gpt_jax.config import InputError
from gpt_jax.runs import checkpoint, integrity

pytest.importorskip("cryptography")
KEY = encryption.Key(b"k" * 32, "nowhere")


def read_all(folder: pathlib.Path) -> bytes:
  return b"".join(p.read_bytes() for p in folder.rglob("*") if p.is_file())


@pytest.mark.wide
def test_an_encrypted_run_is_the_same_run(small_run, call_verb, tmp_path):
  key_file = tmp_path / "secret.key"
  key_file.write_bytes(b"0123456789abcdef")
  few = ["--config.train.num_steps=8", "--config.checkpoint.every_steps=4"]
  secret = f"--config.data.key={key_file}"

  def train(name: str, *flags):
    words = [*small_run, *few, *flags, f"--workdir={tmp_path / name}"]
    result = call_verb("train", *words)
    assert result.returncode == 0, result.stderr
    return logged(tmp_path / name)

  losses = train("plain")
  assert len(losses) == 8 and train("hidden", secret) == losses
  # From step 4, whose moments come back too.
  shutil.rmtree(tmp_path / "hidden" / "checkpoints" / "8")
  assert train("hidden", secret) == losses
  asked = [f"--workdir={tmp_path / 'plain'}", "--prompt=def ", "--seed=1"]
  plain = call_verb("generate", *asked)
  asked[0] = f"--workdir={tmp_path / 'hidden'}"
  hidden = call_verb("generate", *asked)
  assert hidden.returncode == 0 and hidden.stdout == plain.stdout
  key_file.write_bytes(b"another key of 16 bytes")
  refused = call_verb("generate", *asked)
  assert refused.returncode == 2 and "was encrypted with key" in refused.stderr
  key_file.unlink()
  refused = call_verb("generate", *asked)
  assert refused.returncode == 2 and "is encrypted, and" in refused.stderr


def test_an_encrypted_checkpoint_holds_no_values(tmp_path, monkeypatch):
  # Small arrays lie in an index that is compressed, so this one is large.
  wide = np.random.default_rng(0).normal(size=(64, 256)).astype(np.float32)
  state = {"params": {"w": jnp.asarray(wide), "b": jnp.bfloat16([1, 2, 3])}}
  for key in (None, KEY):
    folder = tmp_path / str(key is None)
    like = keeper_of(str(folder))
    keeper = checkpoint.Checkpointer(
      str(folder), like.checkpoint, like.meta, key=key
    )
    keeper.save(20, state, force=True)
    keeper.close()
    assert (wide[3, :16].tobytes() in read_all(folder)) == (key is None)
  note = integrity.read_meta(str(folder), 20)["encryption"]
  assert note == {"id": KEY.id, "origin": "nowhere"}
  with pytest.raises(InputError, match="step 20 in .* is encrypted, and"):
    keeper_of(str(folder)).restore(abstract_of(state))
  monkeypatch.setattr(encryption, "read_key", lambda origin: KEY)
  assert_same(keeper_of(str(folder)).restore(abstract_of(state))[0], state)
