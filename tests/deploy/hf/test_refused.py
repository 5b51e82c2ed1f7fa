"""Models of the hub's layout that are refused, by a sentence each."""

import json
import pathlib

import jax
import numpy as np
import pytest
from test_hf import (
  GOLDEN,
  bring_in,
  draw,
  letters,
  write_source,
  write_tensors,
)

from gpt_jax.config import InputError
from gpt_jax.deploy.hf import importing, tensors
from gpt_jax.runs import workdir

LONGROPE = dict(
  rope_type="longrope",
  short_factor=[1.0],
  long_factor=[2.0],
  original_max_position_embeddings=32,
)
YARN = dict(rope_type="yarn", factor=2.0, original_max_position_embeddings=9)
BERT_NORM = "bert.embeddings.LayerNorm."


def header_of(path: pathlib.Path, change) -> None:
  """Rewrites a file's header by change(dict or bytes)."""
  data = path.read_bytes()
  size = int.from_bytes(data[:8], "little")
  head = change(json.loads(data[8 : 8 + size]))
  head = head if isinstance(head, bytes) else json.dumps(head).encode()
  path.write_bytes(len(head).to_bytes(8, "little") + head + data[8 + size :])


def drop(head: dict) -> dict:
  del head["model.embed_tokens.weight"]
  return head


def with_entry(**changes):
  def change(head: dict) -> dict:
    head["model.norm.weight"] |= changes
    return head

  return change


HEADERS = {
  "a gap or an overlap": drop,
  "its shape (31,) needs 124": with_entry(shape=[31]),
  "does not describe its tensor 'model.norm": with_entry(shape="x"),
  "'model.norm.weight' as 'I8'": with_entry(dtype="I8"),
  "has the key 'a' twice": lambda head: b'{"a": 1, "a": 2}',
  "is not JSON": lambda head: b"{",
  "no JSON object": lambda head: b"[]",
  "does not describe its tensor 'a'": lambda head: b'{"a": 1}',
}


@pytest.mark.parametrize("sentence", HEADERS)
def test_a_damaged_header_is_one_sentence(sentence, tmp_path):
  source = write_source(tmp_path / "source", "llama")
  header_of(pathlib.Path(source, tensors.WHOLE), HEADERS[sentence])
  refuse(source, tmp_path, sentence)


def refuse(source, tmp_path, sentence: str) -> None:
  with pytest.raises(InputError) as caught:
    importing.import_model(
      str(source), str(tmp_path / "run"), letters(tmp_path)
    )
  assert sentence in str(caught.value), caught.value
  assert "\n" not in str(caught.value)
  left = {path.name for path in tmp_path.iterdir()}
  assert left <= {"source", "letters.json", "elsewhere"}


@pytest.mark.parametrize(
  "change,sentence",
  [
    (lambda a: a.pop("model.norm.weight"), "lacks model.norm.weight"),
    (
      lambda a: a.update({"model.norm.weight": np.ones(31, np.float32)}),
      "model.norm.weight of (31,) where config.json needs (32,)",
    ),
    (
      lambda a: a.update({"model.more": np.ones(1, np.float32)}),
      "holds model.more, which LlamaForCausalLM does not have",
    ),
    (
      lambda a: a.update({"lm_head.weight": np.ones((61, 32), np.float32)}),
      "lm_head.weight, which differs from the embedding",
    ),
  ],
)
def test_tensors_that_do_not_fit_are_named(change, sentence, tmp_path):
  source = pathlib.Path(write_source(tmp_path / "source", "llama"))
  arrays = draw(GOLDEN["llama"]["shapes"])
  change(arrays)
  write_tensors(source, arrays)
  refuse(source, tmp_path, sentence)


LAST = "model.layers.2.mlp.down_proj.weight"


@pytest.mark.parametrize(
  "value,dtype,what",
  [
    (np.nan, "float32", "NaN"),
    (-np.nan, "bfloat16", "NaN"),
    (np.inf, "float16", "infinity"),
    (np.inf, "bfloat16", "infinity"),
    (-np.inf, "float32", "infinity"),
    (-np.inf, "float64", "infinity"),
    (1e300, "float64", "a number that float32 cannot hold"),
  ],
)
def test_a_tensor_that_is_not_finite_is_named(value, dtype, what, tmp_path):
  source = pathlib.Path(write_source(tmp_path / "source", "llama"))
  arrays = draw(GOLDEN["llama"]["shapes"])
  arrays[LAST] = arrays[LAST].astype(dtype)
  arrays[LAST][-1, -1] = value
  write_tensors(source, arrays)
  refuse(source, tmp_path, f"model.safetensors holds {what} in {LAST};")


def test_an_output_matrix_that_is_not_finite_is_no_other_than_the_table(
  tmp_path,
):
  source = pathlib.Path(write_source(tmp_path / "source", "llama"))
  arrays = draw(GOLDEN["llama"]["shapes"])
  table = "model.embed_tokens.weight"
  arrays[table][3, 3] = np.nan
  arrays["lm_head.weight"] = arrays[table]
  write_tensors(source, arrays)
  refuse(source, tmp_path, f"holds NaN in {table}")


@pytest.mark.parametrize(
  "case,changes,sentence",
  [
    ("llama", dict(model_type="lama"), "did you mean llama"),
    ("llama", dict(model_type=None), "has model_type None"),
    ("llama", dict(hidden_act="relu"), "has hidden_act 'relu'"),
    ("llama", dict(attention_bias=True), "has attention_bias True"),
    ("llama", dict(hidden_size="32"), "hidden_size '32'; it must be a number"),
    ("llama", dict(hidden_size=None), "hidden_size None; it must be a number"),
    (
      "llama",
      dict(num_attention_heads=5, head_dim=None),
      "cannot be represented: model.num_heads is 5",
    ),
    (
      "llama",
      dict(rope_parameters=dict(rope_type="ntk", factor=2.0)),
      "rope_scaling of type 'ntk'",
    ),
    (
      "phi3",
      dict(
        rope_parameters=LONGROPE | dict(original_max_position_embeddings=None)
      ),
      "longrope needs a number of positions there",
    ),
    (
      "phi3",
      dict(rope_parameters=LONGROPE),
      "model.rope_scaling has 1 factors of wavelengths, and 8 dims",
    ),
    (
      "phi3",
      dict(rope_parameters=LONGROPE | dict(short_factor=["1"])),
      "short_factor ['1']; it must be a list of numbers",
    ),
    (
      "phi3",
      dict(rope_parameters=LONGROPE | dict(short_factor=[0.0] * 4)),
      "model.rope_scaling is 'longrope:",
    ),
    (
      "llama",
      dict(rope_parameters=YARN | dict(beta_fast=16)),
      "rope_scaling with beta_fast 16",
    ),
    ("llama", dict(rope_parameters=YARN | dict(mscale=-1)), "mscale of -1"),
    ("llama", dict(rope_scaling=YARN), "and another rope_scaling; it must"),
    (
      "llama",
      dict(rope_parameters=YARN | dict(rope_theta=1)),
      "model.rope_theta is 1",
    ),
    (
      "llama",
      dict(rope_parameters=dict(rope_type="linear")),
      "rope_scaling without factor",
    ),
    ("gpt2", dict(activation_function="relu"), "activation_function 'relu'"),
    ("llama", dict(vocab_size=60), "61 tokens and its model 60"),
    ("llama", dict(model_type=["llama"]), "has model_type ['llama']"),
    ("gemma3_text", dict(rope_parameters=3), "rope_scaling 3; it must be"),
    (
      "gemma3_text",
      dict(
        rope_parameters=dict(
          full_attention=dict(rope_type="default", rope_theta=1e6),
          sliding_attention=dict(rope_type="linear", factor=2.0),
        )
      ),
      "sliding_attention of type 'linear'; only those of full_attention can",
    ),
    ("qwen3_moe", dict(norm_topk_prob=None), "norm_topk_prob None"),
    ("qwen3_moe", dict(num_experts_per_tok=1), "has 1 expert per token"),
    ("bert", dict(hidden_act="relu"), "has hidden_act 'relu'"),
    ("olmo2", dict(attention_bias=True), "has attention_bias True"),
    ("deepseek_v2", dict(topk_method="noaux_tc"), "topk_method 'noaux_tc'"),
    ("deepseek_v2_groups", dict(n_group=None), "has n_group None; it must be"),
    ("deepseek_v2_groups", dict(topk_group=0), "router_groups_per_token"),
    (
      "deepseek_v2_groups",
      dict(n_group=3),
      "model.router_groups is 3; it must",
    ),
    ("deepseek_v2_groups", dict(topk_group=1), "1 of 4 groups with 2 experts"),
    ("deepseek_v2_groups", dict(topk_group=5), "5 of 4 groups with 2 experts"),
    ("deepseek_v2", dict(rms_norm_eps=1e-5), "has rms_norm_eps 1e-05"),
    ("deepseek_v2", dict(first_k_dense_replace=3), "leaves none with experts"),
    ("deepseek_v2", dict(qk_nope_head_dim=-1), "qk_nope_head_dim -1"),
    ("gpt_neox", dict(hidden_act="gelu_fast"), "has hidden_act 'gelu_fast'"),
    ("gpt_neox", dict(attention_bias=False), "has attention_bias False"),
    (
      "gpt_neox",
      dict(rope_parameters=dict(partial_rotary_factor=0.1)),
      "rope_frac of the head width must be even; it is 1",
    ),
    (
      "gpt_neox",
      dict(rope_parameters=dict(partial_rotary_factor=1.5)),
      "partial_rotary_factor 1.5, which is not supported",
    ),
    (
      "llama",
      dict(rope_parameters=dict(partial_rotary_factor=0.5)),
      "partial_rotary_factor 0.5, which is not supported",
    ),
    ("roberta", dict(pad_token_id=0), "has pad_token_id 0"),
    (
      "mistral",
      dict(layer_types=["full_attention", "sliding_attention"]),
      "must be sliding_attention, as its sliding_window says",
    ),
    (
      "llama",
      dict(layer_types=["sliding_attention"] * 2),
      "must be full_attention, as its sliding_window says",
    ),
    (
      "modernbert",
      dict(
        rope_parameters=None, rope_scaling=dict(rope_type="linear", factor=2.0)
      ),
      "applies to local layers too",
    ),
    ("t5", dict(dense_act_fn="gelu_new"), "has dense_act_fn 'gelu_new'"),
    ("roberta", dict(max_position_embeddings=2), "max_position_embeddings 2"),
    ("modernbert", dict(norm_bias=True), "has norm_bias True"),
    ("modernbert", dict(local_attention="all"), "local_attention 'all'"),
    ("modernbert", dict(layer_types=["x"] * 4), "has layer_types ['x'"),
    ("gemma2", dict(query_pre_attn_scalar=0), "query_pre_attn_scalar 0"),
    ("gemma2", dict(attn_logit_softcapping="x"), "softcapping 'x'; it must be"),
    ("t5", dict(feed_forward_proj="gated-silu"), "has feed_forward_proj"),
    ("t5", dict(relative_attention_num_buckets=16), "num_buckets 16"),
    ("t5", dict(eos_token_id=None), "has eos_token_id None"),
    ("bart", dict(normalize_before=True), "has normalize_before True"),
    ("bart", dict(decoder_ffn_dim=64), "encoder_ffn_dim 48 and decoder_ffn"),
    ("t5", dict(decoder_start_token_id=61), "token id 61 is outside"),
    ("t5", dict(scale_decoder_outputs=False), "lacks lm_head.weight"),
    ("bert", dict(is_decoder=True), "has is_decoder True"),
    (
      "bert_bare",
      dict(architectures=["BertForMaskedLM"]),
      "lacks cls.predictions.transform.dense.weight",
    ),
    (
      "bert",
      dict(position_embedding_type="relative_key"),
      "has position_embedding_type 'relative_key'",
    ),
    (
      "bert",
      dict(type_vocab_size=129),
      "type_vocab_size 129; it must be at most 64",
    ),
    ("qwen3_moe", dict(decoder_sparse_step=2), "has decoder_sparse_step 2"),
    (
      "mixtral",
      dict(num_local_experts=1000),
      "num_local_experts 1000; it must be at most 20, since the folder holds "
      "60 tensors for 3 layers",
    ),
    (
      "gpt2",
      dict(n_positions=10**9),
      "n_positions 1000000000; it must be at most 128, since no dim of the "
      "folder's tensors is larger than 128",
    ),
  ],
)
def test_what_cannot_be_represented_is_refused(
  case, changes, sentence, tmp_path
):
  refuse(write_source(tmp_path / "source", case, changes), tmp_path, sentence)


def rename(arrays: dict, old: str, new: str) -> None:
  arrays[new] = arrays.pop(old)


@pytest.mark.wide
def test_tensors_of_older_berts_are_read_by_their_names(tmp_path):
  run = bring_in(tmp_path, "bert")
  source, old = tmp_path / "source", tmp_path / "old"
  source.rename(old)
  arrays = draw(GOLDEN["bert"]["shapes"])
  for name in list(arrays):
    for now, then in ((".weight", ".gamma"), (".bias", ".beta")):
      if "LayerNorm" in name and name.endswith(now):
        rename(arrays, name, name.removesuffix(now) + then)
  arrays["bert.embeddings.position_ids"] = np.arange(64)[None]
  write_tensors(old, arrays)
  again = str(tmp_path / "again")
  importing.import_model(str(old), again, letters(tmp_path))
  _, _, params, _, _ = workdir.open_run(run)
  _, _, found, _, _ = workdir.open_run(again)
  for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(found), strict=True):
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
  "change,sentence",
  [
    (
      lambda a: a.update({BERT_NORM + "gamma": a[BERT_NORM + "weight"]}),
      "LayerNorm.gamma and bert.embeddings.LayerNorm.weight, which are one",
    ),
    (
      lambda a: a.update(
        {"cls.predictions.decoder.bias": a["cls.predictions.bias"] + 1}
      ),
      "cls.predictions.decoder.bias, which differs from cls.predictions.bias;",
    ),
    (
      lambda a: a.update({BERT_NORM + "bias": np.arange(32)}),
      "bert.embeddings.LayerNorm.bias of int64, no type of weights",
    ),
  ],
)
def test_tensors_of_a_bert_that_do_not_fit_are_named(
  change, sentence, tmp_path
):
  source = pathlib.Path(write_source(tmp_path / "source", "bert"))
  arrays = draw(GOLDEN["bert"]["shapes"])
  change(arrays)
  write_tensors(source, arrays)
  refuse(source, tmp_path, sentence)


def test_a_bias_of_the_logits_is_refused_unless_it_is_zero(tmp_path):
  source = pathlib.Path(write_source(tmp_path / "source", "bart"))
  arrays = draw(GOLDEN["bart"]["shapes"])
  arrays["final_logits_bias"] = np.zeros((1, 61), np.float32)
  write_tensors(source, arrays)
  importing.import_model(str(source), str(tmp_path / "run"), letters(tmp_path))
  (tmp_path / "run").rename(tmp_path / "elsewhere")
  arrays["final_logits_bias"][0, 60] = 1e-3
  write_tensors(source, arrays)
  refuse(source, tmp_path, "holds final_logits_bias, which is not zero")


@pytest.mark.parametrize("name", importing.SMALL)
def test_what_a_link_leads_to_outside_does_not_get_into_a_run(name, tmp_path):
  source = pathlib.Path(write_source(tmp_path / "source", "llama"))
  (tmp_path / "elsewhere").write_text("{}")
  (source / name).unlink(missing_ok=True)
  (source / name).symlink_to(tmp_path / "elsewhere")
  refuse(source, tmp_path, f"names '{name}', which lies outside of the folder")


def test_files_outside_of_the_folder_are_not_read(tmp_path):
  source = pathlib.Path(write_source(tmp_path / "source", "llama"))
  elsewhere = tmp_path / "elsewhere"
  (source / tensors.WHOLE).rename(elsewhere)
  refuse(source, tmp_path, "holds no model.safetensors")
  (source / tensors.WHOLE).symlink_to(elsewhere)
  refuse(source, tmp_path, "lies outside of the folder")
  (source / tensors.WHOLE).unlink()
  index = {"weight_map": {"model.norm.weight": "../elsewhere"}}
  (source / tensors.INDEX).write_text(json.dumps(index))
  refuse(source, tmp_path, "lies outside of the folder")
  (source / tensors.INDEX).unlink()
  (source / "pytorch_model.bin").write_bytes(b"")
  refuse(source, tmp_path, "a pickle, which can run code")
