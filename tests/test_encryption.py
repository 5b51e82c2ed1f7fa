"""What is encrypted comes back whole with its key, or a sentence says why."""

import io
import pathlib
import random

import numpy as np
import pytest

from gpt_jax import encryption
from gpt_jax.config import InputError
from gpt_jax.data import chunks, folders, overlap, prepare
from gpt_jax.encryption import BLOCK, HEADER, TAG
from gpt_jax.files import Damage

pytest.importorskip("cryptography")
KEY = encryption.Key(b"k" * 32, "nowhere")
SIZES = (0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK)


def quiet(line: str) -> None:
  del line


def content(size: int) -> bytes:
  return random.Random(size).randbytes(size)


@pytest.mark.parametrize("size", SIZES)
def test_what_is_encrypted_comes_back(size):
  data = content(size)
  stored = encryption.encrypt(data, KEY, "a.bin")
  assert len(stored) == encryption.stored_size(size)
  assert encryption.decrypt(stored, KEY, "a.bin") == data
  assert stored != encryption.encrypt(data, KEY, "a.bin")  # another salt
  if size > 64:
    assert data[:64] not in stored


def test_any_part_can_be_read_alone_and_pieces_do_not_matter():
  data = content(3 * BLOCK + 5)
  file = io.BytesIO()
  writer = encryption.Writer(file, KEY, "a")
  for start in range(0, len(data), 1000):
    writer.write(data[start : start + 1000])
  writer.finish()
  size = file.tell()
  file.seek(0)
  reader = encryption.Reader(file, size, KEY, "a")
  dice = random.Random(0)
  for _ in range(50):
    a, b = sorted(dice.choices(range(len(data) + 9), k=2))
    assert reader.read(a, b) == data[a:b]


def damage(stored: bytes):
  """Yields (name, what someone made of an encrypted file of three blocks)."""
  end = HEADER + BLOCK + TAG
  for place in (0, 9, 30, HEADER, end - 1, end, len(stored) - 1):
    flipped = bytearray(stored)
    flipped[place] ^= 1
    yield f"bit at {place}", bytes(flipped)
  first, second = stored[HEADER:end], stored[end : end + BLOCK + TAG]
  rest = stored[end + BLOCK + TAG :]
  yield "swapped", stored[:HEADER] + second + first + rest
  yield "cut by a block", stored[: end + BLOCK + TAG]
  yield "cut to one block", stored[:end]
  yield "cut in a block", stored[:-3]
  yield "cut in the header", stored[:20]
  yield "no block", stored[:HEADER]
  yield "more", stored + rest
  yield "a block twice", stored[:end] + first + stored[end:]


def test_no_change_of_a_file_goes_unnoticed():
  stored = encryption.encrypt(content(2 * BLOCK + 100), KEY, "a")
  for name, changed in damage(stored):
    with pytest.raises(Damage):
      pytest.fail(f"{name}: {len(encryption.decrypt(changed, KEY, 'a'))}")


def test_another_key_or_name_opens_nothing():
  stored = encryption.encrypt(b"text", KEY, "a")
  for key, name in ((encryption.Key(b"x" * 32, ""), "a"), (KEY, "b")):
    with pytest.raises(Damage, match="another key or under another name"):
      encryption.decrypt(stored, key, name)


@pytest.fixture
def key_file(tmp_path) -> pathlib.Path:
  path = tmp_path / "secret.key"
  path.write_bytes(b"0123456789abcdef")
  return path


TEXTS = [f"document {i} tells of {'rivers ' * (i % 7)}\n" for i in range(60)]


def ids_of(prepared) -> list[np.ndarray]:
  sets = [prepared.train[0][1], prepared.valid["valid"]]
  return [s.read(0, s.num_ids) for s in sets]


def test_an_encrypted_set_holds_the_same_ids(corpus, key_file, tmp_path):
  plain = prepare.prepare_data(corpus(TEXTS), quiet)
  found = []
  for name, size in (("one", 1 << 26), ("two", 1 << 26), ("chunks", 200)):
    with pytest.MonkeyPatch.context() as patch:
      patch.setattr(chunks, "CHUNK_BYTES", size)
      data = corpus(TEXTS, key=str(key_file), dir=str(tmp_path / name))
      made = prepare.prepare_data(data, quiet, num_workers=2)
      prepare.verify_text(data, made)
    found.append(made)
    for one, other in zip(ids_of(plain), ids_of(made), strict=True):
      assert np.array_equal(one, other)
    folders.verify_folder(made.folders[0])
    for path in pathlib.Path(made.folders[0]).glob("*.bin"):
      assert b"document" not in path.read_bytes()
  # The salt is another, and what the set is known by is the same.
  assert found[0].fingerprint == found[1].fingerprint != plain.fingerprint
  assert overlap.count(
    [found[0].train[0][1]], [found[0].valid["valid"]]
  ) == overlap.count([plain.train[0][1]], [plain.valid["valid"]])


def test_a_damaged_encrypted_set_is_one_sentence(corpus, key_file):
  data = corpus(TEXTS, key=str(key_file))
  made = prepare.prepare_data(data, quiet)
  path = pathlib.Path(made.folders[0]) / "train-00000.bin"
  good = path.read_bytes()
  for verify in ("open", "never"):
    for at, what in ((HEADER + 3, "damaged"), (10, "another key")):
      changed = bytearray(good)
      changed[at] ^= 1
      path.write_bytes(changed)
      with pytest.raises(InputError, match=what):
        sets = folders.open_prepared(made.folders[0], verify)
        sets["train"].read(0, 5)
    path.write_bytes(good[:-1])
    with pytest.raises(InputError, match="has .* bytes where its manifest"):
      folders.open_prepared(made.folders[0], verify)
    path.write_bytes(good)
  key_file.write_bytes(b"fedcba9876543210")
  with pytest.raises(InputError, match="was encrypted with key .* gives key"):
    folders.open_prepared(made.folders[0])
  key_file.unlink()
  with pytest.raises(
    InputError, match="is encrypted, and the key file .* does"
  ):
    folders.open_prepared(made.folders[0])


def test_a_key_may_come_from_a_command(key_file, monkeypatch):
  with pytest.raises(InputError, match="GPT_JAX_KEY_COMMAND is not set"):
    encryption.read_key("command")
  monkeypatch.setenv("GPT_JAX_KEY_COMMAND", f"cat {key_file}")
  key = encryption.read_key("command")
  assert key.secret == encryption.read_key(str(key_file)).secret
  # A command stands in for a file that is not there, and for no other key.
  note = {"id": key.id, "origin": "/nowhere/key"}
  assert encryption.find(note, "it") == key
  monkeypatch.setenv("GPT_JAX_KEY_COMMAND", "echo 0123456789abcdefg")
  with pytest.raises(InputError, match="it was encrypted with key"):
    encryption.find(note, "it")
  monkeypatch.setenv("GPT_JAX_KEY_COMMAND", "exit 3")
  with pytest.raises(InputError, match="ended with status 3"):
    encryption.read_key("command")
  key_file.write_bytes(b"short\n")
  with pytest.raises(InputError, match="holds 5 bytes; a key has 16 to 4,096"):
    encryption.read_key(str(key_file))
  key_file.write_bytes(bytes(32))
  with pytest.raises(InputError, match="holds zero bytes alone"):
    encryption.read_key(str(key_file))
