"""Sets of TensorFlow Datasets."""

import sys

import numpy as np
import pytest

from gpt_jax.config import InputError
from gpt_jax.data import sources
from gpt_jax.data.sources import hosted


def read(spec: str) -> dict[str, str]:
  found = sources.open_source(spec).documents()
  return {d.name: "".join(d.pieces) for d in found}


@pytest.fixture(scope="module")
def tfds_folder(tmp_path_factory):
  tfds = pytest.importorskip("tensorflow_datasets")

  class SmallText(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
      features = {"label": tfds.features.Scalar(np.int64)}
      features["body"] = tfds.features.Text()
      return tfds.core.DatasetInfo(
        builder=self, features=tfds.features.FeaturesDict(features)
      )

    def _split_generators(self, dl_manager):
      return {"train": self._generate_examples()}

    def _generate_examples(self):
      for i in range(20):
        yield i, {"label": i, "body": f"document {i} 國"}

  root = tmp_path_factory.mktemp("tfds")
  builder = SmallText(data_dir=str(root), file_format="array_record")
  builder.download_and_prepare()
  return str(builder.data_path)


def test_tfds_folders_are_read_without_tensorflow(tfds_folder):
  documents = read(f"tfds:{tfds_folder}")
  assert sorted(documents.values()) == sorted(
    f"document {i} 國" for i in range(20)
  )
  assert len(read(f"tfds:{tfds_folder}:train[:25%]")) == 5
  assert "tensorflow" not in sys.modules
  with pytest.raises(InputError, match="split 'other' .*; there are train"):
    read(f"tfds:{tfds_folder}:other")


def test_tfds_folders_are_known_by_their_content(tfds_folder, tmp_path):
  source = sources.open_source(f"tfds:{tfds_folder}")
  half = sources.open_source(f"tfds:{tfds_folder}:train[:50%]")
  assert source.fingerprint() != half.fingerprint()
  with pytest.raises(InputError, match="no dataset_info.json"):
    sources.open_source(f"tfds:{tmp_path}").fingerprint()
  with pytest.raises(InputError, match="is not a folder"):
    sources.open_source("tfds:/nowhere").fingerprint()


def test_names_keep_their_version_and_give_their_split():
  split = hosted.split_name
  assert split("lm1b") == ("lm1b", "train")
  assert split("lm1b:test") == ("lm1b", "test")
  assert split("lm1b:1.1.0") == ("lm1b:1.1.0", "train")
  sliced = "train[:9%]+test[5:]"
  assert split(f"/a/1.0.0:{sliced}") == ("/a/1.0.0", sliced)
  assert split("lm1b:1.1.0:test") == ("lm1b:1.1.0", "test")
