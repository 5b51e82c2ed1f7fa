"""tfds:NAME[:SPLIT]: sets of TensorFlow Datasets, without TensorFlow."""

import glob
import os
import re
from collections.abc import Iterator

from gpt_jax import digest, files
from gpt_jax.data.sources import document
from gpt_jax.data.sources.document import (
  BOM,
  Document,
  first_line,
  kind_of,
  slice_text,
)
from gpt_jax.exits import InputError


class TfdsSource:
  """A TensorFlow Datasets set, read through array_record, without TensorFlow.

  NAME is a registered set, with config and version as TFDS writes them, or the
  folder of a prepared set. A registered set that is not on this machine is
  prepared when its fingerprint is first computed.
  """

  is_divided_by_text = True
  files = ()

  def __init__(self, spec: str, argument: str):
    self.spec = spec
    self._name, self._split = split_name(argument)
    self._found = None

  def fingerprint(self) -> str:
    folder = self._folder()
    # Sizes but no dates, so that a copy of the folder is the same set.
    sizes = [
      (name, os.path.getsize(os.path.join(folder, name)))
      for name in sorted(os.listdir(folder))
      if os.path.isfile(os.path.join(folder, name))
    ]
    return digest.of_json(["tfds", self._split, sizes, _read_info(folder)])

  def num_bytes(self) -> int | None:
    return None

  def documents(self) -> Iterator[Document]:
    tfds = _import_tfds()
    builder = tfds.builder_from_directory(self._folder())
    field = self._text_field(tfds, builder)
    try:
      rows = builder.as_data_source(self._split)
    except Exception as error:  # tfds has no common base class for these
      raise InputError(
        f"{self.spec}: the split {self._split!r} cannot be read ("
        f"{first_line(error)}); there are {', '.join(builder.info.splits)}, "
        "and the files must be array_record"
      ) from None
    for i in range(len(rows)):
      where = f"{self.spec}, record {i}"
      try:
        value = rows[i][field]
      except Exception as error:  # of any class, from array_record or tfds
        raise InputError(
          f"{where} cannot be read: {first_line(error)}"
        ) from None
      text = value if isinstance(value, str) else document.decode(value, where)
      text = text.removeprefix(BOM)
      if text:
        yield Document(f"{self._split}:{i}", slice_text(text))

  def _folder(self) -> str:
    if self._found is None:
      self._found = self._find_folder()
    return self._found

  def _find_folder(self) -> str:
    if os.path.isdir(self._name):
      if not os.path.isfile(os.path.join(self._name, "dataset_info.json")):
        raise InputError(
          f"{self._name} holds no dataset_info.json; tfds:PATH must name the "
          "folder of one version of a prepared set"
        )
      return self._name
    if self._name.startswith((".", "/", "~")):
      raise InputError(f"{self._name} of {self.spec} is not a folder")
    name, _, version = self._name.partition(":")
    home = os.path.expanduser("~/tensorflow_datasets")
    root = os.path.join(home, *name.split("/"))
    infos = glob.glob(
      os.path.join(glob.escape(root), version or "*", "dataset_info.json")
    )
    folders = sorted((os.path.dirname(i) for i in infos), key=_version_key)
    return folders[-1] if folders else self._prepare()

  def _prepare(self) -> str:
    tfds = _import_tfds()
    try:
      builder = tfds.builder(self._name, file_format="array_record")
      builder.download_and_prepare()
    except Exception as error:  # of any class: network, checksum, registry
      raise InputError(
        f"tfds cannot prepare {self._name!r}: {first_line(error)}; give the "
        "folder of a prepared set (tfds:PATH) where there is no network"
      ) from None
    return str(builder.data_path)

  def _text_field(self, tfds, builder) -> str:
    features = builder.info.features
    if "text" in features:
      return "text"
    for name, feature in features.items():
      if isinstance(feature, tfds.features.Text):
        return name
    raise InputError(
      f"{self.spec} has no text; its features are {', '.join(features)}"
    )


def split_name(argument: str) -> tuple[str, str]:
  """Returns (NAME, SPLIT) of NAME[:SPLIT]; NAME may end in a version."""
  argument = files.user_path("data.source", argument)
  if os.path.isdir(argument):
    return argument, "train"
  # A colon inside brackets belongs to a slice, as in train[:10%].
  match = re.fullmatch(r"(.+?):((?:[^:/\[\]]|\[[^\]]*\])*)", argument)
  if not match or re.fullmatch(r"\d+\.\d+\.\d+", match[2]):
    return argument, "train"
  return match[1], match[2] or "train"


def _version_key(folder: str) -> tuple:
  numbers = re.findall(r"\d+", os.path.basename(folder))
  return tuple(map(int, numbers)), folder


def _read_info(folder: str) -> list[str]:
  path = os.path.join(folder, "dataset_info.json")
  try:
    info = files.read_json(path)
  except files.Damage as damage:
    raise InputError(f"{path} {damage}; prepare the set again") from None
  if not isinstance(info, dict):
    raise InputError(f"{path} is {kind_of(info)}; it must be an object")
  return [str(info[key]) for key in ("name", "version") if key in info]


def _import_tfds():
  try:
    import tensorflow_datasets
  except ImportError as error:
    raise InputError(
      f"tfds: sources need tensorflow-datasets ({error}); in the folder of "
      f"this project, install it with {files.pip()}"
    ) from None
  return tensorflow_datasets
